//! The file system as writers see it: every call by which an output comes to be goes through here,
//! so that a test can make the n-th one fail, stop at it, or drop what was not flushed.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where outputs are written.
pub trait Disk: Debug + Send + Sync {
    /// Makes the folder `path`, and those it lies in, where they do not exist.
    ///
    /// # Errors
    /// What the system answers.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Makes the file `path`, which does not exist, with the permissions of the user's umask.
    ///
    /// # Errors
    /// What the system answers.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens the file `path` to be read.
    ///
    /// # Errors
    /// What the system answers.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens the file `path` to be read and written.
    ///
    /// # Errors
    /// What the system answers.
    fn edit(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file or a folder another name. A file of that name is replaced.
    ///
    /// # Errors
    /// What the system answers.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Exchanges two names at once: nobody ever sees one of them missing.
    ///
    /// # Errors
    /// What the system answers; [`io::ErrorKind::Unsupported`] if this file system cannot.
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system answers.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder and all it holds.
    ///
    /// # Errors
    /// What the system answers.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Flushes the names in a folder.
    ///
    /// # Errors
    /// What the system answers.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// The writer has come to a point that has a name. For tests, which stop here.
    fn reached(&self, _point: &'static str) {}
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// What the system answers.
    fn bytes(&self) -> io::Result<u64>;

    /// Fills `buffer` from the byte `at` on.
    ///
    /// # Errors
    /// What the system answers; [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes `bytes` from the byte `at` on.
    ///
    /// # Errors
    /// What the system answers.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Cuts or lengthens it.
    ///
    /// # Errors
    /// What the system answers.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Flushes it to the disk.
    ///
    /// # Errors
    /// What the system answers. What was written since the last flush may then be lost.
    fn sync(&self) -> io::Result<()>;
}

/// The system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Disk for System {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        open(OpenOptions::new().read(true).write(true).create_new(true), path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        open(OpenOptions::new().read(true), path)
    }

    fn edit(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        open(OpenOptions::new().read(true).write(true), path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let exchanged = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
        exchanged.map_err(|e| match e {
            rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP => {
                io::ErrorKind::Unsupported.into()
            }
            e => e.into(),
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path).and_then(|folder| folder.sync_all())
    }
}

fn open(options: &OpenOptions, path: &Path) -> io::Result<Box<dyn DiskFile>> {
    Ok(Box::new(options.open(path)?))
}

impl DiskFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

/// The bytes that may still be written where `path` is or is to be; `None` if the system does not
/// say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty());
    let disk = rustix::fs::statvfs(existing.unwrap_or(Path::new("."))).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}
