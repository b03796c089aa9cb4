//! What is measured of a model by running it: tokens' log-probabilities, perplexity, divergence
//! from an original, tasks. The forward is streamed; it is the same one that serves.

mod activations;
pub mod builtin;
pub mod corpus;
pub mod documents;
mod forward;
mod pages;
pub mod samples;
mod score;
mod streamed;
pub mod tasks;
pub mod windows;

pub use activations::{Activations, Room, SPILL_PART, Spill};
pub use forward::{
    EXPERT_GROUPS, Forward, GROUP_ROWS, Group, Model, Precision, SLICE_ROWS, largest_block,
};
pub use score::{
    ACTIVATION_BYTES_MAX, Against, HEAD_ROWS, Progress, Scored, Sequence, Target, logits, score,
    score_states,
};
pub use streamed::{LayOut, Streamed, expert, experts, resident};

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A weight could not be read.
    #[error(transparent)]
    Read(#[from] ir::ReadError),
    /// The device did not execute an op.
    #[error(transparent)]
    Backend(#[from] backend::BackendError),
    /// Two models that are to be compared differ in vocabulary.
    #[error("the vocabulary has {ours} rows, the baseline's {theirs}: they cannot be compared")]
    Vocabulary {
        /// Rows of the model's embedding.
        ours: usize,
        /// Rows of the baseline's.
        theirs: usize,
    },
    /// A bug.
    #[error("internal: {0}")]
    Internal(String),
}

/// Why calibration data cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// A line of a calibration file; line 0 is the file as a whole.
    #[error("{file:?}{}{rule}", at(*.line))]
    Line {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What must hold and does not.
        rule: String,
    },
    /// There is next to nothing to calibrate on.
    #[error("the calibration data has {tokens} tokens; it takes at least 2, better some thousands")]
    TooFew {
        /// Tokens there are.
        tokens: usize,
    },
    /// A draw that nothing can satisfy.
    #[error("{samples} samples of {seq_len} tokens: it takes at least 1 sample of 2 tokens")]
    Draw {
        /// Samples asked for.
        samples: usize,
        /// Tokens of each.
        seq_len: usize,
    },
    /// An id that the model has no row for.
    #[error(
        "document {document} of the calibration data: token {id}, but the embedding has {vocab} \
         rows"
    )]
    Id {
        /// Which document, from 1.
        document: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// Text, and nothing to make tokens of it.
    #[error(
        "the model has no tokenizer.json: calibration data must be token ids, a list a line of a \
         .jsonl file"
    )]
    NoTokenizer,
    /// A text cannot be encoded, or a conversation not rendered.
    #[error("document {document} of the calibration data: {source}")]
    Text {
        /// Which document, from 1.
        document: usize,
        /// What is wrong with it.
        source: text::Error,
    },
}

/// Where in a file an error is.
fn at(line: usize) -> String {
    if line == 0 { " ".into() } else { format!(" line {line} ") }
}
