//! The codec of GGUF: a row is blocks, each with its codes, scales and minima together.
//!
//! A weight is one tensor of bytes, `[out, bytes of a row]`. Where the parts of a block lie is one row
//! of a table: ggml's `ggml-common.h` and `ggml-quants.c`.

use super::points;
use super::types::Held;
use crate::codec::{Codec, Get, Grain, Put, Slice};
use crate::error::Error;
use crate::layout::Planned;
use half::f16;
use ir::{BlockKind, Grid, IntGrid, Outer, Params, Quantized, Span};
use std::ops::Range;
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
    /// How the outer numbers are stored, and where: the scale and the minimum.
    outer: Outer,
    scale: usize,
    min: Option<usize>,
    /// The codes of scales and minima.
    inner: Inner,
    codes: Packed,
}

/// The codes of the scales of all units, and after them those of the minima.
#[derive(Clone, Copy)]
enum Inner {
    None,
    /// Eight scales and eight minima of 6 bits in twelve bytes.
    Sixes(usize),
    Packed(Packed),
}

/// A list of small integers.
#[derive(Clone, Copy)]
struct Packed {
    low: Plane,
    /// The bits above.
    high: Option<Plane>,
    /// What is added to an integer to store it. One of eight bits is stored in two's complement.
    bias: u8,
}

/// Some bits of each integer of a list, from a byte on. Of each `run * 8 / bits` integers those of the first
/// `run` are the lowest bits of as many bytes, those of the next `run` lie above them, and so on.
#[derive(Clone, Copy)]
struct Plane {
    at: usize,
    bits: u32,
    run: usize,
}

impl Plane {
    const fn new(at: usize, bits: u32, run: usize) -> Self {
        Self { at, bits, run }
    }

    /// Of each run of so many integers in all: the bit from which they lie, which they are, and their bytes.
    fn pieces(self, codes: usize) -> impl Iterator<Item = (u32, Range<usize>, Range<usize>)> {
        let Self { at, bits, run } = self;
        let pieces = 8 / bits as usize;
        (0..codes / run).map(move |piece| {
            let byte = at + piece / pieces * run;
            (bits * (piece % pieces) as u32, piece * run..(piece + 1) * run, byte..byte + run)
        })
    }

    fn mask(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// Sets its bits in integers, from bit `shift` on.
    fn read(self, block: &[u8], codes: &mut [i8], shift: u32) {
        let mask = self.mask();
        for (from, codes_at, bytes) in self.pieces(codes.len()) {
            for (code, &byte) in codes[codes_at].iter_mut().zip(&block[bytes]) {
                *code |= ((byte >> from & mask) << shift) as i8;
            }
        }
    }

    fn write(self, block: &mut [u8], codes: &[i8], shift: u32, bias: u8) {
        let mask = self.mask();
        for (from, codes_at, bytes) in self.pieces(codes.len()) {
            for (byte, &code) in block[bytes].iter_mut().zip(&codes[codes_at]) {
                *byte |= ((code as u8).wrapping_add(bias) >> shift & mask) << from;
            }
        }
    }
}

impl Packed {
    const fn new(low: Plane) -> Self {
        Self { low, high: None, bias: 0 }
    }

    const fn above(self, high: Plane) -> Self {
        Self { high: Some(high), ..self }
    }

    const fn biased(self, bias: u8) -> Self {
        Self { bias, ..self }
    }

    /// Integers that were 0.
    fn read(self, block: &[u8], codes: &mut [i8]) {
        self.low.read(block, codes, 0);
        if let Some(high) = self.high {
            high.read(block, codes, self.low.bits);
        }
        codes.iter_mut().for_each(|code| *code = (*code as u8).wrapping_sub(self.bias) as i8);
    }

    /// Into bytes that were 0.
    fn write(self, block: &mut [u8], codes: &[i8]) {
        self.low.write(block, codes, 0, self.bias);
        if let Some(high) = self.high {
            high.write(block, codes, self.low.bits, self.bias);
        }
    }
}

/// The place of each part of a block; `None` for a grid that GGUF has not, or only as points.
fn lie(grid: Grid) -> Option<Lie> {
    let (block, outer) = match grid {
        Grid::Int { .. } => (32, Outer::F16),
        Grid::Block(kind) => (kind.form().block, kind.form().outer),
    };
    let bytes = usize::try_from(grid.bytes([1, block])).ok()?;
    let plane = |at: usize, bits: u32, run: usize| Packed::new(Plane::new(at, bits, run));
    let plain = |codes| Lie { block, bytes, outer, scale: 0, min: None, inner: Inner::None, codes };
    let k = |codes| Lie { min: Some(2), inner: Inner::Sixes(4), ..plain(codes) };
    let Grid::Block(kind) = grid else {
        let IntGrid { bits, symmetric, span, scale } = grid.int()?;
        if !symmetric || span != Span::Group(32) || scale != DType::F16 {
            return None;
        }
        return Some(plain(match bits {
            4 => plane(2, 4, 16).biased(8),
            5 => plane(6, 4, 16).above(Plane::new(2, 1, 1)).biased(16),
            8 => plane(2, 8, 32),
            _ => return None,
        }));
    };
    Some(match kind {
        BlockKind::Q4_1 => Lie { min: Some(2), ..plain(plane(4, 4, 16)) },
        BlockKind::Q5_1 => {
            Lie { min: Some(2), ..plain(plane(8, 4, 16).above(Plane::new(4, 1, 1))) }
        }
        BlockKind::Q2K => {
            let inner = Inner::Packed(plane(0, 4, 16));
            Lie { scale: 80, min: Some(82), inner, ..plain(plane(16, 2, 32)) }
        }
        BlockKind::Q3K => {
            let inner = plane(96, 4, 8).above(Plane::new(104, 2, 4)).biased(32);
            let codes = plane(32, 2, 32).above(Plane::new(0, 1, 32)).biased(4);
            Lie { scale: 108, inner: Inner::Packed(inner), ..plain(codes) }
        }
        BlockKind::Q4K => k(plane(16, 4, 32)),
        BlockKind::Q5K => k(plane(48, 4, 32).above(Plane::new(16, 1, 32))),
        BlockKind::Q6K => {
            let codes = plane(0, 4, 64).above(Plane::new(128, 2, 32)).biased(32);
            Lie { scale: 208, inner: Inner::Packed(plane(192, 8, 16)), ..plain(codes) }
        }
        BlockKind::Iq4Nl => plain(plane(2, 4, 16)),
        BlockKind::Iq4Xs => {
            let inner = plane(4, 4, 1).above(Plane::new(2, 2, 1)).biased(32);
            Lie { inner: Inner::Packed(inner), ..plain(plane(8, 4, 16)) }
        }
        BlockKind::Mxfp4 => plain(plane(1, 4, 16)),
        BlockKind::Nvfp4 => Lie { inner: Inner::Packed(plane(0, 8, 4)), ..plain(plane(4, 4, 8)) },
        _ => return None,
    })
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

/// An outer number; one that is no number is not finite.
fn outer_at(outer: Outer, block: &[u8], at: usize) -> f32 {
    match outer {
        Outer::F16 => f16::from_le_bytes([block[at], block[at + 1]]).to_f32(),
        Outer::E8m0 => match block[at] {
            255 => f32::NAN,
            // The two lowest have no exponent in `f32`.
            byte @ (0 | 1) => f32::from_bits(1 << (21 + byte)),
            byte => f32::from_bits((u32::from(byte) - 1) << 23),
        },
        Outer::Tensor => 1.0,
    }
}

fn put_outer(outer: Outer, block: &mut [u8], at: usize, value: f32) {
    match outer {
        Outer::F16 => block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        Outer::E8m0 => {
            let bits = value.to_bits();
            block[at] = if bits >> 23 == 0 { bits >> 22 } else { (bits >> 23) + 1 } as u8;
        }
        Outer::Tensor => {}
    }
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

impl Decoded {
    fn take(&mut self, kind: BlockKind, block: &points::Block) {
        let form = kind.form();
        self.codes.extend_from_slice(&block.codes);
        self.outer_scales.push(block.outer);
        if form.scale.bits() > 0 {
            self.scales.extend_from_slice(&block.scales[..form.units()]);
        }
    }
}

/// The most units of a block.
const UNITS: usize = 16;

impl Lie {
    /// What multiplies an outer minimum as it is stored: ggml adds that of the simple blocks, and takes off the
    /// others, as we do all. Exactly so.
    fn sign(&self) -> f32 {
        if matches!(self.inner, Inner::None) { -1.0 } else { 1.0 }
    }

    /// Units, if their scales have codes.
    fn units(&self, grid: Grid) -> usize {
        self.block / grid.unit(self.block)
    }

    fn decode(&self, grid: Grid, block: &[u8], to: &mut Decoded) {
        let begin = to.codes.len();
        to.codes.resize(begin + self.block, 0);
        self.codes.read(block, &mut to.codes[begin..]);
        to.outer_scales.push(outer_at(self.outer, block, self.scale));
        to.outer_mins.extend(self.min.map(|at| self.sign() * outer_at(self.outer, block, at)));
        match self.inner {
            Inner::None => {}
            Inner::Sixes(at) => {
                (0..8).map(|j| six(&block[at..at + 12], j)).for_each(|[scale, min]| {
                    to.scales.push(scale as i8);
                    to.mins.push(min);
                })
            }
            Inner::Packed(inner) => {
                let (units, mut codes) = (self.units(grid), [0; 2 * UNITS]);
                let count = if self.min.is_some() { 2 * units } else { units };
                inner.read(block, &mut codes[..count]);
                to.scales.extend_from_slice(&codes[..units]);
                to.mins.extend(codes[units..count].iter().map(|&code| code as u8));
            }
        }
    }

    /// The bytes of block `index` of a whole weight.
    fn encode(&self, q: &Quantized, index: usize, block: &mut [u8]) {
        self.codes.write(block, &q.codes[index * self.block..][..self.block]);
        let Params::Nested { scales, mins, outer_scales, outer_mins } = &q.params else {
            return put_outer(self.outer, block, self.scale, q.scales()[index]);
        };
        put_outer(self.outer, block, self.scale, outer_scales[index]);
        if let Some(at) = self.min {
            put_outer(self.outer, block, at, self.sign() * outer_mins[index]);
        }
        let units = self.units(q.grid);
        let scales = scales.get(index * units..).unwrap_or_default();
        let mins = mins.get(index * units..).unwrap_or_default();
        match self.inner {
            Inner::None => {}
            Inner::Sixes(at) => (0..8).for_each(|j| {
                put_six(&mut block[at..at + 12], j, [scales[j] as u8, mins[j]]);
            }),
            Inner::Packed(inner) => {
                let mut codes = [0; 2 * UNITS];
                let count = if self.min.is_some() { 2 * units } else { units };
                let all = scales[..units].iter().copied().chain(mins.iter().map(|&min| min as i8));
                codes.iter_mut().zip(all.take(count)).for_each(|(to, code)| *to = code);
                inner.write(block, &codes[..count]);
            }
        }
    }
}

/// The place of the parts of a block that is written.
fn written(tensor: &str, grid: Grid) -> Result<Lie, Error> {
    lie(grid).ok_or_else(|| {
        let rule = match grid {
            Grid::Block(kind) => {
                // What is written and of about its size.
                let other = if kind.form().bytes() < BlockKind::Q2K.form().bytes() {
                    "q2_k"
                } else {
                    "q3_k"
                };
                format!("{grid} is read and not written; take {other} in its place")
            }
            Grid::Int { .. } => format!("is on {grid}, which GGUF has no blocks of"),
        };
        Error::tensor(tensor, rule)
    })
}

/// The bytes of a row of `width`.
fn row_bytes(tensor: &str, grid: Grid, width: usize) -> Result<usize, Error> {
    let bytes = Held::On(grid).row_bytes(width).filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| {
        let block = grid.block().map_or(1, |block| block.get());
        Error::tensor(tensor, format!("rows of {width} cannot be divided into blocks of {block}"))
    })
}

/// Whether the codes of scales and minima are of their grid, and the outer numbers as they are stored.
fn fits(q: &Quantized) -> bool {
    let outer = match q.grid {
        Grid::Int { .. } => Outer::F16,
        Grid::Block(kind) => kind.form().outer,
    };
    let is_stored = |&x: &f32| x.is_finite() && outer.stored(x).to_bits() == x.to_bits();
    match (&q.params, q.grid) {
        (Params::Nested { scales, mins, outer_scales, outer_mins }, Grid::Block(kind)) => {
            let form = kind.form();
            let (low, high) = form.scale.codes();
            scales.iter().all(|&scale| (low..=high).contains(&i16::from(scale)))
                && mins.iter().all(|&min| u32::from(min) >> form.min_bits.unwrap_or(0) == 0)
                && outer_scales.iter().chain(outer_mins).all(is_stored)
        }
        (Params::Flat { scales, .. }, Grid::Int { .. }) => scales.iter().all(is_stored),
        _ => false,
    }
}

/// Refuses what the blocks cannot hold.
fn check(tensor: &str, q: &Quantized, lie: &Lie) -> Result<(), Error> {
    let broken = |rule: &str| Err(Error::tensor(tensor, rule));
    if !q.is_whole() || !q.zeros().is_empty() {
        return broken("has not as many codes and scales as its shape and grid say");
    }
    let (low, high) = q.grid.codes();
    if q.codes.iter().any(|&code| !(low..=high).contains(&i32::from(code))) {
        return broken("has a code that is not of its grid");
    }
    if !fits(q) {
        return broken("has a scale or a minimum that its blocks cannot hold");
    }
    match &q.params {
        Params::Nested { outer_scales, .. }
            if lie.outer == Outer::Tensor && outer_scales.iter().any(|&factor| factor != 1.0) =>
        {
            broken("is multiplied as a whole, which its blocks do not hold")
        }
        _ => Ok(()),
    }
}

impl Codec for GgufBlocks {
    fn holds(&self, grid: Grid, [_, width]: [usize; 2]) -> Result<Grain, Error> {
        written("*", grid)?;
        row_bytes("*", grid, width).map(|_| Grain::Rows(1))
    }

    fn parts(&self, tensor: &str, grid: Grid, shape: [usize; 2]) -> Result<Vec<Planned>, Error> {
        written(tensor, grid)?;
        let bytes = row_bytes(tensor, grid, shape[1])?;
        Ok(vec![Planned::new(tensor, DType::U8, [shape[0], bytes])])
    }

    fn encode(
        &self,
        tensor: &str,
        codes: &Quantized,
        at: &Slice,
        put: &mut Put<'_>,
    ) -> Result<(), Error> {
        let lie = written(tensor, codes.grid)?;
        row_bytes(tensor, codes.grid, codes.shape[1])?;
        check(tensor, codes, &lie)?;
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
        let row_bytes = row_bytes(tensor, grid, width)?;
        let shape = [rows.len(), width];
        let stored = get(tensor, rows)?;
        if stored.bytes().len() != shape[0].saturating_mul(row_bytes) {
            return Err(Error::tensor(tensor, "its stored rows are not as long as they must be"));
        }
        let mut all = Decoded::default();
        // Of the bytes that there are.
        all.codes.reserve_exact(shape[0] * width);
        match (lie(grid), grid) {
            (Some(lie), _) => {
                let blocks = stored.bytes().chunks_exact(lie.bytes);
                blocks.for_each(|block| lie.decode(grid, block, &mut all));
            }
            (None, Grid::Block(kind)) => {
                let blocks = stored.bytes().chunks_exact(kind.form().bytes());
                blocks
                    .filter_map(|block| points::decode(kind, block))
                    .for_each(|b| all.take(kind, &b));
            }
            (None, Grid::Int { .. }) => {}
        }
        let Decoded { codes, scales, mins, outer_scales, outer_mins } = all;
        let params = match grid {
            Grid::Int { .. } => Params::Flat { scales: outer_scales, zeros: Vec::new() },
            Grid::Block(_) => Params::Nested { scales, mins, outer_scales, outer_mins },
        };
        let read = Quantized { grid, shape, codes, params };
        match fits(&read) {
            true => Ok(read),
            false => Err(Error::tensor(tensor, "a scale is not finite")),
        }
    }
}
