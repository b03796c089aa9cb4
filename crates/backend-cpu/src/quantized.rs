//! Linears over weights on grids, with activations rounded to int8 on the fly.
//!
//! One row, or few, takes a weight as fast as it comes from memory: its codes become bytes in registers.
//! For more rows some blocks of a panel are unpacked to bytes, which stay in the first cache while all rows
//! go over them.
#![expect(unsafe_code, reason = "tiles are passed to the kernels as pointers")]

use crate::activations::{Activations, Codes, RoundedPool};
use crate::dots::Dots;
use crate::form::{Eight, Five, Form, Four, Levels, Planes, ROW, Six, Three, Two};
use crate::isa::{DotKernel, Level};
use crate::packed::{LINE, Layout, Packed, Place};
use crate::panel::PANEL;
use crate::quad_sums::{Run, Tile};
use crate::tasks::{self, Output};
use std::ops::Range;

/// Bytes of a weight that are brought near ahead of their use where codes are computed with as they are
/// packed: the machine does not foresee far enough by itself.
const AHEAD: usize = 8192;

/// Rows, at most, that take codes as they are packed, one after the other from a panel that is near.
const FEW: usize = 2;

/// Rows, at most, that take codes of four bits so, several at a time.
const SEVERAL: usize = 16;

/// Columns that are unpacked at once: 8 KiB of a panel.
const PIECE: usize = 256;

/// Rows of a task.
const BLOCK_ROWS: usize = 240;

/// Panels of a task when there are many rows.
const GROUP: usize = 4;

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
        assert_eq!(linear.x.len(), linear.rows * linear.weight.inputs(), "input size");
        assert_eq!(out.len(), linear.rows * linear.weight.out(), "output size");
    }
    let mut rounded: Vec<(&Linear<'_>, Activations)> = Vec::new();
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for (linear, out) in linears.iter().zip(outs).filter(|(linear, _)| linear.rows > 0) {
        let same = |(other, _): &(&Linear<'_>, _)| other.rounds_as(linear);
        let activations = rounded.iter().position(same).unwrap_or_else(|| {
            let mut activations = pool.take();
            activations.round(level, linear.x, linear.rows, linear.weight.layout());
            rounded.push((linear, activations));
            rounded.len() - 1
        });
        jobs.push(Job::new(linear, activations, jobs.last().map_or(0, |job| job.end), out));
    }
    let count = jobs.last().map_or(0, |job| job.end);
    tasks::run(count, Scratch::default, |scratch, index| {
        let place = jobs.partition_point(|job| job.end <= index);
        let job = &jobs[place];
        job.block(index - job.begin, &rounded[job.activations].1, level).run(scratch);
    });
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
        let panels = linear.weight.out().div_ceil(PANEL);
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
    fn block<'b>(&'b self, index: usize, activations: &'b Activations, level: Level) -> Block<'b> {
        let panels = self.linear.weight.out().div_ceil(PANEL);
        let groups = panels.div_ceil(self.group);
        let (row, panel) = (index / groups * self.height, index % groups * self.group);
        Block {
            linear: self.linear,
            activations,
            level,
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
            && self.weight.layout().rounds_as(other.weight.layout())
    }
}

/// What a thread reuses from task to task.
#[derive(Default)]
struct Scratch {
    /// `[rows][32]`.
    totals: Vec<f32>,
    /// Codes as bytes.
    bytes: Vec<Line>,
}

/// Bytes that share a line of the caches.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A task: `rows` times `panels`.
struct Block<'a> {
    linear: &'a Linear<'a>,
    activations: &'a Activations,
    level: Level,
    rows: Range<usize>,
    panels: Range<usize>,
    output: Output,
}

impl Block<'_> {
    fn run(&self, scratch: &mut Scratch) {
        let layout = self.linear.weight.layout();
        let direct: Option<Direct> = match self.rows.len() {
            ..=SEVERAL if layout.form == Form::Four && layout.unit.is_none() => Some(packed),
            ..=FEW => direct(layout),
            _ => None,
        };
        scratch.totals.resize(self.rows.len() * PANEL, 0.0);
        for panel in self.panels.clone() {
            scratch.totals.fill(0.0);
            let bytes = self.linear.weight.panel(panel);
            match direct {
                Some(tile) => self.few(bytes, tile, scratch),
                None => self.many(bytes, scratch),
            }
            self.write(panel, &scratch.totals);
        }
    }

    /// Some blocks of columns of a panel against the rows from `row` of the task on.
    fn tiles<'b>(
        &'b self,
        panel: &'b [u8],
        codes: &'b Codes,
        places: &Range<usize>,
        scratch: &mut Scratch,
    ) -> Run<'b> {
        Run {
            layout: self.linear.weight.layout(),
            panel: panel.as_ptr(),
            unpacked: None,
            x: codes,
            rows: self.linear.rows,
            row: self.rows.start,
            places: places.clone(),
            totals: scratch.totals.as_mut_ptr(),
            ahead: None,
        }
    }

    /// Few rows times a panel, whose codes are unpacked in registers.
    fn few(&self, panel: &[u8], tile: Direct, scratch: &mut Scratch) {
        let layout = self.linear.weight.layout();
        let any_rest = self.activations.any_rest();
        let count = layout.places.len();
        // What has a rest is finished block by block.
        for first in (0..count).step_by(if any_rest { 1 } else { count.max(1) }) {
            let places = first..if any_rest { first + 1 } else { count };
            let run = self.tiles(panel, &self.activations.all, &places, scratch);
            self.all_rows(&Run { ahead: Some(AHEAD), ..run }, tile);
            if any_rest {
                self.rest(&self.tiles(panel, &self.activations.rest, &places, scratch), tile);
            }
        }
    }

    /// Rows times a panel, of which some blocks at a time are unpacked.
    fn many(&self, panel: &[u8], scratch: &mut Scratch) {
        let layout = self.linear.weight.layout();
        let any_rest = self.activations.any_rest();
        let mut first = 0;
        while let Some(place) = layout.places.get(first) {
            let begin = place.begin;
            let some = layout.places[first..].iter();
            let fit = some.take_while(|p| p.begin + 4 * p.quads <= begin + PIECE).count();
            let end = first + if any_rest { 1 } else { fit.max(1) };
            let places = &layout.places[first..end];
            let columns: usize = places.iter().map(|place| 4 * place.quads).sum();
            scratch.bytes.resize(columns * PANEL / LINE, Line([0; LINE]));
            let to = scratch.bytes.as_mut_ptr().cast::<u8>();
            self.level.run_dots(Unpack { layout, panel, places, to });
            let unpacked = (layout.form != Form::Eight).then_some((to.cast_const(), begin));
            let next = layout.places.get(end).map(|next| next.codes - place.codes);
            let ahead = Some(next.unwrap_or(AHEAD));
            let run = self.tiles(panel, &self.activations.all, &(first..end), scratch);
            self.all_rows(&Run { unpacked, ahead, ..run }, strip);
            if any_rest {
                let run = self.tiles(panel, &self.activations.rest, &(first..end), scratch);
                self.rest(&Run { unpacked, ..run }, strip);
            }
            first = end;
        }
    }

    /// The rows that have a rest of the block of `run`, each by itself.
    fn rest(&self, run: &Run<'_>, tile: Direct) {
        for row in self.rows.clone() {
            if run.x.scales[run.places.start * run.rows + row] > 0.0 {
                // SAFETY: the row is one of the task's.
                let totals = unsafe { run.totals.add((row - self.rows.start) * PANEL) };
                tile(self.level, &Run { row, totals, places: run.places.clone(), ..*run }, 1);
            }
        }
    }

    /// All rows of the task, a tile after the other.
    fn all_rows(&self, run: &Run<'_>, tile: Direct) {
        let mut done = 0;
        while done < self.rows.len() {
            // SAFETY: the row is one of the task's.
            let totals = unsafe { run.totals.add(done * PANEL) };
            // The first tile brings near what the others need too.
            let ahead = run.ahead.filter(|_| done == 0);
            let (row, places) = (run.row + done, run.places.clone());
            let some = Run { row, totals, places, ahead, ..*run };
            done += tile(self.level, &some, self.rows.len() - done);
        }
    }

    /// Adds the bias and writes those of a panel's outputs that there are.
    fn write(&self, panel: usize, totals: &[f32]) {
        let (out, first) = (self.linear.weight.out(), panel * PANEL);
        let columns = PANEL.min(out - first);
        for (row, totals) in self.rows.clone().zip(totals.chunks_exact(PANEL)) {
            // SAFETY: the row and its columns lie within the output; this task alone writes them.
            let to = unsafe {
                let start = self.output.start().add(row * out + first);
                std::slice::from_raw_parts_mut(start, columns)
            };
            to.copy_from_slice(&totals[..columns]);
            if let Some(bias) = self.linear.bias {
                to.iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Computes a tile of at most so many rows; returns how many it has.
type Direct = fn(Level, &Run<'_>, usize) -> usize;

/// The kernel for one row and codes as they are packed; `None` where they are to be unpacked first.
fn direct(layout: &Layout) -> Option<Direct> {
    Some(match (layout.form, layout.unit) {
        (Form::Two, None) => row::<Two, 0>,
        (Form::Three, None) => row::<Three, 0>,
        (Form::Four, None) => row::<Four, 0>,
        (Form::Levels, None) => row::<Levels, 0>,
        (Form::Five, None) => row::<Five, 0>,
        (Form::Six, None) => row::<Six, 0>,
        (Form::Eight, None) => row::<Eight, 0>,
        (Form::Two, Some(16)) => row::<Two, 4>,
        (Form::Three, Some(16)) => row::<Three, 4>,
        (Form::Six, Some(16)) => row::<Six, 4>,
        (Form::Four, Some(32)) => row::<Four, 8>,
        (Form::Levels, Some(32)) => row::<Levels, 8>,
        (Form::Five, Some(32)) => row::<Five, 8>,
        _ => return None,
    })
}

fn row<F: Planes, const UNIT: usize>(level: Level, run: &Run<'_>, _: usize) -> usize {
    tile::<F, 1, UNIT>(level, run)
}

/// A tile over codes of four bits as they are packed.
fn packed(level: Level, run: &Run<'_>, rows: usize) -> usize {
    flat::<Four>(level, run, rows)
}

/// A tile over bytes.
fn strip(level: Level, run: &Run<'_>, rows: usize) -> usize {
    match run.layout.unit {
        None => flat::<Eight>(level, run, rows),
        Some(16) => nested::<4>(level, run, rows),
        Some(_) => nested::<8>(level, run, rows),
    }
}

fn flat<F: Planes>(level: Level, run: &Run<'_>, rows: usize) -> usize {
    match rows.min(level.tallest()) {
        12.. => tile::<F, 12, 0>(level, run),
        8..=11 => tile::<F, 8, 0>(level, run),
        6 | 7 => tile::<F, 6, 0>(level, run),
        4 | 5 => tile::<F, 4, 0>(level, run),
        3 => tile::<F, 3, 0>(level, run),
        2 => tile::<F, 2, 0>(level, run),
        _ => tile::<F, 1, 0>(level, run),
    }
}

/// The same where units have integers: there are twice as many sums.
fn nested<const UNIT: usize>(level: Level, run: &Run<'_>, rows: usize) -> usize {
    match rows.min(level.tallest() / 2) {
        6.. => tile::<Eight, 6, UNIT>(level, run),
        4 | 5 => tile::<Eight, 4, UNIT>(level, run),
        3 => tile::<Eight, 3, UNIT>(level, run),
        2 => tile::<Eight, 2, UNIT>(level, run),
        _ => tile::<Eight, 1, UNIT>(level, run),
    }
}

fn tile<F: Planes, const R: usize, const UNIT: usize>(level: Level, run: &Run<'_>) -> usize {
    level.run_dots(Tile::<F, R, UNIT>::new(run));
    R
}

/// Codes of some blocks to bytes.
struct Unpack<'a> {
    layout: &'a Layout,
    panel: &'a [u8],
    places: &'a [Place],
    to: *mut u8,
}

impl DotKernel for Unpack<'_> {
    #[inline(always)]
    fn run<S: Dots>(self) {
        let mut to = self.to;
        for place in self.places {
            let len = self.layout.form.bytes(4 * place.quads);
            let from = self.panel[place.codes..place.codes + len].as_ptr();
            // SAFETY: the block has as many quads, and there is room for as many rows of bytes.
            unsafe {
                let table = S::table(&self.layout.table);
                match self.layout.form {
                    Form::Two => unpack::<S, Two>(from, table, place.quads, to),
                    Form::Three => unpack::<S, Three>(from, table, place.quads, to),
                    Form::Four => unpack::<S, Four>(from, table, place.quads, to),
                    Form::Levels => unpack::<S, Levels>(from, table, place.quads, to),
                    Form::Five => unpack::<S, Five>(from, table, place.quads, to),
                    Form::Six => unpack::<S, Six>(from, table, place.quads, to),
                    Form::Eight => {}
                }
                to = to.add(place.quads * ROW);
            }
        }
    }
}

/// Writes quads of a block as bytes.
///
/// # Safety
/// `from` and `to` have `quads` quads, and `S` is enabled.
#[inline(always)]
unsafe fn unpack<S: Dots, F: Planes>(from: *const u8, table: S::I, quads: usize, to: *mut u8) {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        for step in 0..quads / F::QUADS {
            for lane in (0..PANEL).step_by(S::LANES) {
                let all = F::quads::<S>(from.add(lane * 4), step, table);
                for (quad, bytes) in all.into_iter().take(F::QUADS).enumerate() {
                    S::put(to.add((step * F::QUADS + quad) * ROW + lane * 4), bytes);
                }
            }
        }
    }
}
