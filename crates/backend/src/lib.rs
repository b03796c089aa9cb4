//! The seam between programs and devices: [`Backend`] executes coarse ops over opaque buffers, the
//! [`Interpreter`] walks a block program over it, and [`Reference`] is the plain version of every
//! op that each fast backend is tested against.
//!
//! The default numerics class is defined here, in [`numerics`]: the order of every sum and the
//! exponential. A backend of that class gives the same bits as [`Reference`].

pub mod algebra;
mod buffer;
mod cache;
mod dense;
mod factors;
mod incoming;
mod interpreter;
pub mod numerics;
mod pages;
mod reference;
mod rope;
mod score;
mod seam;
mod sharded;
mod shortlist;

pub use buffer::{Buffer, DeviceWeight};
pub use cache::{AttendPaged, KV_BLOCK, KvCache, KvDType, Span};
pub use dense::dense;
pub use factors::{Factors, computed_with, shared, unit};
pub use incoming::{Incoming, Whole};
pub use interpreter::{Cached, Caches, Call, Interpreter, Program, SHORT_SPAN, See, Seen, Weights};
pub use reference::Reference;
pub use rope::RopeTable;
pub use score::{DivergenceRow, SoftmaxRow};
pub use seam::{Algebra, Backend, BackendExt, Draws, Fold, Leaving, Peers, stored_bytes};
pub use sharded::{Cut, Sharded, cuts};
pub use shortlist::Seeking;

use ir::{Heads, ReadError};
use std::ops::Range;

/// Arguments of [`Backend::embed`].
#[derive(Debug)]
pub struct Embed<'a> {
    /// A token id a row of the output.
    pub tokens: &'a [u32],
    /// `[n, hidden]`: rows `first..first + n` of the table.
    pub weight: &'a DeviceWeight,
    /// The token id of the slice's first row.
    pub first: u32,
}

/// Arguments of [`Backend::linears`].
#[derive(Debug)]
pub struct Linear<'a> {
    /// `[rows, in]`.
    pub input: &'a Buffer,
    /// `[out, in]`.
    pub weight: &'a DeviceWeight,
    /// `[out]`.
    pub bias: Option<&'a DeviceWeight>,
    /// The rows before this one are of sequences that decode, or whose drafts are checked. A device
    /// whose fastest kernel depends on the number of rows takes the same for each of them, whatever
    /// else is in the call.
    pub decode: usize,
}

/// Arguments of [`Backend::rope`].
#[derive(Debug)]
pub struct Rope<'a> {
    /// The size of a head.
    pub head_dim: usize,
    /// Sines and cosines of every position.
    pub table: &'a RopeTable,
    /// The rows of each sequence.
    pub sequences: &'a [Range<usize>],
    /// The position of the first row of each sequence; 0 for those that have no entry.
    pub starts: &'a [usize],
}

/// Arguments of [`Backend::attend`].
#[derive(Debug)]
pub struct Attend<'a> {
    /// `[rows, heads.query * heads.dim]`.
    pub q: &'a Buffer,
    /// `[rows, heads.kv * heads.dim]`.
    pub k: &'a Buffer,
    /// `[rows, heads.kv * heads.dim]`.
    pub v: &'a Buffer,
    /// How rows are cut into heads.
    pub heads: Heads,
    /// Multiplied into `q` before the product with `k`.
    pub scale: f32,
    /// How many positions a row sees, itself included; all before it if none.
    pub window: Option<u32>,
    /// The rows of each sequence; the first row is position 0.
    pub sequences: &'a [Range<usize>],
}

/// Arguments of [`BackendExt::route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// How many experts a row is given to.
    pub top: usize,
    /// Whether the soft-max is over the chosen scores alone.
    pub normalized: bool,
}

/// Arguments of [`Algebra::rank_update`].
#[derive(Debug)]
pub struct RankUpdate<'a> {
    /// The columns of `c` that change.
    pub columns: Range<usize>,
    /// `[rows, depth]`.
    pub a: &'a [f32],
    /// `[depth, columns.len()]`.
    pub b: &'a [f32],
    /// Columns of `a`, rows of `b`; at most [`numerics::LINEAR_CHUNK`].
    pub depth: usize,
}

/// Why a backend did not execute an op.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The weight cannot be computed with.
    #[error("tensor {tensor:?}: {rule}")]
    Weight {
        /// The stored tensor.
        tensor: String,
        /// What must hold and does not.
        rule: String,
    },
    /// What is asked for is not built for this device, or cannot be divided among several.
    #[error("{0}")]
    Refused(String),
    /// A weight cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The host's memory is short.
    #[error("there is no memory for {what}, which takes {bytes} bytes")]
    Memory {
        /// What was to be held.
        what: String,
        /// What it takes.
        bytes: u64,
    },
    /// The device failed: memory, a kernel, the driver.
    #[error("{0}")]
    Device(String),
    /// A buffer of another backend, or of another shape than the program says: a bug.
    #[error("internal: {0}")]
    Internal(String),
}
