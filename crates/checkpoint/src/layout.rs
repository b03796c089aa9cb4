//! Which file a tensor goes to, and where in it: determined by names, dtypes and shapes alone.

use crate::error::Error;
use crate::header::{self, LENGTH_BYTES, TENSORS_MAX};
use serde_json::{Map, Value, json};
use tensor::DType;

/// What readers of the format expect the data to begin at a multiple of.
const DATA_ALIGNMENT: usize = 8;

/// A tensor that is to be stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its sizes, slowest dimension first.
    pub shape: Vec<usize>,
}

impl Planned {
    /// A tensor that is to be stored.
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// The bytes its data takes; `None` if they overflow or are not whole.
    pub fn bytes(&self) -> Option<u64> {
        self.dtype.bytes_of(&self.shape).map(|n| n as u64)
    }
}

/// The bytes that all tensors take together.
pub(crate) fn check(tensors: &[Planned]) -> Result<u64, Error> {
    if tensors.is_empty() || tensors.len() > TENSORS_MAX {
        let rule = format!("{} tensors are to be stored: 1 to {TENSORS_MAX} can be", tensors.len());
        return Err(Error::Internal(rule));
    }
    let (mut names, mut total) = (std::collections::HashSet::new(), 0u64);
    for tensor in tensors {
        let Planned { name, dtype, shape } = tensor;
        header::check_name(name).map_err(|rule| Error::tensor(name, format!("its name {rule}")))?;
        if name == "__metadata__" {
            return Err(Error::tensor(name, "the name has another meaning in the format"));
        }
        if !names.insert(name.as_str()) {
            return Err(Error::Internal(format!("tensor {name:?} is planned twice")));
        }
        // Far below the signed lengths that systems count files in.
        let sum = tensor.bytes().and_then(|n| total.checked_add(n)).filter(|&n| n < 1 << 62);
        let rule = || Error::tensor(name, format!("{dtype} {shape:?} overflows, or is not whole"));
        total = sum.ok_or_else(rule)?;
    }
    Ok(total)
}

/// Fills one file after the other.
pub(crate) fn split(tensors: Vec<Planned>, shard_bytes: u64) -> Vec<Vec<Planned>> {
    let (mut shards, mut shard, mut filled) = (Vec::new(), Vec::new(), 0u64);
    for tensor in tensors {
        let bytes = tensor.bytes().unwrap_or(u64::MAX);
        if !shard.is_empty() && filled.saturating_add(bytes) > shard_bytes {
            shards.push(std::mem::take(&mut shard));
            filled = 0;
        }
        filled = filled.saturating_add(bytes);
        shard.push(tensor);
    }
    shards.push(shard);
    shards
}

/// The same tensors such that each begins at a multiple of its element's width.
pub(crate) fn aligned(mut tensors: Vec<Planned>) -> Vec<Planned> {
    let width = |t: &Planned| t.dtype.bits().div_ceil(8) as u64;
    let mut begin = 0u64;
    let is_aligned = tensors.iter().all(|t| {
        let fits = begin.is_multiple_of(width(t));
        begin = begin.saturating_add(t.bytes().unwrap_or(0));
        fits
    });
    if !is_aligned {
        tensors.sort_by_key(|t| std::cmp::Reverse(width(t)));
    }
    tensors
}

/// The length word and the header, and where each tensor ends in the data.
pub(crate) fn head(tensors: &[Planned]) -> (Vec<u8>, Vec<u64>) {
    let (mut json, mut begin, mut ends) = (Map::new(), 0u64, Vec::new());
    json.insert("__metadata__".into(), json!({ "format": "pt" }));
    for tensor in tensors {
        let end = begin.saturating_add(tensor.bytes().unwrap_or(0));
        let entry = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        });
        json.insert(tensor.name.clone(), entry);
        ends.push(end);
        begin = end;
    }
    let mut json = Value::Object(json).to_string().into_bytes();
    json.resize((LENGTH_BYTES + json.len()).next_multiple_of(DATA_ALIGNMENT) - LENGTH_BYTES, b' ');
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.append(&mut json);
    (head, ends)
}
