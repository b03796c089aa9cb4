//! Safetensors files laid out: which one a tensor goes to, and where in it, is determined by names,
//! dtypes and shapes alone.

use crate::error::Error;
use crate::header::{self, LENGTH_BYTES, TENSORS_MAX};
use crate::layout::{LaidFile, Layout, Place, Planned, Trailer, filled};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What readers of the format expect the data to begin at a multiple of.
const DATA_ALIGNMENT: usize = 8;

/// Lays tensors out as one file, or several of at most `shard_bytes` bytes of data each (a larger
/// tensor has a file to itself) and their index.
///
/// The tensors lie in the order given, unless one would begin off a multiple of its element's
/// width: then those of wider elements come first in that file.
///
/// # Errors
/// If a tensor may not be stored under its name or shape, a name comes twice, or there is no tensor.
pub(crate) fn layout(tensors: Vec<Planned>, shard_bytes: u64) -> Result<Layout, Error> {
    let total = check(&tensors)?;
    let shards = filled(tensors, shard_bytes, |tensor| tensor.bytes().unwrap_or(u64::MAX));
    let count = shards.len();
    let file_name = |i: usize| match count {
        1 => SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    let mut weight_map = BTreeMap::new();
    let mut files = Vec::with_capacity(count);
    for (i, shard) in shards.into_iter().enumerate() {
        let name = file_name(i);
        weight_map.extend(shard.iter().map(|t| (t.name.clone(), name.clone())));
        files.push(file(name, aligned(shard))?);
    }
    let trailer = (count > 1).then(|| {
        let weight_map: Map<String, Value> =
            weight_map.into_iter().map(|(tensor, file)| (tensor, file.into())).collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        Trailer { name: INDEX.into(), bytes: format!("{index:#}\n").into_bytes() }
    });
    Ok(Layout { files, trailer, ..Layout::default() })
}

fn file(name: String, tensors: Vec<Planned>) -> Result<LaidFile, Error> {
    let (head, ends) = head(&tensors);
    let data = head.len() as u64;
    // `check` has summed all tensors without overflow.
    let bytes = data.saturating_add(ends.last().copied().unwrap_or(0));
    // What is written is what the reader accepts; only the header's own caps can fail.
    let broken = |fault| Error::Header { path: (&name).into(), fault };
    header::parse(&head, bytes).map_err(broken)?;
    let begins = std::iter::once(0).chain(ends.iter().copied());
    let places = tensors.into_iter().zip(begins).zip(&ends);
    let places = places.map(|((tensor, begin), end)| Place {
        begin: data + begin,
        bytes: end - begin,
        tensor,
    });
    Ok(LaidFile { places: places.collect(), name, head, bytes })
}

/// The bytes that all tensors take together.
fn check(tensors: &[Planned]) -> Result<u64, Error> {
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

/// The same tensors such that each begins at a multiple of its element's width.
fn aligned(mut tensors: Vec<Planned>) -> Vec<Planned> {
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
fn head(tensors: &[Planned]) -> (Vec<u8>, Vec<u64>) {
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
