//! What the codes of a matrix are multiplied by, told apart as the sums of the default class are: numbers
//! of a block's columns, and integers of the units in it.

use ir::{Grid, Inner, Params, Quantized, Span};

/// Whether a linear over a weight on `grid` multiplies its codes. What shares a scale must lie side by side;
/// other weights are computed with as the dense ones that they stand for ([`crate::dense`]).
pub fn computed_with(grid: Grid) -> bool {
    !matches!(grid, Grid::Int { span: Span::Scattered(_), .. })
}

/// The columns of a row of `width` that share the numbers which a sum of products of codes is multiplied
/// by: a scale and a minimum, or the outer numbers where those of units are integers times them.
pub fn shared(grid: Grid, width: usize) -> usize {
    match grid {
        Grid::Block(kind) if integers(kind.form().scale) => kind.form().block,
        _ => grid.unit(width),
    }
}

/// The columns that share an integer which is multiplied into their sum of products; `None` where there
/// are no such integers.
pub fn unit(grid: Grid) -> Option<usize> {
    match grid {
        Grid::Block(kind) => integers(kind.form().scale).then_some(kind.form().unit),
        Grid::Int { .. } => None,
    }
}

fn integers(scale: Inner) -> bool {
    matches!(scale, Inner::Unsigned(_) | Inner::Signed(_) | Inner::Odd { .. })
}

/// The scales, minima and zero points of a matrix that has all of them, on a grid that is
/// [computed with](computed_with).
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    params: &'a Params,
    /// How the scale of a unit is stored.
    inner: Inner,
    units: usize,
    blocks: usize,
    /// What a row has numbers for.
    groups: usize,
}

impl<'a> Factors<'a> {
    /// Those of `weight`, which [is whole](Quantized::is_whole).
    pub fn of(weight: &'a Quantized) -> Self {
        let [_, width] = weight.shape;
        let units = weight.grid.units(width);
        let (inner, blocks) = match weight.grid {
            Grid::Int { .. } => (Inner::One, units),
            Grid::Block(kind) => (kind.form().scale, width / kind.form().block),
        };
        let groups = if integers(inner) { blocks } else { units };
        Self { params: &weight.params, inner, units, blocks, groups }
    }

    /// What multiplies the sum of the columns of group `group` of [`shared`] of row `row`.
    #[inline]
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        let at = row * self.groups + group;
        match self.params {
            Params::Flat { scales, .. } | Params::Scattered { scales, .. } => scales[at],
            Params::Nested { outer_scales, .. } if integers(self.inner) => match self.inner {
                // By a power of two: nothing is lost.
                Inner::Odd { by, .. } => outer_scales[at] / f32::from(by),
                _ => outer_scales[at],
            },
            Params::Nested { scales, outer_scales, .. } => {
                let outer = outer_scales[row * self.blocks + group * self.blocks / self.units];
                scales.get(at).map_or(outer, |&code| outer * self.inner.value(code))
            }
        }
    }

    /// What multiplies the sum of the activations of those columns, and is taken off; `None` without minima.
    #[inline]
    pub fn min(&self, row: usize, group: usize) -> Option<f32> {
        match self.params {
            Params::Flat { .. } | Params::Scattered { .. } => None,
            Params::Nested { outer_mins, .. } => outer_mins.get(row * self.groups + group).copied(),
        }
    }

    /// What is taken off the levels of those columns.
    #[inline]
    pub fn zero(&self, row: usize, group: usize) -> i32 {
        match self.params {
            Params::Flat { zeros, .. } | Params::Scattered { zeros, .. } => {
                zeros.get(row * self.groups + group).map_or(0, |&z| z.into())
            }
            Params::Nested { .. } => 0,
        }
    }

    /// The integers of unit `unit` of row `row` that multiply its sum of products, and its sum of
    /// activations.
    #[inline]
    pub fn integers(&self, row: usize, unit: usize) -> [i32; 2] {
        match self.params {
            Params::Nested { scales, mins, .. } if integers(self.inner) => {
                let at = row * self.units + unit;
                let of = |min: Option<&u8>| min.map_or(0, |&min| min.into());
                let scale = i32::from(scales[at]);
                let scale = if let Inner::Odd { .. } = self.inner { 2 * scale + 1 } else { scale };
                [scale, of(mins.get(at))]
            }
            _ => [1, 1],
        }
    }
}
