//! The `tojson` filter of chat templates: Python's `json.dumps`, as transformers calls it.

use super::call::Args;
use super::heap::{self, Heap};
use super::value::{Map, Value};
use super::{Error, Result, ops};
use std::fmt::Write;

/// Writes `value` as `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` does; all
/// but the value may be left out.
pub(super) fn dumped(heap: &Heap, value: &Value, args: Args) -> Result<String> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = args.bind("tojson", names)?;
    let indent = match indent.filter(|i| !i.is_none()) {
        None => None,
        Some(Value::Text(text)) => Some(text.text.to_string()),
        Some(width) => {
            let width = width.integer().filter(|n| *n <= 64);
            let width = width.ok_or_else(|| wrong("tojson: indent is at most 64"))?;
            Some(" ".repeat(usize::try_from(width).unwrap_or(0)))
        }
    };
    let separators = match separators.filter(|s| !s.is_none()) {
        Some(pair) => match pair.items() {
            Some([Value::Text(item), Value::Text(key)]) => {
                (item.text.to_string(), key.text.to_string())
            }
            _ => return Err(wrong("tojson: separators is a pair of strings")),
        },
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let flag = |value: Option<Value>| value.is_some_and(|v| v.is_true());
    let (ascii, sort) = (flag(ascii), flag(sort));
    let mut dump = Dump { heap, out: String::new(), indent, separators, ascii, sort };
    dump.value(value, 0)?;
    Ok(dump.out)
}

fn wrong(rule: impl Into<String>) -> Error {
    Error::failed(rule)
}

struct Dump<'h> {
    heap: &'h Heap,
    out: String,
    indent: Option<String>,
    separators: (String, String),
    ascii: bool,
    sort: bool,
}

impl Dump<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        self.heap.step(1)?;
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Integer(number) => self.out.push_str(&number.to_string()),
            Value::Float(number) => self.out.push_str(&float(*number)),
            Value::Text(text) => self.string(&text.text)?,
            Value::List(items) | Value::Tuple(items) => {
                self.out.push('[');
                for (i, item) in items.values.iter().enumerate() {
                    self.before(i == 0, depth + 1)?;
                    self.value(item, depth + 1)?;
                }
                self.close(items.values.is_empty(), depth, ']')?;
            }
            Value::Map(map) => self.map(map, depth)?,
            _ => {
                value.defined()?;
                let kind = value.kind();
                return Err(wrong(format!("Object of type {kind} is not JSON serializable")));
            }
        }
        Ok(())
    }

    fn map(&mut self, map: &Map, depth: usize) -> Result<()> {
        self.heap.step(map.len())?;
        let keyed = map.entries.iter().map(|(key, value)| {
            Ok((key.clone(), self.heap.tuple(vec![key.clone(), value.clone()])?))
        });
        let mut entries: Vec<Value> =
            keyed.collect::<Result<Vec<_>>>().and_then(|all| match self.sort {
                true => ops::sorted(self.heap, all, false),
                false => Ok(all.into_iter().map(|(_, pair)| pair).collect()),
            })?;
        self.out.push('{');
        let empty = entries.is_empty();
        for (i, entry) in entries.drain(..).enumerate() {
            let Some([key, value]) = entry.items() else { continue };
            self.before(i == 0, depth + 1)?;
            let name = match key {
                Value::Text(text) => text.text.to_string(),
                Value::None => "null".into(),
                Value::Bool(value) => if *value { "true" } else { "false" }.into(),
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => float(*number),
                _ => {
                    let kind = key.kind();
                    let rule = "keys must be str, int, float, bool or None, not ".to_owned();
                    return Err(wrong(rule + kind));
                }
            };
            self.string(&name)?;
            self.heap.bytes(self.separators.1.len())?;
            self.out.push_str(&self.separators.1);
            self.value(value, depth + 1)?;
        }
        self.close(empty, depth, '}')
    }

    fn before(&mut self, first: bool, depth: usize) -> Result<()> {
        if !first {
            self.heap.bytes(self.separators.0.len())?;
            self.out.push_str(&self.separators.0);
        }
        self.line(depth)
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) -> Result<()> {
        if !empty {
            self.line(depth)?;
        }
        self.out.push(bracket);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<()> {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&self.heap.repeated(indent, depth)?);
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<()> {
        let size = |c: char| match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            c if c < ' ' || (self.ascii && c > '~') => 6 * c.len_utf16(),
            c => c.len_utf8(),
        };
        self.heap.bytes(text.chars().map(size).sum())?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// JSON has no infinity; Python writes JavaScript's names.
fn float(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        number => heap::float(number),
    }
}
