//! Why a compilation ended without an artifact.

use crate::pass::PassError;
use crate::refusal::Refusal;
use crate::report::Quality;
use std::path::PathBuf;

/// Why a compilation ended without an artifact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// What was asked for cannot be done; known before a weight was read.
    #[error("{}", listed(.0))]
    Refused(Vec<Refusal>),
    /// Something is in the way of the output.
    #[error("{path:?} {rule}")]
    Occupied {
        /// What is in the way.
        path: PathBuf,
        /// Why it stays.
        rule: String,
    },
    /// A weight could not be read, or the forward failed.
    #[error(transparent)]
    Eval(#[from] calibration::EvalError),
    /// The input is broken, or a file could not be written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The written artifact does not load: a bug.
    #[error("internal: the artifact that was written does not load: {0}")]
    Unreadable(#[from] arch::Error),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A file beside the weights could not be written.
    #[error("cannot {what} {path:?}: {error}{}", room(path, *needed))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Bytes that were to be written.
        needed: Option<u64>,
        /// What the system said.
        error: std::io::Error,
    },
    /// The disk has not room for what is to be written; known before any work.
    #[error("{path:?}: not enough room: {needed} bytes are needed, {free} are free")]
    NoRoom {
        /// Where it is to be written.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The unfinished work at the output's place is of another job.
    #[error("{path:?} holds unfinished work of another job: {changes}")]
    Changed {
        /// The folder of unfinished work.
        path: PathBuf,
        /// What has changed since.
        changes: String,
    },
    /// The result does not keep the recipe's limits. It stays in the folder of unfinished work.
    #[error("the quality gate failed: {reasons}")]
    Gate {
        /// Each limit that was exceeded, with the figure.
        reasons: String,
        /// What was measured.
        quality: Quality,
        /// Where the finished work is.
        kept: PathBuf,
    },
    /// A bug.
    #[error("internal: {0}")]
    Internal(String),
}

impl CompileError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, error: std::io::Error) -> Self {
        Self::Io { what, path: path.into(), needed: None, error }
    }

    pub(crate) fn write(path: impl Into<PathBuf>, needed: u64, error: std::io::Error) -> Self {
        Self::Io { what: "write", path: path.into(), needed: Some(needed), error }
    }
}

impl From<ir::ReadError> for CompileError {
    fn from(error: ir::ReadError) -> Self {
        Self::Eval(error.into())
    }
}

impl From<backend::BackendError> for CompileError {
    fn from(error: backend::BackendError) -> Self {
        Self::Eval(error.into())
    }
}

/// How much was needed, and how much there is.
fn room(path: &std::path::Path, needed: Option<u64>) -> String {
    let Some(needed) = needed else { return String::new() };
    let free = checkpoint::disk::free_bytes(path);
    let free = free.map_or(String::new(), |free| format!(", {free} are free"));
    format!(" ({needed} bytes are needed{free})")
}

fn listed(refusals: &[Refusal]) -> String {
    let lines: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
    lines.join("\n")
}
