//! Fits an integer grid to weights: the scale and zero point of each group, and the nearest codes.

use ir::{Grid, Quantized};

/// How a scale is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// So that the largest magnitude is representable: no value is clipped.
    MinMax,
    /// So that the squared error of the nearest codes is least, among ranges from the whole down to
    /// 40 % of it.
    MeanSquare,
}

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

    /// The nearest codes to `values`.
    pub fn codes(&self, values: &[f32], codes: &mut [i8]) {
        for (code, &x) in codes.iter_mut().zip(values) {
            *code = self.code(x) as i8;
        }
    }

    /// The value of a code.
    #[inline]
    pub fn value(&self, code: i32) -> f32 {
        (code - self.zero) as f32 * self.scale
    }
}

/// Fits one group.
pub fn fit(grid: Grid, range: Range, group: &[f32]) -> Params {
    let shrinks = match range {
        Range::MinMax => 1,
        Range::MeanSquare => SHRINKS,
    };
    let extremes = extremes(group);
    let whole = candidate(grid, extremes, 1.0);
    if shrinks == 1 {
        return whole;
    }
    let mut best = (f64::INFINITY, whole);
    let mut codes = vec![0; group.len()];
    for i in 0..shrinks {
        let params = candidate(grid, extremes, 1.0 - i as f32 / 100.0);
        params.codes(group, &mut codes);
        let [error, _] = squares(&params, group, &codes);
        if error < best.0 {
            best = (error, params);
        }
    }
    best.1
}

/// Elements that are looked at side by side.
const LANES: usize = 8;

/// The squared error of the codes of a group, and the square of its weights. The sums go by
/// [`LANES`], the lanes in order.
pub(crate) fn squares(params: &Params, group: &[f32], codes: &[i8]) -> [f64; 2] {
    let mut sums = [[0f64; LANES]; 2];
    let mut add = |lane: usize, x: f32, code: i8| {
        let error = f64::from(x) - f64::from(params.value(i32::from(code)));
        sums[0][lane] += error * error;
        sums[1][lane] += f64::from(x) * f64::from(x);
    };
    let ((wholes, rest), (codes, last)) = (group.as_chunks::<LANES>(), codes.as_chunks::<LANES>());
    for (xs, codes) in wholes.iter().zip(codes) {
        (0..LANES).for_each(|lane| add(lane, xs[lane], codes[lane]));
    }
    rest.iter().zip(last).enumerate().for_each(|(lane, (&x, &code))| add(lane, x, code));
    sums.map(|lanes| lanes.iter().sum())
}

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

/// The fits of every group of a matrix `[out, in]`, `[out, groups]`.
pub fn fit_rows(grid: Grid, range: Range, weights: &[f32], width: usize) -> Vec<Params> {
    let size = grid.span().size(width);
    weights.chunks(width).flat_map(|row| row.chunks(size).map(|g| fit(grid, range, g))).collect()
}

/// A matrix from its codes `[out, in]` and its fits `[out, groups]`.
pub fn assemble(grid: Grid, shape: [usize; 2], codes: Vec<i8>, params: &[Params]) -> Quantized {
    let scales = params.iter().map(|p| p.scale).collect();
    let zeros =
        if grid.is_symmetric() { vec![] } else { params.iter().map(|p| p.zero as i8).collect() };
    Quantized { grid, shape, codes, params: ir::Params::Flat { scales, zeros } }
}
