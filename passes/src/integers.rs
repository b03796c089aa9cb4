//! The fit of an integer grid: the scale and zero point of each group, and the nearest codes.

use crate::fit::{Fit, Range, squares};
use ir::{Grid, Quantized};

/// Ranges tried by [`Range::MeanSquare`], a hundredth apart.
const SHRINKS: usize = 61;

/// The scale, as stored, and the zero point of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Params {
    /// Multiplied into a code less the zero point; finite and above zero.
    pub scale: f32,
    /// The code of the value 0; 0 on a symmetric grid.
    pub zero: i32,
    low: i32,
    high: i32,
}

impl Params {
    /// The nearest code to `x`, ties to even.
    #[inline]
    pub fn code(&self, x: f32) -> i32 {
        // Clamped first, so that adding 1.5 * 2^23 rounds to the nearest integer, ties to even; a
        // NaN becomes the lowest code.
        const ROUND: f32 = 12_582_912.0;
        let (low, high) = ((self.low - self.zero) as f32, (self.high - self.zero) as f32);
        let code = x / self.scale;
        let code = if code > low { code } else { low };
        let code = if code < high { code } else { high };
        (code + ROUND).to_bits() as i32 - ROUND.to_bits() as i32 + self.zero
    }

    /// The value of a code.
    #[inline]
    pub fn value(&self, code: i32) -> f32 {
        (code - self.zero) as f32 * self.scale
    }
}

/// The fit of an integer grid: its unit is a group.
#[derive(Clone, Copy, Debug)]
pub struct Integers {
    /// The grid, which is one of integers.
    pub grid: Grid,
    /// How a scale is chosen.
    pub range: Range,
}

impl Fit for Integers {
    type Unit = Params;

    fn unit(&self, width: usize) -> usize {
        self.grid.unit(width)
    }

    fn fit(&self, group: &[f32], importance: Option<&[f32]>) -> Params {
        let extremes = extremes(group);
        let whole = candidate(self.grid, extremes, 1.0);
        if !self.range.searches() {
            return whole;
        }
        let importance = importance.filter(|_| self.range == Range::Weighted);
        let mut best = (f64::INFINITY, whole);
        let mut codes = vec![0; group.len()];
        for i in 0..SHRINKS {
            let params = candidate(self.grid, extremes, 1.0 - i as f32 / 100.0);
            self.codes(&params, group, &mut codes);
            let [error, _] = squares(self, &params, group, &codes, importance);
            if error < best.0 {
                best = (error, params);
            }
        }
        best.1
    }

    #[inline]
    fn code(&self, params: &Params, _: usize, x: f32) -> i8 {
        params.code(x) as i8
    }

    #[inline]
    fn value(&self, params: &Params, _: usize, code: i8) -> f32 {
        params.value(i32::from(code))
    }

    fn store(&self, shape: [usize; 2], codes: Vec<i8>, params: &[Params]) -> Quantized {
        let scales = params.iter().map(|p| p.scale).collect();
        let zeros = match self.grid.is_symmetric() {
            true => vec![],
            false => params.iter().map(|p| p.zero as i8).collect(),
        };
        Quantized { grid: self.grid, shape, codes, params: ir::Params::Flat { scales, zeros } }
    }
}

/// Elements that are looked at side by side.
const LANES: usize = 8;

/// The least and the greatest of a group and zero, so that a zero weight stays zero.
fn extremes(group: &[f32]) -> [f32; 2] {
    let mut least = [0f32; LANES];
    let mut greatest = [0f32; LANES];
    let mut see = |lane: usize, x: f32| {
        least[lane] = if x < least[lane] { x } else { least[lane] };
        greatest[lane] = if x > greatest[lane] { x } else { greatest[lane] };
    };
    let (wholes, rest) = group.as_chunks::<LANES>();
    wholes.iter().for_each(|xs| (0..LANES).for_each(|lane| see(lane, xs[lane])));
    rest.iter().enumerate().for_each(|(lane, &x)| see(lane, x));
    [least.iter().fold(0.0, |m, &x| m.min(x)), greatest.iter().fold(0.0, |m, &x| m.max(x))]
}

/// The parameters whose range is `share` of the group's.
fn candidate(grid: Grid, [min, max]: [f32; 2], share: f32) -> Params {
    let (symmetric, (low, high)) = (grid.is_symmetric(), grid.codes());
    let (min, max) = (min * share, max * share);
    if symmetric {
        // The centre of the code range: halfway beyond the highest code, clamped.
        let scale = min.abs().max(max) / ((high - low) as f32 / 2.0);
        return Params { scale: sound(grid, scale), zero: 0, low, high };
    }
    let codes = (high - low) as f32;
    // The widest range has no length in f32.
    let length = max - min;
    let step = if length.is_finite() { length / codes } else { max / codes - min / codes };
    let scale = sound(grid, step);
    let zero = (low as f32 - min / scale).round_ties_even().clamp(low as f32, high as f32) as i32;
    Params { scale, zero, low, high }
}

/// The scale as stored; 1 for a group of zeros, and the least that is not zero for tiny ones.
fn sound(grid: Grid, scale: f32) -> f32 {
    let stored = grid.stored_scale(scale);
    if scale == 0.0 || !scale.is_finite() {
        1.0
    } else if stored == 0.0 || !stored.is_finite() {
        let least = [1e-7f32, 65504.0][usize::from(!stored.is_finite())];
        grid.stored_scale(least)
    } else {
        stored
    }
}
