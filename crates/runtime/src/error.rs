//! Why a model cannot be served.

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
