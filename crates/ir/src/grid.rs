//! Grids: the sets of values that can be stored, and matrices on them.

use tensor::DType;

/// Which elements of a weight `[out, in]` share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// A row.
    Channel,
    /// So many consecutive elements of a row; the last group of a row may be shorter.
    Group(usize),
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
}

/// A matrix on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The grid.
    pub grid: Grid,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// `[out, in]`.
    pub codes: Vec<i8>,
    /// `[out, groups]`, each a value of the grid's scale dtype.
    pub scales: Vec<f32>,
    /// `[out, groups]`; empty on a symmetric grid.
    pub zeros: Vec<i8>,
}

impl Span {
    /// Elements that share a scale in rows of `width`, at least 1.
    pub fn size(self, width: usize) -> usize {
        match self {
            Self::Channel => width.max(1),
            Self::Group(n) => n.clamp(1, width.max(1)),
        }
    }

    /// Scales a row of `width`.
    pub fn groups(self, width: usize) -> usize {
        width.div_ceil(self.size(width))
    }
}

impl Grid {
    /// What shares a scale.
    pub fn span(self) -> Span {
        let Self::Int { span, .. } = self;
        span
    }

    /// Bytes of the codes, scales and zero points of a weight `[rows, width]`, without gaps.
    pub fn bytes(self, [rows, width]: [usize; 2]) -> u64 {
        let Self::Int { bits, symmetric, span, scale } = self;
        let groups = rows.saturating_mul(span.groups(width));
        let codes = rows.saturating_mul(width).saturating_mul(usize::from(bits)).div_ceil(8);
        let zero = if symmetric { 0 } else { usize::from(bits) };
        let others = groups.saturating_mul(scale.bits() + zero).div_ceil(8);
        codes.saturating_add(others) as u64
    }

    /// The lowest and highest code.
    pub fn codes(self) -> (i32, i32) {
        let Self::Int { bits, .. } = self;
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    }

    /// `scale` as it will be stored: rounded to the nearest value of the scale dtype.
    pub fn stored_scale(self, scale: f32) -> f32 {
        let Self::Int { scale: dtype, .. } = self;
        match dtype {
            DType::BF16 => half::bf16::from_f32(scale).to_f32(),
            DType::F16 => half::f16::from_f32(scale).to_f32(),
            _ => scale,
        }
    }
}

impl Quantized {
    /// Whether it has as many codes, scales and zero points as its shape and grid say; a symmetric grid
    /// may do without the last.
    pub fn is_whole(&self) -> bool {
        let [rows, width] = self.shape;
        let groups = rows.checked_mul(self.grid.span().groups(width));
        Some(self.codes.len()) == rows.checked_mul(width)
            && Some(self.scales.len()) == groups
            && (self.zeros.is_empty() || self.zeros.len() == self.scales.len())
    }

    /// Writes the values of row `row`, exactly as every reader of the format computes them in
    /// `f32`: `(code - zero) * scale`, two roundings at most. `out` is as wide as a row.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let [_, width] = self.shape;
        let (size, groups) = (self.grid.span().size(width), self.grid.span().groups(width));
        let codes = self.codes[row * width..(row + 1) * width].chunks(size);
        for (i, (codes, out)) in codes.zip(out.chunks_mut(size)).enumerate() {
            let scale = self.scales[row * groups + i];
            let zero = self.zeros.get(row * groups + i).map_or(0, |&z| i32::from(z));
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = (i32::from(code) - zero) as f32 * scale;
            }
        }
    }

    /// Every value, `[out, in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let [rows, width] = self.shape;
        let mut all = vec![0.0; rows * width];
        for (row, out) in all.chunks_mut(width.max(1)).enumerate() {
            self.dequantize_row(row, out);
        }
        all
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Int { bits, symmetric, span, scale } = self;
        let zero = if *symmetric { "sym" } else { "asym" };
        match span {
            Span::Channel => write!(f, "int{bits} {zero} per channel, {scale} scales"),
            Span::Group(n) => write!(f, "int{bits} {zero} groups of {n}, {scale} scales"),
        }
    }
}
