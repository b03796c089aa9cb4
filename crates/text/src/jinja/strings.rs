//! Methods of Python's `str`.

use super::call::{Args, count, needed, string, whole};
use super::heap::{Heap, is_printable};
use super::interpreter::Interpreter;
use super::lexer::is_space;
use super::ops;
use super::value::{Text, Value};
use super::{Error, Result};

impl Interpreter<'_> {
    pub(super) fn text_method(
        &mut self,
        text: &Text,
        name: &'static str,
        args: Args,
    ) -> Result<Value> {
        self.heap.bytes(text.text.len())?;
        let same = |made: String| Value::Text(Text { text: made.into(), safe: text.safe });
        if let Some(made) = cased(&text.text, name) {
            let [] = args.in_order(name)?;
            return Ok(same(made));
        }
        if let Some(holds) = holds(&text.text, name) {
            let [] = args.in_order(name)?;
            return Ok(Value::Bool(holds));
        }
        let (receiver, text) = (text, &text.text);
        match name {
            "strip" | "lstrip" | "rstrip" => {
                let [chars] = args.in_order(name)?;
                let chars = chars.filter(|c| !c.is_none());
                let chars = chars.as_ref().map(|c| string(c, name)).transpose()?;
                Ok(same(stripped(&self.heap, text, name, chars)?.to_owned()))
            }
            "split" | "rsplit" => {
                let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
                let most = whole(most.as_ref(), -1)?;
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                let separator = separator.filter(|s| !s.is_none());
                let parts = match &separator {
                    None => {
                        self.heap.step(text.chars().filter(|c| is_space(*c)).count())?;
                        words(text, most, name == "rsplit")
                    }
                    Some(separator) => {
                        let separator = string(separator, name)?;
                        self.heap.step(text.matches(separator).count())?;
                        split(text, separator, most, name == "rsplit")?
                    }
                };
                let parts = parts.into_iter().map(|part| same(part.to_owned())).collect();
                self.heap.list(parts)
            }
            "splitlines" => {
                let [keep] = args.bind(name, ["keepends"])?;
                self.heap.step(text.chars().filter(|c| ends_line(*c)).count())?;
                let lines = lines(text, keep.is_some_and(|keep| keep.is_true()));
                self.heap.list(lines.into_iter().map(|line| same(line.to_owned())).collect())
            }
            "join" => {
                let [parts] = args.in_order(name)?;
                let parts = self.iterate(&needed(parts, name)?)?;
                let mut made = String::new();
                for (i, part) in parts.iter().enumerate() {
                    // What is safe escapes whatever it joins.
                    let escaped;
                    let part = match receiver.safe {
                        true => {
                            escaped = made_safe(&self.heap, part)?.into();
                            &escaped
                        }
                        false => part,
                    };
                    let Value::Text(part) = part else {
                        let kind = part.kind();
                        let rule = format!("sequence item {i}: expected str, {kind} found");
                        return Err(Error::failed(rule));
                    };
                    self.heap.bytes(part.text.len() + text.len())?;
                    made.push_str(if i > 0 { text } else { "" });
                    made.push_str(&part.text);
                }
                Ok(same(made))
            }
            "replace" => {
                let [old, new, most] = args.in_order(name)?;
                let (old, new) = (needed(old, name)?, needed(new, name)?);
                let most = whole(most.as_ref(), -1)?;
                let (old, new) = (string(&old, name)?, string(&new, name)?);
                replaced(&self.heap, text, old, new, most).map(same)
            }
            "format" => self.format(text, &args).map(same),
            "format_map" => {
                let [map] = args.in_order(name)?;
                let Value::Map(map) = needed(map, name)? else {
                    return Err(Error::failed("format_map: a mapping is required"));
                };
                let named = map.entries.iter().filter_map(|(key, value)| match key {
                    Value::Text(key) => Some((key.text.clone(), value.clone())),
                    _ => None,
                });
                let args = Args { positional: Vec::new(), named: named.collect() };
                self.format(text, &args).map(same)
            }
            "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => {
                padded(&self.heap, text, name, args).map(same)
            }
            "partition" | "rpartition" => {
                let [separator] = args.in_order(name)?;
                let separator = needed(separator, name)?;
                let parts = partition(text, string(&separator, name)?, name == "rpartition")?;
                self.heap.tuple(parts.map(|part| same(part.to_owned())).to_vec())
            }
            "removeprefix" | "removesuffix" => {
                let [part] = args.in_order(name)?;
                let part = needed(part, name)?;
                let part = string(&part, name)?;
                let rest = match name {
                    "removeprefix" => text.strip_prefix(part),
                    _ => text.strip_suffix(part),
                };
                Ok(same(rest.unwrap_or(text).to_owned()))
            }
            "encode" | "translate" | "maketrans" => {
                Err(Error::failed(format!("str.{name} is not known here")))
            }
            _ => self.searched(text, name, args),
        }
    }

    /// `find` and its kin, which take a part of the text.
    fn searched(&mut self, text: &str, name: &str, args: Args) -> Result<Value> {
        let [part, start, stop] = args.in_order(name)?;
        let part = needed(part, name)?;
        let at = |bound: Option<Value>| -> Result<Option<i128>> {
            let bound = bound.filter(|b| !b.is_none());
            bound.map(|b| whole(Some(&b), 0)).transpose()
        };
        let window = window(text, at(start)?, at(stop)?);
        if matches!(name, "startswith" | "endswith") {
            let single = [part];
            let parts = match &single[0] {
                Value::Tuple(items) => &items.values[..],
                _ => &single[..],
            };
            for part in parts {
                let part = string(part, name)?;
                let holds = window.is_some_and(|(_, text)| match name {
                    "startswith" => text.starts_with(part),
                    _ => text.ends_with(part),
                });
                if holds {
                    return Ok(Value::Bool(true));
                }
            }
            return Ok(Value::Bool(false));
        }
        let part = string(&part, name)?;
        if name == "count" {
            let count = window.map_or(0, |(_, text)| match part {
                "" => text.chars().count() + 1,
                part => text.matches(part).count(),
            });
            return Ok(Value::Integer(count as i128));
        }
        let found = window.and_then(|(before, text)| {
            let at = if name.starts_with('r') { text.rfind(part) } else { text.find(part) };
            at.map(|at| before + text[..at].chars().count())
        });
        match found {
            Some(at) => Ok(Value::Integer(at as i128)),
            None if name.ends_with("index") => Err(Error::failed("substring not found")),
            None => Ok(Value::Integer(-1)),
        }
    }
}

/// A part of the text, and how many characters are before it.
fn window(text: &str, start: Option<i128>, stop: Option<i128>) -> Option<(usize, &str)> {
    if start.is_none() && stop.is_none() {
        return Some((0, text));
    }
    let length = text.chars().count() as i128;
    let place = |at: i128| if at < 0 { at.saturating_add(length).max(0) } else { at };
    let (start, stop) = (place(start.unwrap_or(0)), place(stop.unwrap_or(length)).min(length));
    if start > stop {
        return None;
    }
    let byte = |at: i128| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte)
    };
    Some((usize::try_from(start).unwrap_or(0), &text[byte(start)..byte(stop)]))
}

/// The first letter of a word.
fn capital(c: char) -> String {
    let mut upper = c.to_uppercase();
    let first: String = upper.by_ref().take(1).collect();
    first + &upper.flat_map(char::to_lowercase).collect::<String>()
}

pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(capital).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

/// Methods that write the letters otherwise.
fn cased(text: &str, name: &str) -> Option<String> {
    Some(match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" => text.to_lowercase().replace('\u{df}', "ss"),
        "capitalize" => capitalized(text),
        "swapcase" => text
            .chars()
            .flat_map(|c| match c.is_uppercase() {
                true => c.to_lowercase().collect::<Vec<_>>(),
                false => c.to_uppercase().collect(),
            })
            .collect(),
        "title" => {
            let mut within = false;
            let word = |c: char| {
                let made = if within { c.to_lowercase().collect::<String>() } else { capital(c) };
                within = is_cased(c);
                made
            };
            text.chars().map(word).collect()
        }
        _ => return None,
    })
}

/// Where decimal digits of other scripts begin, ten each.
const DIGITS: [u32; 37] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66,
    0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
    0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
];

fn is_decimal(c: char) -> bool {
    DIGITS.iter().any(|zero| (*zero..*zero + 10).contains(&(c as u32)))
}

fn is_digit(c: char) -> bool {
    let raised = matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}' | '\u{2074}'..='\u{2079}');
    is_decimal(c) || raised || ('\u{2080}'..='\u{2089}').contains(&c)
}

/// Methods that say whether something holds of a text.
fn holds(text: &str, name: &str) -> Option<bool> {
    let all = |holds: fn(char) -> bool| !text.is_empty() && text.chars().all(holds);
    Some(match name {
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isnumeric" => all(char::is_numeric),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(is_printable),
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        "isidentifier" => {
            let rest = |c: char| c == '_' || c.is_alphanumeric();
            text.starts_with(|c: char| c == '_' || c.is_alphabetic()) && text.chars().all(rest)
        }
        "istitle" => {
            let (mut within, mut any) = (false, false);
            let fits = text.chars().all(|c| {
                let fits = if c.is_uppercase() { !within } else { within || !c.is_lowercase() };
                within = is_cased(c);
                any |= within;
                fits
            });
            fits && any
        }
        _ => return None,
    })
}

pub(super) fn stripped<'t>(
    heap: &Heap,
    text: &'t str,
    name: &str,
    chars: Option<&str>,
) -> Result<&'t str> {
    if let Some(chars) = chars {
        heap.bytes(text.len().saturating_mul(chars.len()) / 16)?;
    }
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(strips) };
    Ok(if name == "lstrip" { text } else { text.trim_end_matches(strips) })
}

fn split<'t>(text: &'t str, separator: &str, most: usize, last: bool) -> Result<Vec<&'t str>> {
    if separator.is_empty() {
        return Err(Error::failed("empty separator"));
    }
    let most = most.saturating_add(1);
    if !last {
        return Ok(text.splitn(most, separator).collect());
    }
    let mut parts: Vec<&str> = text.rsplitn(most, separator).collect();
    parts.reverse();
    Ok(parts)
}

/// The words between white space.
pub(super) fn words(text: &str, most: usize, last: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_matches(is_space);
    if !last {
        rest = text.trim_start_matches(is_space);
    }
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        if last {
            let cut = rest.char_indices().rev().find(|(_, c)| is_space(*c));
            let after = cut.map_or(0, |(at, c)| at + c.len_utf8());
            parts.push(&rest[after..]);
            rest = rest[..after].trim_end_matches(is_space);
        } else {
            let end = rest.find(is_space).unwrap_or(rest.len());
            parts.push(&rest[..end]);
            rest = rest[end..].trim_start_matches(is_space);
        }
    }
    if last {
        // What is left over keeps the white space before it, as there.
        if parts.len() > most
            && let Some(first) = parts.last_mut()
        {
            let end = text.find(*first).unwrap_or(0) + first.len();
            *first = &text[..end];
        }
        parts.reverse();
    }
    parts
}

fn ends_line(c: char) -> bool {
    let more = matches!(c, '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}');
    more || matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}')
}

/// The lines of a text, with their ends if `keep`.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.find(ends_line).unwrap_or(rest.len());
        let end = match &rest[at..] {
            after if after.starts_with("\r\n") => at + 2,
            after => at + after.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    lines
}

pub(super) fn replaced(
    heap: &Heap,
    text: &str,
    old: &str,
    new: &str,
    most: i128,
) -> Result<String> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    heap.bytes(text.len())?;
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    heap.bytes(found.min(most).saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(text.replacen(old, new, most))
}

fn partition<'t>(text: &'t str, separator: &'t str, last: bool) -> Result<[&'t str; 3]> {
    if separator.is_empty() {
        return Err(Error::failed("empty separator"));
    }
    let cut = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
    Ok(match cut {
        Some((before, after)) => [before, separator, after],
        None if last => ["", "", text],
        None => [text, "", ""],
    })
}

/// Text that is made as wide as it should be.
fn padded(heap: &Heap, text: &str, name: &str, args: Args) -> Result<String> {
    if name == "expandtabs" {
        let [size] = args.bind(name, ["tabsize"])?;
        let size = count(size.as_ref(), 8)?;
        let tabs = text.matches('\t').count();
        heap.bytes(tabs.saturating_mul(size).saturating_add(text.len()))?;
        let (mut made, mut column) = (String::new(), 0);
        for c in text.chars() {
            match c {
                '\t' if size > 0 => {
                    let width = size - column % size;
                    made.push_str(&" ".repeat(width));
                    column += width;
                }
                '\t' => {}
                c => {
                    made.push(c);
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                }
            }
        }
        return Ok(made);
    }
    let [width, fill] = args.in_order(name)?;
    let width = needed(width, name)?;
    let missing = count(Some(&width), 0)?.saturating_sub(text.chars().count());
    let fill = fill.unwrap_or_else(|| " ".into());
    let fill = string(&fill, name)?;
    if fill.chars().count() != 1 {
        return Err(Error::failed("The fill character must be exactly one character long"));
    }
    heap.bytes(text.len())?;
    let pad = |n: usize| heap.repeated(fill, n);
    Ok(match name {
        "zfill" => {
            let sign = usize::from(text.starts_with(['-', '+']));
            format!("{}{}{}", &text[..sign], heap.repeated("0", missing)?, &text[sign..])
        }
        "ljust" => format!("{text}{}", pad(missing)?),
        "rjust" => format!("{}{text}", pad(missing)?),
        _ => centered(heap, text, count(Some(&width), 0)?, fill)?,
    })
}

pub(super) fn centered(heap: &Heap, text: &str, width: usize, fill: &str) -> Result<String> {
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    let pad = |n: usize| heap.repeated(fill, n);
    Ok(format!("{}{text}{}", pad(left)?, pad(missing - left)?))
}

/// A value as a string: what is safe stays so.
pub(super) fn soft(heap: &Heap, value: &Value) -> Result<Text> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        _ => Ok(Text { text: heap.text(value)?, safe: false }),
    }
}

/// Escapes what is not safe.
pub(super) fn made_safe(heap: &Heap, value: &Value) -> Result<String> {
    let text = soft(heap, value)?;
    if text.safe { Ok(text.text.to_string()) } else { ops::escaped(heap, &text.text) }
}
