//! How a matrix is laid out for the kernels: panels of 32 outputs, so that a vector holds the same
//! input of neighbouring outputs and no sum runs across lanes.
#![expect(unsafe_code, reason = "vectors are loaded from rows of a panel")]

use crate::simd::Simd;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use tensor::{DType, Tensor};

/// Outputs a panel.
pub(crate) const PANEL: usize = 32;

/// Inputs that are transposed at a time, so that what is written stays in the first cache.
const BLOCK: usize = 64;

/// What the microkernel multiplies: rows of 32, an output each.
pub(crate) trait Factor: Copy {
    /// Vector `half` of the outputs `0..16`, and of the outputs `16..32`, of a row.
    ///
    /// # Safety
    /// `row` is a row of a panel, `half < 16 / S::LANES`, and `S` is enabled.
    unsafe fn pair<S: Simd>(row: *const Self, half: usize) -> [S::V; 2];

    /// `sum` and what an `a` times a `b` is: one product, or two.
    ///
    /// # Safety
    /// `S` is enabled.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: the caller's promise is passed on.
        unsafe { S::fma(a, b, sum) }
    }
}

/// A stored element: kept as it is in memory, widened to `f32` in registers.
pub(crate) trait Word: Factor + Default + Send + Sync + 'static {
    /// What it is in a tensor.
    type Stored: Copy + Sync;

    /// The elements of a tensor; `None` if it is of another dtype.
    fn stored(tensor: &Tensor) -> Option<&[Self::Stored]>;

    /// The element.
    fn of(stored: Self::Stored) -> Self;

    /// Where in a row of a panel the output `lane` is.
    fn place(lane: usize) -> usize;

    /// The value, exactly.
    fn widen(self) -> f32;
}

/// Two bf16 as the bits of an `f32`.
#[derive(Clone, Copy)]
pub(crate) struct Pair(#[expect(dead_code, reason = "read as a lane of a vector")] f32);

/// Two values that are bf16, as the bits of an `f32`: `low` in the low bits.
#[inline(always)]
pub(crate) fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(low.to_bits() >> 16 | high.to_bits())
}

impl Factor for Pair {
    #[inline(always)]
    unsafe fn pair<S: Simd>(row: *const Self, half: usize) -> [S::V; 2] {
        // SAFETY: the row is 32 words of the size of an `f32`.
        unsafe { f32::pair::<S>(row.cast(), half) }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd>(a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: the caller's promise is passed on.
        unsafe { S::dot_pairs(a, b, sum) }
    }
}

impl Factor for f32 {
    #[inline(always)]
    unsafe fn pair<S: Simd>(row: *const Self, half: usize) -> [S::V; 2] {
        // SAFETY: both vectors lie within the row's 32 elements.
        unsafe { [S::load(row.add(half * S::LANES)), S::load(row.add(16 + half * S::LANES))] }
    }
}

impl Word for f32 {
    type Stored = f32;

    fn stored(tensor: &Tensor) -> Option<&[f32]> {
        tensor.f32s()
    }

    fn of(stored: f32) -> Self {
        stored
    }

    fn place(lane: usize) -> usize {
        lane
    }

    fn widen(self) -> f32 {
        self
    }
}

impl Factor for bf16 {
    #[inline(always)]
    unsafe fn pair<S: Simd>(row: *const Self, half: usize) -> [S::V; 2] {
        // SAFETY: the `2 * LANES` elements lie within the row's 32.
        unsafe { S::load_bf16_pair(row.add(half * 2 * S::LANES)) }
    }
}

impl Word for bf16 {
    type Stored = u16;

    fn stored(tensor: &Tensor) -> Option<&[u16]> {
        tensor.u16s().filter(|_| tensor.dtype() == DType::BF16)
    }

    fn of(stored: u16) -> Self {
        Self::from_bits(stored)
    }

    /// Outputs `i` and `i + 16` are neighbours: a shift and a mask widen both without a shuffle.
    fn place(lane: usize) -> usize {
        2 * (lane % 16) + lane / 16
    }

    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Factor for f16 {
    #[inline(always)]
    unsafe fn pair<S: Simd>(row: *const Self, half: usize) -> [S::V; 2] {
        // SAFETY: both vectors lie within the row's 32 elements.
        unsafe {
            [S::load_f16(row.add(half * S::LANES)), S::load_f16(row.add(16 + half * S::LANES))]
        }
    }
}

impl Word for f16 {
    type Stored = u16;

    fn stored(tensor: &Tensor) -> Option<&[u16]> {
        tensor.u16s().filter(|_| tensor.dtype() == DType::F16)
    }

    fn of(stored: u16) -> Self {
        Self::from_bits(stored)
    }

    fn place(lane: usize) -> usize {
        lane
    }

    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// One input of the 32 outputs of a panel, on its own cache lines.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Row<T>(pub(crate) [T; PANEL]);

/// A matrix `[out, in]` as `[ceil(out / 32)][in]` rows of 32; what is beyond `out` is zero.
pub(crate) struct Panels<T> {
    out: usize,
    inputs: usize,
    rows: Vec<Row<T>>,
}

impl<T: Word> Panels<T> {
    /// Room for `[out, inputs]`, both above zero; `None` if memory is short.
    pub(crate) fn zeroed([out, inputs]: [usize; 2]) -> Option<Self> {
        let count = out.div_ceil(PANEL).checked_mul(inputs).filter(|&count| count > 0)?;
        let mut rows = Vec::new();
        rows.try_reserve_exact(count).ok()?;
        // The first touch of so much memory takes as long as filling it.
        (0..count).into_par_iter().map(|_| Row::default()).collect_into_vec(&mut rows);
        Some(Self { out, inputs, rows })
    }

    /// Lays out `[out, inputs]`, both above zero; `None` if memory is short or there are not as many
    /// `words`.
    pub(crate) fn of([out, inputs]: [usize; 2], words: &[T::Stored]) -> Option<Self> {
        if out.checked_mul(inputs)? != words.len() {
            return None;
        }
        let mut panels = Self::zeroed([out, inputs])?;
        panels.parts(1).for_each(|(rows, part)| {
            lay_out(part, inputs, &words[rows.start * inputs..rows.end * inputs]);
        });
        Some(panels)
    }

    /// Its outputs in parts of `panels` panels: which outputs, and where they go.
    pub(crate) fn parts(
        &mut self,
        panels: usize,
    ) -> impl IndexedParallelIterator<Item = (Range<usize>, &mut [Row<T>])> {
        let (out, inputs) = (self.out, self.inputs);
        let parts = self.rows.par_chunks_mut(panels * inputs).enumerate();
        parts.map(move |(index, part)| {
            let first = index * panels * PANEL;
            (first..out.min(first + panels * PANEL), part)
        })
    }

    /// The number of outputs.
    pub(crate) fn out(&self) -> usize {
        self.out
    }

    /// The number of inputs.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// The number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.out.div_ceil(PANEL)
    }

    /// The rows of every panel.
    pub(crate) fn rows(&self) -> &[Row<T>] {
        &self.rows
    }

    /// The rows of panel `index`, one an input.
    pub(crate) fn panel(&self, index: usize) -> &[Row<T>] {
        &self.rows[index * self.inputs..(index + 1) * self.inputs]
    }

    /// Copies the inputs of `output` to `into`, widened; nothing if there is no such output.
    pub(crate) fn gather(&self, output: usize, into: &mut [f32]) {
        if output < self.out {
            let place = T::place(output % PANEL);
            let rows = self.panel(output / PANEL);
            into.iter_mut().zip(rows).for_each(|(to, row)| *to = row.0[place].widen());
        }
    }
}

/// Fills panels of so many inputs from rows of the matrix.
pub(crate) fn lay_out<T: Word>(part: &mut [Row<T>], inputs: usize, words: &[T::Stored]) {
    let panels = part.chunks_exact_mut(inputs).zip(words.chunks(PANEL * inputs));
    panels.for_each(|(panel, words)| transpose(panel, words));
}

/// Fills a panel from up to 32 rows of the matrix.
fn transpose<T: Word>(panel: &mut [Row<T>], words: &[T::Stored]) {
    let inputs = panel.len();
    for (block, rows) in panel.chunks_mut(BLOCK).enumerate() {
        for (lane, words) in words.chunks_exact(inputs).enumerate() {
            let place = T::place(lane);
            let words = &words[block * BLOCK..];
            rows.iter_mut().zip(words).for_each(|(row, &word)| row.0[place] = T::of(word));
        }
    }
}
