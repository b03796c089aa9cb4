//! The blocks of GGUF that are no plain integer grids: nested scales, minima, and levels of a table.
//!
//! `Q8_0`, `Q5_0` and `Q4_0` are integer grids in groups of 32 with scales of `F16`, and have no row here.

use crate::codebook::{Codebook, E2M1, NON_LINEAR};

/// A block of GGUF, as ggml names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// `Q4_1`.
    Q4_1,
    /// `Q5_1`.
    Q5_1,
    /// `Q2_K`.
    Q2K,
    /// `Q3_K`.
    Q3K,
    /// `Q4_K`.
    Q4K,
    /// `Q5_K`.
    Q5K,
    /// `Q6_K`.
    Q6K,
    /// `IQ4_NL`.
    Iq4Nl,
    /// `IQ4_XS`.
    Iq4Xs,
    /// `MXFP4`.
    Mxfp4,
    /// `NVFP4`.
    Nvfp4,
    /// `IQ1_S`.
    Iq1S,
    /// `IQ1_M`.
    Iq1M,
    /// `IQ2_XXS`.
    Iq2Xxs,
    /// `IQ2_XS`.
    Iq2Xs,
    /// `IQ2_S`.
    Iq2S,
    /// `IQ3_XXS`.
    Iq3Xxs,
    /// `IQ3_S`.
    Iq3S,
    /// `TQ1_0`.
    Tq1_0,
    /// `TQ2_0`.
    Tq2_0,
}

/// What a block holds: `block` codes; for each `unit` of them a scale and, where there are minima, a
/// code of the minimum; and a number that multiplies all scales, and one all minima.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockForm {
    /// As ggml spells it.
    pub name: &'static str,
    /// Bits of a code.
    pub bits: u8,
    /// What is taken off a code as it is stored: codes are `0 - offset` to `2^bits - 1 - offset`.
    pub offset: u8,
    /// The levels of codes; `None` if each is its own.
    pub levels: Option<&'static Codebook>,
    /// Elements that share a scale.
    pub unit: usize,
    /// Elements that share the outer numbers; a row is whole blocks.
    pub block: usize,
    /// How the scale of a unit is stored.
    pub scale: Inner,
    /// Bits of a minimum's code; 0 if the outer number is the minimum, `None` without minima.
    pub min_bits: Option<u8>,
    /// How what multiplies all scales, and all minima, is stored.
    pub outer: Outer,
    /// The bytes of a block of codes that are not stored each by itself, but eight or so as one point of a
    /// table. Such a block is read, not written. `None` for the others.
    pub points: Option<usize>,
}

/// How the scale of a unit is stored, as a multiple of the outer number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Not at all: each is 1.
    One,
    /// An integer of so many bits, from 0 on.
    Unsigned(u8),
    /// An integer of so many bits, half of them below 0.
    Signed(u8),
    /// An odd number, `2 code + 1`, divided by `by`, of codes of so many bits from 0 on.
    Odd {
        /// Bits of a code.
        bits: u8,
        /// A power of two.
        by: u8,
    },
    /// Half a float without a sign, of four bits of exponent, biased by 7, and three of mantissa. The half is
    /// ggml's: its levels are twice those of `E2M1`.
    Ue4m3,
}

/// How what multiplies all scales or all minima of a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// An `F16`.
    F16,
    /// The exponent of a power of two, in a byte, from `2^-128` on: half of what OCP's `E8M0` is, as the levels
    /// are twice those of `E2M1`.
    E8m0,
    /// Not in blocks: an `F32` of the whole tensor, or 1 where none is stored.
    Tensor,
}

/// The halves of the numbers of `UE4M3`; 127 is none.
static UE4M3: [f32; 128] = {
    let mut values = [0.0; 128];
    let mut code = 1;
    while code < 127 {
        let (exponent, mantissa) = (code as u32 >> 3, code as u32 & 7);
        let (whole, shift) =
            if exponent == 0 { (mantissa, 117) } else { (8 + mantissa, 116 + exponent) };
        values[code] = whole as f32 * f32::from_bits(shift << 23);
        code += 1;
    }
    values
};

const fn form(name: &'static str, bits: u8, unit: usize, block: usize) -> BlockForm {
    let (scale, outer) = (Inner::One, Outer::F16);
    let (levels, min_bits, points) = (None, Some(0), None);
    BlockForm { name, bits, offset: 0, levels, unit, block, scale, min_bits, outer, points }
}

/// A super-block of 256 in so many bytes, whose codes are points of a table: once read, a byte each.
const fn points(name: &'static str, unit: usize, scale: Inner, bytes: usize) -> BlockForm {
    let points = Some(bytes);
    BlockForm { offset: 128, scale, min_bits: None, points, ..form(name, 8, unit, 256) }
}

const fn odd(bits: u8, by: u8) -> Inner {
    Inner::Odd { bits, by }
}

/// A super-block of 256 whose scales, and minima, are integers of `inner` bits.
const fn super_block(name: &'static str, bits: u8, unit: usize, inner: u8) -> BlockForm {
    let scale = Inner::Unsigned(inner);
    BlockForm { scale, min_bits: Some(inner), ..form(name, bits, unit, 256) }
}

/// A super-block of 256 without minima, of scales of a sign.
const fn signed(name: &'static str, bits: u8, unit: usize, inner: u8) -> BlockForm {
    let scale = Inner::Signed(inner);
    BlockForm { scale, min_bits: None, ..form(name, bits, unit, 256) }
}

static Q4_1: BlockForm = form("Q4_1", 4, 32, 32);
static Q5_1: BlockForm = form("Q5_1", 5, 32, 32);
static Q2_K: BlockForm = super_block("Q2_K", 2, 16, 4);
static Q3_K: BlockForm = BlockForm { offset: 4, ..signed("Q3_K", 3, 16, 6) };
static Q4_K: BlockForm = super_block("Q4_K", 4, 32, 6);
static Q5_K: BlockForm = super_block("Q5_K", 5, 32, 6);
static Q6_K: BlockForm = BlockForm { offset: 32, ..signed("Q6_K", 6, 16, 8) };
static IQ4_NL: BlockForm =
    BlockForm { levels: Some(&NON_LINEAR), min_bits: None, ..form("IQ4_NL", 4, 32, 32) };
static IQ4_XS: BlockForm = BlockForm { levels: Some(&NON_LINEAR), ..signed("IQ4_XS", 4, 32, 6) };
static MXFP4: BlockForm = BlockForm {
    levels: Some(&E2M1),
    min_bits: None,
    outer: Outer::E8m0,
    ..form("MXFP4", 4, 32, 32)
};
static NVFP4: BlockForm = BlockForm {
    levels: Some(&E2M1),
    scale: Inner::Ue4m3,
    min_bits: None,
    outer: Outer::Tensor,
    ..form("NVFP4", 4, 16, 64)
};
static IQ1_S: BlockForm = points("IQ1_S", 32, odd(3, 8), 50);
static IQ1_M: BlockForm = points("IQ1_M", 16, odd(3, 8), 56);
static IQ2_XXS: BlockForm = points("IQ2_XXS", 32, odd(4, 8), 66);
static IQ2_XS: BlockForm = points("IQ2_XS", 16, odd(4, 8), 74);
static IQ2_S: BlockForm = points("IQ2_S", 16, odd(4, 8), 82);
static IQ3_XXS: BlockForm = points("IQ3_XXS", 32, odd(4, 4), 98);
static IQ3_S: BlockForm = points("IQ3_S", 32, odd(4, 1), 110);
static TQ1_0: BlockForm = points("TQ1_0", 256, Inner::One, 54);
static TQ2_0: BlockForm = points("TQ2_0", 256, Inner::One, 66);

impl BlockKind {
    /// Every kind.
    pub const ALL: [Self; 20] = [
        Self::Q4_1,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Nvfp4,
        Self::Iq1S,
        Self::Iq1M,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq2S,
        Self::Iq3Xxs,
        Self::Iq3S,
        Self::Tq1_0,
        Self::Tq2_0,
    ];

    /// Those that are written too.
    pub fn written() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| kind.form().points.is_none())
    }

    /// Its row of the table.
    pub fn form(self) -> &'static BlockForm {
        match self {
            Self::Q4_1 => &Q4_1,
            Self::Q5_1 => &Q5_1,
            Self::Q2K => &Q2_K,
            Self::Q3K => &Q3_K,
            Self::Q4K => &Q4_K,
            Self::Q5K => &Q5_K,
            Self::Q6K => &Q6_K,
            Self::Iq4Nl => &IQ4_NL,
            Self::Iq4Xs => &IQ4_XS,
            Self::Mxfp4 => &MXFP4,
            Self::Nvfp4 => &NVFP4,
            Self::Iq1S => &IQ1_S,
            Self::Iq1M => &IQ1_M,
            Self::Iq2Xxs => &IQ2_XXS,
            Self::Iq2Xs => &IQ2_XS,
            Self::Iq2S => &IQ2_S,
            Self::Iq3Xxs => &IQ3_XXS,
            Self::Iq3S => &IQ3_S,
            Self::Tq1_0 => &TQ1_0,
            Self::Tq2_0 => &TQ2_0,
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
        if let Some(bytes) = self.points {
            return bytes;
        }
        let inner = usize::from(self.scale.bits()) + usize::from(self.min_bits.unwrap_or(0));
        let bits = self.block * usize::from(self.bits) + self.units() * inner;
        bits / 8 + self.outer.bytes() * self.outers()
    }
}

impl Inner {
    /// Bits of a code.
    pub fn bits(self) -> u8 {
        match self {
            Self::One => 0,
            Self::Unsigned(bits) | Self::Signed(bits) | Self::Odd { bits, .. } => bits,
            Self::Ue4m3 => 8,
        }
    }

    /// The lowest and the highest code; 1 where none is stored.
    pub fn codes(self) -> (i16, i16) {
        match self {
            Self::One => (1, 1),
            Self::Unsigned(bits) | Self::Odd { bits, .. } => (0, (1 << bits) - 1),
            Self::Signed(bits) => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
            Self::Ue4m3 => (0, 126),
        }
    }

    /// What a code multiplies the outer number by.
    pub fn value(self, code: i8) -> f32 {
        match self {
            Self::Ue4m3 => UE4M3[usize::from(code as u8 & 127)],
            Self::Odd { by, .. } => (2.0 * f32::from(code) + 1.0) / f32::from(by),
            _ => f32::from(code),
        }
    }

    /// The code whose value is nearest; of what is no number the lowest.
    pub fn code(self, value: f32) -> i8 {
        let (low, high) = self.codes();
        if self == Self::Ue4m3 {
            // The codes rise with their values.
            let next = UE4M3[..127].partition_point(|&v| v < value).min(126);
            let below = next.saturating_sub(1);
            let is_below = value - UE4M3[below] <= UE4M3[next] - value;
            return if is_below || value.is_nan() { below as i8 } else { next as i8 };
        }
        let code = match self {
            Self::Odd { by, .. } => (value * f32::from(by) - 1.0) / 2.0,
            _ => value,
        };
        let code = code.round_ties_even();
        let code = if code > f32::from(low) { code } else { f32::from(low) };
        code.min(f32::from(high)) as i8
    }
}

impl Outer {
    /// Bytes in a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::E8m0 => 1,
            Self::Tensor => 0,
        }
    }

    /// A number as it is stored: the nearest that there is. The least power of two stands for what has none.
    pub fn stored(self, x: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::E8m0 => power_of_two(x),
            Self::Tensor => x,
        }
    }
}

/// The nearest of `2^-128` to `2^126`; the least for what is not above it.
fn power_of_two(x: f32) -> f32 {
    // Half a step added carries into the exponent; nothing is left of the mantissa.
    let nearest = |x: f32| f32::from_bits((x.to_bits() + (1 << 22)) & 0x7f80_0000);
    let (up, down) = (f32::from_bits((127 + 64) << 23), f32::from_bits((127 - 64) << 23));
    let (least, most) = (f32::from_bits(1 << 21), f32::from_bits((127 + 126) << 23));
    match x {
        x if x >= 1.0 => nearest(x.min(most)).min(most),
        // What has no exponent of its own has one after it is multiplied.
        x if x > least => nearest(x * up) * down,
        _ => least,
    }
}
