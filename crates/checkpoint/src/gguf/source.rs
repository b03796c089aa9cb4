//! An open GGUF file, or several of one model: checked headers, and rows of their tensors by the names and in
//! the order of a Hugging Face folder.

use super::architecture::Architecture;
use super::blocks::GgufBlocks;
use super::header::{Entry, Header, Value};
use super::names::{FACTORS, Known, hugging_face};
use super::special;
use super::split::Files;
use super::types::Held;
use crate::checkpoint::{FileInfo, TensorInfo};
use crate::codec::{Codec, Slice};
use crate::error::Error;
use crate::header::TENSORS_MAX;
use crate::layout::in_order;
use crate::shard::Shard;
use ir::{Quantized, RowMap};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tensor::{Bytes, DType, Tensor};

/// Files that are kept open.
#[derive(Debug)]
pub(crate) struct Gguf {
    shards: Vec<Shard>,
    header: Header,
    config: Map<String, Json>,
    files: Vec<FileInfo>,
    /// The small files of a folder that say what the keys say.
    texts: BTreeMap<String, Vec<u8>>,
    /// By the name in a Hugging Face folder.
    weights: BTreeMap<String, Lies>,
}

/// Where a weight lies.
#[derive(Clone, Debug)]
struct Lies {
    /// The tensor that it lies in.
    tensor: String,
    file: usize,
    begin: u64,
    bytes: u64,
    shape: Vec<usize>,
    held: Held,
    order: RowMap,
    /// What its values are multiplied by.
    scale: Option<f32>,
}

impl Gguf {
    /// Opens the file at `path` and those that belong to it, and checks their headers.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let Files { shards, header, homes } = Files::open(path)?;
        let first = shards.first().map_or(path, |shard| &shard.path);
        let broken = |rule: String| Error::broken(first, rule);
        let architecture = architecture(&header).map_err(broken)?;
        let factors = factors(&shards, &header, &homes)?;
        let config = super::config(&header, architecture, factors.as_deref()).map_err(broken)?;
        let count = |key: &str| config.get(key).and_then(Json::as_u64).unwrap_or(0) as usize;
        let found = Found {
            shards: &shards,
            architecture,
            head: count("head_dim"),
            experts: count("num_local_experts"),
            scales: BTreeMap::new(),
            weights: BTreeMap::new(),
        };
        let weights = found.all(&header.entries, &homes)?;
        let texts = special::files(&header).map_err(broken)?;
        let tensors = |at: usize| homes.iter().filter(|&&home| home == at).count();
        let file = |(at, shard): (usize, &Shard)| FileInfo {
            path: shard.path.clone(),
            bytes: shard.bytes(),
            tensors: tensors(at),
        };
        let files = shards.iter().enumerate().map(file).collect();
        Ok(Self { shards, header, config, files, texts, weights })
    }

    /// What a `config.json` would say.
    pub(crate) fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    /// The files.
    pub(crate) fn files(&self) -> &[FileInfo] {
        &self.files
    }

    /// The bytes of a tokenizer.json, if there is a tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Option<Vec<u8>>, Error> {
        let first = self.shards.first().map_or(Path::new(""), |shard| &shard.path);
        super::tokenizer(&self.header).map_err(|rule| Error::broken(first, rule))
    }

    /// Whether there is a tokenizer.
    pub(crate) fn has_tokenizer(&self) -> bool {
        match self.header.keys.get("tokenizer.ggml.model") {
            Some(Value::Text(kind)) => !matches!(kind.as_str(), "no_vocab" | "none"),
            said => said.is_some(),
        }
    }

    /// The small files of a folder that say what the keys say, by name: the tokenizer is none of them.
    pub(crate) fn texts(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.texts
    }

    /// The tensors, by name.
    pub(crate) fn tensors(&self) -> Vec<TensorInfo> {
        let info = |(name, lies): (&String, &Lies)| {
            let (dtype, grid) = match (lies.held, lies.scale) {
                (_, Some(_)) => (DType::F32, None),
                (Held::Dense(dtype), None) => (dtype, None),
                (Held::On(grid), None) => (DType::F32, Some(grid)),
            };
            let Lies { file, begin, bytes, .. } = *lies;
            let (name, shape) = (name.clone(), lies.shape.clone());
            TensorInfo { name, dtype, shape, file, begin, grid, stored: bytes }
        };
        self.weights.iter().map(info).collect()
    }

    /// Rows of a dense tensor, or of one whose values are scaled.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, Error> {
        let lies = self.lies(name)?;
        let short = || Error::tensor(name, "its rows are not as long as they must be");
        let read = match lies.held {
            Held::Dense(dtype) => {
                let row = lies.shape.get(1..).unwrap_or_default();
                let shape = std::iter::once(rows.len()).chain(row.iter().copied()).collect();
                Tensor::new(dtype, shape, self.stored(lies, rows)?).ok_or_else(short)?
            }
            Held::On(_) if lies.scale.is_some() => {
                let codes = self.decoded(name, lies, rows)?;
                Tensor::from_f32(codes.shape.to_vec(), &codes.dequantize()).ok_or_else(short)?
            }
            Held::On(_) => return Err(Error::tensor(name, "is not dense")),
        };
        let Some(scale) = lies.scale else { return Ok(read) };
        let mut values = read.to_f32().ok_or_else(short)?;
        values.iter_mut().for_each(|value| *value *= scale);
        Tensor::from_f32(read.shape().to_vec(), &values).ok_or_else(short)
    }

    /// Rows of a tensor on a grid.
    pub(crate) fn codes(&self, name: &str, rows: Range<usize>) -> Result<Quantized, Error> {
        self.decoded(name, self.lies(name)?, rows)
    }

    fn decoded(&self, name: &str, lies: &Lies, rows: Range<usize>) -> Result<Quantized, Error> {
        let (Held::On(grid), &[out, width]) = (lies.held, &lies.shape[..]) else {
            return Err(Error::tensor(name, "is not on a grid"));
        };
        let get = |_: &str, rows: Range<usize>| {
            let short = || Error::tensor(name, "its rows are not as long as they must be");
            let shape = vec![rows.len(), lies.row()];
            Tensor::new(DType::U8, shape, self.stored(lies, rows)?).ok_or_else(short)
        };
        GgufBlocks.decode(name, grid, &Slice { rows, shape: [out, width] }, &get)
    }

    fn lies(&self, name: &str) -> Result<&Lies, Error> {
        let first = self.shards.first().map_or(Path::new(""), |shard| &shard.path);
        let missing = || Error::broken(first, format!("has no tensor {name:?}"));
        self.weights.get(name).ok_or_else(missing)
    }

    /// The bytes of rows, in the order of a Hugging Face folder.
    fn stored(&self, lies: &Lies, rows: Range<usize>) -> Result<Bytes, Error> {
        let lost = || Error::Internal(format!("the file of tensor {:?}", lies.tensor));
        let shard = self.shards.get(lies.file).ok_or_else(lost)?;
        let height = lies.height();
        if rows.start > rows.end || rows.end > height {
            let rule = format!("tensor {:?}: rows {rows:?} of {height}", lies.tensor);
            return Err(Error::broken(&shard.path, rule));
        }
        // No overflow: the header was held against the file's length. Whole heads: the tensor is made of them.
        let (row, lie) = (lies.row(), lies.order.covering(&rows));
        let read = |rows: Range<usize>| {
            let room = Bytes::try_zeroed(rows.len() * row);
            let fault = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
            let full = || Error::io(&shard.path, "hold the rows in memory", fault());
            let mut bytes = room.ok_or_else(full)?;
            shard.read(bytes.as_mut_slice(), lies.begin + (rows.start * row) as u64)?;
            Ok::<_, Error>(bytes)
        };
        if lies.order == RowMap::All {
            return read(lie);
        }
        in_order(lies.order, rows, row, read(lie)?.as_slice()).ok_or_else(lost)
    }
}

impl Lies {
    /// A scalar is one row.
    fn height(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The bytes of a row.
    fn row(&self) -> usize {
        self.bytes as usize / self.height().max(1)
    }
}

fn architecture(header: &Header) -> Result<&'static Architecture, String> {
    const KEY: &str = "general.architecture";
    let said = match header.keys.get(KEY) {
        Some(Value::Text(said)) => said,
        Some(other) => return Err(format!("{KEY} is {}, not a text", other.shown())),
        None => return Err(format!("key {KEY:?} is missing")),
    };
    Architecture::named(said)
        .ok_or_else(|| format!("{KEY} is {said:?}: {} are read", Architecture::names()))
}

/// What each frequency is divided by.
fn factors(shards: &[Shard], header: &Header, homes: &[usize]) -> Result<Option<Vec<f32>>, Error> {
    let mut all = header.entries.iter().zip(homes);
    let Some((entry, &home)) = all.find(|(entry, _)| entry.name == FACTORS) else {
        return Ok(None);
    };
    numbers(shards, entry, home, 1 << 19).map(Some)
}

/// A short list of numbers.
fn numbers(shards: &[Shard], entry: &Entry, home: usize, most: usize) -> Result<Vec<f32>, Error> {
    let lost = || Error::Internal(format!("the file of tensor {:?}", entry.name));
    let shard = shards.get(home).ok_or_else(lost)?;
    let refused =
        |rule: String| Error::broken(&shard.path, format!("tensor {:?}: {rule}", entry.name));
    let (Held::Dense(DType::F32), &[count]) = (entry.held, &entry.shape[..]) else {
        return Err(refused("is no list of F32".into()));
    };
    if count > most {
        return Err(refused(format!("has {count} numbers, at most {most}")));
    }
    let mut bytes = vec![0; count * size_of::<f32>()];
    shard.read(&mut bytes, entry.begin)?;
    let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    match numbers.iter().find(|number| !number.is_finite()) {
        Some(number) => Err(refused(format!("holds {number}"))),
        None => Ok(numbers),
    }
}

/// The weights that are found in the tensors of files.
struct Found<'a> {
    shards: &'a [Shard],
    architecture: &'static Architecture,
    head: usize,
    experts: usize,
    /// What the products of tensors, by their names, are multiplied by: a number, or one an expert.
    scales: BTreeMap<String, Vec<f32>>,
    weights: BTreeMap<String, Lies>,
}

impl Found<'_> {
    fn all(mut self, entries: &[Entry], homes: &[usize]) -> Result<BTreeMap<String, Lies>, Error> {
        for (entry, &home) in entries.iter().zip(homes) {
            if let Some(Known::Scale(of)) = hugging_face(&entry.name) {
                let most = self.experts.max(1);
                self.scales.insert(of, numbers(self.shards, entry, home, most)?);
            }
        }
        for (entry, &home) in entries.iter().zip(homes) {
            self.add(entry, home)?;
        }
        if let Some((name, _)) = self.scales.pop_first() {
            let rule = format!("has a scale of the tensor {name:?}, which is not there");
            return Err(Error::broken(self.path(0), rule));
        }
        Ok(self.weights)
    }

    fn path(&self, home: usize) -> &Path {
        self.shards.get(home).map_or(Path::new(""), |shard| &shard.path)
    }

    fn add(&mut self, entry: &Entry, home: usize) -> Result<(), Error> {
        let path = self.path(home).to_owned();
        let refused = |why: &str| Error::broken(&path, format!("tensor {:?}: {why}", entry.name));
        let name = self.architecture.name;
        let unknown = || refused(&format!("is none that is known of a {name:?}"));
        let scales = self.scales.remove(&entry.name);
        match hugging_face(&entry.name).ok_or_else(unknown)? {
            Known::Factors | Known::Unused | Known::Scale(_) => Ok(()),
            Known::Weight { part, kind, .. } if !self.architecture.reads(part, kind) => {
                Err(unknown())
            }
            Known::Weight { name, part, .. } => {
                let order = self.architecture.order(part, self.head);
                if !entry.shape.first().copied().unwrap_or(1).is_multiple_of(order.span()) {
                    return Err(refused("its rows are not whole heads"));
                }
                if matches!(entry.held, Held::On(_)) && entry.shape.len() != 2 {
                    return Err(refused("is no matrix, which blocks are for"));
                }
                let scale = match scales.as_deref() {
                    None => None,
                    Some(&[scale]) => Some(scale),
                    Some(_) => return Err(refused("has several scales, for one matrix")),
                };
                let lies = Lies { order, scale, ..Lies::of(entry, home) };
                self.insert(name, lies).ok_or_else(|| refused("is there twice, under two names"))
            }
            Known::Experts { part, .. } if !self.architecture.reads(part, "weight") => {
                Err(unknown())
            }
            Known::Experts { prefix, leaf, .. } => {
                let &[count, rows, width] = &entry.shape[..] else {
                    return Err(refused("is no stack of matrices"));
                };
                if count != self.experts {
                    let rule =
                        format!("is of {count} experts, and expert_count says {}", self.experts);
                    return Err(refused(&rule));
                }
                if scales.as_ref().is_some_and(|scales| scales.len() != count) {
                    return Err(refused("has scales of another number of experts"));
                }
                if self.weights.len() + count > TENSORS_MAX {
                    return Err(refused(&format!(
                        "is beyond the {TENSORS_MAX} matrices that are read"
                    )));
                }
                for expert in 0..count {
                    let mut lies = Lies::of(entry, home);
                    lies.bytes /= count as u64;
                    lies.begin += lies.bytes * expert as u64;
                    lies.shape = vec![rows, width];
                    lies.scale = scales.as_ref().map(|scales| scales[expert]);
                    let name = Known::of_expert(&prefix, leaf, expert);
                    self.insert(name, lies).ok_or_else(|| refused("is there twice"))?;
                }
                Ok(())
            }
        }
    }

    /// `None` if it is there already.
    fn insert(&mut self, name: String, lies: Lies) -> Option<()> {
        self.weights.insert(name, lies).is_none().then_some(())
    }
}

impl Lies {
    /// All of a tensor, as it lies.
    fn of(entry: &Entry, file: usize) -> Self {
        Self {
            tensor: entry.name.clone(),
            file,
            begin: entry.begin,
            bytes: entry.bytes,
            shape: entry.shape.clone(),
            held: entry.held,
            order: RowMap::All,
            scale: None,
        }
    }
}
