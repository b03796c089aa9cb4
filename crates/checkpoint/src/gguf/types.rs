//! The element types of ggml that are read.

use ir::{BlockKind, Grid, Span};
use tensor::DType;

/// What tensors of a type hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Elements.
    Dense(DType),
    /// Codes.
    On(Grid),
}

/// An integer grid as ggml has it: in blocks of 32, symmetric, with a scale of `F16`.
const fn int(bits: u8) -> Held {
    Held::On(Grid::Int { bits, symmetric: true, span: Span::Group(32), scale: DType::F16 })
}

const fn block(kind: BlockKind) -> Held {
    Held::On(Grid::Block(kind))
}

/// Number, name and content: ggml's `ggml_type`.
const TYPES: &[(u32, &str, Held)] = &[
    (0, "F32", Held::Dense(DType::F32)),
    (1, "F16", Held::Dense(DType::F16)),
    (2, "Q4_0", int(4)),
    (3, "Q4_1", block(BlockKind::Q4_1)),
    (6, "Q5_0", int(5)),
    (7, "Q5_1", block(BlockKind::Q5_1)),
    (8, "Q8_0", int(8)),
    (10, "Q2_K", block(BlockKind::Q2K)),
    (11, "Q3_K", block(BlockKind::Q3K)),
    (12, "Q4_K", block(BlockKind::Q4K)),
    (13, "Q5_K", block(BlockKind::Q5K)),
    (14, "Q6_K", block(BlockKind::Q6K)),
    (16, "IQ2_XXS", block(BlockKind::Iq2Xxs)),
    (17, "IQ2_XS", block(BlockKind::Iq2Xs)),
    (18, "IQ3_XXS", block(BlockKind::Iq3Xxs)),
    (19, "IQ1_S", block(BlockKind::Iq1S)),
    (20, "IQ4_NL", block(BlockKind::Iq4Nl)),
    (21, "IQ3_S", block(BlockKind::Iq3S)),
    (22, "IQ2_S", block(BlockKind::Iq2S)),
    (23, "IQ4_XS", block(BlockKind::Iq4Xs)),
    (29, "IQ1_M", block(BlockKind::Iq1M)),
    (30, "BF16", Held::Dense(DType::BF16)),
    (34, "TQ1_0", block(BlockKind::Tq1_0)),
    (35, "TQ2_0", block(BlockKind::Tq2_0)),
    (39, "MXFP4", block(BlockKind::Mxfp4)),
    (40, "NVFP4", block(BlockKind::Nvfp4)),
];

/// What the type of a number holds.
pub(crate) fn held(number: u32) -> Option<Held> {
    TYPES.iter().find(|(n, ..)| *n == number).map(|&(.., held)| held)
}

/// The number of the type that holds what is stored.
pub(crate) fn number(held: Held) -> Option<u32> {
    TYPES.iter().find(|(.., other)| *other == held).map(|&(number, ..)| number)
}

/// The name of the type that holds what is stored.
pub(crate) fn name(held: Held) -> Option<&'static str> {
    TYPES.iter().find(|(.., other)| *other == held).map(|&(_, name, _)| name)
}

/// The names of all types that are read.
pub(crate) fn names() -> String {
    TYPES.iter().map(|&(_, name, _)| name).collect::<Vec<_>>().join(", ")
}

impl Held {
    /// The bytes of a row of `width` elements; `None` if it is not whole blocks, or overflows.
    pub(crate) fn row_bytes(self, width: usize) -> Option<usize> {
        match self {
            Self::Dense(dtype) => dtype.bytes_of(&[width]),
            Self::On(grid) => {
                let block = grid.block()?.get();
                let bytes = usize::try_from(grid.bytes([1, block])).ok()?;
                width.is_multiple_of(block).then(|| (width / block).checked_mul(bytes))?
            }
        }
    }
}
