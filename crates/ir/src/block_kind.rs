//! The blocks of GGUF that are no plain integer grids: nested scales, and minima.
//!
//! `Q8_0`, `Q5_0` and `Q4_0` are integer grids in groups of 32 with scales of `F16`, and have no row here.

/// A block of GGUF, as ggml names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// `Q4_1`.
    Q4_1,
    /// `Q5_1`.
    Q5_1,
    /// `Q4_K`.
    Q4K,
    /// `Q5_K`.
    Q5K,
    /// `Q6_K`.
    Q6K,
}

/// What a block holds: `block` codes; for each `unit` of them a code of the scale and, where there are
/// minima, one of the minimum; and an `F16` that multiplies all scales, and one all minima.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockForm {
    /// As ggml spells it.
    pub name: &'static str,
    /// Bits of a code.
    pub bits: u8,
    /// What is taken off a code as it is stored: codes are `0 - offset` to `2^bits - 1 - offset`.
    pub offset: u8,
    /// Elements that share a scale.
    pub unit: usize,
    /// Elements that share the outer numbers; a row is whole blocks.
    pub block: usize,
    /// Bits of a scale's code; 0 if the outer number is the scale.
    pub scale_bits: u8,
    /// Bits of a minimum's code, likewise; `None` without minima.
    pub min_bits: Option<u8>,
}

const fn form(name: &'static str, bits: u8, unit: usize, block: usize) -> BlockForm {
    BlockForm { name, bits, offset: 0, unit, block, scale_bits: 0, min_bits: Some(0) }
}

static Q4_1: BlockForm = form("Q4_1", 4, 32, 32);
static Q5_1: BlockForm = form("Q5_1", 5, 32, 32);
static Q4_K: BlockForm = BlockForm { scale_bits: 6, min_bits: Some(6), ..form("Q4_K", 4, 32, 256) };
static Q5_K: BlockForm = BlockForm { scale_bits: 6, min_bits: Some(6), ..form("Q5_K", 5, 32, 256) };
static Q6_K: BlockForm =
    BlockForm { offset: 32, scale_bits: 8, min_bits: None, ..form("Q6_K", 6, 16, 256) };

impl BlockKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Q4_1, Self::Q5_1, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Its row of the table.
    pub fn form(self) -> &'static BlockForm {
        match self {
            Self::Q4_1 => &Q4_1,
            Self::Q5_1 => &Q5_1,
            Self::Q4K => &Q4_K,
            Self::Q5K => &Q5_K,
            Self::Q6K => &Q6_K,
        }
    }
}

impl BlockForm {
    /// The lowest and highest code.
    pub fn codes(&self) -> (i32, i32) {
        let offset = i32::from(self.offset);
        (-offset, (1 << self.bits) - 1 - offset)
    }

    /// Units of a block.
    pub fn units(&self) -> usize {
        self.block / self.unit
    }

    /// The outer numbers of a block.
    pub fn outers(&self) -> usize {
        1 + usize::from(self.min_bits.is_some())
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        let inner = usize::from(self.scale_bits) + usize::from(self.min_bits.unwrap_or(0));
        let bits = self.block * usize::from(self.bits) + self.units() * inner;
        bits / 8 + 2 * self.outers()
    }
}
