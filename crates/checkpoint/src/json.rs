//! Strict JSON: one meaning a document, or an error with its line and column.
//!
//! Lenient readers disagree about duplicate keys, so a document that has one can mean different
//! things to different tools; here it is refused, also when the two spellings differ by escapes.
//! Size, depth and count are bounded before anything is built.

use crate::foreign;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

/// The most values that [`parse`] builds: more is not a configuration, and each costs memory.
const VALUES_BUILT: usize = 1 << 19;
/// The most values that [`check`] walks: several times the largest tokenizer there is.
const VALUES_WALKED: usize = 1 << 23;
/// The longest rule text: serde quotes what it found, which may be very long.
const RULE_MAX: usize = 400;

/// How much of a document is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest document, in bytes.
    pub bytes_max: usize,
    /// The most arrays and objects inside each other; 127 is as deep as the parser itself goes.
    pub depth_max: usize,
}

impl Limits {
    /// `config.json` and its like: 16 MiB, less than 128 deep.
    pub const CONFIG: Self = Self { bytes_max: 16 << 20, depth_max: 127 };
    /// `model.safetensors.index.json`: 64 MiB holds the most tensors that are read.
    pub const INDEX: Self = Self { bytes_max: 64 << 20, depth_max: 127 };
    /// `tokenizer.json`: 256 MiB.
    pub const TOKENIZER: Self = Self { bytes_max: 256 << 20, depth_max: 127 };
}

/// Why a document is not the JSON that it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// The rule that is broken.
    pub rule: String,
    /// Counted from 1; 0 if the document as a whole is at fault.
    pub line: usize,
    /// Counted from 1, in bytes.
    pub column: usize,
}

impl std::error::Error for JsonError {}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rule)?;
        if self.line > 0 {
            write!(f, " at line {} column {}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// Parses a document.
///
/// # Errors
/// If it exceeds the limits, is not JSON in UTF-8, has a byte-order mark or a key twice in one
/// object, or goes on after its end.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Value, JsonError> {
    read(bytes, limits, Some(VALUES_BUILT))
}

/// Checks a document as [`parse`] does, but builds nothing of it.
///
/// # Errors
/// Those of [`parse`].
pub fn check(bytes: &[u8], limits: &Limits) -> Result<(), JsonError> {
    read(bytes, limits, None).map(drop)
}

/// Parses a document that must be an object.
pub(crate) fn parse_object(bytes: &[u8], limits: &Limits) -> Result<Map<String, Value>, JsonError> {
    match parse(bytes, limits)? {
        Value::Object(map) => Ok(map),
        other => Err(whole(format!("the document is an object, found {}", kind(&other)))),
    }
}

/// The bytes as text, without a byte-order mark.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, JsonError> {
    if bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
        return Err(JsonError { line: 1, column: 1, ..whole("begins with a byte-order mark") });
    }
    std::str::from_utf8(bytes).map_err(|e| {
        let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let start_of_line = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        JsonError {
            rule: format!("not UTF-8 at byte {}", e.valid_up_to()),
            line: before.iter().filter(|&&b| b == b'\n').count() + 1,
            column: before.len() - start_of_line + 1,
        }
    })
}

/// What a value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl From<serde_json::Error> for JsonError {
    fn from(e: serde_json::Error) -> Self {
        let (line, column) = (e.line(), e.column());
        let mut rule = e.to_string();
        let position = format!(" at line {line} column {column}");
        if let Some(end) = rule.rfind(&position) {
            rule.truncate(end);
        }
        if let Some((end, _)) = rule.char_indices().nth(RULE_MAX) {
            rule.truncate(end);
            rule.push_str("...");
        }
        Self { rule, line, column }
    }
}

fn whole(rule: impl Into<String>) -> JsonError {
    JsonError { rule: rule.into(), line: 0, column: 0 }
}

/// Builds the document if `built` bounds how many values it may have, else only walks it.
fn read(bytes: &[u8], limits: &Limits, built: Option<usize>) -> Result<Value, JsonError> {
    if bytes.len() > limits.bytes_max {
        let (found, max) = (bytes.len(), limits.bytes_max);
        return Err(whole(format!("{found} bytes long, the most is {max}")));
    }
    let parsed = text(bytes).and_then(|text| {
        let left = Cell::new(built.unwrap_or(VALUES_WALKED));
        let seed = Strict { depth: 0, keep: built.is_some(), limits, left: &left };
        let mut document = serde_json::Deserializer::from_str(text);
        let value = seed.deserialize(&mut document)?;
        document.end()?;
        Ok(value)
    });
    parsed.map_err(|e| match foreign::identify(bytes.get(..foreign::SEEN).unwrap_or(bytes)) {
        Some(what) => whole(what),
        // The start alone: a rule may quote the document, and that may hold any words.
        None if e.rule.starts_with("recursion limit exceeded") => {
            JsonError { rule: "nested more than 127 deep".into(), ..e }
        }
        None => e,
    })
}

/// Reads one value; `left` counts down over the whole document.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    keep: bool,
    limits: &'a Limits,
    left: &'a Cell<usize>,
}

impl Strict<'_> {
    fn inside<E: de::Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > self.limits.depth_max {
            let max = self.limits.depth_max;
            return Err(E::custom(format_args!("nested more than {max} deep")));
        }
        Ok(Self { depth, ..self })
    }

    fn kept(&self, value: impl FnOnce() -> Value) -> Value {
        if self.keep { value() } else { Value::Null }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| de::Error::custom("holds too many values"))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(self.kept(|| b.into()))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(self.kept(|| n.into()))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(self.kept(|| n.into()))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Value, E> {
        Ok(self.kept(|| x.into()))
    }

    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(self.kept(|| s.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inside)? {
            if self.keep {
                array.push(item);
            }
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let (mut map, mut keys) = (Map::new(), HashSet::new());
        while let Some(key) = members.next_key::<String>()? {
            if map.contains_key(&key) || keys.contains(&key) {
                return Err(de::Error::custom(format_args!("duplicate key {:?}", shown(&key))));
            }
            let value = members.next_value_seed(inside)?;
            if self.keep {
                map.insert(key, value);
            } else {
                keys.insert(key);
            }
        }
        Ok(Value::Object(map))
    }
}

/// The beginning of a name from a file, short enough for a message.
pub(crate) fn shown(name: &str) -> &str {
    name.char_indices().nth(80).map_or(name, |(end, _)| name.get(..end).unwrap_or(name))
}
