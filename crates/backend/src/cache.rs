//! Keys and values of earlier tokens, in blocks of 16 positions that sequences hold by table.

use crate::{BackendError, Buffer};
use ir::Heads;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

/// Positions of a block.
pub const KV_BLOCK: usize = 16;

/// What keys and values are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDType {
    /// As they were computed.
    F32,
    /// [`crate::numerics::round_bf16`].
    Bf16,
    /// [`crate::numerics::quantize`], one scale a head and token.
    Int8,
}

/// The keys and values of one layer, on a device. A clone is the same cache: two runners may
/// compute over it at once, as long as neither touches a block that the other writes.
#[derive(Clone, Debug)]
pub struct KvCache {
    data: Arc<dyn Any + Send + Sync>,
}

/// Consecutive tokens of one sequence in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// Their rows in the step.
    pub rows: Range<usize>,
    /// The position of the first.
    pub start: usize,
    /// The block of each 16 positions, from position 0 on; those that no row sees may be anything.
    pub blocks: &'a [u32],
}

/// Arguments of [`crate::Backend::attend_paged`].
#[derive(Debug)]
pub struct AttendPaged<'a> {
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
    /// The rows of each sequence, and where its blocks are.
    pub spans: &'a [Span<'a>],
}

impl KvDType {
    /// How it is spelled in arguments and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes that a layer takes a token, scales included.
    pub fn bytes(self, heads: Heads) -> usize {
        let element = match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Int8 => 1,
        };
        let scale = if self == Self::Int8 { 4 } else { 0 };
        2 * heads.kv * (heads.dim * element + scale)
    }
}

impl KvCache {
    /// A cache over a backend's own `data`, which sees to it that it can be shared.
    pub fn new(data: impl Any + Send + Sync) -> Self {
        Self { data: Arc::new(data) }
    }

    /// The backend's own data.
    ///
    /// # Errors
    /// If another backend made this cache.
    pub fn data<T: Any>(&self) -> Result<&T, BackendError> {
        let foreign = || BackendError::Internal("this belongs to another backend".into());
        self.data.downcast_ref().ok_or_else(foreign)
    }
}

impl Span<'_> {
    /// The positions.
    pub fn positions(&self) -> Range<usize> {
        self.start..self.start + self.rows.len()
    }

    /// The position that a row of `window` at `position` sees first.
    pub fn first_seen(window: Option<u32>, position: usize) -> usize {
        window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    /// Whether every block that is written or read is one of `blocks`.
    pub fn fits(&self, window: Option<u32>, blocks: usize) -> bool {
        let Range { start, end } = self.positions();
        let first = Self::first_seen(window, start) / KV_BLOCK;
        let table = self.blocks.get(first..end.div_ceil(KV_BLOCK));
        start == end || table.is_some_and(|table| table.iter().all(|&b| (b as usize) < blocks))
    }
}
