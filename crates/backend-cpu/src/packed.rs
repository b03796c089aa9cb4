//! Weights on grids as the kernels read them.
//!
//! A weight is laid out once as panels of 32 outputs, each one run of bytes, since what is read once is
//! read fastest from end to end: for every group of columns its scales, minima and zero points, then for
//! each of its blocks (see [`backend::numerics::blocks`]) the integers of its units and the codes. A block
//! is padded to whole quads: a vector holds four neighbouring inputs of neighbouring outputs, as the dot
//! product of bytes wants them. Codes are stored unsigned, and what that adds is taken off by the sum of
//! the activations.

use crate::form::{Form, ROW};
use crate::panel::PANEL;
use backend::numerics::{Columns, blocks};
use backend::{Factors, computed_with, shared, unit};
use half::{bf16, f16};
use ir::{Grid, Inner, Outer, Quantized};
use rayon::prelude::*;
use std::ops::Range;
use tensor::DType;

/// Bytes of a line of the caches, at which panels begin.
pub(crate) const LINE: usize = 64;

/// Units of a block, whose integers of minima make a quad.
const QUAD: usize = 4;

/// A weight `[out, inputs]` on a grid.
pub(crate) struct Packed {
    out: usize,
    inputs: usize,
    layout: Layout,
    bytes: Vec<u8>,
    /// Where the panels begin among the bytes.
    start: usize,
}

/// How each panel of a weight lies.
pub(crate) struct Layout {
    /// How codes are packed.
    pub(crate) form: Form,
    /// What a stored code, or a level of the table, is more than the level that it stands for.
    pub(crate) bias: i32,
    /// The levels of [`Form::Levels`].
    pub(crate) table: [u8; 16],
    /// What a scale is stored in.
    pub(crate) scale: DType,
    /// Whether every group has minima, and zero points, of its own.
    pub(crate) mins: bool,
    pub(crate) zeros: bool,
    /// Columns that share an integer; `None` where scales are no integers times outer numbers.
    pub(crate) unit: Option<usize>,
    /// The blocks of columns.
    pub(crate) places: Vec<Place>,
    /// Bytes of a panel.
    panel: usize,
}

/// Where a block of columns is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its columns, and the group whose numbers are theirs.
    pub(crate) block: Columns,
    /// Where they begin when every block is padded.
    pub(crate) begin: usize,
    /// Quads of columns, with the padding.
    pub(crate) quads: usize,
    /// Where in a panel the numbers of its group are.
    pub(crate) numbers: usize,
    /// Those of the integers of its units.
    pub(crate) integers: usize,
    /// Its codes.
    pub(crate) codes: usize,
}

/// What of a grid decides how it is laid out.
struct Kind {
    bits: usize,
    bias: i32,
    levels: Option<[u8; 16]>,
    scale: DType,
    mins: bool,
}

impl Kind {
    fn of(grid: Grid) -> Option<Self> {
        match grid {
            grid if !computed_with(grid) => None,
            Grid::Int { bits, scale, .. } => {
                let bits = Some(usize::from(bits)).filter(|bits| (2..=8).contains(bits))?;
                Some(Self { bits, bias: 1 << (bits - 1), levels: None, scale, mins: false })
            }
            Grid::Block(kind) => {
                let form = kind.form();
                let scale = match (form.scale, form.outer) {
                    (Inner::Ue4m3 | Inner::Odd { .. }, _) | (_, Outer::Tensor) => DType::F32,
                    (_, Outer::F16) => DType::F16,
                    // A power of two.
                    (_, Outer::E8m0) => DType::BF16,
                };
                // Levels are bytes of a sign.
                let unsigned = |level: i8| level as u8 ^ 0x80;
                let table =
                    |book: &ir::Codebook| std::array::from_fn(|code| unsigned(book.levels()[code]));
                let levels = form.levels.map(table);
                let bias = if levels.is_some() { 128 } else { i32::from(form.offset) };
                let (bits, mins) = (usize::from(form.bits), form.min_bits.is_some());
                Some(Self { bits, bias, levels, scale, mins })
            }
        }
    }
}

impl Layout {
    /// Of rows of `inputs`; `None` if the grid is not one that is computed with, or has no such rows.
    fn of(inputs: usize, grid: Grid, asymmetric: bool) -> Option<Self> {
        let Kind { bits, bias, levels, scale, mins } = Kind::of(grid)?;
        let (span, unit) = (shared(grid, inputs), unit(grid));
        let whole = match grid {
            Grid::Block(kind) => inputs.is_multiple_of(kind.form().block),
            Grid::Int { .. } => true,
        };
        let halves = unit.is_none_or(|unit| unit == 16 || unit == 32);
        if inputs == 0 || !whole || !halves {
            return None;
        }
        let blocks = blocks(inputs, span);
        let padded =
            |form: Form, block: &Columns| block.columns.len().next_multiple_of(form.columns());
        let bytes = |form: &Form| -> usize {
            blocks.iter().map(|block| form.bytes(padded(*form, block))).sum()
        };
        let form = match levels {
            Some(_) => Form::Levels,
            None => {
                let wide = Form::CODES.into_iter().filter(|form| form.bits() >= bits);
                wide.min_by_key(bytes)?
            }
        };
        let mut layout = Self {
            form,
            bias,
            table: levels.unwrap_or_default(),
            scale,
            mins,
            zeros: asymmetric,
            unit,
            places: Vec::with_capacity(blocks.len()),
            panel: 0,
        };
        let (mut begin, mut group, mut numbers) = (0, None, 0);
        for block in blocks {
            if group != Some(block.group) {
                (group, numbers) = (Some(block.group), layout.panel);
                layout.panel = layout.panel.checked_add(layout.bytes_of_numbers())?;
            }
            let columns = padded(form, &block);
            let integers = layout.panel;
            let codes = integers + layout.bytes_of_integers(columns);
            layout.panel = codes.checked_add(form.bytes(columns))?;
            let quads = columns / 4;
            layout.places.push(Place { block, begin, quads, numbers, integers, codes });
            begin += columns;
        }
        Some(layout)
    }

    /// Bytes of the scales of a group.
    pub(crate) fn bytes_of_scales(&self) -> usize {
        PANEL * self.scale.bits() / 8
    }

    /// Bytes of the minima of a group.
    pub(crate) fn bytes_of_mins(&self) -> usize {
        if self.mins { PANEL * size_of::<f16>() } else { 0 }
    }

    fn bytes_of_numbers(&self) -> usize {
        let zeros = if self.zeros { PANEL } else { 0 };
        self.bytes_of_scales() + self.bytes_of_mins() + zeros
    }

    /// Bytes of the integers of a block: of the scales `[units][32]`, then of the minima, a quad of four
    /// units of 32 outputs.
    fn bytes_of_integers(&self, columns: usize) -> usize {
        let units = self.unit.map_or(0, |unit| columns / unit);
        units * PANEL * if self.mins { 2 } else { 1 }
    }

    /// Columns, padded.
    pub(crate) fn width(&self) -> usize {
        self.places.last().map_or(0, |last| last.begin + 4 * last.quads)
    }

    /// Whether activations are rounded alike for both.
    pub(crate) fn rounds_as(&self, other: &Self) -> bool {
        let mut places = self.places.iter().zip(&other.places);
        self.unit.is_some() == other.unit.is_some()
            && self.places.len() == other.places.len()
            && places.all(|(a, b)| {
                a.block.columns == b.block.columns && (a.begin, a.quads) == (b.begin, b.quads)
            })
    }
}

impl Packed {
    /// Room for a weight, all zero; `None` if memory is short, or the grid is not one that is computed
    /// with. One that is not `asymmetric` has no zero points.
    pub(crate) fn zeroed([out, inputs]: [usize; 2], grid: Grid, asymmetric: bool) -> Option<Self> {
        let layout = Layout::of(inputs, grid, asymmetric)?;
        let len = out.div_ceil(PANEL).checked_mul(layout.panel).filter(|&len| len > 0)?;
        let bytes: Vec<u8> = tensor::zeroed(len.checked_add(LINE)?)?;
        let start = bytes.as_ptr().align_offset(LINE).min(LINE);
        Some(Self { out, inputs, layout, bytes, start })
    }

    /// What a weight takes; `None` if it is not one that is computed with.
    pub(crate) fn bytes([out, inputs]: [usize; 2], grid: Grid, asymmetric: bool) -> Option<u64> {
        let layout = Layout::of(inputs, grid, asymmetric)?;
        Some(out.div_ceil(PANEL).checked_mul(layout.panel)? as u64)
    }

    /// Its outputs in parts of `panels` panels, to be filled.
    pub(crate) fn parts(&mut self, panels: usize) -> impl ParallelIterator<Item = Part<'_>> {
        let (out, inputs, layout) = (self.out, self.inputs, &self.layout);
        let end = self.start + out.div_ceil(PANEL) * layout.panel;
        let parts = self.bytes[self.start..end].par_chunks_mut(panels * layout.panel).enumerate();
        parts.map(move |(index, bytes)| {
            let first = index * panels * PANEL;
            Part { rows: first..out.min(first + panels * PANEL), inputs, layout, bytes }
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

    /// How its panels lie.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes of panel `index`.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        &self.bytes[self.start + index * self.layout.panel..][..self.layout.panel]
    }

    /// Writes the values of output `row` to `into`, as wide as a row; nothing if there is no such output.
    pub(crate) fn gather(&self, row: usize, into: &mut [f32]) {
        if row >= self.out {
            return;
        }
        let (layout, lane, panel) = (&self.layout, row % PANEL, self.panel(row / PANEL));
        for place in &layout.places {
            let (numbers, codes) = (&panel[place.numbers..], &panel[place.codes..]);
            let outer = layout.scale_of(numbers, lane);
            let outer_min = layout.min_of(numbers, lane);
            let zero = f32::from(layout.zero_of(numbers, lane));
            let columns = place.block.columns.clone();
            for (index, x) in into[columns].iter_mut().enumerate() {
                let integers =
                    layout.unit.map(|unit| layout.integers(panel, place, lane, index / unit));
                let [scale, min] = integers.map_or([outer, outer_min], |[scale, min]| {
                    [outer * f32::from(scale), outer_min * f32::from(min)]
                });
                let code = layout.form.get(codes, lane, index);
                let stored = match layout.form {
                    Form::Levels => layout.table[usize::from(code)],
                    _ => code,
                };
                let level = i32::from(stored) - layout.bias;
                *x = (level as f32 - zero) * scale - min;
            }
        }
    }
}

impl Layout {
    fn scale_of(&self, numbers: &[u8], lane: usize) -> f32 {
        match self.scale {
            DType::F16 => f16::from_le_bytes(number(numbers, lane)).to_f32(),
            DType::BF16 => bf16::from_le_bytes(number(numbers, lane)).to_f32(),
            _ => f32::from_le_bytes(number(numbers, lane)),
        }
    }

    /// Without minima, 0.
    fn min_of(&self, numbers: &[u8], lane: usize) -> f32 {
        let mins = &numbers[self.bytes_of_scales()..];
        if self.mins { f16::from_le_bytes(number(mins, lane)).to_f32() } else { 0.0 }
    }

    /// Without zero points, 0.
    fn zero_of(&self, numbers: &[u8], lane: usize) -> i8 {
        let zeros = &numbers[self.bytes_of_scales() + self.bytes_of_mins()..];
        if self.zeros { zeros[lane] as i8 } else { 0 }
    }

    /// The integers of unit `unit` of a block, of its scale and of its minimum.
    fn integers(&self, panel: &[u8], place: &Place, lane: usize, unit: usize) -> [i16; 2] {
        let scales = &panel[place.integers..place.codes];
        let min = match self.mins {
            true => scales[scales.len() / 2 + min_place(lane, unit)],
            false => 0,
        };
        [i16::from(scales[unit * PANEL + lane] as i8), i16::from(min)]
    }
}

/// Where the integer of a minimum is among those of a block.
fn min_place(lane: usize, unit: usize) -> usize {
    unit / QUAD * ROW + lane * QUAD + unit % QUAD
}

/// Number `index` of a list.
fn number<const N: usize>(list: &[u8], index: usize) -> [u8; N] {
    std::array::from_fn(|byte| list[index * N + byte])
}

/// Some panels of a weight that is being laid out.
pub(crate) struct Part<'a> {
    /// Their outputs.
    pub(crate) rows: Range<usize>,
    inputs: usize,
    layout: &'a Layout,
    bytes: &'a mut [u8],
}

impl Part<'_> {
    /// Fills it from rows `first..` of `weight`, which has as many and is whole.
    pub(crate) fn fill(&mut self, weight: &Quantized, first: usize) {
        let (layout, factors) = (self.layout, Factors::of(weight));
        let end = first + self.rows.len();
        for (index, panel) in self.bytes.chunks_exact_mut(layout.panel).enumerate() {
            let begin = first + index * PANEL;
            for (lane, row) in (begin..end.min(begin + PANEL)).enumerate() {
                let codes = &weight.codes[row * self.inputs..(row + 1) * self.inputs];
                for place in &layout.places {
                    layout.put_numbers(
                        &mut panel[place.numbers..],
                        lane,
                        &factors,
                        [row, place.block.group],
                    );
                    let integers = &mut panel[place.integers..place.codes];
                    layout.put_integers(integers, lane, &factors, [row, place.block.columns.start]);
                    let codes = &codes[place.block.columns.clone()];
                    layout.put_codes(&mut panel[place.codes..], lane, codes);
                }
            }
        }
    }
}

impl Layout {
    fn put_numbers(
        &self,
        to: &mut [u8],
        lane: usize,
        from: &Factors<'_>,
        [row, group]: [usize; 2],
    ) {
        let scale = from.scale(row, group);
        let (at, two) = (self.bytes_of_scales(), lane * 2..lane * 2 + 2);
        match self.scale {
            DType::F16 => to[two.clone()].copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
            DType::BF16 => to[two.clone()].copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
            _ => to[lane * 4..lane * 4 + 4].copy_from_slice(&scale.to_le_bytes()),
        }
        if let Some(min) = from.min(row, group).filter(|_| self.mins) {
            to[at..][two].copy_from_slice(&f16::from_f32(min).to_le_bytes());
        }
        if self.zeros {
            to[at + self.bytes_of_mins() + lane] = from.zero(row, group) as u8;
        }
    }

    fn put_integers(
        &self,
        to: &mut [u8],
        lane: usize,
        from: &Factors<'_>,
        [row, column]: [usize; 2],
    ) {
        let Some(unit) = self.unit else { return };
        let scales = if self.mins { to.len() / 2 } else { to.len() };
        for index in 0..scales / PANEL {
            let [scale, min] = from.integers(row, column / unit + index);
            to[index * PANEL + lane] = scale as u8;
            if self.mins {
                to[scales + min_place(lane, index)] = min as u8;
            }
        }
    }

    fn put_codes(&self, to: &mut [u8], lane: usize, codes: &[i8]) {
        // The indices of levels are stored as they are.
        let bias = if self.form == Form::Levels { 0 } else { self.bias };
        let stored = |code: i8| (i32::from(code) + bias) as u8;
        let codes = codes.iter().map(|&code| stored(code)).enumerate();
        // A match for each code would take most of the time.
        match self.form {
            Form::Four | Form::Levels => {
                codes.for_each(|(column, code)| Form::Four.put(to, lane, column, code));
            }
            Form::Eight => codes.for_each(|(column, code)| Form::Eight.put(to, lane, column, code)),
            Form::Six => codes.for_each(|(column, code)| Form::Six.put(to, lane, column, code)),
            form => codes.for_each(|(column, code)| form.put(to, lane, column, code)),
        }
    }
}
