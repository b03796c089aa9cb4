//! An open GGUF file: its checked header, and rows of its tensors in the order of a Hugging Face folder.

use super::blocks::GgufBlocks;
use super::header::{self, Entry, HEADER_MAX, Header, HeaderError};
use super::names::hugging_face;
use super::types::Held;
use crate::checkpoint::TensorInfo;
use crate::codec::{Codec, Slice};
use crate::error::Error;
use crate::folder::Folder;
use crate::shard::Shard;
use ir::{Quantized, RowMap};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tensor::{Bytes, DType, Tensor};

/// How much of a file is read at first to find its header.
const START: u64 = 1 << 20;

/// A file that is kept open.
#[derive(Debug)]
pub(crate) struct Gguf {
    shard: Shard,
    header: Header,
    config: Map<String, Value>,
    /// By the name in a Hugging Face folder: which entry, and the order of its rows.
    places: BTreeMap<String, (usize, RowMap)>,
}

impl Gguf {
    /// Opens the file at `path` and checks its header.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let broken = |rule: String| Error::broken(path, rule);
        let folder = Folder::around(path)?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| broken("has no name that is text".into()))?;
        let opened = folder.file(name)?;
        let opened = opened.ok_or_else(|| Error::missing(path, "there is no such file"))?;
        let shard = Shard::of(opened);
        let header = Self::header(&shard)?;
        let config = super::config(&header).map_err(broken)?;
        let head = config.get("head_dim").and_then(Value::as_u64).unwrap_or(0) as usize;
        let mut places = BTreeMap::new();
        for (index, entry) in header.entries.iter().enumerate() {
            let refused =
                |why: &str| Error::broken(path, format!("tensor {:?}: {why}", entry.name));
            let known = hugging_face(&entry.name, head);
            let (name, order) = known.ok_or_else(|| refused("is none of a llama's"))?;
            let rows = entry.shape.first().copied().unwrap_or(1);
            if !rows.is_multiple_of(order.span()) {
                return Err(refused("its rows are not whole heads"));
            }
            if matches!(entry.held, Held::On(_)) && entry.shape.len() != 2 {
                return Err(refused("is no matrix, which blocks are for"));
            }
            if places.insert(name, (index, order)).is_some() {
                return Err(refused("is there twice, under two names"));
            }
        }
        Ok(Self { shard, header, config, places })
    }

    fn header(shard: &Shard) -> Result<Header, Error> {
        let mut known = START;
        loop {
            let mut start = vec![0; known.min(shard.bytes()) as usize];
            shard.read(&mut start, 0)?;
            match header::parse(&start, shard.bytes()) {
                Ok(header) => return Ok(header),
                Err(HeaderError::Ends(_)) if known < shard.bytes().min(HEADER_MAX) => known *= 4,
                Err(fault) => return Err(Error::broken(&shard.path, fault.to_string())),
            }
        }
    }

    /// What a `config.json` would say.
    pub(crate) fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.shard.bytes()
    }

    /// The bytes of a tokenizer.json, if there is a tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Option<Vec<u8>>, Error> {
        super::tokenizer(&self.header).map_err(|rule| Error::broken(&self.shard.path, rule))
    }

    /// The tensors, by name.
    pub(crate) fn tensors(&self) -> Vec<TensorInfo> {
        let info = |(name, &(index, _)): (&String, &(usize, RowMap))| {
            let entry = self.header.entries.get(index)?;
            let (dtype, grid) = match entry.held {
                Held::Dense(dtype) => (dtype, None),
                Held::On(grid) => (DType::F32, Some(grid)),
            };
            let (begin, stored) = (entry.begin, entry.bytes);
            let (name, shape) = (name.clone(), entry.shape.clone());
            Some(TensorInfo { name, dtype, shape, file: 0, begin, grid, stored })
        };
        self.places.iter().filter_map(info).collect()
    }

    /// Rows of a dense tensor.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, Error> {
        let (entry, order) = self.place(name)?;
        let Held::Dense(dtype) = entry.held else {
            return Err(Error::tensor(name, "is not dense"));
        };
        let row = entry.shape.get(1..).unwrap_or_default();
        let shape = std::iter::once(rows.len()).chain(row.iter().copied()).collect();
        let bytes = self.stored(entry, order, rows)?;
        let short = || Error::tensor(name, "its rows are not as long as they must be");
        Tensor::new(dtype, shape, bytes).ok_or_else(short)
    }

    /// Rows of a tensor on a grid.
    pub(crate) fn codes(&self, name: &str, rows: Range<usize>) -> Result<Quantized, Error> {
        let (entry, order) = self.place(name)?;
        let (Held::On(grid), &[out, width]) = (entry.held, &entry.shape[..]) else {
            return Err(Error::tensor(name, "is not on a grid"));
        };
        let get = |_: &str, rows: Range<usize>| {
            let shape = vec![rows.len(), entry.row_bytes];
            let bytes = self.stored(entry, order, rows)?;
            let short = || Error::tensor(name, "its rows are not as long as they must be");
            Tensor::new(DType::U8, shape, bytes).ok_or_else(short)
        };
        GgufBlocks.decode(name, grid, &Slice { rows, shape: [out, width] }, &get)
    }

    fn place(&self, name: &str) -> Result<(&Entry, RowMap), Error> {
        let missing = || Error::broken(&self.shard.path, format!("has no tensor {name:?}"));
        let &(index, order) = self.places.get(name).ok_or_else(missing)?;
        Ok((self.header.entries.get(index).ok_or_else(missing)?, order))
    }

    /// The bytes of rows, in the order of a Hugging Face folder.
    fn stored(&self, entry: &Entry, order: RowMap, rows: Range<usize>) -> Result<Bytes, Error> {
        let broken = |rule: String| {
            Error::broken(&self.shard.path, format!("tensor {:?}: {rule}", entry.name))
        };
        let height = entry.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > height {
            return Err(broken(format!("rows {rows:?} of {height}")));
        }
        // No overflow: the header was held against the file's length.
        let row = entry.bytes as usize / height.max(1);
        // Whole heads: the tensor is made of them.
        let lie = order.covering(&rows);
        let read = |rows: Range<usize>| {
            let room = Bytes::try_zeroed(rows.len() * row);
            let fault = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
            let full = || Error::io(&self.shard.path, "hold the rows in memory", fault());
            let mut bytes = room.ok_or_else(full)?;
            self.shard.read(bytes.as_mut_slice(), entry.begin + (rows.start * row) as u64)?;
            Ok::<_, Error>(bytes)
        };
        if order == RowMap::All {
            return read(lie);
        }
        let all = read(lie.clone())?;
        let mut bytes = Bytes::zeroed(rows.len() * row);
        for (index, out) in rows.zip(bytes.as_mut_slice().chunks_exact_mut(row.max(1))) {
            let at = (order.place(index) - lie.start) * row;
            out.copy_from_slice(&all.as_slice()[at..at + row]);
        }
        Ok(bytes)
    }
}
