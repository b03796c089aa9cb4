//! The header of a GGUF file, versions 2 and 3, little-endian: keys with values, then tensors.
//!
//! Every count and length is checked before anything is allocated for it, and what is allocated is
//! bounded by the bytes that were read.

use super::types::{self, Held};
use crate::header::{DIMENSION_MAX, TENSORS_MAX, check_name};
use crate::json::shown;
use ir::Grid;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a GGUF file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// The longest header, in bytes.
pub const HEADER_MAX: u64 = 1 << 27;
/// The most keys.
pub const KEYS_MAX: u64 = 1 << 16;
/// The longest key, in bytes: the specification's own cap.
pub const KEY_MAX: u64 = (1 << 16) - 1;
/// The most elements of all arrays together. Those of the largest vocabularies have two millions.
pub const ELEMENTS_MAX: u64 = 1 << 23;
/// The longest name of a tensor, in bytes: ggml's own cap.
pub const NAME_MAX: u64 = 63;
/// The most dimensions of a tensor: ggml's own cap.
pub const RANK_MAX: u32 = 4;

/// The key of what tensors begin at multiples of.
const ALIGNMENT: &str = "general.alignment";

/// What a key says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer of any width; a `u64` above the largest `i64` is kept as that.
    Integer(i64),
    /// A float; a 32-bit one as its shortest decimal form reads.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Integers, or truth values.
    Integers(Vec<i64>),
    /// Floats.
    Floats(Vec<f64>),
}

impl Value {
    /// As JSON says it.
    pub(crate) fn json(&self) -> Json {
        match self {
            Self::Integer(n) => json!(n),
            Self::Float(x) => json!(x),
            Self::Bool(flag) => json!(flag),
            Self::Text(said) => json!(said),
            Self::Texts(all) => json!(all),
            Self::Integers(all) => json!(all),
            Self::Floats(all) => json!(all),
        }
    }

    /// As a message says it, which may be long.
    pub(crate) fn shown(&self) -> String {
        let count = match self {
            Self::Texts(all) => all.len(),
            Self::Integers(all) => all.len(),
            Self::Floats(all) => all.len(),
            Self::Text(said) => return format!("{:?}", shown(said)),
            Self::Integer(_) | Self::Float(_) | Self::Bool(_) => return self.json().to_string(),
        };
        format!("a list of {count}")
    }
}

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its sizes, slowest dimension first.
    pub shape: Vec<usize>,
    /// What its rows hold.
    pub(crate) held: Held,
    /// The bytes of a row.
    pub row_bytes: usize,
    /// Where it begins, in bytes from the start of the file.
    pub begin: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl Entry {
    /// The grid of one that is not dense.
    pub fn grid(&self) -> Option<Grid> {
        match self.held {
            Held::On(grid) => Some(grid),
            Held::Dense(_) => None,
        }
    }
}

/// A checked header: the tensors lie in the file and do not overlap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// What each key says.
    pub keys: BTreeMap<String, Value>,
    /// The tensors, in the order of the file.
    pub entries: Vec<Entry>,
}

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The bytes end inside it: more of the file are needed, if there are more.
    #[error("the file ends inside the header, in {0}: the download is not complete")]
    Ends(String),
    /// It breaks a rule.
    #[error("{0}")]
    Rule(String),
}

fn rule<T>(rule: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Rule(rule.into()))
}

/// Reads the header that a file of `file_bytes` bytes begins with; `start` is some of its first bytes.
///
/// # Errors
/// If `start` ends inside the header, or it breaks a rule.
pub fn parse(start: &[u8], file_bytes: u64) -> Result<Header, HeaderError> {
    let place = "the magic".into();
    let mut cursor = Cursor { bytes: start, at: 0, place, elements: 0 };
    if cursor.take(4)? != MAGIC {
        return rule("does not begin with \"GGUF\"");
    }
    cursor.place = "the counts".into();
    match cursor.u32()? {
        2 | 3 => {}
        1 => return rule("is GGUF of version 1, which nothing writes any more: convert it again"),
        other if (1..=3).contains(&other.swap_bytes()) => {
            return rule("is big-endian, which is not read: convert it on this machine");
        }
        other => return rule(format!("is GGUF of version {other}: 2 and 3 are read")),
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    if tensors > TENSORS_MAX as u64 {
        return rule(format!("has {tensors} tensors: at most {TENSORS_MAX} are read"));
    }
    if keys > KEYS_MAX {
        return rule(format!("has {keys} keys: at most {KEYS_MAX} are read"));
    }
    let mut said = BTreeMap::new();
    for i in 0..keys {
        cursor.place = format!("key {i}");
        let key = cursor.text(KEY_MAX)?;
        if key.is_empty() {
            return rule(format!("key {i} has no name"));
        }
        cursor.place = format!("key {key:?}");
        let kind = cursor.u32()?;
        if key == ALIGNMENT && kind != 4 {
            return rule(format!("{ALIGNMENT} is of type {kind}, not a 32-bit count (4)"));
        }
        let value = cursor.value(kind)?;
        if said.insert(key.clone(), value).is_some() {
            return rule(format!("key {key:?} is there twice"));
        }
    }
    let alignment = match said.get(ALIGNMENT) {
        None => 32,
        Some(&Value::Integer(n)) if (8..=1 << 20).contains(&n) && n & (n - 1) == 0 => n as u64,
        Some(other) => {
            let rest = "no power of two from 8 to 1048576";
            return rule(format!("{ALIGNMENT} is {}, {rest}", other.shown()));
        }
    };
    let infos = (0..tensors).map(|i| cursor.info(i)).collect::<Result<Vec<_>, _>>()?;
    let data = (cursor.at as u64).next_multiple_of(alignment);
    let entries = placed(infos, data, alignment, file_bytes)?;
    Ok(Header { keys: said, entries })
}

/// A tensor before its place in the file is known.
struct Info {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// Holds the tensors against the file and each other.
fn placed(
    infos: Vec<Info>,
    data: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<Vec<Entry>, HeaderError> {
    let mut names = BTreeSet::new();
    let mut entries = Vec::with_capacity(infos.len());
    for Info { name, shape, kind, offset } in infos {
        let broken = |why: String| rule(format!("tensor {name:?}: {why}"));
        if !names.insert(name.clone()) {
            return broken("is there twice".into());
        }
        let Some(held) = types::held(kind) else {
            return broken(format!("is of ggml's type {kind}; read are {}", types::names()));
        };
        let (rows, width) = match shape.split_last() {
            Some((&width, rows)) => (rows.iter().try_fold(1usize, |n, &d| n.checked_mul(d)), width),
            None => (Some(1), 1),
        };
        let row_bytes = held.row_bytes(width);
        let whole = row_bytes.zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
        let (Some(row_bytes), Some(bytes)) = (row_bytes, whole) else {
            return broken(format!(
                "rows of {width} are not whole blocks of its type, or overflow"
            ));
        };
        if !offset.is_multiple_of(alignment) {
            return broken(format!("begins at {offset}, no multiple of {alignment}"));
        }
        let begin = data.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes as u64));
        let (Some(begin), true) = (begin, end.is_some_and(|end| end <= file_bytes)) else {
            return broken("ends beyond the file: the download is not complete".into());
        };
        entries.push(Entry { name, shape, held, row_bytes, begin, bytes: bytes as u64 });
    }
    entries.sort_by_key(|entry| entry.begin);
    for pair in entries.windows(2) {
        if let [one, next] = pair
            && one.begin + one.bytes > next.begin
        {
            return rule(format!("tensors {:?} and {:?} overlap", one.name, next.name));
        }
    }
    Ok(entries)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// What is being read.
    place: String,
    /// Those of all arrays so far.
    elements: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HeaderError> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| HeaderError::Ends(self.place.clone()))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| HeaderError::Ends(self.place.clone()))
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A text of at most so many bytes.
    fn text(&mut self, most: u64) -> Result<String, HeaderError> {
        let length = self.u64()?;
        if length > most {
            return rule(format!("{}: a text of {length} bytes, at most {most}", self.place));
        }
        let bytes = self.take(length as usize)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => rule(format!("{}: a text is not UTF-8", self.place)),
        }
    }

    fn value(&mut self, kind: u32) -> Result<Value, HeaderError> {
        match kind {
            8 => Ok(Value::Text(self.text(HEADER_MAX)?)),
            9 => self.values(),
            6 | 12 => Ok(Value::Float(self.float(kind)?)),
            7 => match self.integer(kind)? {
                0 => Ok(Value::Bool(false)),
                1 => Ok(Value::Bool(true)),
                other => rule(format!("{}: a truth value is {other}", self.place)),
            },
            _ => Ok(Value::Integer(self.integer(kind)?)),
        }
    }

    fn values(&mut self) -> Result<Value, HeaderError> {
        let (kind, count) = (self.u32()?, self.u64()?);
        self.elements = self.elements.saturating_add(count);
        if self.elements > ELEMENTS_MAX {
            let rest = format!("the arrays may have {ELEMENTS_MAX} together");
            return rule(format!("{}: {count} elements, and {rest}", self.place));
        }
        // Collected one by one: what is allocated stays in proportion to what is there.
        match kind {
            8 => Ok(Value::Texts(
                (0..count).map(|_| self.text(HEADER_MAX)).collect::<Result<_, _>>()?,
            )),
            9 => rule(format!("{}: an array of arrays is not read", self.place)),
            6 | 12 => {
                Ok(Value::Floats((0..count).map(|_| self.float(kind)).collect::<Result<_, _>>()?))
            }
            _ => {
                let integers = (0..count).map(|_| self.integer(kind));
                Ok(Value::Integers(integers.collect::<Result<_, _>>()?))
            }
        }
    }

    fn float(&mut self, kind: u32) -> Result<f64, HeaderError> {
        if kind == 12 {
            return Ok(f64::from_le_bytes(self.array()?));
        }
        let float = f32::from_le_bytes(self.array()?);
        Ok(float.to_string().parse().unwrap_or(f64::from(float)))
    }

    fn integer(&mut self, kind: u32) -> Result<i64, HeaderError> {
        Ok(match kind {
            0 | 7 => i64::from(u8::from_le_bytes(self.array()?)),
            1 => i64::from(i8::from_le_bytes(self.array()?)),
            2 => i64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            4 => i64::from(u32::from_le_bytes(self.array()?)),
            5 => i64::from(i32::from_le_bytes(self.array()?)),
            10 => i64::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(i64::MAX),
            11 => i64::from_le_bytes(self.array()?),
            other => return rule(format!("{}: a value of type {other}", self.place)),
        })
    }

    fn info(&mut self, index: u64) -> Result<Info, HeaderError> {
        self.place = format!("tensor {index}");
        let name = self.text(NAME_MAX)?;
        if let Err(why) = check_name(&name) {
            return rule(format!("tensor {index}: its name {why}"));
        }
        self.place = format!("tensor {name:?}");
        let rank = self.u32()?;
        if rank > RANK_MAX {
            return rule(format!("tensor {name:?}: {rank} dimensions, at most {RANK_MAX}"));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            match self.u64()? {
                n @ 1..=DIMENSION_MAX => shape.push(n as usize),
                n => return rule(format!("tensor {name:?}: a dimension of {n}")),
            }
        }
        shape.reverse();
        Ok(Info { name, shape, kind: self.u32()?, offset: self.u64()? })
    }
}
