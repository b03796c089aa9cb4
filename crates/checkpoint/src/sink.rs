//! A layout, written: the heads of its files first, then each tensor where it belongs.
//!
//! The layout determines everything about the files, so the bytes do not depend on the order or the
//! number of threads in which the data comes. Data may come by rows, and can be read back as it
//! is written; what is still missing at the end, or came twice, is an error.

use crate::codec::Slice;
use crate::container::{Rows, Stored};
use crate::disk::{Disk, DiskFile, System};
use crate::error::Error;
use crate::layout::{Laid, LaidFile, Layout, Planned, Trailer, in_order};
use crate::write::{Written, hash_part, sync_folder, write_file_on};
use ir::{Quantized, RowMap};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tensor::{Bytes, DType, Tensor};

/// The longest file that is written where nothing else is asked for, in bytes of data: that of
/// transformers.
pub const SHARD_BYTES: u64 = 5_000_000_000;

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
    weights: BTreeMap<String, Laid>,
    trailer: Option<Trailer>,
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
    dtype: DType,
    shape: Vec<usize>,
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
    /// Begins to write a folder of safetensors files, of at most `shard_bytes` bytes of data each.
    ///
    /// # Errors
    /// If a tensor may not be stored under its name or shape, a name comes twice, there is no
    /// tensor at all, and those of [`Sink::create_on`].
    pub fn create(folder: &Path, tensors: Vec<Planned>, shard_bytes: u64) -> Result<Self, Error> {
        Self::create_on(Arc::new(System), folder, Layout::of_tensors(tensors, shard_bytes)?)
    }

    /// Begins to write what is laid out to `folder`, which is made if it does not exist.
    ///
    /// # Errors
    /// If one of the files exists already, or a file cannot be made.
    pub fn create_on(disk: Arc<dyn Disk>, folder: &Path, layout: Layout) -> Result<Self, Error> {
        let total = layout.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        let made = disk.make_folder(folder);
        made.map_err(|e| Error::write(folder, "make the folder", total, e))?;
        let sink = Self::new(disk, folder, layout, Self::begin_file)?;
        sink.sync()?;
        sync_folder(&*sink.disk, folder)?;
        Ok(sink)
    }

    /// Goes on with what [`Sink::create_on`] began with the same arguments in another process. No
    /// tensor counts as put but those that [`Sink::keep`] is told of.
    ///
    /// # Errors
    /// If a file is not there, or is not what was begun.
    pub fn resume_on(disk: Arc<dyn Disk>, folder: &Path, layout: Layout) -> Result<Self, Error> {
        Self::new(disk, folder, layout, Self::reopen_file)
    }

    fn new(
        disk: Arc<dyn Disk>,
        folder: &Path,
        layout: Layout,
        open: impl Fn(&Self, &LaidFile) -> Result<Box<dyn DiskFile>, Error>,
    ) -> Result<Self, Error> {
        let Layout { files, trailer, weights, .. } = layout;
        let mut sink = Self {
            disk,
            folder: folder.to_owned(),
            files: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
            weights,
            trailer,
        };
        for file in files {
            let opened = open(&sink, &file)?;
            sink.add_file(file, opened);
        }
        Ok(sink)
    }

    /// Writes the rows from `first` on of the weight `name`, which is on a grid.
    ///
    /// # Errors
    /// If it was laid out otherwise, `codes` does not hold what its shape and grid say, any of the
    /// rows was put before, or a file cannot be written.
    pub fn put_codes(&self, name: &str, first: usize, codes: &Quantized) -> Result<(), Error> {
        let laid = self.laid(name)?;
        let (Some(codec), &[out, width], true) =
            (laid.codec, &laid.shape[..], laid.stored == Stored::On(codes.grid))
        else {
            return Err(Error::Internal(format!("{name:?} is not laid out on {}", codes.grid)));
        };
        let at = Slice { rows: first..first.saturating_add(codes.shape[0]), shape: [out, width] };
        let by_columns = laid.by_columns();
        codec.encode(&laid.name, codes, &at, &mut |part, first, bytes| match by_columns {
            true => self.put_columns(part, first, bytes),
            false => self.put_ordered(part, laid.order, first, bytes),
        })
    }

    /// Writes the rows from `first` on of the weight `name`, which is dense.
    ///
    /// # Errors
    /// If it was laid out otherwise, any of the rows was put before, or a file cannot be written.
    pub fn put_values(&self, name: &str, first: usize, values: &Tensor) -> Result<(), Error> {
        let laid = self.laid(name)?;
        if laid.stored != Stored::Dense(values.dtype()) {
            let rule = format!("{name:?} is not laid out as dense {}", values.dtype());
            return Err(Error::Internal(rule));
        }
        match values.shape() == laid.shape && laid.order == RowMap::All {
            true => self.put(&laid.name, values.bytes()),
            false => self.put_ordered(&laid.name, laid.order, first, values.bytes()),
        }
    }

    /// The rows `rows` of the weight `name` as the files have them.
    ///
    /// # Errors
    /// If it was not laid out, its parts are not sound, or a file cannot be read.
    pub fn read(&self, name: &str, rows: Range<usize>) -> Result<Rows, Error> {
        let laid = self.laid(name)?;
        let (Stored::On(grid), Some(codec), &[out, width]) =
            (laid.stored, laid.codec, &laid.shape[..])
        else {
            return Ok(Rows::Dense(self.get_ordered(&laid.name, laid.order, rows)?));
        };
        let at = Slice { rows, shape: [out, width] };
        let by_columns = laid.by_columns();
        let codes = codec.decode(&laid.name, grid, &at, &|part, those| match by_columns {
            true => self.get_columns(part, those),
            false => self.get_ordered(part, laid.order, those),
        })?;
        Ok(Rows::On(codes))
    }

    /// The names of the tensors that the weight `name` is stored as.
    ///
    /// # Errors
    /// If it was not laid out.
    pub fn parts(&self, name: &str) -> Result<&[String], Error> {
        Ok(&self.laid(name)?.parts)
    }

    /// [`Sink::put_rows`] of rows that lie in another order.
    fn put_ordered(
        &self,
        name: &str,
        order: RowMap,
        first: usize,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let row = self.place(name)?.0.row_bytes.unwrap_or(0) as usize;
        if row == 0 || !matches!(order, RowMap::Paired(_)) {
            return self.put_rows(name, order.place(first), bytes);
        }
        let (count, rest) = (bytes.len() / row, bytes.len() % row);
        if rest > 0 || !first.is_multiple_of(order.span()) || !count.is_multiple_of(order.span()) {
            let mut rows = bytes.chunks(row).enumerate();
            return rows.try_for_each(|(i, row)| self.put_rows(name, order.place(first + i), row));
        }
        // Whole heads lie together, and are written at once.
        let mut lie = vec![0; bytes.len()];
        for (i, from) in bytes.chunks(row).enumerate() {
            let at = (order.place(first + i) - first) * row;
            lie[at..at + from.len()].copy_from_slice(from);
        }
        self.put_rows(name, first, &lie)
    }

    /// [`Sink::get_rows`] of rows that lie in another order.
    fn get_ordered(&self, name: &str, order: RowMap, rows: Range<usize>) -> Result<Tensor, Error> {
        let lie = order.covering(&rows);
        let read = self.get_rows(name, lie.clone())?;
        if !matches!(order, RowMap::Paired(_)) {
            return Ok(read);
        }
        let lost = || Error::Internal(format!("rows of tensor {name:?}"));
        let row = read.bytes().len().checked_div(lie.len()).unwrap_or(0);
        let mut shape = read.shape().to_vec();
        *shape.first_mut().ok_or_else(lost)? = rows.len();
        let bytes = in_order(order, rows, row, read.bytes()).ok_or_else(lost)?;
        Tensor::new(read.dtype(), shape, bytes).ok_or_else(lost)
    }

    fn laid(&self, name: &str) -> Result<&Laid, Error> {
        let laid = self.weights.get(name);
        laid.ok_or_else(|| Error::Internal(format!("weight {name:?} was not laid out")))
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

    /// Writes columns of the tensor `name` from `first` on, as many as `bytes` holds of each row: its
    /// last dimension is the columns, what is before it the rows.
    fn put_columns(&self, name: &str, first: usize, bytes: &[u8]) -> Result<(), Error> {
        let (place, file) = self.place(name)?;
        let lost = || {
            let length = bytes.len();
            Error::Internal(format!("{length} bytes are not columns of {name:?} from {first} on"))
        };
        let grid = Columns::of(place).ok_or_else(lost)?;
        let part = bytes.len() / grid.rows.max(1);
        let at = first.checked_mul(grid.each).ok_or_else(lost)?;
        let end = at.checked_add(part).filter(|&end| end <= grid.row_bytes).ok_or_else(lost)?;
        if part * grid.rows != bytes.len() {
            return Err(lost());
        }
        if at == 0 && end == grid.row_bytes {
            return self.write(place, file, 0, bytes);
        }
        let mut rows = bytes.chunks_exact(part.max(1)).enumerate();
        rows.try_for_each(|(row, bytes)| {
            self.write(place, file, (row * grid.row_bytes + at) as u64, bytes)
        })
    }

    /// Columns of the tensor `name` as the file has them.
    fn get_columns(&self, name: &str, columns: Range<usize>) -> Result<Tensor, Error> {
        let (place, file) = self.place(name)?;
        let outside = || Error::Internal(format!("columns {columns:?} of tensor {name:?}"));
        let grid = Columns::of(place).ok_or_else(outside)?;
        let inside = columns.start <= columns.end && columns.end * grid.each <= grid.row_bytes;
        let part = columns.len() * grid.each;
        let whole = part.checked_mul(grid.rows).filter(|_| inside).ok_or_else(outside)?;
        let mut buffer = Bytes::try_zeroed(whole).ok_or_else(|| {
            let fault = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
            Error::io(&file.path, "hold the columns in memory", fault)
        })?;
        for (row, part) in buffer.as_mut_slice().chunks_exact_mut(part.max(1)).enumerate() {
            let at = place.begin + (row * grid.row_bytes + columns.start * grid.each) as u64;
            let read = file.file.read_exact_at(part, at);
            read.map_err(|e| Error::io(&file.path, "read the file", e))?;
        }
        let mut shape = place.shape.clone();
        shape.pop();
        shape.push(columns.len());
        Tensor::new(place.dtype, shape, buffer).ok_or_else(outside)
    }

    /// Checks that every byte of every tensor was put, and flushes everything to the disk. What
    /// tells of all files, where there is such a file, is written last.
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
        if let Some(Trailer { name, bytes }) = self.trailer {
            written.push(write_file_on(&*self.disk, &self.folder, &name, &bytes)?);
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

    /// Rows of the tensor `name` as the file has them.
    fn get_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, Error> {
        let (place, file) = self.place(name)?;
        let outside = || Error::Internal(format!("rows {rows:?} of tensor {name:?}"));
        // A scalar is one row of one element.
        let (height, row) = place.shape.split_first().map_or((1, &[][..]), |(&h, row)| (h, row));
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(row.iter().copied()).collect();
        let inside = rows.start <= rows.end && rows.end <= height;
        let bytes = place.dtype.bytes_of(&shape).filter(|_| inside).ok_or_else(outside)?;
        let row_bytes = place.row_bytes.ok_or_else(outside)?;
        let mut buffer = Bytes::try_zeroed(bytes).ok_or_else(|| {
            let fault = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
            Error::io(&file.path, "hold the rows in memory", fault)
        })?;
        let at = place.begin + rows.start as u64 * row_bytes;
        let read = file.file.read_exact_at(buffer.as_mut_slice(), at);
        read.map_err(|e| Error::io(&file.path, "read the file", e))?;
        Tensor::new(place.dtype, shape, buffer).ok_or_else(outside)
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

    /// Makes a file, of its final length, and writes its head.
    fn begin_file(&self, laid: &LaidFile) -> Result<Box<dyn DiskFile>, Error> {
        let path = self.folder.join(&laid.name);
        let failed = |doing| {
            let path = path.clone();
            move |e| Error::write(&path, doing, laid.bytes, e)
        };
        let file = self.disk.create(&path).map_err(failed("make the file"))?;
        file.set_len(laid.bytes).map_err(failed("lengthen the file"))?;
        file.write_all_at(&laid.head, 0).map_err(failed("write the file"))?;
        Ok(file)
    }

    /// Opens a file, which must be as [`Sink::begin_file`] made it but for its data.
    fn reopen_file(&self, laid: &LaidFile) -> Result<Box<dyn DiskFile>, Error> {
        let path = self.folder.join(&laid.name);
        let io = |e| Error::io(&path, "read the file", e);
        let file = self.disk.edit(&path).map_err(io)?;
        let mut found = vec![0; laid.head.len()];
        if file.bytes().map_err(io)? == laid.bytes {
            file.read_exact_at(&mut found, 0).map_err(io)?;
        }
        let same = found == laid.head;
        same.then_some(file).ok_or_else(|| Error::broken(&path, "is not the file that was begun"))
    }

    fn add_file(&mut self, laid: LaidFile, file: Box<dyn DiskFile>) {
        for crate::layout::Place { tensor, begin, bytes } in laid.places {
            let row = tensor.shape.get(1..).unwrap_or_default();
            let place = Place {
                file: self.files.len(),
                begin,
                bytes,
                row_bytes: tensor.dtype.bytes_of(row).map(|n| n as u64),
                written: Mutex::default(),
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
            };
            self.by_name.insert(place.name.clone(), self.places.len());
            self.places.push(place);
        }
        let path = self.folder.join(&laid.name);
        let dirty = AtomicBool::new(true);
        self.files.push(OpenFile { name: laid.name, path, file, bytes: laid.bytes, dirty });
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

/// A tensor as rows of bytes.
struct Columns {
    rows: usize,
    row_bytes: usize,
    /// Bytes of an element.
    each: usize,
}

impl Columns {
    /// `None` if it has no dimension, or overflows.
    fn of(place: &Place) -> Option<Self> {
        let (&last, before) = place.shape.split_last()?;
        let each = place.dtype.bytes_of(&[1])?;
        let row_bytes = last.checked_mul(each)?;
        Some(Self { rows: before.iter().product(), row_bytes, each })
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
