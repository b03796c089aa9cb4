//! Why a checkpoint cannot be opened, and whether it or the machine is to blame.

use crate::header::HeaderError;
use crate::index::IndexError;
use crate::json::JsonError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint cannot be opened or read. Paths are printed escaped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder, or a file as a whole, is not what it must be.
    #[error("{path:?}: {rule}")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// The rule it breaks, and what to do.
        rule: String,
    },
    /// A file is not there: the download is not complete, or it is another kind of folder.
    #[error("{path:?}: {rule}")]
    Missing {
        /// The folder or file.
        path: PathBuf,
        /// What is missing, and what is there instead.
        rule: String,
    },
    /// A JSON file is broken.
    #[error("{path:?}: {fault}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: JsonError,
    },
    /// A safetensors file is broken.
    #[error("{path:?}: {fault}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: HeaderError,
    },
    /// The index of the shards is broken, or disagrees with them.
    #[error("{path:?}: {fault}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        fault: IndexError,
    },
    /// A tensor cannot be stored, or is not stored as it must be.
    #[error("tensor {tensor:?}: {rule}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// The rule it breaks, and what to do.
        rule: String,
    },
    /// What is to be written is not what was planned: a bug of the writer's caller.
    #[error("internal error: {0}")]
    Internal(String),
    /// A file could not be written: a full or broken disk.
    #[error("{path:?}: cannot {doing}: {fault} (the file takes {bytes} bytes{})", free(path))]
    Write {
        /// The file or its folder.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// How long the file is to become.
        bytes: u64,
        /// What the operating system answered.
        fault: io::Error,
    },
    /// The operating system refused or failed.
    #[error("{path:?}: cannot {doing}: {fault}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What it answered.
        fault: io::Error,
    },
}

impl Error {
    /// Whether the machine is to blame: the same command may succeed later, the checkpoint
    /// unchanged. Otherwise the input is bad, or not there.
    pub fn is_machine(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Write { .. })
    }

    /// Whether this program is to blame: what was put is not what was planned.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Internal(_))
    }

    /// A rule that the folder or file at `path` breaks.
    pub(crate) fn broken(path: &Path, rule: impl Into<String>) -> Self {
        Self::Folder { path: path.to_owned(), rule: rule.into() }
    }

    /// What is missing at `path`.
    pub(crate) fn missing(path: &Path, rule: impl Into<String>) -> Self {
        Self::Missing { path: path.to_owned(), rule: rule.into() }
    }

    /// Whether a file is not there that a download would bring.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// A rule that a tensor breaks.
    pub(crate) fn tensor(tensor: &str, rule: impl Into<String>) -> Self {
        Self::Tensor { tensor: tensor.to_owned(), rule: rule.into() }
    }

    /// What the operating system answered to a write: a place where nothing can be written, or
    /// where something already is, is a bad request, all else the machine's.
    pub(crate) fn write(path: &Path, doing: &'static str, bytes: u64, fault: io::Error) -> Self {
        match fault.kind() {
            io::ErrorKind::AlreadyExists => Self::broken(path, "exists already"),
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput => Self::io(path, doing, fault),
            _ => Self::Write { path: path.to_owned(), doing, bytes, fault },
        }
    }

    /// What the operating system answered: a name that cannot be is bad input, all else the
    /// machine's.
    pub(crate) fn io(path: &Path, doing: &'static str, fault: io::Error) -> Self {
        use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
        // A loop of links: its kind has no stable name, only what the system calls it.
        let is_loop = path.is_symlink() && fault.to_string().contains("symbolic links");
        let rule = match fault.kind() {
            NotFound => "does not exist",
            NotADirectory => "is not a folder",
            InvalidInput | InvalidFilename => "is not a possible file name",
            _ if is_loop => "is a loop of symbolic links",
            _ => return Self::Io { path: path.to_owned(), doing, fault },
        };
        Self::broken(path, rule)
    }
}

/// How much could still be written, if the system says so.
fn free(path: &Path) -> String {
    crate::disk::free_bytes(path).map_or(String::new(), |n| format!(", {n} bytes are free"))
}

impl From<Error> for ir::ReadError {
    fn from(e: Error) -> Self {
        if e.is_machine() { Self::Machine(e.to_string()) } else { Self::Input(e.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind::{self, *};

    #[test]
    fn what_the_system_answers_is_blamed_on_the_input_or_the_machine() {
        let error = |kind: ErrorKind| Error::io(Path::new("x"), "open the file", kind.into());
        for kind in [NotFound, NotADirectory, InvalidInput, InvalidFilename] {
            assert!(!error(kind).is_machine(), "{kind}");
        }
        for kind in [PermissionDenied, OutOfMemory, Other, TimedOut, StorageFull] {
            assert!(error(kind).is_machine(), "{kind}");
            assert!(matches!(ir::ReadError::from(error(kind)), ir::ReadError::Machine(_)));
        }
        let text = error(PermissionDenied).to_string();
        assert_eq!(text, "\"x\": cannot open the file: permission denied");
    }

    #[test]
    fn paths_are_printed_escaped() {
        let text = Error::broken(Path::new("a\n\u{202e}\u{1b}[31m"), "is odd").to_string();
        assert_eq!(text, "\"a\\n\\u{202e}\\u{1b}[31m\": is odd");
    }
}
