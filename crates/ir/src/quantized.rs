//! Matrices on a grid.

use crate::block_kind::Inner;
use crate::codebook::Codebook;
use crate::grid::{Grid, Span};
use std::ops::Range;
use std::sync::Arc;

/// A matrix on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The grid.
    pub grid: Grid,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// `[out, in]`: each an index into the grid's levels, as a byte; integers are their own.
    pub codes: Vec<i8>,
    /// What scales and moves the levels.
    pub params: Params,
}

/// The scales, zero points and minima of a matrix as they are stored, without loss.
#[derive(Clone, Debug, PartialEq)]
pub enum Params {
    /// A number each.
    Flat {
        /// `[out, units]`, each a value of the grid's scale dtype.
        scales: Vec<f32>,
        /// `[out, units]`; empty on a symmetric grid.
        zeros: Vec<i8>,
    },
    /// A number each, of groups whose columns lie apart.
    Scattered {
        /// `[out, units]`, each a value of the grid's scale dtype.
        scales: Vec<f32>,
        /// `[out, units]`; empty on a symmetric grid.
        zeros: Vec<i8>,
        /// `[in]`: the unit of each column.
        groups: Arc<[u32]>,
    },
    /// An inner code times an outer number, as GGUF's blocks have them.
    Nested {
        /// `[out, units]`: the codes of the scales, see [`Inner`]; empty if each is 1.
        scales: Vec<i8>,
        /// `[out, units]`: those of the minima; empty if each is 1, or there are none.
        mins: Vec<u8>,
        /// `[out, blocks]`: what the codes of the scales are multiplied by, each as [`crate::Outer`] says.
        outer_scales: Vec<f32>,
        /// `[out, blocks]`: likewise of the minima; empty if there are none.
        outer_mins: Vec<f32>,
    },
}

/// What some columns of a row share: a value is `(level - zero) * scale - min`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Which.
    pub columns: Range<usize>,
    /// The level of the value `-min`.
    pub zero: f32,
    /// Multiplied into a level less `zero`.
    pub scale: f32,
    /// Taken off at last.
    pub min: f32,
}

/// How many units and blocks a row has, and how the scale of a unit is stored.
#[derive(Clone, Copy)]
struct Counts {
    units: usize,
    blocks: usize,
    inner: Inner,
}

impl Params {
    /// The scale, zero point and minimum of unit `unit` of row `row`.
    fn of(&self, row: usize, unit: usize, counts: Counts) -> [f32; 3] {
        let at = row * counts.units + unit;
        match self {
            Self::Flat { scales, zeros } | Self::Scattered { scales, zeros, .. } => {
                [scales[at], zeros.get(at).map_or(0.0, |&zero| f32::from(zero)), 0.0]
            }
            Self::Nested { scales, mins, outer_scales, outer_mins } => {
                let block = row * counts.blocks + unit * counts.blocks / counts.units;
                // In ggml's order: what is multiplied first decides the last bit.
                let scale = scales.get(at).map_or(1.0, |&code| counts.inner.value(code));
                let min = mins.get(at).map_or(1.0, |&code| f32::from(code));
                let outer_min = outer_mins.get(block).copied().unwrap_or(0.0);
                [outer_scales[block] * scale, 0.0, outer_min * min]
            }
        }
    }
}

impl Quantized {
    fn counts(&self) -> Counts {
        let [_, width] = self.shape;
        let units = self.grid.units(width);
        match self.grid {
            Grid::Int { .. } => Counts { units, blocks: units, inner: Inner::One },
            Grid::Block(kind) => {
                let form = kind.form();
                Counts { units, blocks: width / form.block, inner: form.scale }
            }
        }
    }

    /// The scales `[out, units]` where each is a number of its own; else none.
    pub fn scales(&self) -> &[f32] {
        match &self.params {
            Params::Flat { scales, .. } | Params::Scattered { scales, .. } => scales,
            Params::Nested { .. } => &[],
        }
    }

    /// The zero points `[out, units]`, if there are any.
    pub fn zeros(&self) -> &[i8] {
        match &self.params {
            Params::Flat { zeros, .. } | Params::Scattered { zeros, .. } => zeros,
            Params::Nested { .. } => &[],
        }
    }

    /// The unit of each column, where those of a unit lie apart.
    pub fn groups(&self) -> Option<&[u32]> {
        match &self.params {
            Params::Scattered { groups, .. } => Some(groups),
            Params::Flat { .. } | Params::Nested { .. } => None,
        }
    }

    /// Whether it has as many codes, scales, zero points and minima as its shape and grid say; a
    /// symmetric grid may do without zero points.
    pub fn is_whole(&self) -> bool {
        let [rows, width] = self.shape;
        let Counts { units, blocks, .. } = self.counts();
        let (units, blocks) = (rows.checked_mul(units), rows.checked_mul(blocks));
        if Some(self.codes.len()) != rows.checked_mul(width) {
            return false;
        }
        match (&self.params, self.grid) {
            (
                Params::Flat { scales, zeros },
                Grid::Int { span: Span::Channel | Span::Group(_), .. },
            ) => Some(scales.len()) == units && (zeros.is_empty() || zeros.len() == scales.len()),
            (
                Params::Scattered { scales, zeros, groups },
                Grid::Int { span: Span::Scattered(_), .. },
            ) => {
                let inside = |&group: &u32| (group as usize) < self.counts().units;
                Some(scales.len()) == units
                    && (zeros.is_empty() || zeros.len() == scales.len())
                    && groups.len() == width
                    && groups.iter().all(inside)
            }
            (Params::Nested { scales, mins, outer_scales, outer_mins }, Grid::Block(kind)) => {
                let form = kind.form();
                let inner = |bits: Option<u8>| if bits.unwrap_or(0) > 0 { units } else { Some(0) };
                width.is_multiple_of(form.block)
                    && Some(scales.len()) == inner(Some(form.scale.bits()))
                    && Some(mins.len()) == inner(form.min_bits)
                    && Some(outer_scales.len()) == blocks
                    && Some(outer_mins.len()) == form.min_bits.map_or(Some(0), |_| blocks)
            }
            _ => false,
        }
    }

    /// What the columns of row `row` share, from the first to the last; where those of a unit lie
    /// apart, of each column.
    pub fn steps(&self, row: usize) -> impl Iterator<Item = Step> {
        let ([_, width], counts, groups) = (self.shape, self.counts(), self.groups());
        let unit = self.grid.unit(width);
        (0..groups.map_or(counts.units, <[u32]>::len)).map(move |i| {
            let (of, columns) = match groups {
                Some(groups) => (groups[i] as usize, i..i + 1),
                None => (i, i * unit..width.min((i + 1) * unit)),
            };
            let [scale, zero, min] = self.params.of(row, of, counts);
            Step { columns, zero, scale, min }
        })
    }

    /// Writes the values of row `row`, exactly as every reader of the format computes them in
    /// `f32`: `(level - zero) * scale - min`. `out` is as wide as a row.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let [_, width] = self.shape;
        let codes = &self.codes[row * width..(row + 1) * width];
        let codebook = self.grid.codebook().map(Codebook::levels);
        for Step { columns, zero, scale, min } in self.steps(row) {
            let pairs = out[columns.clone()].iter_mut().zip(&codes[columns]);
            match codebook {
                // To convert is faster than to look up.
                None => pairs.for_each(|(out, &code)| {
                    *out = (f32::from(code) - zero) * scale - min;
                }),
                Some(levels) => pairs.for_each(|(out, &code)| {
                    *out = (f32::from(levels[usize::from(code as u8)]) - zero) * scale - min;
                }),
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

    /// Some rows and columns of it; `None` if the columns cut what shares a scale.
    pub fn cut(&self, rows: Range<usize>, columns: Range<usize>) -> Option<Self> {
        let ([_, width], counts) = (self.shape, self.counts());
        let share = |count: usize| match self.grid.block() {
            None => Some(0..count),
            Some(block) => {
                let is_edge = |at: usize| at.is_multiple_of(block.get()) || at == width;
                let at = |column: usize| (column * count).div_ceil(width.max(1));
                let fits = is_edge(columns.start) && is_edge(columns.end);
                fits.then(|| at(columns.start)..at(columns.end))
            }
        };
        let (units, blocks) = (share(counts.units)?, share(counts.blocks)?);
        let params = match &self.params {
            Params::Flat { scales, zeros } => Params::Flat {
                scales: part(scales, counts.units, &rows, &units),
                zeros: part(zeros, counts.units, &rows, &units),
            },
            Params::Scattered { scales, zeros, groups } => Params::Scattered {
                scales: part(scales, counts.units, &rows, &units),
                zeros: part(zeros, counts.units, &rows, &units),
                groups: groups[columns.clone()].into(),
            },
            Params::Nested { scales, mins, outer_scales, outer_mins } => Params::Nested {
                scales: part(scales, counts.units, &rows, &units),
                mins: part(mins, counts.units, &rows, &units),
                outer_scales: part(outer_scales, counts.blocks, &rows, &blocks),
                outer_mins: part(outer_mins, counts.blocks, &rows, &blocks),
            },
        };
        let codes = part(&self.codes, width, &rows, &columns);
        Some(Self { grid: self.grid, shape: [rows.len(), columns.len()], codes, params })
    }

    /// Makes room for `rows` rows in all.
    pub fn reserve_rows(&mut self, rows: usize) {
        let [had, _] = self.shape;
        reserve(&mut self.codes, had, rows);
        match &mut self.params {
            Params::Flat { scales, zeros } | Params::Scattered { scales, zeros, .. } => {
                reserve(scales, had, rows);
                reserve(zeros, had, rows);
            }
            Params::Nested { scales, mins, outer_scales, outer_mins } => {
                reserve(scales, had, rows);
                reserve(mins, had, rows);
                reserve(outer_scales, had, rows);
                reserve(outer_mins, had, rows);
            }
        }
    }

    /// Appends the rows of `part`, which is on the same grid, as wide, and has its units where these are.
    pub fn append(&mut self, part: &Self) {
        self.shape[0] += part.shape[0];
        self.codes.extend_from_slice(&part.codes);
        match (&mut self.params, &part.params) {
            (Params::Flat { scales, zeros }, Params::Flat { scales: more, zeros: others })
            | (
                Params::Scattered { scales, zeros, .. },
                Params::Scattered { scales: more, zeros: others, .. },
            ) => {
                scales.extend_from_slice(more);
                zeros.extend_from_slice(others);
            }
            (
                Params::Nested { scales, mins, outer_scales, outer_mins },
                Params::Nested {
                    scales: more,
                    mins: others,
                    outer_scales: of,
                    outer_mins: of_mins,
                },
            ) => {
                scales.extend_from_slice(more);
                mins.extend_from_slice(others);
                outer_scales.extend_from_slice(of);
                outer_mins.extend_from_slice(of_mins);
            }
            // Of two grids: `is_whole` tells.
            _ => {}
        }
    }
}

/// Some columns of some rows of a list `[.., stride]`, or of an empty one.
fn part<T: Copy>(all: &[T], stride: usize, rows: &Range<usize>, run: &Range<usize>) -> Vec<T> {
    if all.is_empty() {
        return Vec::new();
    }
    rows.clone().flat_map(|row| all[row * stride..][run.clone()].iter().copied()).collect()
}

/// Room for `rows` rows in a list that has `had`.
fn reserve<T>(list: &mut Vec<T>, had: usize, rows: usize) {
    list.reserve_exact(list.len() / had.max(1) * rows.saturating_sub(had));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_kind::BlockKind;
    use tensor::DType;

    fn int(symmetric: bool, span: Span) -> Quantized {
        let grid = Grid::Int { bits: 4, symmetric, span, scale: DType::F32 };
        let (units, codes) = (grid.units(12), (0..36).map(|i| (i % 16) as i8 - 8).collect());
        let scales = (0..3 * units).map(|i| 0.1 + i as f32 / 7.0).collect();
        let zeros = if symmetric { vec![] } else { (0..3 * units).map(|i| i as i8 - 5).collect() };
        let groups = [2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 2, 1].into();
        let params = match span {
            Span::Scattered(_) => Params::Scattered { scales, zeros, groups },
            Span::Channel | Span::Group(_) => Params::Flat { scales, zeros },
        };
        Quantized { grid, shape: [3, 12], codes, params }
    }

    fn block(kind: BlockKind) -> Quantized {
        let form = kind.form();
        let (width, (low, high)) = (2 * form.block, form.codes());
        let (units, blocks) = (3 * width / form.unit, 6);
        let code = |i: usize| (low + (i * 7 % (high - low + 1) as usize) as i32) as i8;
        let inner = |bits: u8| if bits > 0 { units } else { 0 };
        let mins = form.min_bits.map_or(0, inner);
        let outer = |i: usize| form.outer.stored(0.01 + i as f32 / 97.0);
        let params = Params::Nested {
            scales: (0..inner(form.scale.bits())).map(|i| (i * 5 % 61) as i8).collect(),
            mins: (0..mins).map(|i| (i * 11 % 63) as u8).collect(),
            outer_scales: (0..blocks).map(outer).collect(),
            outer_mins: form.min_bits.map_or(0..0, |_| 0..blocks).map(outer).collect(),
        };
        let codes = (0..3 * width).map(code).collect();
        Quantized { grid: Grid::Block(kind), shape: [3, width], codes, params }
    }

    fn all() -> Vec<Quantized> {
        let spans = [Span::Channel, Span::Group(4), Span::Scattered(4)];
        let ints = spans.map(|span| [int(true, span), int(false, span)]);
        ints.into_iter().flatten().chain(BlockKind::ALL.map(block)).collect()
    }

    #[test]
    fn values_are_levels_scaled() {
        for q in all() {
            assert!(q.is_whole(), "{}", q.grid);
            let mut out = vec![0.0; q.shape[1]];
            for row in 0..3 {
                q.dequantize_row(row, &mut out);
                for Step { columns, zero, scale, min } in q.steps(row) {
                    for column in columns {
                        let code = q.codes[row * q.shape[1] + column];
                        let level = f32::from(q.grid.levels()[usize::from(code as u8)]);
                        assert_eq!(out[column].to_bits(), ((level - zero) * scale - min).to_bits());
                    }
                }
            }
        }
    }

    #[test]
    fn parts_have_the_values_of_the_whole() {
        for q in all() {
            let (width, values) = (q.shape[1], q.dequantize());
            let step = q.grid.block().map_or(3, |block| block.get().min(width));
            for columns in [0..width, 0..step, step..width] {
                let some = q.cut(1..3, columns.clone()).unwrap();
                assert!(some.is_whole());
                let expected: Vec<f32> = (1..3)
                    .flat_map(|row| values[row * width..][columns.clone()].to_vec())
                    .collect();
                assert_eq!(some.dequantize(), expected);
            }
            assert_eq!(q.cut(0..3, 1..width).is_none(), q.grid.block().is_some());
            let mut joined = q.cut(0..1, 0..width).unwrap();
            joined.reserve_rows(3);
            joined.append(&q.cut(1..3, 0..width).unwrap());
            assert_eq!(joined, q);
        }
    }

    #[test]
    fn blocks_are_as_long_as_those_of_ggml() {
        let bytes = BlockKind::ALL.map(|kind| (kind.form().name, kind.form().bytes()));
        let ggml = [
            ("Q4_1", 20),
            ("Q5_1", 24),
            ("Q2_K", 84),
            ("Q3_K", 110),
            ("Q4_K", 144),
            ("Q5_K", 176),
            ("Q6_K", 210),
            ("IQ4_NL", 18),
            ("IQ4_XS", 136),
            ("MXFP4", 17),
            ("NVFP4", 36),
            ("IQ1_S", 50),
            ("IQ1_M", 56),
            ("IQ2_XXS", 66),
            ("IQ2_XS", 74),
            ("IQ2_S", 82),
            ("IQ3_XXS", 98),
            ("IQ3_S", 110),
            ("TQ1_0", 54),
            ("TQ2_0", 66),
        ];
        assert_eq!(bytes, ggml);
        assert_eq!(Grid::Block(BlockKind::Q4K).bytes([3, 512]), 3 * 2 * 144);
    }

    /// The values of `ggml_ue4m3_to_fp32`, and what lies between them.
    #[test]
    fn small_floats_have_the_nearest_code() {
        let inner = Inner::Ue4m3;
        let of_ggml = [(1, 2f32.powi(-10)), (7, 7.0 * 2f32.powi(-10)), (8, 2f32.powi(-7))];
        for (code, value) in of_ggml.into_iter().chain([(0x38, 0.5), (0x3f, 0.9375), (0x7e, 224.0)])
        {
            assert_eq!(inner.value(code), value);
        }
        for code in 0..126i8 {
            let [this, next] = [code, code + 1].map(|code| inner.value(code));
            assert_eq!(inner.code(this), code);
            assert_eq!(inner.code(this + 0.51 * (next - this)), code + 1);
            assert_eq!(inner.code(this + 0.49 * (next - this)), code);
        }
        assert_eq!([-1.0, 1e9, f32::INFINITY, f32::NAN].map(|x| inner.code(x)), [0, 126, 126, 0]);
        assert_eq!([-9.0, 62.6, 1e9, f32::NAN].map(|x| Inner::Unsigned(6).code(x)), [0, 63, 63, 0]);
        assert_eq!([-40.0, -1.4, 40.0].map(|x| Inner::Signed(6).code(x)), [-32, -1, 31]);
        let odd = Inner::Odd { bits: 3, by: 8 };
        assert_eq!([-1.0, 0.8, 9.0].map(|x| odd.value(odd.code(x))), [0.125, 0.875, 1.875]);
    }

    #[test]
    fn powers_of_two_are_the_nearest_that_a_byte_holds() {
        let stored = |x: f32| crate::Outer::E8m0.stored(x);
        for exponent in -128..=126 {
            let value = 2f64.powi(exponent) as f32;
            assert_eq!([value, value * 1.25, value * 0.8].map(stored), [value; 3]);
        }
        let (least, most) = (2f64.powi(-128) as f32, 2f32.powi(126));
        assert_eq!([0.0, -1.0, f32::NAN, 1e-45].map(stored), [least; 4]);
        assert_eq!([f32::MAX, f32::INFINITY].map(stored), [most; 2]);
        assert_eq!([1.49, 1.51].map(stored), [1.0, 2.0]);
    }

    #[test]
    fn columns_of_a_group_may_lie_apart() {
        let mut q = int(true, Span::Scattered(4));
        let values = q.dequantize();
        // Column 4 of row 1 is of group 0, whose scale is the fourth.
        assert_eq!(values[12 + 4], f32::from(q.codes[12 + 4]) * q.scales()[3]);
        assert_eq!(q.grid.int(), None, "nobody takes its groups for runs of columns");
        let Params::Scattered { groups, .. } = &mut q.params else { panic!() };
        *groups = [3; 12].into();
        assert!(!q.is_whole(), "there is no such group");
    }

    #[test]
    fn what_is_missing_is_seen() {
        for mut q in all() {
            match &mut q.params {
                Params::Flat { scales, .. } => drop(scales.pop()),
                Params::Scattered { groups, .. } => *groups = groups[1..].into(),
                Params::Nested { outer_scales, .. } => drop(outer_scales.pop()),
            }
            assert!(!q.is_whole(), "{}", q.grid);
        }
    }
}
