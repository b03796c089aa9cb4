//! The codec of GGUF: a row is blocks, each with its codes, scales and minima together.
//!
//! A weight is one tensor of bytes, `[out, bytes of a row]`. Where the parts of a block lie is one row
//! of a table: ggml's `ggml-common.h` and `ggml-quants.c`.

use super::types::Held;
use crate::codec::{Codec, Get, Grain, Put, Slice};
use crate::error::Error;
use crate::layout::Planned;
use half::f16;
use ir::{BlockKind, Grid, IntGrid, Params, Quantized, Span};
use tensor::DType;

/// The codec.
#[derive(Clone, Copy, Debug)]
pub struct GgufBlocks;

/// Where the parts of a block lie in its bytes.
#[derive(Clone, Copy)]
struct Lie {
    /// Elements of the block.
    block: usize,
    /// Its bytes.
    bytes: usize,
    /// What is added to a code to store it.
    offset: i32,
    /// The outer scale, and the outer minimum.
    scale: usize,
    min: Option<usize>,
    /// The codes of scales and minima.
    inner: Option<(usize, Inner)>,
    codes: Codes,
}

#[derive(Clone, Copy)]
enum Inner {
    /// Eight scales and eight minima of 6 bits in twelve bytes.
    Sixes,
    /// Signed bytes.
    Bytes,
}

/// How codes lie.
#[derive(Clone, Copy)]
enum Codes {
    /// A byte each, from here on.
    Bytes(usize),
    /// Four bits from `low` on: of each `chunk` elements, the first half of them in the low halves of
    /// `chunk / 2` bytes, the others in the high halves.
    Halves { low: usize, chunk: usize, high: High },
}

/// The bits above the lowest four.
#[derive(Clone, Copy)]
enum High {
    None,
    /// One of each element, in order.
    Row(usize),
    /// So many of each: those of every 32nd element share a byte, `8 / bits` in all.
    Column {
        at: usize,
        bits: u32,
    },
}

const LEGACY: Lie = Lie {
    block: 32,
    bytes: 18,
    offset: 8,
    scale: 0,
    min: None,
    inner: None,
    codes: Codes::Halves { low: 2, chunk: 32, high: High::None },
};

const fn halves(low: usize, chunk: usize, high: High) -> Codes {
    Codes::Halves { low, chunk, high }
}

/// The place of each part of a block; `None` for a grid that GGUF has not.
fn lie(grid: Grid) -> Option<Lie> {
    let k = Lie {
        block: 256,
        bytes: 144,
        offset: 0,
        min: Some(2),
        inner: Some((4, Inner::Sixes)),
        codes: halves(16, 64, High::None),
        ..LEGACY
    };
    Some(match grid {
        Grid::Int { .. } => {
            let IntGrid { bits, symmetric, span, scale } = grid.int()?;
            if !symmetric || span != Span::Group(32) || scale != DType::F16 {
                return None;
            }
            match bits {
                4 => LEGACY,
                5 => Lie { bytes: 22, offset: 16, codes: halves(6, 32, High::Row(2)), ..LEGACY },
                8 => Lie { bytes: 34, offset: 0, codes: Codes::Bytes(2), ..LEGACY },
                _ => return None,
            }
        }
        Grid::Block(BlockKind::Q4_1) => {
            let codes = halves(4, 32, High::None);
            Lie { bytes: 20, offset: 0, min: Some(2), codes, ..LEGACY }
        }
        Grid::Block(BlockKind::Q5_1) => {
            let codes = halves(8, 32, High::Row(4));
            Lie { bytes: 24, offset: 0, min: Some(2), codes, ..LEGACY }
        }
        Grid::Block(BlockKind::Q4K) => k,
        Grid::Block(BlockKind::Q5K) => {
            let codes = halves(48, 64, High::Column { at: 16, bits: 1 });
            Lie { bytes: 176, codes, ..k }
        }
        Grid::Block(BlockKind::Q6K) => Lie {
            bytes: 210,
            offset: 32,
            scale: 208,
            min: None,
            inner: Some((192, Inner::Bytes)),
            codes: halves(0, 128, High::Column { at: 128, bits: 2 }),
            ..k
        },
    })
}

impl Codes {
    /// The byte of element `i`, and the bit from which its lowest four, or eight, are.
    fn low(self, i: usize) -> (usize, u32) {
        match self {
            Self::Bytes(at) => (at + i, 0),
            Self::Halves { low, chunk, .. } => {
                let (half, within) = (chunk / 2, i % chunk);
                (low + i / chunk * half + within % half, 4 * (within / half) as u32)
            }
        }
    }

    /// The byte of the bits above, the bit they begin at, and how many they are.
    fn high(self, i: usize) -> Option<(usize, u32, u32)> {
        match self {
            Self::Halves { high: High::Row(at), .. } => Some((at + i / 8, (i % 8) as u32, 1)),
            Self::Halves { high: High::Column { at, bits }, .. } => {
                let chunk = 256 / bits as usize;
                let byte = at + i / chunk * 32 + i % 32;
                Some((byte, bits * (i % chunk / 32) as u32, bits))
            }
            _ => None,
        }
    }

    fn read(self, block: &[u8], i: usize) -> u8 {
        let (byte, shift) = self.low(i);
        let Self::Halves { .. } = self else { return block[byte] };
        let low = block[byte] >> shift & 15;
        let high = self
            .high(i)
            .map_or(0, |(byte, shift, bits)| (block[byte] >> shift & ((1 << bits) - 1)) << 4);
        low | high
    }

    fn write(self, block: &mut [u8], i: usize, code: u8) {
        let (byte, shift) = self.low(i);
        let Self::Halves { .. } = self else {
            block[byte] = code;
            return;
        };
        block[byte] |= (code & 15) << shift;
        if let Some((byte, shift, _)) = self.high(i) {
            block[byte] |= code >> 4 << shift;
        }
    }
}

/// The scale and the minimum of unit `j` of eight.
fn six(packed: &[u8], j: usize) -> [u8; 2] {
    match j {
        0..4 => [packed[j] & 63, packed[j + 4] & 63],
        _ => {
            [packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4]
        }
    }
}

fn put_six(packed: &mut [u8], j: usize, [scale, min]: [u8; 2]) {
    if j < 4 {
        packed[j] |= scale;
        packed[j + 4] |= min;
    } else {
        packed[j + 4] |= scale & 15 | (min & 15) << 4;
        packed[j - 4] |= scale >> 4 << 6;
        packed[j] |= min >> 4 << 6;
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The codes and parameters of blocks.
#[derive(Default)]
struct Decoded {
    codes: Vec<i8>,
    scales: Vec<i8>,
    mins: Vec<u8>,
    outer_scales: Vec<f32>,
    outer_mins: Vec<f32>,
}

impl Lie {
    fn decode(&self, block: &[u8], to: &mut Decoded) {
        // A code of eight bits is stored as it is, in two's complement.
        let code = |i| (i32::from(self.codes.read(block, i)) - self.offset) as u8 as i8;
        to.codes.extend((0..self.block).map(code));
        to.outer_scales.push(half_at(block, self.scale));
        // Added by ggml, taken off by us: exactly so.
        let sign = if self.inner.is_some() { 1.0 } else { -1.0 };
        to.outer_mins.extend(self.min.map(|at| sign * half_at(block, at)));
        match self.inner {
            Some((at, Inner::Sixes)) => {
                let units = (0..8).map(|j| six(&block[at..at + 12], j));
                for [scale, min] in units {
                    to.scales.push(scale as i8);
                    to.mins.push(min);
                }
            }
            Some((at, Inner::Bytes)) => {
                to.scales.extend(block[at..at + 16].iter().map(|&byte| byte as i8));
            }
            None => {}
        }
    }

    /// The bytes of block `index` of a whole weight.
    fn encode(&self, q: &Quantized, index: usize, block: &mut [u8]) {
        for (i, &code) in q.codes[index * self.block..][..self.block].iter().enumerate() {
            self.codes.write(block, i, (i32::from(code) + self.offset) as u8);
        }
        match &q.params {
            Params::Flat { scales, .. } | Params::Scattered { scales, .. } => {
                put_half(block, self.scale, scales[index]);
            }
            Params::Nested { scales, mins, outer_scales, outer_mins } => {
                put_half(block, self.scale, outer_scales[index]);
                let sign = if self.inner.is_some() { 1.0 } else { -1.0 };
                if let Some(at) = self.min {
                    put_half(block, at, sign * outer_mins[index]);
                }
                match self.inner {
                    Some((at, Inner::Sixes)) => (0..8).for_each(|j| {
                        let unit = index * 8 + j;
                        put_six(&mut block[at..at + 12], j, [scales[unit] as u8, mins[unit]]);
                    }),
                    Some((at, Inner::Bytes)) => {
                        let units = &scales[index * 16..][..16];
                        block[at..].iter_mut().zip(units).for_each(|(to, &code)| *to = code as u8);
                    }
                    None => {}
                }
            }
        }
    }
}

/// The place of the parts, and the bytes of a row of `width`.
fn row(tensor: &str, grid: Grid, width: usize) -> Result<(Lie, usize), Error> {
    let lie = lie(grid).ok_or_else(|| {
        Error::tensor(tensor, format!("is on {grid}, which GGUF has no blocks of"))
    })?;
    let bytes = Held::On(grid).row_bytes(width).filter(|&bytes| bytes > 0);
    let bytes = bytes.ok_or_else(|| {
        let rule = format!("rows of {width} cannot be divided into blocks of {}", lie.block);
        Error::tensor(tensor, rule)
    })?;
    Ok((lie, bytes))
}

/// Refuses what the blocks cannot hold.
fn check(tensor: &str, q: &Quantized) -> Result<(), Error> {
    let broken = |rule: &str| Err(Error::tensor(tensor, rule));
    if !q.is_whole() || !q.zeros().is_empty() {
        return broken("has not as many codes and scales as its shape and grid say");
    }
    let (low, high) = q.grid.codes();
    if q.codes.iter().any(|&code| !(low..=high).contains(&i32::from(code))) {
        return broken("has a code that is not of its grid");
    }
    let is_half = |&s: &f32| s.is_finite() && f16::from_f32(s).to_f32().to_bits() == s.to_bits();
    match &q.params {
        Params::Flat { scales, .. } if scales.iter().all(is_half) => Ok(()),
        Params::Nested { scales, mins, outer_scales, outer_mins }
            if outer_scales.iter().chain(outer_mins).all(is_half)
                && mins.iter().all(|&min| min < 64)
                && (mins.is_empty() || scales.iter().all(|scale| (0..64).contains(scale))) =>
        {
            Ok(())
        }
        _ => broken("has a scale or a minimum that its blocks cannot hold"),
    }
}

impl Codec for GgufBlocks {
    fn holds(&self, grid: Grid, [_, width]: [usize; 2]) -> Result<Grain, Error> {
        row("*", grid, width).map(|_| Grain::Rows(1))
    }

    fn parts(&self, tensor: &str, grid: Grid, shape: [usize; 2]) -> Result<Vec<Planned>, Error> {
        let (_, bytes) = row(tensor, grid, shape[1])?;
        Ok(vec![Planned::new(tensor, DType::U8, [shape[0], bytes])])
    }

    fn encode(
        &self,
        tensor: &str,
        codes: &Quantized,
        at: &Slice,
        put: &mut Put<'_>,
    ) -> Result<(), Error> {
        let (lie, _) = row(tensor, codes.grid, codes.shape[1])?;
        check(tensor, codes)?;
        let mut bytes = vec![0; codes.codes.len() / lie.block * lie.bytes];
        for (index, block) in bytes.chunks_exact_mut(lie.bytes).enumerate() {
            lie.encode(codes, index, block);
        }
        put(tensor, at.rows.start, &bytes)
    }

    fn decode(
        &self,
        tensor: &str,
        grid: Grid,
        at: &Slice,
        get: &Get<'_>,
    ) -> Result<Quantized, Error> {
        let ([_, width], rows) = (at.shape, at.rows.clone());
        let (lie, row_bytes) = row(tensor, grid, width)?;
        let shape = [rows.len(), width];
        let stored = get(tensor, rows)?;
        if stored.bytes().len() != shape[0].saturating_mul(row_bytes) {
            return Err(Error::tensor(tensor, "its stored rows are not as long as they must be"));
        }
        let mut all = Decoded::default();
        stored.bytes().chunks_exact(lie.bytes).for_each(|block| lie.decode(block, &mut all));
        let Decoded { codes, scales, mins, outer_scales, outer_mins } = all;
        if !outer_scales.iter().chain(&outer_mins).all(|scale| scale.is_finite()) {
            return Err(Error::tensor(tensor, "a scale is not finite"));
        }
        let params = match grid {
            Grid::Int { .. } => Params::Flat { scales: outer_scales, zeros: Vec::new() },
            Grid::Block(_) => Params::Nested { scales, mins, outer_scales, outer_mins },
        };
        Ok(Quantized { grid, shape, codes, params })
    }
}
