//! How a command fails: what is said, and the exit code a pipeline acts on.

use crate::memory::no_room;
use crate::output::size;
use serde_json::{Value, json};
use std::fmt;

/// Exit codes, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A bug in this program.
    Bug = 1,
    /// The request or its input is refused: the same command fails again.
    Refused = 2,
    /// The result does not keep the limits that were asked for.
    Gate = 3,
    /// The machine failed (disk, memory, I/O): the same command may succeed later.
    Machine = 4,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    /// What kind of failure it is, for a program that reads it.
    pub(crate) kind: &'static str,
    pub(crate) error: anyhow::Error,
    pub(crate) hint: Option<String>,
    /// What a program is told beside the error.
    pub(crate) details: Vec<(String, Value)>,
}

impl Failure {
    pub(crate) fn new(code: Code, error: impl Into<anyhow::Error>) -> Self {
        let kind = match code {
            Code::Bug => "bug",
            Code::Refused => "refused",
            Code::Gate => "gate",
            Code::Machine => "machine",
        };
        Self { code, kind, error: error.into(), hint: None, details: Vec::new() }
    }

    /// What a program is told: the error, and what was found out before it.
    pub(crate) fn json(&self) -> Value {
        let causes: Vec<String> = self.error.chain().skip(1).map(ToString::to_string).collect();
        let mut all = json!({
            "error": {
                "code": self.code as u8,
                "kind": self.kind,
                "message": self.error.to_string(),
                "causes": causes,
                "hint": self.hint,
            },
        });
        for (key, value) in &self.details {
            all[key] = value.clone();
        }
        all
    }

    pub(crate) fn refused(message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self::new(Code::Refused, anyhow::Error::msg(message))
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// An I/O error at `path`: a missing file is the request's fault, all else the machine's.
    pub(crate) fn io(path: &std::path::Path, error: std::io::Error) -> Self {
        let code = blame(&error);
        Self::new(code, anyhow::Error::new(error).context(format!("cannot use {path:?}")))
    }
}

/// Whether the request or the machine is to blame for an I/O error.
fn blame(error: &std::io::Error) -> Code {
    use std::io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound};
    match error.kind() {
        NotFound | IsADirectory | NotADirectory | InvalidData => Code::Refused,
        _ => Code::Machine,
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
        let code = match () {
            () if error.is_machine() => Code::Machine,
            () if error.is_internal() => Code::Bug,
            () => Code::Refused,
        };
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
            Read(error) => of_read(error),
            Backend(error) => of_backend(error),
            Internal(_) => Code::Bug,
            _ => Code::Refused,
        };
        let hint = if let Backend(error) = &error { short_of(error) } else { None };
        Self { hint, ..Self::new(code, error) }
    }
}

/// Whose fault a failed read is.
fn of_read(error: &ir::ReadError) -> Code {
    match error {
        ir::ReadError::Machine(_) => Code::Machine,
        ir::ReadError::Input(_) => Code::Refused,
    }
}

/// Whose fault the failure of a backend is.
fn of_backend(error: &backend::BackendError) -> Code {
    use backend::BackendError as E;
    match error {
        E::Device(_) | E::Memory { .. } => Code::Machine,
        E::Read(error) => of_read(error),
        E::Internal(_) => Code::Bug,
        E::Weight { .. } | E::Refused(_) => Code::Refused,
    }
}

/// What there is of what was asked for in vain.
fn short_of(error: &backend::BackendError) -> Option<String> {
    let backend::BackendError::Memory { .. } = error else { return None };
    let free = runtime::free_memory()?;
    Some(format!("this process may take {} more: see --kv-memory, or end other work", size(free)))
}

impl From<compiler::Refusal> for Failure {
    fn from(refusal: compiler::Refusal) -> Self {
        Self::new(Code::Refused, refusal)
    }
}

impl From<compiler::CompileError> for Failure {
    fn from(error: compiler::CompileError) -> Self {
        use compiler::{CompileError as E, PassError};
        let (code, hint) = match error {
            E::Eval(error) => return error.into(),
            E::Checkpoint(error) => return error.into(),
            E::Refused(_) | E::Occupied { .. } | E::Pass(PassError::Weight { .. }) => {
                (Code::Refused, None)
            }
            E::Changed { .. } => (
                Code::Refused,
                Some("give the settings it was begun with, or --fresh to discard it".into()),
            ),
            E::NoRoom { .. } => (Code::Machine, None),
            E::Gate { ref kept, .. } => (
                Code::Gate,
                Some(format!(
                    "the finished work is kept in {}; the same command with a looser gate \
                     publishes it without computing again",
                    kept.display()
                )),
            ),
            E::Io { ref path, error: ref cause, .. } => {
                let missing = cause.kind() == std::io::ErrorKind::NotFound;
                let hint = missing.then(|| format!("{} must exist", path.display()));
                (blame(cause), hint)
            }
            E::Unreadable(_) | E::Pass(_) | E::Internal(_) => (Code::Bug, None),
        };
        let details = match &error {
            E::Gate { quality, .. } => vec![("quality".to_string(), json!(quality))],
            _ => Vec::new(),
        };
        Self { hint, details, ..Self::new(code, error) }
    }
}

impl From<calibration::CalibrationError> for Failure {
    fn from(error: calibration::CalibrationError) -> Self {
        Self::new(Code::Refused, error)
    }
}

impl From<engine::Refused> for Failure {
    fn from(refused: engine::Refused) -> Self {
        let hint = match &refused {
            engine::Refused::Pool { .. } => {
                Some("ask for fewer with --max-tokens, or give more --kv-memory")
            }
            engine::Refused::Empty => Some("give the text to be continued"),
            _ => None,
        };
        Self { hint: hint.map(String::from), ..Self::new(Code::Refused, refused) }
    }
}

impl From<runtime::LoadError> for Failure {
    fn from(error: runtime::LoadError) -> Self {
        use runtime::LoadError as E;
        let code = match &error {
            E::Read(error) => of_read(error),
            E::Backend(error) => of_backend(error),
            E::Internal(_) => Code::Bug,
            E::Memory { .. } => Code::Refused,
        };
        let hint = if let E::Backend(error) = &error { short_of(error) } else { None };
        Self { hint, ..Self::new(code, error) }
    }
}

impl From<runtime::OpenError> for Failure {
    fn from(error: runtime::OpenError) -> Self {
        use runtime::OpenError as E;
        match error {
            E::Checkpoint(error) => error.into(),
            E::Text(error) => error.into(),
            E::Refused { .. } | E::NoKey { .. } | E::Ids { .. } => Self::new(Code::Refused, error),
        }
    }
}

impl From<runtime::ServeError> for Failure {
    fn from(error: runtime::ServeError) -> Self {
        use runtime::ServeError as E;
        match error {
            E::Room(taken) => no_room(&taken),
            E::Keys(error) | E::Load(error) => error.into(),
            E::Measure(error) => error.into(),
            E::Draft(error) => error.into(),
            E::OneDevice => {
                Self::refused("--gpu-layers divides a model between devices, and there is one")
                    .with_hint("name them: --device cuda,cpu")
            }
            E::Vocabulary { .. } | E::TokenIds | E::NoDevice => Self::new(Code::Refused, error),
        }
    }
}

impl From<runtime::GenerationError> for Failure {
    fn from(error: runtime::GenerationError) -> Self {
        Self::new(Code::Refused, error).with_hint(
            "repair the file, or give the options on the command line and remove the key",
        )
    }
}

impl From<runtime::AnswerError> for Failure {
    fn from(error: runtime::AnswerError) -> Self {
        use runtime::AnswerError as E;
        match error {
            E::Refused(error) => error.into(),
            E::Text(error) => error.into(),
            E::Failed(error) => error.into(),
            E::Logits(error) => Self::refused(error).with_hint(match error {
                engine::SampleError::Banned => {
                    "ask for fewer bans: see --logit-bias and generation_config.json"
                }
                _ => "the model's weights are broken, or its config.json is",
            }),
        }
    }
}

impl From<engine::ExecError> for Failure {
    fn from(error: engine::ExecError) -> Self {
        let code = match &error {
            engine::ExecError::Device(_) => Code::Machine,
            engine::ExecError::Bug(_) => Code::Bug,
        };
        Self::new(code, error)
    }
}

impl From<::bench::DriveError> for Failure {
    fn from(error: ::bench::DriveError) -> Self {
        match error {
            ::bench::DriveError::Refused(refused) => refused.into(),
            ::bench::DriveError::Logits | ::bench::DriveError::Prompt(_) => {
                Self::new(Code::Refused, error)
            }
            ::bench::DriveError::Failed(error) => error.into(),
        }
    }
}
