//! Linears over weights of 8 bits and fewer, with activations rounded to int8 on the fly.
//!
//! A weight is laid out once as panels of 32 outputs. Each block of columns (see
//! [`backend::numerics::blocks`]) is padded to whole quads: a vector holds four neighbouring inputs
//! of neighbouring outputs, as the dot product of bytes wants them. Codes of four bits and fewer
//! take half a byte; codes are stored unsigned, and what that adds is taken off by the sum of the
//! activations.
#![expect(unsafe_code, reason = "tiles are passed to the microkernel as pointers")]

use crate::dots::{Dots, Scales, ScalesMut};
use crate::isa::{DotKernel, Level};
use crate::panel::PANEL;
use crate::tasks::{self, Output};
use backend::numerics::{Columns, blocks, quantize, quantize_rest};
use ir::{Grid, IntGrid, Quantized};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use tensor::DType;

/// Inputs of a quad of a nibble's panel: two quads share their bytes.
const PAIR: usize = 8;

/// Bytes of a weight that are brought near ahead of their use. One row reads as fast as the machine
/// foresees; more compute too long between two reads for it to see far enough.
const AHEAD: usize = 2048;

/// Groups of scales, likewise: one comes with two kilobytes of codes, too seldom for the machine to
/// see a pattern.
const SCALES_AHEAD: usize = 4;

/// Rows of a task.
const BLOCK_ROWS: usize = 240;

/// Panels of a task when there are many rows.
const GROUP: usize = 4;

/// Rows that a thread rounds at a time.
const ROUNDED: usize = 8;

/// A weight `[out, inputs]` on an integer grid.
pub(crate) struct Packed {
    out: usize,
    inputs: usize,
    blocks: Vec<Columns>,
    /// Where each block's columns begin, padded; the last is the width.
    offsets: Vec<usize>,
    groups: usize,
    nibbles: bool,
    /// Whether every group has zero points of its own.
    asymmetric: bool,
    /// `[panels][blocks]` quads of 32 outputs.
    codes: Vec<u8>,
    /// `[panels][groups][32]`.
    scales: Scales,
    /// `[panels][groups][32]`: what is to be taken off a stored code; one row if all are equal.
    zeros: Vec<u8>,
}

impl Packed {
    /// Room for a weight, all zero; `None` if memory is short, or the grid is not one that is computed
    /// with. One that is not `asymmetric` has no zero points.
    pub(crate) fn zeroed([out, inputs]: [usize; 2], grid: Grid, asymmetric: bool) -> Option<Self> {
        let sizes = Sizes::of([out, inputs], grid)?;
        let Sizes { blocks, offsets, groups, nibbles, panels, codes, scales, stored } = sizes;
        let offset = if nibbles { 8 } else { 128 };
        let zeros = match asymmetric {
            true => filled(panels.checked_mul(scales)?, offset)?,
            false => vec![offset; PANEL],
        };
        let (codes, scales) = (panels.checked_mul(codes)?, panels.checked_mul(scales)?);
        Some(Self {
            out,
            inputs,
            blocks,
            offsets,
            groups,
            nibbles,
            asymmetric,
            codes: tensor::zeroed(codes)?,
            scales: Scales::zeroed(stored, scales)?,
            zeros,
        })
    }

    /// What a weight takes; `None` if it is not one that is computed with.
    pub(crate) fn bytes(shape: [usize; 2], grid: Grid, asymmetric: bool) -> Option<u64> {
        let Sizes { panels, codes, scales, stored, .. } = Sizes::of(shape, grid)?;
        let a_group = stored.bits() / 8 + usize::from(asymmetric);
        let panel = codes.checked_add(scales.checked_mul(a_group)?)?;
        Some(panels.checked_mul(panel)? as u64)
    }

    /// Its outputs in parts of `panels` panels, to be filled.
    pub(crate) fn parts(&mut self, panels: usize) -> impl ParallelIterator<Item = Part<'_>> {
        let (out, inputs, groups, nibbles) = (self.out, self.inputs, self.groups, self.nibbles);
        let (blocks, offsets) = (&self.blocks, &self.offsets);
        let bytes = self.offsets.last().copied().unwrap_or(0) * PANEL / if nibbles { 2 } else { 1 };
        let rows = groups * PANEL;
        // One row of zeros is everybody's, and has its value already.
        let all = if self.asymmetric { &mut self.zeros[..] } else { &mut [] };
        let count = out.div_ceil(PANEL).div_ceil(panels);
        let mut zeros: Vec<&mut [u8]> = all.chunks_mut(panels * rows).collect();
        zeros.resize_with(count, Default::default);
        let codes = self.codes.par_chunks_mut(panels * bytes);
        let scales = self.scales.parts(panels * rows);
        let parts = codes.zip(scales.into_par_iter()).zip(zeros.into_par_iter()).enumerate();
        parts.map(move |(index, ((codes, scales), zeros))| {
            let first = index * panels * PANEL;
            let rows = first..out.min(first + panels * PANEL);
            Part { rows, codes, scales, zeros, inputs, groups, nibbles, bytes, blocks, offsets }
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

    /// Padded columns.
    fn width(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// Bytes of a panel's codes.
    fn panel_bytes(&self) -> usize {
        self.width() * PANEL / if self.nibbles { 2 } else { 1 }
    }

    /// The zero points of a panel's group.
    #[inline(always)]
    fn zeros(&self, at: usize) -> [i32; PANEL] {
        let at = if self.asymmetric { at } else { 0 };
        let (mut wide, zeros) = ([0; PANEL], &self.zeros[at..at + PANEL]);
        wide.iter_mut().zip(zeros).for_each(|(wide, &zero)| *wide = i32::from(zero));
        wide
    }
}

/// How large the parts of a weight are.
struct Sizes {
    blocks: Vec<Columns>,
    offsets: Vec<usize>,
    groups: usize,
    nibbles: bool,
    panels: usize,
    /// Bytes of the codes, and the number of scales, of a panel.
    codes: usize,
    scales: usize,
    /// What a scale is stored in.
    stored: DType,
}

impl Sizes {
    fn of([out, inputs]: [usize; 2], grid: Grid) -> Option<Self> {
        let IntGrid { bits, span, scale: stored, .. } = grid.int()?;
        if out == 0 || inputs == 0 || !(2..=8).contains(&bits) {
            return None;
        }
        let (groups, nibbles) = (span.groups(inputs), bits <= 4);
        let blocks = blocks(inputs, span.size(inputs));
        let mut offsets = vec![0];
        for block in &blocks {
            let end = offsets.last()? + block.columns.len().next_multiple_of(PAIR);
            offsets.push(end);
        }
        let codes = offsets.last()?.checked_mul(PANEL)? / if nibbles { 2 } else { 1 };
        let (panels, scales) = (out.div_ceil(PANEL), groups.checked_mul(PANEL)?);
        Some(Self { blocks, offsets, groups, nibbles, panels, codes, scales, stored })
    }
}

/// Some panels of a weight that is being laid out.
pub(crate) struct Part<'a> {
    /// Their outputs.
    pub(crate) rows: Range<usize>,
    codes: &'a mut [u8],
    scales: ScalesMut<'a>,
    zeros: &'a mut [u8],
    inputs: usize,
    groups: usize,
    nibbles: bool,
    /// Of a panel's codes.
    bytes: usize,
    blocks: &'a [Columns],
    offsets: &'a [usize],
}

impl Part<'_> {
    /// Fills it from rows `first..` of `weight`, which has as many.
    pub(crate) fn fill(&mut self, weight: &Quantized, first: usize) {
        // What is added to a code to store it unsigned.
        let offset = if self.nibbles { 8 } else { 128 };
        let (groups, rows) = (self.groups, first..first + self.rows.len());
        for (panel, codes) in self.codes.chunks_exact_mut(self.bytes).enumerate() {
            let rows = first + panel * PANEL..rows.end.min(first + (panel + 1) * PANEL);
            for (lane, row) in rows.enumerate() {
                let from = &weight.codes[row * self.inputs..(row + 1) * self.inputs];
                for (block, &begin) in self.blocks.iter().zip(self.offsets) {
                    for (index, &code) in from[block.columns.clone()].iter().enumerate() {
                        let code = (i32::from(code) + offset) as u8;
                        let column = begin + index;
                        let (quad, byte) = (column / 4, lane * 4 + column % 4);
                        match self.nibbles {
                            true => {
                                let at = quad / 2 * 4 * PANEL + byte;
                                codes[at] |= code << (quad % 2 * 4);
                            }
                            false => codes[quad * 4 * PANEL + byte] = code,
                        }
                    }
                }
            }
        }
        let those = rows.start * groups..rows.end * groups;
        for (index, &scale) in weight.scales()[those.clone()].iter().enumerate() {
            self.scales.set(place(index, groups), scale);
        }
        for (index, &zero) in weight.zeros().get(those).unwrap_or_default().iter().enumerate() {
            self.zeros[place(index, groups)] = (offset + i32::from(zero)) as u8;
        }
    }
}

/// Rows of activations, rounded.
#[derive(Debug, Default)]
struct Activations {
    all: Codes,
    /// What is left of the blocks that [`quantize_rest`] rounds again: the others have a scale of 0,
    /// and codes that may be anything.
    rest: Codes,
    /// Whether there are such blocks.
    any_rest: AtomicBool,
}

#[derive(Debug, Default)]
struct Codes {
    /// `[rows][width]`.
    codes: Vec<i8>,
    /// `[rows][blocks]`.
    scales: Vec<f32>,
    /// `[rows][blocks]`: the sums of the codes.
    sums: Vec<i32>,
}

impl Codes {
    /// The scales of a block of `R` rows from `row` on.
    #[inline(always)]
    fn scales_of<const R: usize>(&self, row: usize, block: usize, count: usize) -> [f32; R] {
        let mut scales = [0.0; R];
        for (r, scale) in scales.iter_mut().enumerate() {
            *scale = self.scales[(row + r) * count + block];
        }
        scales
    }
}

/// Activations that are no longer needed: their memory is used again.
#[derive(Debug, Default)]
pub(crate) struct RoundedPool(Mutex<Vec<Activations>>);

impl RoundedPool {
    fn take(&self) -> Activations {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, activations: Activations) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(activations);
    }
}

/// One linear. `x` is `[rows, inputs]`.
pub(crate) struct Linear<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) weight: &'a Packed,
    pub(crate) bias: Option<&'a [f32]>,
}

/// Computes linears over one input together; `outs` are `[rows, out]`, all of which is written. The
/// slices must have the sizes their names say.
pub(crate) fn run(
    linears: &[Linear<'_>],
    level: Level,
    pool: &RoundedPool,
    outs: &mut [&mut [f32]],
) {
    for (linear, out) in linears.iter().zip(&*outs) {
        assert_eq!(linear.x.len(), linear.rows * linear.weight.inputs, "input size");
        assert_eq!(out.len(), linear.rows * linear.weight.out, "output size");
    }
    let mut rounded: Vec<(&Linear<'_>, Activations)> = Vec::new();
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for (linear, out) in linears.iter().zip(outs).filter(|(linear, _)| linear.rows > 0) {
        let same = |(other, _): &(&Linear<'_>, _)| other.rounds_as(linear);
        let activations = rounded.iter().position(same).unwrap_or_else(|| {
            rounded.push((linear, linear.round(level, pool.take())));
            rounded.len() - 1
        });
        jobs.push(Job::new(linear, activations, jobs.last().map_or(0, |job| job.end), out));
    }
    let count = jobs.last().map_or(0, |job| job.end);
    tasks::run(
        count,
        || (),
        |(), index| {
            let place = jobs.partition_point(|job| job.end <= index);
            let job = &jobs[place];
            level.run_dots(job.block(index - job.begin, &rounded[job.activations].1));
        },
    );
    rounded.into_iter().for_each(|(_, activations)| pool.give(activations));
}

/// A linear cut into tasks.
struct Job<'a> {
    linear: &'a Linear<'a>,
    /// Which of the rounded inputs is its own.
    activations: usize,
    /// Its tasks among all.
    begin: usize,
    end: usize,
    /// Rows, and panels, of a task.
    height: usize,
    group: usize,
    output: Output,
}

impl<'a> Job<'a> {
    fn new(linear: &'a Linear<'a>, activations: usize, begin: usize, out: &mut [f32]) -> Self {
        let panels = linear.weight.out.div_ceil(PANEL);
        let rows = linear.rows;
        let height = rows.div_ceil(rows.div_ceil(BLOCK_ROWS)).next_multiple_of(12);
        let group = match rows {
            0..=16 => panels.div_ceil(4 * rayon::current_num_threads()).max(1),
            _ => GROUP,
        };
        let end = begin + rows.div_ceil(height) * panels.div_ceil(group);
        Self { linear, activations, begin, end, height, group, output: Output::new(out) }
    }

    /// Task `index` of this linear.
    fn block<'b>(&'b self, index: usize, activations: &'b Activations) -> Block<'b> {
        let panels = self.linear.weight.out.div_ceil(PANEL);
        let groups = panels.div_ceil(self.group);
        let (row, panel) = (index / groups * self.height, index % groups * self.group);
        Block {
            linear: self.linear,
            activations,
            rows: row..(row + self.height).min(self.linear.rows),
            panels: panel..(panel + self.group).min(panels),
            output: self.output,
        }
    }
}

impl Linear<'_> {
    /// Whether `other` rounds the same input in the same way.
    fn rounds_as(&self, other: &Self) -> bool {
        std::ptr::eq(self.x, other.x)
            && self.rows == other.rows
            && self.weight.blocks == other.weight.blocks
    }

    /// Rounds every block of every row, into the memory of `all`.
    fn round(&self, level: Level, mut all: Activations) -> Activations {
        let (width, count) = (self.weight.width(), self.weight.blocks.len());
        // What a block is padded with must be zero.
        all.all.codes.clear();
        let [first, rest] = [&mut all.all, &mut all.rest].map(|to| {
            to.codes.resize(self.rows * width, 0);
            to.scales.resize(self.rows * count, 0.0);
            to.sums.resize(self.rows * count, 0);
            (Output::new(&mut to.codes), Output::new(&mut to.scales), Output::new(&mut to.sums))
        });
        let any_rest = &all.any_rest;
        any_rest.store(false, Ordering::Relaxed);
        tasks::run(
            self.rows.div_ceil(ROUNDED),
            || (),
            |(), index| {
                for row in index * ROUNDED..self.rows.min((index + 1) * ROUNDED) {
                    let x = &self.x[row * self.weight.inputs..][..self.weight.inputs];
                    let [all, rest] = [first, rest].map(|(codes, scales, sums)| {
                        let (at, a_block) = (row * width, row * count);
                        // SAFETY: the row's parts lie within the vectors, and this task alone has
                        // them.
                        unsafe {
                            RowCodes {
                                codes: std::slice::from_raw_parts_mut(codes.start().add(at), width),
                                scales: std::slice::from_raw_parts_mut(
                                    scales.start().add(a_block),
                                    count,
                                ),
                                sums: std::slice::from_raw_parts_mut(
                                    sums.start().add(a_block),
                                    count,
                                ),
                            }
                        }
                    });
                    level.run_dots(Round { x, weight: self.weight, all, rest, any_rest });
                }
            },
        );
        all
    }
}

/// A row that is being rounded.
struct Round<'a> {
    x: &'a [f32],
    weight: &'a Packed,
    all: RowCodes<'a>,
    rest: RowCodes<'a>,
    any_rest: &'a AtomicBool,
}

/// A row of [`Codes`].
struct RowCodes<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl DotKernel for Round<'_> {
    #[inline(always)]
    fn run<S: Dots>(self) {
        let blocks = self.weight.blocks.iter().zip(&self.weight.offsets).enumerate();
        for (index, (block, &begin)) in blocks {
            let end = begin + block.columns.len();
            let (x, codes) = (&self.x[block.columns.clone()], &mut self.all.codes[begin..end]);
            let scale = quantize(x, codes);
            self.all.scales[index] = scale;
            self.all.sums[index] = codes.iter().map(|&code| i32::from(code)).sum();
            let rest = &mut self.rest.codes[begin..self.weight.offsets[index + 1]];
            let (rest, padding) = rest.split_at_mut(end - begin);
            let finer = quantize_rest(x, codes, scale, rest);
            self.rest.scales[index] = finer;
            if finer > 0.0 {
                padding.fill(0);
                self.rest.sums[index] = rest.iter().map(|&code| i32::from(code)).sum();
                self.any_rest.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// A task: `rows` times `panels`.
struct Block<'a> {
    linear: &'a Linear<'a>,
    activations: &'a Activations,
    rows: Range<usize>,
    panels: Range<usize>,
    output: Output,
}

impl DotKernel for Block<'_> {
    #[inline(always)]
    fn run<S: Dots>(self) {
        for panel in self.panels.clone() {
            let mut row = self.rows.start;
            while row < self.rows.end {
                // As few tiles as may be: each reads the panel again.
                row += match (self.rows.end - row).min(S::TALLEST) {
                    12.. => self.tile::<S, 12>(row, panel),
                    11 => self.tile::<S, 11>(row, panel),
                    10 => self.tile::<S, 10>(row, panel),
                    9 => self.tile::<S, 9>(row, panel),
                    8 => self.tile::<S, 8>(row, panel),
                    7 => self.tile::<S, 7>(row, panel),
                    6 => self.tile::<S, 6>(row, panel),
                    5 => self.tile::<S, 5>(row, panel),
                    4 => self.tile::<S, 4>(row, panel),
                    3 => self.tile::<S, 3>(row, panel),
                    2 => self.tile::<S, 2>(row, panel),
                    _ => self.tile::<S, 1>(row, panel),
                };
            }
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn tile<S: Dots, const R: usize>(&self, row: usize, panel: usize) -> usize {
        match self.linear.weight.nibbles {
            true => self.sums::<S, R, true>(row, panel),
            false => self.sums::<S, R, false>(row, panel),
        }
        R
    }

    /// `R` rows times a panel, written to the output with its bias.
    #[inline(always)]
    fn sums<S: Dots, const R: usize, const NIBBLES: bool>(&self, row: usize, panel: usize) {
        let (weight, x) = (self.linear.weight, &self.activations.all);
        let any_rest = self.activations.any_rest.load(Ordering::Relaxed);
        let (count, width) = (weight.blocks.len(), weight.width());
        let mut result = [[0.0f32; PANEL]; R];
        let codes = &weight.codes[panel * weight.panel_bytes()..][..weight.panel_bytes()];
        let a_quad = if NIBBLES { 2 * PANEL } else { 4 * PANEL };
        for half in 0..16 / S::LANES {
            // SAFETY: the panel has as many bytes as its blocks have quads, 128 a quad of bytes and
            // 128 a pair of nibbles; scales and zeros have 32 a group; the rows have `width` codes.
            unsafe {
                let lanes = [half * S::LANES, 16 + half * S::LANES];
                let mut totals = [[S::splat(0.0); 2]; R];
                for (index, block) in weight.blocks.iter().enumerate() {
                    let (begin, end) = (weight.offsets[index], weight.offsets[index + 1]);
                    let at = (panel * weight.groups + block.group) * PANEL;
                    weight.scales.prefetch::<S>(at + SCALES_AHEAD * PANEL);
                    let zeros = weight.zeros(at);
                    let zeros = [
                        S::bytes(zeros.as_ptr().add(lanes[0]).cast::<u8>()),
                        S::bytes(zeros.as_ptr().add(lanes[1]).cast::<u8>()),
                    ];
                    let mut sums = [[S::all(0); 2]; R];
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let sum = S::all(-*x.sums.get_unchecked((row + r) * count + index));
                        *sums = [S::times(zeros[0], sum), S::times(zeros[1], sum)];
                    }
                    let from = codes.as_ptr().add(begin / 4 * a_quad);
                    let x_at = x.codes.as_ptr().add(row * width + begin);
                    let quads = (end - begin) / 4;
                    quad_sums::<S, R, NIBBLES>(from, lanes, x_at, width, quads, &mut sums);
                    let scales = [
                        weight.scales.load::<S>(at + lanes[0]),
                        weight.scales.load::<S>(at + lanes[1]),
                    ];
                    for (r, (total, sum)) in totals.iter_mut().zip(&sums).enumerate() {
                        let scale = S::splat(*x.scales.get_unchecked((row + r) * count + index));
                        for v in 0..2 {
                            let both = S::product(scale, scales[v]);
                            total[v] = S::fma(S::float(sum[v]), both, total[v]);
                        }
                    }
                    if any_rest {
                        let spot = Spot { row, index, begin };
                        let run = Run { from, lanes, quads };
                        self.rest::<S, R, NIBBLES>(spot, run, zeros, scales, &mut totals);
                    }
                }
                for (result, total) in result.iter_mut().zip(&totals) {
                    S::store(result.as_mut_ptr().add(lanes[0]), total[0]);
                    S::store(result.as_mut_ptr().add(lanes[1]), total[1]);
                }
            }
        }
        self.write(row, panel, &mut result);
    }

    /// Adds what [`quantize_rest`] has of a block to the totals of those rows that have any.
    ///
    /// # Safety
    /// As [`quad_sums`], whose arguments are in `run`.
    #[inline(always)]
    unsafe fn rest<S: Dots, const R: usize, const NIBBLES: bool>(
        &self,
        Spot { row, index, begin }: Spot,
        Run { from, lanes, quads }: Run,
        zeros: [S::I; 2],
        scales: [S::V; 2],
        totals: &mut [[S::V; 2]; R],
    ) {
        let (rest, weight) = (&self.activations.rest, self.linear.weight);
        let (count, width) = (weight.blocks.len(), weight.width());
        let finer: [f32; R] = rest.scales_of(row, index, count);
        if !finer.iter().any(|&finer| finer > 0.0) {
            return;
        }
        // SAFETY: the caller's promise is passed on; the rows have `width` codes.
        unsafe {
            let mut sums = [[S::all(0); 2]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                let sum = S::all(-rest.sums[(row + r) * count + index]);
                *sums = [S::times(zeros[0], sum), S::times(zeros[1], sum)];
            }
            let x_at = rest.codes.as_ptr().add(row * width + begin);
            quad_sums::<S, R, NIBBLES>(from, lanes, x_at, width, quads, &mut sums);
            let rows = totals.iter_mut().zip(&sums).zip(finer);
            for ((total, sum), finer) in rows.filter(|(_, finer)| *finer > 0.0) {
                for v in 0..2 {
                    let both = S::product(S::splat(finer), scales[v]);
                    total[v] = S::fma(S::float(sum[v]), both, total[v]);
                }
            }
        }
    }

    /// Adds the bias and writes those of a panel's outputs that there are.
    #[inline(always)]
    fn write(&self, row: usize, panel: usize, result: &mut [[f32; PANEL]]) {
        let (out, first) = (self.linear.weight.out, panel * PANEL);
        let columns = PANEL.min(out - first);
        for (r, result) in result.iter_mut().enumerate() {
            let result = &mut result[..columns];
            if let Some(bias) = self.linear.bias {
                result.iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
            }
            // SAFETY: the row and its columns lie within the output; this task alone writes them.
            let to = unsafe {
                let start = self.output.start().add((row + r) * out + first);
                std::slice::from_raw_parts_mut(start, columns)
            };
            to.copy_from_slice(result);
        }
    }
}

/// Block `index` of some rows, from row `row` and column `begin` on.
struct Spot {
    row: usize,
    index: usize,
    begin: usize,
}

/// The codes of a block's weights, for two vectors of outputs.
struct Run {
    from: *const u8,
    lanes: [usize; 2],
    quads: usize,
}

/// Goes on with the integer sums of a block: `R` rows, two vectors of outputs. No closures: one that
/// is not inlined is compiled without the instruction set.
///
/// # Safety
/// `from` has `quads` quads of 32 outputs (two share their bytes if `NIBBLES`), each of `R` rows of
/// `x`, `width` apart, four codes a quad, and `S` is enabled.
#[inline(always)]
unsafe fn quad_sums<S: Dots, const R: usize, const NIBBLES: bool>(
    from: *const u8,
    lanes: [usize; 2],
    x: *const i8,
    width: usize,
    quads: usize,
    sums: &mut [[S::I; 2]; R],
) {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        if NIBBLES {
            for pair in 0..quads / 2 {
                let at = from.add(pair * PANEL * 4);
                if R > 1 {
                    S::prefetch(at.wrapping_add(AHEAD + lanes[0] * 4));
                    S::prefetch(at.wrapping_add(AHEAD + lanes[1] * 4));
                }
                let low = S::nibbles(S::bytes(at.add(lanes[0] * 4)));
                let high = S::nibbles(S::bytes(at.add(lanes[1] * 4)));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let even = S::spread(x.add(r * width + pair * 8));
                    let odd = S::spread(x.add(r * width + pair * 8 + 4));
                    sum[0] = S::dot(sum[0], low[0], even);
                    sum[1] = S::dot(sum[1], high[0], even);
                    sum[0] = S::dot(sum[0], low[1], odd);
                    sum[1] = S::dot(sum[1], high[1], odd);
                }
            }
        } else {
            for quad in 0..quads {
                let at = from.add(quad * PANEL * 4);
                if R > 1 {
                    S::prefetch(at.wrapping_add(AHEAD + lanes[0] * 4));
                    S::prefetch(at.wrapping_add(AHEAD + lanes[1] * 4));
                }
                let bytes = [S::bytes(at.add(lanes[0] * 4)), S::bytes(at.add(lanes[1] * 4))];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let four = S::spread(x.add(r * width + quad * 4));
                    sum[0] = S::dot(sum[0], bytes[0], four);
                    sum[1] = S::dot(sum[1], bytes[1], four);
                }
            }
        }
    }
}

/// Where the scale of a row and group, `row * groups + group` in the grid's order, is among panels.
fn place(index: usize, groups: usize) -> usize {
    let (row, group) = (index / groups, index % groups);
    ((row / PANEL) * groups + group) * PANEL + row % PANEL
}

/// `count` times `value`, if there is memory for it.
fn filled<E: Clone>(count: usize, value: E) -> Option<Vec<E>> {
    let mut all = Vec::new();
    all.try_reserve_exact(count).ok()?;
    all.resize(count, value);
    Some(all)
}
