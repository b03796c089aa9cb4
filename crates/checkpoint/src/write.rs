//! Whole files: written so that nobody sees half of one, hashed, and carried over from a model.

use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, DiskFile, System};
use crate::error::Error;
use crate::header::is_invisible;
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;

/// The longest file that is carried over beside the weights: the largest tokenizers take 40 MB.
const SIDE_FILE_MAX: usize = 256 << 20;
/// How much of a file is hashed at a time.
const CHUNK: usize = 1 << 20;

/// The files that a model carries beside its weights and its configuration: data, never code.
const SIDE_FILES: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its name in the folder.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Writes `bytes` to the file `name` of `folder`, replacing what is there.
///
/// It is written beside, flushed to the disk and renamed, so that the name is always the old file
/// or the new one, also after a crash. The file gets the permissions of the user's umask.
///
/// # Errors
/// If `name` is not a plain file name, or the file cannot be written.
pub fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<Written, Error> {
    write_file_on(&System, folder, name, bytes)
}

/// [`write_file`] on another disk than the system's.
///
/// # Errors
/// Those of [`write_file`].
pub fn write_file_on(
    disk: &dyn Disk,
    folder: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<Written, Error> {
    let path = folder.join(name);
    let plain = !name.contains(['/', '\\']) && !name.chars().any(is_invisible);
    if !plain || name.is_empty() || name.starts_with('.') {
        return Err(Error::broken(&path, "is not a plain file name"));
    }
    let beside = folder.join(format!(".{name}.partial"));
    let failed = |doing| {
        let (path, needed) = (path.clone(), bytes.len() as u64);
        move |e| Error::write(&path, doing, needed, e)
    };
    let written = write_new(disk, &beside, bytes).map_err(failed("write the file"));
    let renamed = written
        .and_then(|()| disk.rename(&beside, &path).map_err(failed("rename the file into place")));
    if let Err(e) = renamed {
        // The first error is the one to tell; what is left over is hidden and is replaced.
        let _ = disk.remove_file(&beside);
        return Err(e);
    }
    sync_folder(disk, folder)?;
    Ok(Written { name: name.to_owned(), bytes: bytes.len() as u64 })
}

/// The SHA-256 of the regular file at `path`, in lower-case hexadecimal, and its length in bytes.
///
/// # Errors
/// If there is no regular file, or it cannot be read.
pub fn hash_file(path: &Path) -> Result<(String, u64), Error> {
    hash_file_on(&System, path)
}

/// [`hash_file`] on another disk than the system's.
///
/// # Errors
/// Those of [`hash_file`].
pub fn hash_file_on(disk: &dyn Disk, path: &Path) -> Result<(String, u64), Error> {
    let io = |e| Error::io(path, "read the file", e);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::broken(path, "is not a regular file"));
    }
    let file = disk.open(path).map_err(io)?;
    let bytes = file.bytes().map_err(io)?;
    Ok((hash_part(&*file, 0, bytes).map_err(io)?, bytes))
}

/// The SHA-256 of so many bytes of a file from `at` on, in lower-case hexadecimal.
pub(crate) fn hash_part(file: &dyn DiskFile, at: u64, bytes: u64) -> io::Result<String> {
    let (mut hash, mut done, mut chunk) = (Sha256::new(), 0u64, vec![0; CHUNK]);
    while done < bytes {
        let part = (bytes - done).min(CHUNK as u64) as usize;
        let part = chunk.get_mut(..part).unwrap_or_default();
        file.read_exact_at(part, at + done)?;
        hash.update(&*part);
        done += part.len() as u64;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Checkpoint {
    /// The names of the small files that belong to the model whatever its weights become: those of
    /// the tokenizer, the chat template and the generation defaults, and the licence. In order.
    ///
    /// Configuration and weights are not among them, nor is anything that could be executed.
    pub fn side_files(&self) -> Vec<String> {
        self.names().iter().filter(|name| is_side_file(name)).cloned().collect()
    }

    /// The bytes of one of [`Checkpoint::side_files`]. A link is followed only where the
    /// checkpoint's own may be.
    ///
    /// # Errors
    /// If the file is not a side file, leaves the model's folder, is longer than 256 MiB, or
    /// cannot be read.
    pub fn read_side_file(&self, name: &str) -> Result<Vec<u8>, Error> {
        let missing =
            || Error::broken(&self.folder().join(name), "is not a side file of the model");
        if !is_side_file(name) {
            return Err(missing());
        }
        self.side_file(name, SIDE_FILE_MAX)?.ok_or_else(missing)
    }
}

fn is_side_file(name: &str) -> bool {
    let licence = name.strip_prefix("LICENSE").or_else(|| name.strip_prefix("NOTICE"));
    SIDE_FILES.contains(&name) || licence.is_some_and(|rest| matches!(rest, "" | ".txt" | ".md"))
}

/// Writes a new file through to the disk. One of this name is left over from a crash.
fn write_new(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = match disk.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove_file(path)?;
            disk.create(path)?
        }
        created => created?,
    };
    file.write_all_at(bytes, 0)?;
    file.sync()
}

/// Flushes the names of a folder to the disk.
pub(crate) fn sync_folder(disk: &dyn Disk, folder: &Path) -> Result<(), Error> {
    disk.sync_folder(folder).map_err(|e| Error::write(folder, "flush the folder", 0, e))
}
