//! What is measured of a model by running it: tokens' log-probabilities, perplexity, divergence
//! from an original, tasks. The forward is streamed; it is the same one that serves.

mod activations;
pub mod builtin;
mod forward;
mod score;
pub mod tasks;
pub mod windows;

pub use activations::{Activations, Room};
pub use forward::{Group, Model, SLICE_ROWS, largest_block};
pub use score::{
    ACTIVATION_BYTES_MAX, Against, Progress, Scored, Sequence, Target, logits, score, score_states,
};

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
