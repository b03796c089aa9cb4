//! A folder of safetensors files, written: the headers first, then each tensor where it belongs.
//!
//! Everything about the files is determined by the names, dtypes and shapes of their tensors, so
//! the bytes do not depend on the order or the number of threads in which the data comes. Data may
//! come by rows; what is still missing at the end, or came twice, is an error.

use crate::error::Error;
use crate::header::{self, LENGTH_BYTES, TENSORS_MAX};
use crate::write::{Written, sync_folder, write_file};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tensor::DType;

/// The longest file that is written where nothing else is asked for, in bytes of data: that of
/// transformers.
pub const SHARD_BYTES: u64 = 5_000_000_000;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What readers of the format expect the data to begin at a multiple of.
const DATA_ALIGNMENT: usize = 8;
/// How many names a message lists.
const LISTED: usize = 5;

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

/// A folder that is being written. Tensors may be put from several threads.
#[derive(Debug)]
pub struct Sink {
    folder: PathBuf,
    files: Vec<OpenFile>,
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
    index: Option<Vec<u8>>,
}

#[derive(Debug)]
struct OpenFile {
    name: String,
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// Where a tensor goes.
#[derive(Debug)]
struct Place {
    name: String,
    file: usize,
    /// From the start of the file.
    begin: u64,
    bytes: u64,
    /// `None` if a row does not fill whole bytes.
    row_bytes: Option<u64>,
    /// What was written, from the start of the tensor: end by begin, neither touching nor empty.
    written: Mutex<BTreeMap<u64, u64>>,
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

impl Sink {
    /// Begins to write `folder`, which is made if it does not exist: one file, or several of at
    /// most `shard_bytes` bytes of data each (a larger tensor has a file to itself) and their
    /// index.
    ///
    /// The tensors lie in the order given, unless one would begin off a multiple of its element's
    /// width: then those of wider elements come first in that file.
    ///
    /// # Errors
    /// If a tensor may not be stored under its name or shape, a name comes twice, there is no
    /// tensor at all, one of the files exists already, or a file cannot be made.
    pub fn create(folder: &Path, tensors: Vec<Planned>, shard_bytes: u64) -> Result<Self, Error> {
        let total = check(&tensors)?;
        let shards = split(tensors, shard_bytes);
        let count = shards.len();
        let file_name = |i: usize| match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let made = fs::create_dir_all(folder);
        made.map_err(|e| Error::write(folder, "make the folder", total, e))?;
        let mut sink = Self {
            folder: folder.to_owned(),
            files: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
            index: None,
        };
        let mut weight_map = BTreeMap::new();
        for (i, shard) in shards.into_iter().enumerate() {
            let name = file_name(i);
            weight_map.extend(shard.iter().map(|t| (t.name.clone(), name.clone())));
            sink.begin_file(name, shard)?;
        }
        if count > 1 {
            let weight_map: Map<String, Value> =
                weight_map.into_iter().map(|(tensor, file)| (tensor, file.into())).collect();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            sink.index = Some(format!("{index:#}\n").into_bytes());
        }
        Ok(sink)
    }

    /// Writes the whole tensor `name`, little-endian and row-major.
    ///
    /// # Errors
    /// If `name` was not planned, `bytes` is not its length, any of it was put before, or the file
    /// cannot be written.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let place = self.place(name)?;
        if bytes.len() as u64 != place.bytes {
            let (found, expected) = (bytes.len(), place.bytes);
            let message = format!("tensor {name:?} takes {expected} bytes, {found} were put");
            return Err(Error::Internal(message));
        }
        self.write(place, 0, bytes)
    }

    /// Writes rows of the tensor `name` from row `first_row` on: as many as `bytes` holds.
    ///
    /// # Errors
    /// Those of [`Sink::put`], and if `bytes` does not hold whole rows.
    pub fn put_rows(&self, name: &str, first_row: usize, bytes: &[u8]) -> Result<(), Error> {
        let place = self.place(name)?;
        let length = bytes.len() as u64;
        let row = place.row_bytes.filter(|&row| length.checked_rem(row).is_none_or(|r| r == 0));
        let at = row.and_then(|row| row.checked_mul(first_row as u64));
        let end = at.and_then(|at| at.checked_add(length));
        match at.filter(|_| end.is_some_and(|end| end <= place.bytes)) {
            Some(at) => self.write(place, at, bytes),
            None => Err(Error::Internal(format!(
                "{length} bytes are not whole rows of tensor {name:?} from row {first_row} on"
            ))),
        }
    }

    /// Checks that every byte of every tensor was put, and flushes everything to the disk. The
    /// index, where there is one, is written last.
    ///
    /// # Errors
    /// If something was not put, or the disk fails.
    pub fn finish(self) -> Result<Vec<Written>, Error> {
        let missing: Vec<&str> =
            self.places.iter().filter(|p| !p.is_whole()).map(|p| p.name.as_str()).collect();
        if !missing.is_empty() {
            let (count, first) = (missing.len(), missing.get(..LISTED).unwrap_or(&missing));
            let message = format!("{count} tensors were not put, or not whole: {first:?}");
            return Err(Error::Internal(message));
        }
        let mut written = Vec::new();
        for OpenFile { name, path, file, bytes } in self.files {
            file.sync_all().map_err(|e| Error::write(&path, "flush the file", bytes, e))?;
            written.push(Written { name, bytes });
        }
        if let Some(index) = self.index {
            written.push(write_file(&self.folder, INDEX, &index)?);
        }
        sync_folder(&self.folder)?;
        Ok(written)
    }

    /// Makes the file `name`, of its final length, and writes its header.
    fn begin_file(&mut self, name: String, tensors: Vec<Planned>) -> Result<(), Error> {
        let path = self.folder.join(&name);
        let tensors = aligned(tensors);
        let (head, ends) = head(&tensors);
        let data = head.len() as u64;
        // `check` has summed all tensors without overflow.
        let bytes = data.saturating_add(ends.last().copied().unwrap_or(0));
        // What is written is what the reader accepts; only the header's own caps can fail.
        let broken = |fault| Error::Header { path: path.clone(), fault };
        header::parse(&head, bytes).map_err(broken)?;
        let failed = |doing| {
            let path = path.clone();
            move |e| Error::write(&path, doing, bytes, e)
        };
        let create = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = create.map_err(failed("make the file"))?;
        file.set_len(bytes).map_err(failed("lengthen the file"))?;
        file.write_all_at(&head, 0).map_err(failed("write the file"))?;
        let begins = std::iter::once(0).chain(ends.iter().copied());
        for ((tensor, begin), end) in tensors.into_iter().zip(begins).zip(&ends) {
            let row = tensor.shape.get(1..).unwrap_or_default();
            let place = Place {
                file: self.files.len(),
                begin: data + begin,
                bytes: end - begin,
                row_bytes: tensor.dtype.bytes_of(row).map(|n| n as u64),
                written: Mutex::default(),
                name: tensor.name,
            };
            self.by_name.insert(place.name.clone(), self.places.len());
            self.places.push(place);
        }
        self.files.push(OpenFile { name, path, file, bytes });
        Ok(())
    }

    fn place(&self, name: &str) -> Result<&Place, Error> {
        let found = self.by_name.get(name).and_then(|&i| self.places.get(i));
        found.ok_or_else(|| Error::Internal(format!("tensor {name:?} was not planned")))
    }

    /// Writes a part of a tensor that lies inside it.
    fn write(&self, place: &Place, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let file = self.files.get(place.file);
        let file = file.ok_or_else(|| Error::Internal("a tensor has no file".into()))?;
        if !place.claim(at, at + bytes.len() as u64) {
            let message = format!("tensor {:?} was put twice, at byte {at}", place.name);
            return Err(Error::Internal(message));
        }
        let written = file.file.write_all_at(bytes, place.begin + at);
        written.map_err(|e| Error::write(&file.path, "write the file", file.bytes, e))
    }
}

impl Place {
    /// Notes that `from..to` is written; `false` if some of it already was.
    fn claim(&self, from: u64, to: u64) -> bool {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let before = written.range(..=from).next_back().map(|(&b, &e)| (b, e));
        let after = written.range(from..).next().map(|(&b, &e)| (b, e));
        if before.is_some_and(|(_, end)| end > from) || after.is_some_and(|(begin, _)| begin < to) {
            return false;
        }
        if from == to {
            return true;
        }
        let begin = before.filter(|&(_, end)| end == from).map_or(from, |(begin, _)| begin);
        let end = match after.filter(|&(begin, _)| begin == to) {
            Some((next, end)) => {
                written.remove(&next);
                end
            }
            None => to,
        };
        written.insert(begin, end);
        true
    }

    fn is_whole(&self) -> bool {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        self.bytes == 0 || written.get(&0) == Some(&self.bytes)
    }
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

/// Fills one file after the other.
fn split(tensors: Vec<Planned>, shard_bytes: u64) -> Vec<Vec<Planned>> {
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
