//! An open file: reads by position and, of a safetensors file, its checked header.

use crate::error::Error;
use crate::folder::Opened;
use crate::foreign;
use crate::header::{self, Header, LENGTH_BYTES};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::SystemTime;

/// A file that is kept open, so that what was checked is what is read.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    file: File,
    stamp: Stamp,
}

/// What changes when a file is written to.
#[derive(Debug, PartialEq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Shard {
    /// A file as it is, whatever it holds.
    pub(crate) fn of(opened: Opened) -> Self {
        let Opened { path, file, metadata } = opened;
        Self { path, file, stamp: Stamp::of(&metadata) }
    }

    /// Reads and checks the header of an open file.
    pub(crate) fn open(opened: Opened) -> Result<(Self, Header), Error> {
        let shard = Self::of(opened);
        let broken = |fault| Error::Header { path: shard.path.clone(), fault };
        let bytes = shard.bytes();
        // Bounded by `SEEN`.
        let mut start = vec![0; bytes.min(foreign::SEEN as u64) as usize];
        shard.read(&mut start, 0)?;
        let length = header::length(&start, bytes).map_err(broken)?;
        // Bounded by the header's cap and by the file.
        let mut head = vec![0; LENGTH_BYTES + length];
        shard.read(&mut head, 0)?;
        let header = header::parse(&head, bytes).map_err(broken)?;
        Ok((shard, header))
    }

    /// The file's length when it was opened.
    pub(crate) fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// Fills `buffer` from the byte `at` on.
    ///
    /// Fails if the file was written to since it was opened: what was checked then no longer holds.
    pub(crate) fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        let io = |e| Error::io(&self.path, "read the file", e);
        let read = self.file.read_exact_at(buffer, at);
        let now = Stamp::of(&self.file.metadata().map_err(io)?);
        if now != self.stamp {
            let (before, after) = (self.stamp.bytes, now.bytes);
            let rule = format!("changed while it was in use: {before} bytes, now {after}");
            return Err(Error::broken(&self.path, rule));
        }
        read.map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::broken(&self.path, "ends before it should"),
            _ => io(e),
        })
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.len(), modified: metadata.modified().ok() }
    }
}
