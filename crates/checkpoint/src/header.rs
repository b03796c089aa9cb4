//! The header of a safetensors file: eight bytes of length, JSON, then the data it describes.
//!
//! Stricter than the `safetensors` crate, which reads what its own specification forbids (a
//! duplicate name, a header that does not begin with `{`). What is accepted here that crate accepts
//! too; a fuzz target holds us to it. Every length is checked before anything is allocated.

use crate::foreign;
use crate::json::{self, JsonError, shown};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use tensor::DType;

/// The bytes of the length word that a file begins with.
pub const LENGTH_BYTES: usize = 8;
/// The longest header, in bytes: the specification's own cap.
pub const HEADER_MAX: u64 = 100_000_000;
/// The most tensors of a file. The largest checkpoints hold about 100,000 in all.
pub const TENSORS_MAX: usize = 1 << 18;
/// The most dimensions of a tensor.
pub const RANK_MAX: usize = 8;
/// The largest dimension.
pub const DIMENSION_MAX: u64 = 1 << 40;
/// The longest tensor name, in bytes.
pub const NAME_MAX: usize = 1 << 10;
/// The most keys of `__metadata__`.
pub const METADATA_MAX: usize = 1 << 16;

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: not empty, printable, no path.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sizes, slowest dimension first.
    pub shape: Vec<usize>,
    /// Where it begins, in bytes from the start of the data.
    pub begin: u64,
    /// Where it ends.
    pub end: u64,
}

/// A checked header: the entries cover the data without hole or overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their data.
    pub entries: Vec<Entry>,
    /// What `__metadata__` says.
    pub metadata: BTreeMap<String, String>,
    /// Where the data begins, in bytes from the start of the file.
    pub data: u64,
}

/// Why a file is not a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file ends inside the length word.
    #[error("header too small: the file has {found} bytes, a safetensors file has at least 8")]
    TooSmall {
        /// The file's length.
        found: u64,
    },
    /// The length word exceeds [`HEADER_MAX`].
    #[error("header too large: {length} bytes, the most is {HEADER_MAX}{}", hint(.swapped))]
    TooLarge {
        /// What the length word says.
        length: u64,
        /// Whether it makes sense with its bytes reversed.
        swapped: bool,
    },
    /// The length word exceeds the file.
    #[error(
        "invalid header length: {length} bytes, but only {found} follow (truncated?){}",
        hint(.swapped)
    )]
    LongerThanFile {
        /// What the length word says.
        length: u64,
        /// The bytes that follow it.
        found: u64,
        /// Whether it makes sense with its bytes reversed.
        swapped: bool,
    },
    /// The file is something else.
    #[error("not a safetensors file: {0}")]
    Foreign(&'static str),
    /// The header's first byte is not `{`.
    #[error("the header begins with '{{', found byte {0:#04x}")]
    NotAnObject(u8),
    /// The header is padded with something else than spaces.
    #[error("the header is padded with spaces only")]
    Padding,
    /// The header breaks a rule of JSON, or of what it may say, at a place in the header.
    #[error("header: {0}")]
    Json(JsonError),
    /// A tensor's shape, dtype and offsets do not agree.
    #[error("tensor {name:?}: {rule}")]
    Tensor {
        /// The tensor.
        name: String,
        /// The rule it breaks.
        rule: String,
    },
    /// Two tensors share data.
    #[error("tensors {first:?} and {second:?} overlap at byte {at} of the data")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
        /// Where the second begins.
        at: u64,
    },
    /// Data that no tensor owns lies before a tensor.
    #[error("bytes {from} to {to} of the data, before tensor {name:?}{after}, belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        name: String,
        /// The tensor before it, if any, as words.
        after: String,
        /// The hole's first byte.
        from: u64,
        /// The byte after it.
        to: u64,
    },
    /// The file ends before the last tensor does.
    #[error("truncated: expected {expected} bytes of data, found {found}")]
    Truncated {
        /// The bytes that the header describes.
        expected: u64,
        /// The bytes after the header.
        found: u64,
    },
    /// The file goes on after the last tensor.
    #[error("trailing data: expected {expected} bytes of data, found {found}")]
    Trailing {
        /// The bytes that the header describes.
        expected: u64,
        /// The bytes after the header.
        found: u64,
    },
}

/// The length of the JSON that follows the length word, in bytes.
///
/// `start` is the beginning of a file of `file_len` bytes: 64 bytes are enough for the best
/// message, 8 are enough to succeed.
///
/// # Errors
/// If the length exceeds the cap or the file.
pub fn length(start: &[u8], file_len: u64) -> Result<usize, HeaderError> {
    let seen = start.get(..foreign::SEEN).unwrap_or(start);
    let or_foreign = |e| foreign::identify(seen).map_or(e, HeaderError::Foreign);
    let word = start.first_chunk::<LENGTH_BYTES>().filter(|_| file_len >= LENGTH_BYTES as u64);
    let Some(word) = word else {
        return Err(or_foreign(HeaderError::TooSmall { found: file_len }));
    };
    let (length, reversed) = (u64::from_le_bytes(*word), u64::from_be_bytes(*word));
    let found = file_len - LENGTH_BYTES as u64;
    let swapped = (1..=found.min(HEADER_MAX)).contains(&reversed);
    if length > HEADER_MAX {
        return Err(or_foreign(HeaderError::TooLarge { length, swapped }));
    }
    if length > found {
        return Err(or_foreign(HeaderError::LongerThanFile { length, found, swapped }));
    }
    Ok(length as usize)
}

/// Parses and checks the header of a file of `file_len` bytes that begins with `bytes`.
///
/// `bytes` holds the length word and all of the JSON at least; what follows is not looked at.
///
/// # Errors
/// If the file breaks any rule of the format.
pub fn parse(bytes: &[u8], file_len: u64) -> Result<Header, HeaderError> {
    let length = length(bytes, file_len)?;
    let data = LENGTH_BYTES + length;
    let json = bytes.get(LENGTH_BYTES..data).ok_or(HeaderError::LongerThanFile {
        length: length as u64,
        found: bytes.len().saturating_sub(LENGTH_BYTES) as u64,
        swapped: false,
    })?;
    let (mut entries, metadata) = document(json).map_err(|e| {
        let start = bytes.get(..foreign::SEEN).unwrap_or(bytes);
        let whole = matches!(e, HeaderError::NotAnObject(_));
        whole.then(|| foreign::identify(start)).flatten().map_or(e, HeaderError::Foreign)
    })?;
    entries.sort_unstable_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    check_layout(&entries, file_len - data as u64)?;
    Ok(Header { entries, metadata, data: data as u64 })
}

/// Why a tensor may not have this name, if it may not.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > NAME_MAX {
        return Err("is longer than 1024 bytes");
    }
    if name.chars().any(is_invisible) {
        return Err("holds a control or formatting character");
    }
    let climbs = |part| part == "..";
    if name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(climbs) {
        return Err("looks like a path");
    }
    Ok(())
}

/// Whether a character moves the cursor, reorders text or shows nothing at all.
pub(crate) fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                     | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

fn hint(swapped: &bool) -> &'static str {
    if *swapped { "; reversed it would fit: was the file written big-endian?" } else { "" }
}

fn document(json: &[u8]) -> Result<(Vec<Entry>, BTreeMap<String, String>), HeaderError> {
    let text = json::text(json).map_err(HeaderError::Json)?;
    match json.first() {
        Some(b'{') => {}
        Some(&other) => return Err(HeaderError::NotAnObject(other)),
        None => {
            let rule = "the header is empty".to_owned();
            return Err(HeaderError::Json(JsonError { rule, line: 1, column: 1 }));
        }
    }
    let mut document = serde_json::Deserializer::from_str(text);
    let parsed = document.deserialize_map(Tensors);
    let parsed = parsed.and_then(|parsed| document.end().map(|()| parsed));
    let parsed = parsed.map_err(|e| HeaderError::Json(e.into()))?;
    // JSON allows other white space after the document; the specification allows spaces.
    if !text.trim_end_matches(' ').ends_with('}') {
        return Err(HeaderError::Padding);
    }
    Ok(parsed)
}

/// Sorted entries follow each other from 0 to `available`, each as long as its shape says.
fn check_layout(entries: &[Entry], available: u64) -> Result<(), HeaderError> {
    let mut last: Option<&Entry> = None;
    for entry in entries {
        check_entry(entry)?;
        let from = last.map_or(0, |e| e.end);
        let name = || entry.name.clone();
        if entry.begin > from {
            let after = last.map_or(String::new(), |e| format!(" and after {:?}", e.name));
            return Err(HeaderError::Hole { name: name(), after, from, to: entry.begin });
        }
        if entry.begin < from {
            let first = last.map_or(String::new(), |e| e.name.clone());
            return Err(HeaderError::Overlap { first, second: name(), at: entry.begin });
        }
        last = Some(entry);
    }
    let expected = last.map_or(0, |e| e.end);
    match expected.cmp(&available) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(HeaderError::Truncated { expected, found: available }),
        std::cmp::Ordering::Less => Err(HeaderError::Trailing { expected, found: available }),
    }
}

fn check_entry(entry: &Entry) -> Result<(), HeaderError> {
    let Entry { name, dtype, shape, begin, end } = entry;
    let broken = |rule| Err(HeaderError::Tensor { name: name.clone(), rule });
    let Some(found) = end.checked_sub(*begin) else {
        return broken(format!("data_offsets [{begin}, {end}] are reversed"));
    };
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let Some(bits) = elements.and_then(|n| n.checked_mul(dtype.bits())) else {
        return broken(format!("the size of {dtype} {shape:?} overflows"));
    };
    if bits % 8 != 0 {
        return broken(format!("{dtype} {shape:?} does not fill whole bytes"));
    }
    let expected = (bits / 8) as u64;
    if expected != found {
        return broken(format!(
            "size mismatch: {dtype} {shape:?} takes {expected} bytes, data_offsets span {found}"
        ));
    }
    Ok(())
}

/// The document: tensors by name, and `__metadata__`.
struct Tensors;

impl<'de> Visitor<'de> for Tensors {
    type Value = (Vec<Entry>, BTreeMap<String, String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut names, mut metadata) = (Vec::new(), HashSet::new(), None);
        while let Some(name) = members.next_key::<String>()? {
            if name == "__metadata__" {
                let text = members.next_value_seed(Metadata)?;
                if metadata.replace(text).is_some() {
                    return Err(de::Error::custom("duplicate key \"__metadata__\""));
                }
                continue;
            }
            check_name(&name).map_err(|rule| {
                de::Error::custom(format_args!("tensor name {:?} {rule}", shown(&name)))
            })?;
            if !names.insert(name.clone()) {
                return Err(de::Error::custom(format_args!("duplicate tensor name {name:?}")));
            }
            if entries.len() == TENSORS_MAX {
                let rule = format_args!("more than {TENSORS_MAX} tensors");
                return Err(de::Error::custom(rule));
            }
            entries.push(members.next_value_seed(TensorSeed(name))?);
        }
        Ok((entries, metadata.unwrap_or_default()))
    }
}

/// `__metadata__`: strings by key.
struct Metadata;

impl<'de> DeserializeSeed<'de> for Metadata {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        let in_metadata = |e| de::Error::custom(format_args!("__metadata__: {e}"));
        d.deserialize_option(self).map_err(in_metadata)
    }
}

impl<'de> Visitor<'de> for Metadata {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    // Null is none, as the `safetensors` crate has it.
    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = members.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("duplicate key {:?}", shown(&key))));
            }
            if map.len() == METADATA_MAX {
                return Err(de::Error::custom(format_args!("more than {METADATA_MAX} keys")));
            }
            let value = members.next_value::<String>()?;
            map.insert(key, value);
        }
        Ok(map)
    }
}

/// What is said of the tensor of this name.
struct TensorSeed(String);

impl<'de> DeserializeSeed<'de> for TensorSeed {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Entry, D::Error> {
        let name = self.0;
        // The message of the cause ends with its position, which serde_json recovers.
        let fields = d
            .deserialize_map(FieldsVisitor)
            .map_err(|e| de::Error::custom(format_args!("tensor {:?}: {e}", shown(&name))))?;
        let Fields { dtype, shape, offsets: [begin, end] } = fields;
        Ok(Entry { name, dtype, shape, begin, end })
    }
}

/// What a header says of a tensor.
struct Fields {
    dtype: DType,
    shape: Vec<usize>,
    offsets: [u64; 2],
}

/// Reads [`Fields`].
struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Fields, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = members.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(parse_dtype(&members.next_value::<String>()?)?).is_some(),
                "shape" => {
                    let sizes = Numbers { most: RANK_MAX, what: "dimensions" };
                    shape.replace(parse_shape(members.next_value_seed(sizes)?)?).is_some()
                }
                "data_offsets" => {
                    let ends = Numbers { most: 2, what: "offsets" };
                    let pair = <[u64; 2]>::try_from(members.next_value_seed(ends)?);
                    let pair = pair.map_err(|_| de::Error::custom("data_offsets are two"))?;
                    offsets.replace(pair).is_some()
                }
                other => {
                    let rule = format_args!("unknown field {:?}", shown(other));
                    return Err(de::Error::custom(rule));
                }
            };
            if twice {
                return Err(de::Error::custom(format_args!("duplicate field {key:?}")));
            }
        }
        let missing = |field| de::Error::custom(format_args!("field {field} is missing"));
        Ok(Fields {
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
        })
    }
}

fn parse_dtype<E: de::Error>(name: &str) -> Result<DType, E> {
    DType::parse(name).ok_or_else(|| {
        let known = DType::names().collect::<Vec<_>>().join(", ");
        E::custom(format_args!("unknown dtype {:?}; known are {known}", shown(name)))
    })
}

fn parse_shape<E: de::Error>(sizes: Vec<u64>) -> Result<Vec<usize>, E> {
    let size = |n: u64| {
        let small = (n <= DIMENSION_MAX).then(|| usize::try_from(n).ok()).flatten();
        small.ok_or_else(|| {
            E::custom(format_args!("dimension {n} exceeds the most, {DIMENSION_MAX}"))
        })
    };
    sizes.into_iter().map(size).collect()
}

/// A short array of whole numbers.
struct Numbers {
    most: usize,
    what: &'static str,
}

impl<'de> DeserializeSeed<'de> for Numbers {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<u64>, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Numbers {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {}", self.what)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<u64>, A::Error> {
        let Self { most, what } = self;
        let mut numbers = Vec::new();
        while let Some(n) = items.next_element::<u64>()? {
            if numbers.len() == most {
                return Err(de::Error::custom(format_args!("more than {most} {what}")));
            }
            numbers.push(n);
        }
        Ok(numbers)
    }
}
