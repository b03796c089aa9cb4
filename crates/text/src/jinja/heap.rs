//! What a render may spend, what changes while it runs, and how values are printed.

use super::lexer::escaped;
use super::value::{Text, Value, View};
use super::{Error, Result};
use std::cell::Cell;
use std::sync::Arc;

/// Bytes that are made for one step of the budget.
const BYTES_A_STEP: usize = 64;
/// How deep a value is printed: namespaces may hold themselves.
const MAX_PRINTED: usize = 500;

/// The budget and the objects of one render.
#[derive(Default)]
pub(crate) struct Heap {
    left: Cell<usize>,
    pub(crate) objects: Vec<Object>,
}

/// What has a state.
pub(crate) enum Object {
    /// Attributes, in the order in which they came.
    Namespace(Vec<(Arc<str>, Value)>),
    /// What can be gone through once.
    Iterator(Vec<Value>),
    /// One whose items are made when it is gone through: a filter, its value and its arguments.
    Pending(&'static str, Value, super::call::Args),
    Cycler(Vec<Value>, usize),
    /// A separator, and whether it was asked for before.
    Joiner(Value, bool),
}

impl Heap {
    pub(crate) fn new(steps: usize) -> Self {
        Self { left: Cell::new(steps), objects: Vec::new() }
    }

    /// Spends so many steps, before they are made.
    pub(crate) fn step(&self, count: usize) -> Result<()> {
        match self.left.get().checked_sub(count) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(Error::budget())
            }
        }
    }

    /// Spends what so many bytes cost, before they are allocated or read.
    pub(crate) fn bytes(&self, count: usize) -> Result<()> {
        self.step(count / BYTES_A_STEP + 1)
    }

    /// What may be repeated so often, of so many bytes each.
    pub(crate) fn repeated(&self, text: &str, times: usize) -> Result<String> {
        self.bytes(text.len().saturating_mul(times))?;
        Ok(text.repeat(times))
    }

    pub(crate) fn object(&mut self, object: Object) -> Result<Value> {
        self.step(4)?;
        self.objects.push(object);
        Ok(Value::Object(self.objects.len() - 1))
    }

    pub(crate) fn iterator(&mut self, values: Vec<Value>) -> Result<Value> {
        self.object(Object::Iterator(values))
    }

    /// Python's `str`.
    pub(crate) fn text(&self, value: &Value) -> Result<Arc<str>> {
        match value {
            Value::Text(text) => Ok(text.text.clone()),
            _ => {
                let mut out = String::new();
                self.print(value, &mut out)?;
                Ok(out.into())
            }
        }
    }

    /// Appends Python's `str`.
    pub(crate) fn print(&self, value: &Value, out: &mut String) -> Result<()> {
        match value {
            Value::Undefined(_) => Ok(()),
            Value::Text(text) => {
                self.bytes(text.text.len())?;
                out.push_str(&text.text);
                Ok(())
            }
            _ => self.repr(value, out, 0),
        }
    }

    /// Python's `repr`.
    pub(crate) fn shown(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        self.repr(value, &mut out, 0)?;
        Ok(out)
    }

    fn repr(&self, value: &Value, out: &mut String, depth: usize) -> Result<()> {
        if depth > MAX_PRINTED {
            return Err(Error::budget());
        }
        self.step(1)?;
        match value {
            Value::Undefined(_) => out.push_str("Undefined"),
            Value::None => out.push_str("None"),
            Value::Bool(true) => out.push_str("True"),
            Value::Bool(false) => out.push_str("False"),
            Value::Integer(number) => out.push_str(&number.to_string()),
            Value::Float(number) => out.push_str(&float(*number)),
            Value::Text(text) => self.quoted(text, out)?,
            Value::List(items) => self.bracketed(&items.values, "[]", out, depth)?,
            Value::Tuple(items) => {
                self.bracketed(&items.values, "()", out, depth)?;
                if items.values.len() == 1 {
                    out.insert(out.len() - 1, ',');
                }
            }
            Value::Map(map) => self.pairs(&map.entries, out, depth)?,
            Value::Range(range) => {
                out.push_str(&format!("range({}, {}", range.start, range.stop));
                if range.step != 1 {
                    out.push_str(&format!(", {}", range.step));
                }
                out.push(')');
            }
            Value::View(view, map) => {
                let name = match view {
                    View::Keys => "dict_keys(",
                    View::Values => "dict_values(",
                    View::Items => "dict_items(",
                };
                out.push_str(name);
                self.bracketed(&map.viewed(*view, self)?, "[]", out, depth)?;
                out.push(')');
            }
            Value::Object(id) => self.object_shown(*id, out, depth)?,
            Value::Macro(_, name) if name.is_empty() => out.push_str("<Macro anonymous>"),
            Value::Macro(_, name) => {
                out.push_str(&format!("<Macro {}>", self.shown(&(&**name).into())?));
            }
            Value::Loop(_) => out.push_str("<LoopContext>"),
            Value::Method(method) => {
                let (value, name) = &**method;
                out.push_str(&format!("<built-in method {name} of {} object>", value.kind()));
            }
            Value::Function(name) => out.push_str(&format!("<function {name}>")),
        }
        Ok(())
    }

    fn object_shown(&self, id: usize, out: &mut String, depth: usize) -> Result<()> {
        match self.objects.get(id) {
            Some(Object::Namespace(attributes)) => {
                let entries: Vec<_> = attributes
                    .iter()
                    .map(|(name, value)| ((&**name).into(), value.clone()))
                    .collect();
                out.push_str("<Namespace ");
                self.pairs(&entries, out, depth + 1)?;
                out.push('>');
            }
            Some(Object::Cycler(..)) => out.push_str("<Cycler object>"),
            Some(Object::Joiner(..)) => out.push_str("<Joiner object>"),
            _ => out.push_str("<generator object>"),
        }
        Ok(())
    }

    fn bracketed(&self, all: &[Value], pair: &str, out: &mut String, depth: usize) -> Result<()> {
        let (open, close) = pair.split_at(1);
        out.push_str(open);
        for (i, value) in all.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            self.repr(value, out, depth + 1)?;
        }
        out.push_str(close);
        Ok(())
    }

    fn pairs(&self, all: &[(Value, Value)], out: &mut String, depth: usize) -> Result<()> {
        out.push('{');
        for (i, (key, value)) in all.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            self.repr(key, out, depth + 1)?;
            out.push_str(": ");
            self.repr(value, out, depth + 1)?;
        }
        out.push('}');
        Ok(())
    }

    fn quoted(&self, text: &Text, out: &mut String) -> Result<()> {
        // An escape takes up to four bytes for one, five for a character of two.
        let plain = text.text.bytes().all(|b| (b' '..=b'~').contains(&b));
        self.bytes(text.text.len().saturating_mul(if plain { 1 } else { 4 }))?;
        let single = text.text.contains('\'') && !text.text.contains('"');
        let quote = if single { '"' } else { '\'' };
        if text.safe {
            out.push_str("Markup(");
        }
        out.push(quote);
        for c in text.text.chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                c if c == quote => out.extend(['\\', c]),
                c if is_printable(c) => out.push(c),
                c => out.push_str(&escaped(c)),
            }
        }
        out.push(quote);
        if text.safe {
            out.push(')');
        }
        Ok(())
    }
}

/// Whether Python prints a character as it is.
pub(crate) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // Rust and Python go by the same categories. Marks that join the character before them are
    // escaped only where there is none.
    let mut held = [0; 8];
    held[0] = b'a';
    let end = 1 + c.encode_utf8(&mut held[1..]).len();
    std::str::from_utf8(&held[..end]).is_ok_and(|text| text.escape_debug().count() == 2)
}

/// Python's `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number < 0.0 { "-inf".into() } else { "inf".into() };
    }
    let mut scientific = format!("{number:e}");
    // Of two shortest texts that are as near, Python takes the even one.
    let places = scientific.bytes().take_while(|b| *b != b'e').filter(u8::is_ascii_digit).count();
    let even = format!("{number:.*e}", places.saturating_sub(1));
    if even.parse() == Ok(number) {
        scientific = even;
    }
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent if (-4..16).contains(&exponent) => {
            let after = usize::try_from(places as i32 - 1 - exponent).unwrap_or(0);
            format!("{number:.*}", after.max(1))
        }
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}
