//! Files that options name for what is written: nothing that is there is ever destroyed.

use crate::failure::Failure;
use anyhow::Context;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// How a file is written.
enum Way {
    /// Into what is there: a device, a pipe, or what standard output is.
    Through,
    /// Beside this place, then renamed to it.
    Renamed(PathBuf),
}

/// How what is written to `path` gets there.
fn way(path: &Path) -> Result<Way, String> {
    // A name of an open file may lead to a file that its shell goes on to write.
    let through = path.starts_with("/dev") || path.starts_with("/proc");
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err("it is a folder".into()),
        Ok(meta) if through || !meta.is_file() => Ok(Way::Through),
        // What a link leads to is replaced, not the link.
        Ok(_) => path.canonicalize().map(Way::Renamed).map_err(|error| error.to_string()),
        Err(_) if fs::symlink_metadata(path).is_ok() => {
            Err("it is a link that leads nowhere".into())
        }
        Err(_) if path.file_name().is_none() => Err("it is no name of a file".into()),
        Err(_) => Ok(Way::Renamed(path.to_path_buf())),
    }
}

/// Refuses, before any work is done, a place where no file can be put.
pub(crate) fn has_a_place(path: &Path) -> Result<(), Failure> {
    let refused = |why: String| Failure::refused(format!("cannot write {path:?}: {why}"));
    match way(path).map_err(refused)? {
        Way::Through => Ok(()),
        Way::Renamed(place) => {
            let folder = place.parent().filter(|f| !f.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            if !folder.is_dir() {
                return Err(refused(format!("{folder:?} is no folder")));
            }
            let (beside, _) = beside(&place).map_err(|error| refused(error.to_string()))?;
            fs::remove_file(beside).map_err(|error| refused(error.to_string()))
        }
    }
}

/// Writes a file so that nobody ever sees half of it: beside its place, then renamed. A device or a
/// pipe is written through.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let what = || format!("cannot write {path:?}");
    match way(path).map_err(anyhow::Error::msg).with_context(what)? {
        Way::Through => {
            let open = OpenOptions::new().append(true).open(path);
            open.and_then(|mut file| file.write_all(bytes)).with_context(what)
        }
        Way::Renamed(place) => {
            let (partial, mut file) = beside(&place).with_context(what)?;
            let mut write = || -> io::Result<()> {
                file.write_all(bytes)?;
                if let Ok(meta) = fs::metadata(&place) {
                    file.set_permissions(meta.permissions())?;
                }
                file.sync_all()?;
                fs::rename(&partial, &place)
            };
            write().with_context(what).inspect_err(|_| {
                // What is left of a failed attempt is of no use; the first error is the one to report.
                let _ = fs::remove_file(&partial);
            })
        }
    }
}

/// A new file beside a place, which nobody else has.
fn beside(place: &Path) -> io::Result<(PathBuf, File)> {
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for attempt in 0..100 {
        let path =
            place.with_file_name(format!(".{name}.{}-{attempt}.partial", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            file => return Ok((path, file?)),
        }
    }
    Err(io::Error::new(
        ErrorKind::AlreadyExists,
        "a hundred files of unfinished work are beside it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut all: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        // A name that a careless tool would take for its own.
        fs::write(dir.path().join("file.partial"), "mine").unwrap();
        fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        has_a_place(&link).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"old");
        write_whole(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read(dir.path().join("file.partial")).unwrap(), b"mine");
        assert_eq!(names(dir.path()), ["file", "file.partial", "link"]);
    }

    #[test]
    fn devices_are_written_through_and_what_leads_nowhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let null = Path::new("/dev/null");
        has_a_place(null).unwrap();
        write_whole(null, b"gone").unwrap();
        assert!(!fs::metadata(null).unwrap().is_file());
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert!(has_a_place(&dangling).unwrap_err().to_string().contains("leads nowhere"));
        let below = dir.path().join("file/x");
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(has_a_place(&below).unwrap_err().to_string().contains("no folder"));
        assert!(has_a_place(dir.path()).unwrap_err().to_string().contains("is a folder"));
        assert_eq!(names(dir.path()), ["dangling", "file"]);
    }
}
