//! Grids: the sets of values that can be stored.
//!
//! Every grid is levels, scaled: a value is `(level - zero) * scale - min`. Grids differ in their table
//! of levels, in who shares a scale, and in how scales are stored; see [`crate::Params`].

use crate::block_kind::BlockKind;
use crate::codebook::Codebook;
use std::num::NonZeroUsize;
use tensor::DType;

/// Which elements of a weight `[out, in]` share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// A row.
    Channel,
    /// So many consecutive elements of a row; the last group of a row may be shorter.
    Group(usize),
    /// So many elements of a row, which the matrix says: GPTQ's act-order.
    Scattered(usize),
}

/// A set of values that can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grid {
    /// `(code - zero) * scale`, codes of `bits` bits in two's complement.
    Int {
        /// 2 to 8.
        bits: u8,
        /// Whether every zero point is 0.
        symmetric: bool,
        /// What shares a scale and a zero point.
        span: Span,
        /// The stored dtype of a scale. Scales are rounded to it before codes are chosen.
        scale: DType,
    },
    /// A block of GGUF.
    Block(BlockKind),
}

/// What [`Grid::Int`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntGrid {
    /// 2 to 8.
    pub bits: u8,
    /// Whether every zero point is 0.
    pub symmetric: bool,
    /// What shares a scale and a zero point.
    pub span: Span,
    /// The stored dtype of a scale.
    pub scale: DType,
}

/// The integers that a byte holds in two's complement, by the byte.
static INTEGERS: [i8; 256] = {
    let mut levels = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        levels[byte] = byte as u8 as i8;
        byte += 1;
    }
    levels
};

impl Span {
    /// Elements that share a scale in rows of `width`, at least 1.
    pub fn size(self, width: usize) -> usize {
        match self {
            Self::Channel => width.max(1),
            Self::Group(n) | Self::Scattered(n) => n.clamp(1, width.max(1)),
        }
    }

    /// Scales a row of `width`.
    pub fn groups(self, width: usize) -> usize {
        width.div_ceil(self.size(width))
    }
}

impl Grid {
    /// The integer grid that it is, for those who compute with no other, and only where what shares a
    /// scale lies side by side.
    pub fn int(self) -> Option<IntGrid> {
        match self {
            Self::Int { span: Span::Scattered(_), .. } => None,
            Self::Int { bits, symmetric, span, scale } => {
                Some(IntGrid { bits, symmetric, span, scale })
            }
            Self::Block(_) => None,
        }
    }

    /// The levels of codes, where they are not the codes themselves.
    pub fn codebook(self) -> Option<&'static Codebook> {
        match self {
            Self::Int { .. } => None,
            Self::Block(kind) => kind.form().levels,
        }
    }

    /// The value of each code before it is scaled, by the code's byte: an integer on every grid.
    pub fn levels(self) -> &'static [i8; 256] {
        self.codebook().map_or(&INTEGERS, Codebook::levels)
    }

    /// What shares a scale.
    pub fn span(self) -> Span {
        match self {
            Self::Int { span, .. } => span,
            Self::Block(kind) => Span::Group(kind.form().unit),
        }
    }

    /// Elements that share a scale in rows of `width`, at least 1.
    pub fn unit(self, width: usize) -> usize {
        self.span().size(width)
    }

    /// Scales a row of `width`.
    pub fn units(self, width: usize) -> usize {
        self.span().groups(width)
    }

    /// Whether no unit has a zero point or a minimum of its own.
    pub fn is_symmetric(self) -> bool {
        match self {
            Self::Int { symmetric, .. } => symmetric,
            Self::Block(kind) => kind.form().min_bits.is_none(),
        }
    }

    /// The least number of columns that can be told from the rest of a row: a row is cut, and begins
    /// and ends, at multiples of it. `None` if a row can be cut anywhere.
    pub fn block(self) -> Option<NonZeroUsize> {
        match self {
            Self::Int { span: Span::Channel, .. } => None,
            Self::Int { span: Span::Group(n), .. } => NonZeroUsize::new(n),
            Self::Int { span: Span::Scattered(_), .. } => Some(NonZeroUsize::MAX),
            Self::Block(kind) => NonZeroUsize::new(kind.form().block),
        }
    }

    /// Bytes of the codes, scales, zero points and minima of a weight `[rows, width]`, without gaps.
    pub fn bytes(self, [rows, width]: [usize; 2]) -> u64 {
        match self {
            Self::Int { bits, symmetric, span, scale } => {
                let groups = rows.saturating_mul(span.groups(width));
                let codes =
                    rows.saturating_mul(width).saturating_mul(usize::from(bits)).div_ceil(8);
                let zero = if symmetric { 0 } else { usize::from(bits) };
                let others = groups.saturating_mul(scale.bits() + zero).div_ceil(8);
                let order = match span {
                    Span::Scattered(_) => width.saturating_mul(size_of::<u32>()),
                    Span::Channel | Span::Group(_) => 0,
                };
                codes.saturating_add(others).saturating_add(order) as u64
            }
            Self::Block(kind) => {
                let form = kind.form();
                let blocks = rows.saturating_mul(width.div_ceil(form.block));
                blocks.saturating_mul(form.bytes()) as u64
            }
        }
    }

    /// The lowest and highest code.
    pub fn codes(self) -> (i32, i32) {
        match self {
            Self::Int { bits, .. } => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
            Self::Block(kind) => kind.form().codes(),
        }
    }

    /// `scale` as it will be stored: rounded to the nearest value that scales, or the outer numbers of
    /// nested ones, are stored as.
    pub fn stored_scale(self, scale: f32) -> f32 {
        let dtype = match self {
            Self::Int { scale, .. } => scale,
            Self::Block(kind) => return kind.form().outer.stored(scale),
        };
        match dtype {
            DType::BF16 => half::bf16::from_f32(scale).to_f32(),
            DType::F16 => half::f16::from_f32(scale).to_f32(),
            _ => scale,
        }
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bits, symmetric, span, scale) = match self {
            Self::Int { bits, symmetric, span, scale } => (bits, symmetric, span, scale),
            Self::Block(kind) => return f.write_str(kind.form().name),
        };
        let zero = if *symmetric { "sym" } else { "asym" };
        match span {
            Span::Channel => write!(f, "int{bits} {zero} per channel, {scale} scales"),
            Span::Group(n) => write!(f, "int{bits} {zero} groups of {n}, {scale} scales"),
            Span::Scattered(n) => {
                write!(f, "int{bits} {zero} groups of {n} in act-order, {scale} scales")
            }
        }
    }
}
