//! The settings of a recipe, held to what they may be, and where in its text one is wrong.

use crate::refusal::Refusal;
use crate::spelling::as_spelled;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// A key, and what holds its value to what it may be.
#[derive(Clone, Copy)]
pub struct Key {
    name: &'static str,
    check: fn(&Value) -> Result<(), String>,
}

impl Key {
    /// A key of this name.
    pub const fn new(name: &'static str, check: fn(&Value) -> Result<(), String>) -> Self {
        Self { name, check }
    }
}

/// A setting that is not what it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The keys that lead to it; a number, from 0, for one of a list.
    pub at: Vec<String>,
    /// What must hold and does not.
    pub rule: String,
}

impl Wrong {
    /// The same, in something of these keys.
    pub fn within(self, outer: impl IntoIterator<Item = String>) -> Self {
        Self { at: outer.into_iter().chain(self.at).collect(), ..self }
    }

    /// What is said of it, with the line that it has in a recipe's text.
    pub fn in_text(&self, text: &str) -> Refusal {
        let spelled = toml::from_str(text).map(|table| as_spelled(&self.at, &table));
        let wrong = Self { at: spelled.unwrap_or(self.at.clone()), rule: self.rule.clone() };
        let refusal = Refusal::from(wrong.clone());
        match wrong.line(text) {
            Some(line) => Refusal { what: format!("line {line}, {}", refusal.what), ..refusal },
            None => refusal,
        }
    }

    /// The line, from 1, on which the setting stands, or what it should be a part of.
    fn line(&self, text: &str) -> Option<usize> {
        let table = DeTable::parse(text).ok()?;
        let mut found = None;
        let mut value: Option<&DeValue<'_>> = None;
        for part in &self.at {
            let next = match value {
                None => key(table.get_ref(), part),
                Some(DeValue::Table(inner)) => key(inner, part),
                Some(DeValue::Array(all)) => {
                    let item = part.parse().ok().and_then(|n: usize| all.get(n));
                    item.map(|item| (item.span().start, item.get_ref()))
                }
                Some(_) => None,
            };
            let Some((start, inner)) = next else { break };
            (found, value) = (Some(start), Some(inner));
        }
        found.map(|start| line_at(text, start))
    }
}

/// Where a key stands, and its value.
fn key<'a>(table: &'a DeTable<'_>, name: &str) -> Option<(usize, &'a DeValue<'a>)> {
    let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == name)?;
    Some((key.span().start, value.get_ref()))
}

impl From<Wrong> for Refusal {
    fn from(wrong: Wrong) -> Self {
        let mut words: Vec<String> = Vec::new();
        for part in wrong.at {
            match (words.last_mut(), part.parse::<usize>()) {
                // People count from one.
                (Some(list), Ok(number)) => list.push_str(&format!(" {}", number + 1)),
                _ => words.push(part),
            }
        }
        let what = if words.is_empty() { "recipe".into() } else { words.join(", ") };
        Self { what, rule: wrong.rule }
    }
}

/// The line, from 1, of a byte of a text.
pub(crate) fn line_at(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// Holds a table to its keys.
///
/// # Errors
/// The first key that is unknown, or whose value is not what it may be.
pub fn check_keys(table: &Table, keys: &[Key]) -> Result<(), Wrong> {
    for (name, value) in table {
        let wrong = |rule| Wrong { at: vec![name.clone()], rule };
        match keys.iter().find(|key| key.name == name) {
            None => {
                let all: Vec<&str> = keys.iter().map(|key| key.name).collect();
                return Err(wrong(format!("is unknown; the keys here are {}", all.join(", "))));
            }
            Some(key) => (key.check)(value).map_err(wrong)?,
        }
    }
    Ok(())
}

/// One of some words.
///
/// # Errors
/// If it is none of them.
pub fn one_of(value: &Value, words: &[&str]) -> Result<(), String> {
    let shown: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let all = match &shown[..] {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        all => all.concat(),
    };
    match value.as_str() {
        Some(word) if words.contains(&word) => Ok(()),
        Some(word) => Err(format!("{word:?} is not {all}")),
        None => Err(format!("is {all}, in quotes")),
    }
}

/// A whole number from `least` to `most`.
///
/// # Errors
/// If it is none.
pub fn integer(value: &Value, least: i64, most: i64) -> Result<(), String> {
    match value.as_integer() {
        Some(n) if (least..=most).contains(&n) => Ok(()),
        Some(n) => Err(format!("{n} is not {least} to {most}")),
        None => Err(format!("is a whole number, {least} to {most}")),
    }
}

/// `true` or `false`.
///
/// # Errors
/// If it is neither.
pub fn boolean(value: &Value) -> Result<(), String> {
    value.as_bool().map(drop).ok_or("is true or false".into())
}
