//! A checkpoint's folder: which of its files may be opened, and how.
//!
//! A file is opened only if it is a regular file inside the folder, or, as the Hugging Face cache
//! lays a snapshot out, a link from `snapshots/REVISION/` to `blobs/` of the same repository. A
//! FIFO, a device or a folder under a file's name is refused before it is opened.

use crate::error::Error;
use crate::json::{self, Limits};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 1 << 16;

/// An existing folder.
#[derive(Debug)]
pub(crate) struct Folder {
    /// As the user gave it.
    pub(crate) path: PathBuf,
    /// Free of links.
    root: PathBuf,
    /// Where the cache that the folder is a snapshot of keeps its files.
    blobs: Option<PathBuf>,
}

/// An open regular file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) metadata: Metadata,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let root = fs::canonicalize(path).map_err(|e| Error::io(path, "open the folder", e))?;
        let metadata = fs::metadata(&root).map_err(|e| Error::io(path, "open the folder", e))?;
        if !metadata.is_dir() {
            return Err(Error::broken(path, "is not a folder"));
        }
        let snapshots = root.parent().filter(|p| p.file_name() == Some(OsStr::new("snapshots")));
        let repository = snapshots.and_then(Path::parent);
        let blobs = repository.and_then(|r| fs::canonicalize(r.join("blobs")).ok());
        let blobs = blobs.filter(|b| b.parent() == repository);
        Ok(Self { path: path.to_owned(), root, blobs })
    }

    /// The folder that the file at `path` is in.
    pub(crate) fn around(path: &Path) -> Result<Self, Error> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self::open(parent.unwrap_or(Path::new(".")))
    }

    /// The same under another name in messages.
    pub(crate) fn called(self, path: &Path) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// The names in the folder that are text. Others cannot be files of a checkpoint.
    pub(crate) fn names(&self) -> Result<BTreeSet<String>, Error> {
        let io = |e| Error::io(&self.path, "list the folder", e);
        let mut names = BTreeSet::new();
        for (i, entry) in fs::read_dir(&self.root).map_err(io)?.enumerate() {
            if i == ENTRIES_MAX {
                let rule = format!("holds more than {ENTRIES_MAX} files");
                return Err(Error::broken(&self.path, rule));
            }
            names.extend(entry.map_err(io)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Opens the file `name`, a plain name; `None` if there is none.
    pub(crate) fn file(&self, name: &str) -> Result<Option<Opened>, Error> {
        let path = self.path.join(name);
        let io = |e| Error::io(&path, "open the file", e);
        let entry = self.root.join(name);
        let found = match fs::symlink_metadata(&entry) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(io)?,
        };
        let target = if found.is_symlink() { self.follow(&path, &entry)? } else { entry };
        let found = fs::symlink_metadata(&target).map_err(io)?;
        check_regular(&path, found.file_type())?;
        let file = File::open(&target).map_err(io)?;
        // Again on the open file: it cannot be exchanged any more.
        let metadata = file.metadata().map_err(io)?;
        check_regular(&path, metadata.file_type())?;
        Ok(Some(Opened { path, file, metadata }))
    }

    /// Reads the whole file `name`; `None` if there is none.
    pub(crate) fn bytes(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        let Some(Opened { path, file, metadata }) = self.file(name)? else { return Ok(None) };
        let too_long = || Error::broken(&path, format!("is longer than {most} bytes"));
        if metadata.len() > most as u64 {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        // It may grow while it is read: one byte more than allowed is enough to know.
        let read = file.take(most as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|e| Error::io(&path, "read the file", e))?;
        if bytes.len() > most { Err(too_long()) } else { Ok(Some(bytes)) }
    }

    /// Reads the JSON object in the file `name`; `None` if there is no such file.
    pub(crate) fn object(
        &self,
        name: &str,
        limits: &Limits,
    ) -> Result<Option<Map<String, Value>>, Error> {
        let Some(bytes) = self.bytes(name, limits.bytes_max)? else { return Ok(None) };
        let broken = |fault| Error::Json { path: self.path.join(name), fault };
        json::parse_object(&bytes, limits).map(Some).map_err(broken)
    }

    /// The target of a link, if the link may be followed.
    fn follow(&self, path: &Path, entry: &Path) -> Result<PathBuf, Error> {
        let target = fs::canonicalize(entry).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::missing(path, "is a link to a file that is missing"),
            _ => Error::io(path, "follow the link", e),
        })?;
        let in_blobs = self.blobs.as_ref().is_some_and(|b| target.starts_with(b));
        if !in_blobs && !target.starts_with(&self.root) {
            return Err(Error::broken(
                path,
                format!("is a link that leaves the folder, to {target:?}; copy the file instead"),
            ));
        }
        Ok(target)
    }
}

/// Opening a FIFO blocks and opening a device may do anything: neither is opened.
fn check_regular(path: &Path, kind: FileType) -> Result<(), Error> {
    if kind.is_file() {
        return Ok(());
    }
    let found = if kind.is_dir() { "a folder" } else { "a FIFO, a socket or a device" };
    Err(Error::broken(path, format!("is not a regular file but {found}")))
}
