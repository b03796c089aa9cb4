//! How a command fails: what is said, and the exit code a pipeline acts on.

use std::fmt;

/// Exit codes, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A bug in this program.
    Bug = 1,
    /// The request or its input is refused: the same command fails again.
    Refused = 2,
    /// The machine failed (disk, memory, I/O): the same command may succeed later.
    Machine = 4,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) error: anyhow::Error,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into(), hint: None }
    }

    pub(crate) fn refused(message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self::new(Code::Refused, anyhow::Error::msg(message))
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// An I/O error at `path`: a missing file is the request's fault, all else the machine's.
    pub(crate) fn io(path: &std::path::Path, error: std::io::Error) -> Self {
        use std::io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound};
        let code = match error.kind() {
            NotFound | IsADirectory | NotADirectory | InvalidData => Code::Refused,
            _ => Code::Machine,
        };
        Self::new(code, anyhow::Error::new(error).context(format!("cannot use {path:?}")))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        for cause in self.error.chain().skip(1) {
            write!(f, "\ncaused by: {cause}")?;
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Self {
        let code = if error.is_machine() { Code::Machine } else { Code::Refused };
        Self::new(code, error)
    }
}

impl From<arch::Error> for Failure {
    fn from(error: arch::Error) -> Self {
        Self::new(Code::Refused, error)
    }
}

impl From<text::Error> for Failure {
    fn from(error: text::Error) -> Self {
        Self::new(Code::Refused, error)
    }
}

impl From<calibration::EvalError> for Failure {
    fn from(error: calibration::EvalError) -> Self {
        use calibration::EvalError::{Backend, Internal, Read};
        let code = match &error {
            Read(ir::ReadError::Machine(_)) => Code::Machine,
            Internal(_) | Backend(backend::BackendError::Internal(_)) => Code::Bug,
            _ => Code::Refused,
        };
        Self::new(code, error)
    }
}
