//! Where everything of a model goes: files, the places of tensors in them, and the weights that they
//! are parts of.

use crate::codec::{Codec, Grain};
use crate::container::{Placed, Stored};
use crate::error::Error;
use crate::format::Format;
use ir::RowMap;
use std::collections::BTreeMap;
use std::ops::Range;
use tensor::{Bytes, DType};

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

/// A model laid out. Its bytes do not depend on the order in which the weights come.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// The files of tensors.
    pub(crate) files: Vec<LaidFile>,
    /// What is written after them.
    pub(crate) trailer: Option<Trailer>,
    /// What tensors are of which weight.
    pub(crate) weights: BTreeMap<String, Laid>,
    /// The files that describe the model.
    pub(crate) manifest: Vec<Trailer>,
}

/// A small file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Its name in the folder.
    pub name: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// A file of tensors.
#[derive(Clone, Debug)]
pub(crate) struct LaidFile {
    pub(crate) name: String,
    /// Its first bytes, which say what it holds.
    pub(crate) head: Vec<u8>,
    /// Its length.
    pub(crate) bytes: u64,
    pub(crate) places: Vec<Place>,
}

/// A tensor and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) tensor: Planned,
    /// From the start of the file.
    pub(crate) begin: u64,
    pub(crate) bytes: u64,
}

/// How a weight lies in the tensors of a layout.
#[derive(Clone, Debug)]
pub(crate) struct Laid {
    /// The name that the container gives it.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: Stored,
    /// What lays out one on a grid.
    pub(crate) codec: Option<&'static dyn Codec>,
    /// The names of its tensors.
    pub(crate) parts: Vec<String>,
    /// Where its rows are in them.
    pub(crate) order: RowMap,
}

impl Laid {
    /// Whether rows of it are columns of its tensors.
    pub(crate) fn by_columns(&self) -> bool {
        match (self.codec, self.stored, &self.shape[..]) {
            (Some(codec), Stored::On(grid), &[out, width]) => {
                matches!(codec.holds(grid, [out, width]), Ok(Grain::Columns(_)))
            }
            _ => false,
        }
    }
}

impl Layout {
    /// Tensors as a folder of safetensors files, of at most `shard_bytes` bytes of data each (a larger
    /// tensor has a file to itself), each a dense weight of its own.
    ///
    /// # Errors
    /// If a tensor may not be stored under its name or shape, a name comes twice, or there is none.
    pub fn of_tensors(tensors: Vec<Planned>, shard_bytes: u64) -> Result<Self, Error> {
        let dense = |tensor: &Planned| Laid {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            stored: Stored::Dense(tensor.dtype),
            codec: None,
            parts: vec![tensor.name.clone()],
            order: RowMap::All,
        };
        let weights = tensors.iter().map(|tensor| (tensor.name.clone(), dense(tensor))).collect();
        Ok(Self { weights, ..crate::shards::layout(tensors, shard_bytes)? })
    }

    /// The files that describe the model, beside those of tensors.
    pub fn manifest(&self) -> &[Trailer] {
        &self.manifest
    }

    /// Notes which tensors the weights of a format become, and gives them, in order.
    pub(crate) fn weights(
        format: &Format,
        weights: &[Placed],
    ) -> Result<(BTreeMap<String, Laid>, Vec<Planned>), Error> {
        let (mut all, mut tensors) = (BTreeMap::new(), Vec::new());
        for weight in weights.iter().filter(|w| w.stored != Stored::Elsewhere) {
            let parts = format.parts(weight)?;
            let codec = match weight.stored {
                Stored::On(grid) => Some(format.codec(grid, weight.matrix()?)?),
                _ => None,
            };
            let laid = Laid {
                name: format.container.name(weight)?,
                shape: weight.shape.clone(),
                stored: weight.stored,
                codec,
                parts: parts.iter().map(|part| part.name.clone()).collect(),
                order: RowMap::All,
            };
            tensors.extend(parts);
            all.insert(weight.name.clone(), laid);
        }
        Ok((all, tensors))
    }
}

/// Fills one file after the other, each of at most so many bytes; a larger tensor has one to itself.
pub(crate) fn filled<T>(tensors: Vec<T>, most: u64, bytes: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let (mut files, mut file, mut held) = (Vec::new(), Vec::new(), 0u64);
    for tensor in tensors {
        let bytes = bytes(&tensor);
        if !file.is_empty() && held.saturating_add(bytes) > most {
            files.push(std::mem::take(&mut file));
            held = 0;
        }
        held = held.saturating_add(bytes);
        file.push(tensor);
    }
    files.push(file);
    files
}

/// Rows of a weight, of `row` bytes each, from the bytes `lie` of the stored rows among which they are;
/// `None` if they are not there, or there is no memory for them.
pub(crate) fn in_order(order: RowMap, rows: Range<usize>, row: usize, lie: &[u8]) -> Option<Bytes> {
    let start = order.covering(&rows).start;
    let mut bytes = Bytes::try_zeroed(rows.len().checked_mul(row)?)?;
    for (index, out) in rows.zip(bytes.as_mut_slice().chunks_exact_mut(row.max(1))) {
        let at = (order.place(index) - start) * row;
        out.copy_from_slice(lie.get(at..at + row)?);
    }
    Some(bytes)
}
