//! `x W^T + b` over panels, at the speed of fused multiply-adds for many rows and of memory for
//! few.
//!
//! A task is a block of rows times a group of panels. For each piece of the depth its rows are
//! copied into strips that stay in the second cache, and each panel's piece stays in the first
//! while every strip goes over it.
#![expect(unsafe_code, reason = "tiles are passed to the microkernel as pointers")]

use crate::isa::{Kernel, Level};
use crate::panel::{PANEL, Panels, Row, Word};
use crate::simd::Simd;
use crate::tasks::{self, Output};
use crate::tile::{MAX_ROWS, Mode, STRIDE, Tile, at_once, strip};
use backend::numerics::LINEAR_CHUNK;
use std::ops::Range;

/// Rows of a block: as many as fill a quarter of a second cache of 1 MiB with one piece.
const BLOCK_ROWS: usize = 240;

/// Panels of a group when there are many rows.
const GROUP: usize = 8;

/// One linear. `x` is `[rows, inputs]`, `out` `[rows, out]`, all of which is written.
pub(crate) struct Linear<'a, T> {
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) weight: &'a Panels<T>,
    pub(crate) bias: Option<&'a [f32]>,
}

impl<T: Word> Linear<'_, T> {
    /// Computes `out`. The slices must have the sizes their names say.
    pub(crate) fn run(&self, level: Level, out: &mut [f32]) {
        assert_eq!(self.x.len(), self.rows * self.weight.inputs(), "input size");
        assert_eq!(out.len(), self.rows * self.weight.out(), "output size");
        let panels = self.weight.panels();
        let blocks = self.rows.div_ceil(BLOCK_ROWS);
        if blocks == 0 {
            return;
        }
        let height = self.rows.div_ceil(blocks).next_multiple_of(MAX_ROWS);
        let group = match self.rows {
            0..=MAX_ROWS => {
                let share = panels.div_ceil(4 * rayon::current_num_threads());
                share.next_multiple_of(4)
            }
            _ => GROUP,
        };
        let groups = panels.div_ceil(group);
        let output = Output::new(out);
        tasks::run(self.rows.div_ceil(height) * groups, Scratch::default, |scratch, index| {
            let (row, panel) = (index / groups * height, index % groups * group);
            level.run(Block {
                linear: self,
                rows: row..(row + height).min(self.rows),
                panels: panel..(panel + group).min(panels),
                output,
                scratch,
            });
        });
    }
}

/// What a thread reuses from task to task.
#[derive(Default)]
struct Scratch {
    /// Pieces of the input, `[pieces][rows][STRIDE]`.
    strips: Vec<f32>,
    /// Results of a last panel that is not full, `[rows][32]`.
    tail: Vec<f32>,
}

/// A task: `rows` times `panels`.
struct Block<'a, 'b, T> {
    linear: &'a Linear<'a, T>,
    rows: Range<usize>,
    panels: Range<usize>,
    output: Output,
    scratch: &'b mut Scratch,
}

impl<T: Word> Kernel for Block<'_, '_, T> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let rows = self.rows.len();
        let pieces = self.linear.weight.inputs().div_ceil(LINEAR_CHUNK);
        // Few rows: a panel is read from end to end, as memory likes it.
        let step = if rows <= S::ROWS { pieces } else { 1 };
        grow(&mut self.scratch.strips, step * rows * STRIDE);
        grow(&mut self.scratch.tail, rows * PANEL);
        for first in (0..pieces).step_by(step) {
            let group = first..(first + step).min(pieces);
            self.pack(group.clone());
            let mut panel = self.panels.start;
            while panel < self.panels.end {
                let full = (self.linear.weight.out() / PANEL).min(self.panels.end);
                let panels = at_once(rows, full.saturating_sub(panel));
                for piece in group.clone() {
                    self.piece::<S>(piece, piece - first, panel, panels);
                }
                panel += panels;
            }
        }
        self.finish();
    }
}

impl<T: Word> Block<'_, '_, T> {
    /// Copies `pieces` of the rows into strips.
    #[inline(always)]
    fn pack(&mut self, pieces: Range<usize>) {
        let inputs = self.linear.weight.inputs();
        let rows = &self.linear.x[self.rows.start * inputs..self.rows.end * inputs];
        let mut strips = self.scratch.strips.chunks_exact_mut(STRIDE);
        for piece in pieces {
            let columns = piece * LINEAR_CHUNK..inputs.min((piece + 1) * LINEAR_CHUNK);
            for (row, strip) in rows.chunks_exact(inputs).zip(&mut strips) {
                strip[..columns.len()].copy_from_slice(&row[columns.clone()]);
            }
        }
    }

    /// Adds the products of one piece with `panels` panels, from `panel` on, to the result.
    #[inline(always)]
    fn piece<S: Simd>(&mut self, piece: usize, packed: usize, panel: usize, panels: usize) {
        let weight = self.linear.weight;
        let (rows, begin) = (self.rows.len(), piece * LINEAR_CHUNK);
        let depth = (weight.inputs() - begin).min(LINEAR_CHUNK);
        let columns = weight.out() - panel * PANEL;
        let mode = if piece == 0 { Mode::First } else { Mode::Add };
        let b: &[Row<T>] = &weight.panel(panel)[begin..];
        let at = self.rows.start * weight.out() + panel * PANEL;
        for row in (0..rows).step_by(S::ROWS) {
            // SAFETY: the strips hold `rows` rows of each packed piece; `panels` whole panels follow
            // `panel`; the result's rows have `32 * panels` columns from `panel` on, or, where the
            // last panel is not full, the tail has 32. No other task writes these rows and columns.
            unsafe {
                let (c, stride) = match columns < PANEL {
                    true => (self.scratch.tail.as_mut_ptr().add(row * PANEL), PANEL),
                    false => (self.output.start().add(at + row * weight.out()), weight.out()),
                };
                let tile = Tile {
                    a: self.scratch.strips.as_ptr().add((packed * rows + row) * STRIDE),
                    b: b.as_ptr().cast(),
                    depth,
                    panel: weight.inputs() * PANEL,
                    c,
                    stride,
                    mode,
                };
                strip::<S, T>((rows - row).min(S::ROWS), panels, &tile);
            }
        }
    }

    /// Copies the tail to the result and adds the bias.
    #[inline(always)]
    fn finish(&self) {
        let out = self.linear.weight.out();
        let (first, last) = (self.panels.start * PANEL, out.min(self.panels.end * PANEL));
        let tail = match last % PANEL {
            0 => last..last,
            n => last - n..last,
        };
        for (row, index) in self.rows.clone().enumerate() {
            // SAFETY: this task alone writes these columns of its rows.
            let columns = unsafe {
                let start = self.output.start().add(index * out + first);
                std::slice::from_raw_parts_mut(start, last - first)
            };
            let at = row * PANEL..row * PANEL + tail.len();
            columns[tail.start - first..].copy_from_slice(&self.scratch.tail[at]);
            if let Some(bias) = self.linear.bias {
                columns.iter_mut().zip(&bias[first..last]).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Makes `values` at least `len` long.
fn grow(values: &mut Vec<f32>, len: usize) {
    if values.len() < len {
        values.resize(len, 0.0);
    }
}
