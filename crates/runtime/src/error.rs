//! Why a model cannot be opened, loaded or served.

use crate::budget::Taken;
use std::path::PathBuf;

/// Why a model was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file is missing, malformed, or cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// No family runs what the folder holds.
    #[error("{folder:?}: {error}")]
    Refused {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What its config.json or its tensors break.
        error: Box<arch::Error>,
    },
    /// A key is to be ignored that is not there.
    #[error("{folder:?}: config.json has no key {key:?} to ignore")]
    NoKey {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The key.
        key: String,
    },
    /// A tokenizer file or a chat template is malformed.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// The tokenizer has ids for which there is no row.
    #[error("tokenizer.json has ids up to {last}, the embedding only {rows} rows")]
    Ids {
        /// The highest id.
        last: usize,
        /// Rows of the embedding.
        rows: usize,
    },
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A weight cannot be read.
    #[error(transparent)]
    Read(#[from] ir::ReadError),
    /// The device cannot hold or compute with something.
    #[error(transparent)]
    Backend(#[from] backend::BackendError),
    /// There is not enough memory for the keys and values of anything.
    #[error(
        "keys and values of {tokens} tokens take {needed} bytes, the cache may have {memory}: \
         allow it more"
    )]
    Memory {
        /// The fewest tokens that are of use.
        tokens: usize,
        /// Their bytes.
        needed: u64,
        /// What is allowed.
        memory: u64,
    },
    /// The programs are not those of a decoder: a bug of a front end.
    #[error("internal: {0}")]
    Internal(&'static str),
}

/// Why a model cannot be served where it is to be.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It does not fit.
    #[error(
        "this takes {} bytes of memory, and this process may take {}",
        .0.total(), .0.free.unwrap_or(u64::MAX)
    )]
    Room(Taken),
    /// What is left for its keys and values is too little.
    #[error(transparent)]
    Keys(LoadError),
    /// Its weights cannot be loaded, or its draft's keys have no room.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The cost of a step cannot be measured.
    #[error(transparent)]
    Measure(#[from] engine::ExecError),
    /// The draft's files are malformed.
    #[error(transparent)]
    Draft(#[from] OpenError),
    /// The draft has another vocabulary.
    #[error("the draft has a vocabulary of {draft} tokens, the model one of {model}")]
    Vocabulary {
        /// Tokens of the draft.
        draft: usize,
        /// Tokens of the model.
        model: usize,
    },
    /// The draft has the same vocabulary in another order.
    #[error("the draft's tokenizer gives tokens other ids")]
    TokenIds,
    /// There is nothing to compute on.
    #[error("no device is given")]
    NoDevice,
    /// Layers are counted out to the first of several devices, and there is one.
    #[error("layers are given to the first of several devices, and there is one device")]
    OneDevice,
}

/// A file of the model says of a key what it cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {key} is {found}, not {rule}")]
pub struct GenerationError {
    /// generation_config.json or config.json.
    pub file: &'static str,
    /// The key.
    pub key: String,
    /// What it must be.
    pub rule: &'static str,
    /// Its value, cut.
    pub found: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The engine does not take the request.
    #[error(transparent)]
    Refused(#[from] engine::Refused),
    /// Its tokens are no text.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// No token could be drawn.
    #[error(transparent)]
    Logits(engine::SampleError),
    /// A step was not computed.
    #[error(transparent)]
    Failed(#[from] engine::ExecError),
}
