//! A folder of safetensors files, written: the headers first, then each tensor where it belongs.
//!
//! Everything about the files is determined by the names, dtypes and shapes of their tensors, so
//! the bytes do not depend on the order or the number of threads in which the data comes. Data may
//! come by rows; what is still missing at the end, or came twice, is an error.

use crate::disk::{Disk, DiskFile, System};
use crate::error::Error;
use crate::header;
use crate::layout::{Planned, aligned, check, head, split};
use crate::write::{Written, hash_part, sync_folder, write_file_on};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The longest file that is written where nothing else is asked for, in bytes of data: that of
/// transformers.
pub const SHARD_BYTES: u64 = 5_000_000_000;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// How many names a message lists.
const LISTED: usize = 5;

/// A folder that is being written. Tensors may be put from several threads.
#[derive(Debug)]
pub struct Sink {
    disk: Arc<dyn Disk>,
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
    file: Box<dyn DiskFile>,
    bytes: u64,
    /// Whether something was written since it was last flushed.
    dirty: AtomicBool,
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
        Self::create_on(Arc::new(System), folder, tensors, shard_bytes)
    }

    /// [`Sink::create`] on another disk than the system's.
    ///
    /// # Errors
    /// Those of [`Sink::create`].
    pub fn create_on(
        disk: Arc<dyn Disk>,
        folder: &Path,
        tensors: Vec<Planned>,
        shard_bytes: u64,
    ) -> Result<Self, Error> {
        let total = check(&tensors)?;
        let sink = Self::new(disk, folder);
        let made = sink.disk.make_folder(folder);
        made.map_err(|e| Error::write(folder, "make the folder", total, e))?;
        let sink = sink.with_files(tensors, total, shard_bytes, Self::begin_file)?;
        sink.sync()?;
        sync_folder(&*sink.disk, folder)?;
        Ok(sink)
    }

    /// Goes on with what [`Sink::create_on`] began with the same arguments in another process. No
    /// tensor counts as put but those that [`Sink::keep`] is told of.
    ///
    /// # Errors
    /// If a file is not there, or is not what was begun.
    pub fn resume_on(
        disk: Arc<dyn Disk>,
        folder: &Path,
        tensors: Vec<Planned>,
        shard_bytes: u64,
    ) -> Result<Self, Error> {
        let total = check(&tensors)?;
        Self::new(disk, folder).with_files(tensors, total, shard_bytes, Self::reopen_file)
    }

    fn new(disk: Arc<dyn Disk>, folder: &Path) -> Self {
        Self {
            disk,
            folder: folder.to_owned(),
            files: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
            index: None,
        }
    }

    fn with_files(
        mut self,
        tensors: Vec<Planned>,
        total: u64,
        shard_bytes: u64,
        file: impl Fn(&Self, &str, &[u8], u64) -> Result<Box<dyn DiskFile>, Error>,
    ) -> Result<Self, Error> {
        let shards = split(tensors, shard_bytes);
        let count = shards.len();
        let file_name = |i: usize| match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let mut weight_map = BTreeMap::new();
        for (i, shard) in shards.into_iter().enumerate() {
            let name = file_name(i);
            weight_map.extend(shard.iter().map(|t| (t.name.clone(), name.clone())));
            self.add_file(name, shard, &file)?;
        }
        if count > 1 {
            let weight_map: Map<String, Value> =
                weight_map.into_iter().map(|(tensor, file)| (tensor, file.into())).collect();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            self.index = Some(format!("{index:#}\n").into_bytes());
        }
        Ok(self)
    }

    /// Writes the whole tensor `name`, little-endian and row-major.
    ///
    /// # Errors
    /// If `name` was not planned, `bytes` is not its length, any of it was put before, or the file
    /// cannot be written.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (place, file) = self.place(name)?;
        if bytes.len() as u64 != place.bytes {
            let (found, expected) = (bytes.len(), place.bytes);
            let message = format!("tensor {name:?} takes {expected} bytes, {found} were put");
            return Err(Error::Internal(message));
        }
        self.write(place, file, 0, bytes)
    }

    /// Writes rows of the tensor `name` from row `first_row` on: as many as `bytes` holds.
    ///
    /// # Errors
    /// Those of [`Sink::put`], and if `bytes` does not hold whole rows.
    pub fn put_rows(&self, name: &str, first_row: usize, bytes: &[u8]) -> Result<(), Error> {
        let (place, file) = self.place(name)?;
        let length = bytes.len() as u64;
        let row = place.row_bytes.filter(|&row| length.checked_rem(row).is_none_or(|r| r == 0));
        let at = row.and_then(|row| row.checked_mul(first_row as u64));
        let end = at.and_then(|at| at.checked_add(length));
        match at.filter(|_| end.is_some_and(|end| end <= place.bytes)) {
            Some(at) => self.write(place, file, at, bytes),
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
        self.sync()?;
        let written = |f: &OpenFile| Written { name: f.name.clone(), bytes: f.bytes };
        let mut written: Vec<Written> = self.files.iter().map(written).collect();
        if let Some(index) = self.index {
            written.push(write_file_on(&*self.disk, &self.folder, INDEX, &index)?);
        }
        sync_folder(&*self.disk, &self.folder)?;
        Ok(written)
    }

    /// Flushes what was put to the disk.
    ///
    /// # Errors
    /// If the disk fails. What was put since the last flush may then be lost.
    pub fn sync(&self) -> Result<(), Error> {
        for file in &self.files {
            if file.dirty.swap(false, Ordering::Relaxed) {
                let synced = file.file.sync();
                synced.map_err(|e| Error::write(&file.path, "flush the file", file.bytes, e))?;
            }
        }
        Ok(())
    }

    /// The SHA-256 of the tensor `name` as the file has it, in lower-case hexadecimal.
    ///
    /// # Errors
    /// If `name` was not planned, or the file cannot be read.
    pub fn hash(&self, name: &str) -> Result<String, Error> {
        let (place, file) = self.place(name)?;
        let hash = hash_part(&*file.file, place.begin, place.bytes);
        hash.map_err(|e| Error::io(&file.path, "read the file", e))
    }

    /// The bytes of the tensor `name` as the file has them.
    ///
    /// # Errors
    /// If `name` was not planned, or the file cannot be read.
    pub fn get(&self, name: &str) -> Result<Vec<u8>, Error> {
        let (place, file) = self.place(name)?;
        let mut bytes = vec![0; place.bytes as usize];
        let read = file.file.read_exact_at(&mut bytes, place.begin);
        read.map_err(|e| Error::io(&file.path, "read the file", e))?;
        Ok(bytes)
    }

    /// Counts the tensor `name` as put: another process has.
    ///
    /// # Errors
    /// If `name` was not planned, or any of it was put before.
    pub fn keep(&self, name: &str) -> Result<(), Error> {
        let (place, _) = self.place(name)?;
        place.claim(0, place.bytes).then_some(()).ok_or_else(|| twice(place, 0))
    }

    /// The names of the files in which tensors are.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|f| f.name.as_str())
    }

    /// Makes the file `name`, of its final length, and writes its header.
    fn begin_file(&self, name: &str, head: &[u8], bytes: u64) -> Result<Box<dyn DiskFile>, Error> {
        let path = self.folder.join(name);
        let failed = |doing| {
            let path = path.clone();
            move |e| Error::write(&path, doing, bytes, e)
        };
        let file = self.disk.create(&path).map_err(failed("make the file"))?;
        file.set_len(bytes).map_err(failed("lengthen the file"))?;
        file.write_all_at(head, 0).map_err(failed("write the file"))?;
        Ok(file)
    }

    /// Opens the file `name`, which must be as [`Sink::begin_file`] made it but for its data.
    fn reopen_file(&self, name: &str, head: &[u8], bytes: u64) -> Result<Box<dyn DiskFile>, Error> {
        let path = self.folder.join(name);
        let io = |e| Error::io(&path, "read the file", e);
        let file = self.disk.edit(&path).map_err(io)?;
        let mut found = vec![0; head.len()];
        if file.bytes().map_err(io)? == bytes {
            file.read_exact_at(&mut found, 0).map_err(io)?;
        }
        let same = found == head;
        same.then_some(file).ok_or_else(|| Error::broken(&path, "is not the file that was begun"))
    }

    fn add_file(
        &mut self,
        name: String,
        tensors: Vec<Planned>,
        file: impl Fn(&Self, &str, &[u8], u64) -> Result<Box<dyn DiskFile>, Error>,
    ) -> Result<(), Error> {
        let path = self.folder.join(&name);
        let tensors = aligned(tensors);
        let (head, ends) = head(&tensors);
        let data = head.len() as u64;
        // `check` has summed all tensors without overflow.
        let bytes = data.saturating_add(ends.last().copied().unwrap_or(0));
        // What is written is what the reader accepts; only the header's own caps can fail.
        let broken = |fault| Error::Header { path: path.clone(), fault };
        header::parse(&head, bytes).map_err(broken)?;
        let file = file(self, &name, &head, bytes)?;
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
        let dirty = AtomicBool::new(true);
        self.files.push(OpenFile { name, path, file, bytes, dirty });
        Ok(())
    }

    fn place(&self, name: &str) -> Result<(&Place, &OpenFile), Error> {
        let place = self.by_name.get(name).and_then(|&i| self.places.get(i));
        let found = place.and_then(|place| Some((place, self.files.get(place.file)?)));
        found.ok_or_else(|| Error::Internal(format!("tensor {name:?} was not planned")))
    }

    /// Writes a part of a tensor that lies inside it.
    fn write(&self, place: &Place, file: &OpenFile, at: u64, bytes: &[u8]) -> Result<(), Error> {
        if !place.claim(at, at + bytes.len() as u64) {
            return Err(twice(place, at));
        }
        file.dirty.store(true, Ordering::Relaxed);
        let written = file.file.write_all_at(bytes, place.begin + at);
        written.map_err(|e| Error::write(&file.path, "write the file", file.bytes, e))
    }
}

fn twice(place: &Place, at: u64) -> Error {
    Error::Internal(format!("tensor {:?} was put twice, at byte {at}", place.name))
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
