//! A grid fitted to weights: what columns share is chosen for the weights, and then codes are nearest.

use ir::Quantized;
use rayon::prelude::*;
use std::ops::Range as Run;

/// How what columns share is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// So that no value is clipped.
    MinMax,
    /// So that the weight furthest from zero is a code, as ggml makes its simple blocks. Of other blocks as
    /// [`Self::MeanSquare`], of integers with zero points as [`Self::MinMax`].
    Extreme,
    /// So that the squared error of the nearest codes is least, among what is tried.
    MeanSquare,
    /// The same, each squared error times the importance of its column: the mean square of what the
    /// calibration showed there.
    Weighted,
}

impl Range {
    /// Whether errors of integers are looked at.
    pub fn searches(self) -> bool {
        matches!(self, Self::MeanSquare | Self::Weighted)
    }
}

/// A grid's scales, chosen for given weights.
pub trait Fit: Copy + Sync {
    /// What columns that are fitted together share.
    type Unit: Copy + Default + Send + Sync;

    /// Columns that are fitted together in rows of `width`, at least 1; the last of a row may be fewer
    /// only where the grid allows it.
    fn unit(&self, width: usize) -> usize;

    /// What some columns of a row share, which are a unit. `importance` has as many.
    fn fit(&self, weights: &[f32], importance: Option<&[f32]>) -> Self::Unit;

    /// The nearest code to `x` in column `at` of a unit. Any `x` has one.
    fn code(&self, unit: &Self::Unit, at: usize, x: f32) -> i8;

    /// The value of a code in column `at` of a unit.
    fn value(&self, unit: &Self::Unit, at: usize, code: i8) -> f32;

    /// A matrix from its codes `[out, in]` and its units `[out, units]`.
    fn store(&self, shape: [usize; 2], codes: Vec<i8>, units: &[Self::Unit]) -> Quantized;

    /// The nearest codes to the values of a unit.
    fn codes(&self, unit: &Self::Unit, values: &[f32], codes: &mut [i8]) {
        for (at, (code, &x)) in codes.iter_mut().zip(values).enumerate() {
            *code = self.code(unit, at, x);
        }
    }

    /// The units of a row.
    fn row(&self, row: &[f32], importance: Option<&[f32]>, units: &mut [Self::Unit]) {
        let size = self.unit(row.len());
        for (number, (unit, weights)) in units.iter_mut().zip(row.chunks(size)).enumerate() {
            let at = number * size..number * size + weights.len();
            *unit = self.fit(weights, part(importance, at));
        }
    }

    /// Units a row of `width`.
    fn units(&self, width: usize) -> usize {
        width.div_ceil(self.unit(width))
    }
}

/// The importance of some columns.
pub(crate) fn part(importance: Option<&[f32]>, columns: Run<usize>) -> Option<&[f32]> {
    importance.and_then(|all| all.get(columns))
}

/// Elements that are looked at side by side.
const LANES: usize = 8;

/// The squared error of the codes of a unit, each times its importance, and the square of its weights.
/// The sums go by [`LANES`], the lanes in order.
pub(crate) fn squares<F: Fit>(
    fit: &F,
    unit: &F::Unit,
    weights: &[f32],
    codes: &[i8],
    importance: Option<&[f32]>,
) -> [f64; 2] {
    let mut sums = [[0f64; LANES]; 2];
    let mut add = |lane: usize, at: usize, x: f32, code: i8| {
        let error = f64::from(x) - f64::from(fit.value(unit, at, code));
        let square = error * error;
        sums[0][lane] += importance.map_or(square, |all| square * f64::from(all[at]));
        sums[1][lane] += f64::from(x) * f64::from(x);
    };
    let ((wholes, rest), (codes, last)) =
        (weights.as_chunks::<LANES>(), codes.as_chunks::<LANES>());
    for (chunk, (xs, codes)) in wholes.iter().zip(codes).enumerate() {
        (0..LANES).for_each(|lane| add(lane, chunk * LANES + lane, xs[lane], codes[lane]));
    }
    let done = wholes.len() * LANES;
    let rest = rest.iter().zip(last).enumerate();
    rest.for_each(|(lane, (&x, &code))| add(lane, done + lane, x, code));
    sums.map(|lanes| lanes.iter().sum())
}

/// The nearest codes of a matrix `[out, in]` whose rows `read` gives one at a time, and of each row the
/// squared error of its codes and its square; the latter is not finite exactly if an element is not.
/// Rows in parallel.
pub(crate) fn nearest<F: Fit>(
    fit: F,
    shape: [usize; 2],
    importance: Option<&[f32]>,
    read: impl Fn(usize, &mut [f32]) + Sync,
) -> (Quantized, Vec<[f64; 2]>) {
    let [rows, width] = shape;
    let (size, count) = (fit.unit(width), fit.units(width));
    let mut codes = vec![0i8; rows * width];
    let mut units = vec![F::Unit::default(); rows * count];
    let mut sums = vec![[0f64; 2]; rows];
    let out = codes.par_chunks_mut(width.max(1)).zip(units.par_chunks_mut(count.max(1)));
    out.zip(&mut sums).enumerate().for_each_init(
        || vec![0f32; width],
        |weights, (row, ((codes, units), sums))| {
            read(row, weights);
            fit.row(weights, importance, units);
            let parts = weights.chunks(size).zip(codes.chunks_mut(size));
            for ((weights, codes), unit) in parts.zip(units) {
                fit.codes(unit, weights, codes);
                let [error, square] = squares(&fit, unit, weights, codes, None);
                *sums = [sums[0] + error, sums[1] + square];
            }
        },
    );
    (fit.store(shape, codes, &units), sums)
}
