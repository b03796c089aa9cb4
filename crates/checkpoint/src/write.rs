//! Whole files: written so that nobody sees half of one, hashed, and carried over from a model.

use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, DiskFile, System};
use crate::error::Error;
use crate::header::is_invisible;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
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

/// Where a model keeps chat templates beside its default one, a file each: transformers' name.
const TEMPLATES: &str = "additional_chat_templates";
const TOKENIZER: &str = "tokenizer.json";

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
/// A name in the folder of further chat templates is written there, and the folder is made. The file
/// is written beside, flushed to the disk and renamed, so that the name is always the old file
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
    if let Some(name) = in_templates(name) {
        let inner = folder.join(TEMPLATES);
        match disk.make_folder(&inner) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::write(&inner, "make the folder", 0, e));
            }
            _ => {}
        }
        let written = write_file_on(disk, &inner, name, bytes)?;
        sync_folder(disk, folder)?;
        return Ok(Written { name: format!("{TEMPLATES}/{name}"), ..written });
    }
    let path = folder.join(name);
    if !is_plain(name) {
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
    Ok(format!("{:x}", hash.finalize()))
}

impl Checkpoint {
    /// The names of the small files that belong to the model whatever its weights become: those of
    /// the tokenizer, the chat template and the generation defaults, and the licence. In order.
    ///
    /// Configuration and weights are not among them, nor is anything that could be executed. A GGUF file has
    /// those that say what its keys say.
    pub fn side_files(&self) -> Vec<String> {
        if let Some(made) = self.made_files() {
            let mut all: Vec<String> = made.keys().cloned().collect();
            all.extend(self.makes_tokenizer().then(|| TOKENIZER.to_owned()));
            all.sort_unstable();
            return all;
        }
        let names = self.names().iter().filter(|name| is_side_file(name)).cloned();
        let templates = self.chat_templates().into_iter().map(|name| format!("{TEMPLATES}/{name}"));
        let mut all: Vec<String> = names.chain(templates).collect();
        all.sort_unstable();
        all
    }

    /// The chat templates beside the default one, by the name that their file gives them; each of at
    /// most so many bytes.
    ///
    /// # Errors
    /// If one cannot be read or is longer.
    pub fn additional_chat_templates(&self, most: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut templates = Vec::new();
        for file in self.chat_templates() {
            if let Some(bytes) = self.side_file(&format!("{TEMPLATES}/{file}"), most)? {
                let name = file.strip_suffix(".jinja").unwrap_or(&file);
                templates.push((name.to_owned(), bytes));
            }
        }
        Ok(templates)
    }

    /// The files of further chat templates, in order.
    fn chat_templates(&self) -> Vec<String> {
        if let Some(made) = self.made_files() {
            return made.keys().filter_map(|name| in_templates(name)).map(String::from).collect();
        }
        let inner = self.folder().join(TEMPLATES);
        // A link would lead out of the folder; what cannot be listed has no files to read.
        if !std::fs::symlink_metadata(&inner).is_ok_and(|m| m.is_dir()) {
            return Vec::new();
        }
        let names = crate::folder::Folder::open(&inner).and_then(|folder| folder.names());
        let names = names.unwrap_or_default().into_iter();
        names.filter(|name| is_side_file(&format!("{TEMPLATES}/{name}"))).collect()
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
        match name {
            TOKENIZER if self.makes_tokenizer() => self.tokenizer()?.ok_or_else(missing),
            _ => self.side_file(name, SIDE_FILE_MAX)?.ok_or_else(missing),
        }
    }
}

fn is_side_file(name: &str) -> bool {
    if let Some(name) = in_templates(name) {
        let stem = name.strip_suffix(".jinja").filter(|stem| !stem.is_empty());
        return stem.is_some() && is_plain(name);
    }
    let licence = name.strip_prefix("LICENSE").or_else(|| name.strip_prefix("NOTICE"));
    SIDE_FILES.contains(&name) || licence.is_some_and(|rest| matches!(rest, "" | ".txt" | ".md"))
}

/// The name within the folder of further chat templates, if it names a file there.
fn in_templates(name: &str) -> Option<&str> {
    name.strip_prefix(TEMPLATES)?.strip_prefix('/')
}

fn is_plain(name: &str) -> bool {
    let plain = !name.contains(['/', '\\']) && !name.chars().any(is_invisible);
    plain && !name.is_empty() && !name.starts_with('.')
}

/// The names of all that is in an artifact's folder: its entries, and instead of the folder of
/// further chat templates what is in that, as `additional_chat_templates/NAME`.
///
/// # Errors
/// If a folder cannot be listed.
pub fn artifact_files(folder: &Path) -> io::Result<BTreeSet<String>> {
    let names = |folder: &Path| -> io::Result<Vec<String>> {
        let name = |entry: io::Result<std::fs::DirEntry>| {
            Ok(entry?.file_name().to_string_lossy().into_owned())
        };
        std::fs::read_dir(folder)?.map(name).collect()
    };
    let mut all: BTreeSet<String> = names(folder)?.into_iter().collect();
    let inner = folder.join(TEMPLATES);
    if std::fs::symlink_metadata(&inner).is_ok_and(|m| m.is_dir()) {
        all.remove(TEMPLATES);
        all.extend(names(&inner)?.into_iter().map(|name| format!("{TEMPLATES}/{name}")));
    }
    Ok(all)
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
