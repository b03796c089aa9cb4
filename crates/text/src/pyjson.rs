//! The `tojson` filter of chat templates: Python's `json.dumps`, as transformers calls it.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Bytes of one result. A small value can share its parts and be large when it is written out.
const MAX_BYTES: usize = 16 << 20;
const MAX_DEPTH: usize = 128;

/// Writes `value` as `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` does; all
/// but the value may be left out.
pub(crate) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_string(),
            None => {
                let width = v.as_i64().filter(|n| *n <= 64);
                let width = width.ok_or_else(|| wrong("tojson: indent is at most 64"))?;
                " ".repeat(usize::try_from(width).unwrap_or(0))
            }
        }),
    };
    let separators = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part =
                |i| pair.get_item_by_index(i).ok().and_then(|v| v.as_str().map(String::from));
            let pair = part(0).zip(part(1));
            pair.ok_or_else(|| wrong("tojson: separators is a pair of strings"))?
        }
        _ => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let flag = |name| options.get::<Option<bool>>(name).map(Option::unwrap_or_default);
    let (ascii, sort) = (flag("ensure_ascii")?, flag("sort_keys")?);
    options.assert_all_used()?;
    let mut dump = Dump { out: String::new(), indent, separators, ascii, sort };
    dump.value(value, 0)?;
    Ok(dump.out)
}

fn wrong(rule: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, rule.into())
}

struct Dump {
    out: String,
    indent: Option<String>,
    separators: (String, String),
    ascii: bool,
    sort: bool,
}

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || self.out.len() > MAX_BYTES {
            return Err(wrong(format!(
                "tojson: the value is deeper than {MAX_DEPTH} or longer than {MAX_BYTES} bytes"
            )));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => {
                let number = f64::try_from(value.clone())?;
                self.out.push_str(&float(number));
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.list(items, depth)?;
            }
            ValueKind::Map => self.map(value, depth)?,
            kind => return Err(wrong(format!("tojson: {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn list(&mut self, items: impl Iterator<Item = Value>, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in items {
            self.before(empty, depth + 1);
            empty = false;
            self.value(&item, depth + 1)?;
        }
        self.close(empty, depth, ']');
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.sort {
            keys.sort_by_key(ToString::to_string);
        }
        self.out.push('{');
        let mut empty = true;
        for key in keys {
            self.before(empty, depth + 1);
            empty = false;
            let name = match key.kind() {
                ValueKind::String => key.as_str().unwrap_or_default().to_string(),
                ValueKind::None => "null".into(),
                ValueKind::Bool | ValueKind::Number => key.to_string(),
                kind => return Err(wrong(format!("tojson: a key is {kind}"))),
            };
            self.string(&name);
            self.out.push_str(&self.separators.1);
            self.value(&map.get_item(&key)?, depth + 1)?;
        }
        self.close(empty, depth, '}');
        Ok(())
    }

    fn before(&mut self, first: bool, depth: usize) {
        if !first {
            self.out.push_str(&self.separators.0);
        }
        self.line(depth);
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
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
    }
}

/// Python's `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float(number: f64) -> String {
    if !number.is_finite() {
        let sign = if number < 0.0 { "-" } else { "" };
        return if number.is_nan() { "NaN".into() } else { format!("{sign}Infinity") };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent if (-4..16).contains(&exponent) => {
            let plain = format!("{number}");
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::float;

    /// Against Python 3.11.
    #[test]
    fn floats_are_written_as_python_does() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float(number), text);
        }
        assert_eq!(float(f64::NAN), "NaN");
    }
}
