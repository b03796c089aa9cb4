//! GPTQ: columns are rounded one by one, and the columns after them make up for the error
//! (Frantar et al. 2022, arXiv 2210.17323), with blocked lazy updates, act-order with static
//! groups, and nearest rounding kept for each row that it serves better.

use crate::blocks::Blocks;
use crate::extremes::Extremes;
use crate::factor::Factor;
use crate::fit::{Fit, Range, part};
use crate::integers::Integers;
use crate::quadratic::{self, forms};
use crate::rtn::rtn;
use backend::{Backend, BackendError, Buffer, RankUpdate};
use ir::{Grid, Quantized};
use rayon::prelude::*;
use std::borrow::Cow;

/// Columns between two updates of all that follow.
const BLOCK: usize = 128;

/// Rows that are solved side by side.
const LANES: usize = 16;

/// How GPTQ solves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Whether columns are solved in order of falling activation. Groups keep their columns and
    /// their scales are fitted before the solve.
    pub act_order: bool,
    /// Added to the diagonal, as a share of its mean.
    pub damping: f64,
}

impl Settings {
    /// The most bytes that solving a weight `[out, in]` holds beside it and the Gram matrix.
    pub fn bytes(&self, [rows, width]: [usize; 2]) -> u64 {
        let square = (width * width) as u64;
        let measured = (width * width.min(quadratic::ROWS)) as u64;
        let weights = (rows * width) as u64;
        // While it is factored: the matrix in f64, its source, the factor. Then the last two, some rows
        // of the source as the device wants them, and of the weights the originals, what is left of
        // them, and their errors.
        (square * 16).max(square * 8 + measured * 8 + weights * 24)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { act_order: true, damping: 0.01 }
    }
}

/// A solved weight.
#[derive(Clone, Debug)]
pub struct Solved {
    /// Its codes, in the order of its columns.
    pub quantized: Quantized,
    /// The squared error of the outputs on the calibration tokens.
    pub loss: f64,
    /// What nearest rounding would have lost.
    pub rtn_loss: f64,
    /// The square of the outputs.
    pub energy: f64,
    /// Rows that nearest rounding serves better.
    pub rows_kept_from_rtn: usize,
    /// What was added to the diagonal, as a share of its mean.
    pub damping: f64,
}

/// Why a weight was not solved.
#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    /// The statistics do not allow it: round to nearest instead.
    #[error("{0}")]
    Unsound(String),
    /// A weight is not finite.
    #[error("element {index} is {value}")]
    NotFinite {
        /// Its place in `[out, in]`.
        index: usize,
        /// What it is.
        value: f32,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Solves `weights` `[out, in]` on `grid`.
///
/// # Errors
/// [`SolveError::Unsound`] if a loss is not finite; [`SolveError::NotFinite`] for such weights.
pub fn gptq(
    backend: &dyn Backend,
    weights: &[f32],
    shape: [usize; 2],
    grid: Grid,
    range: Range,
    factor: &Factor,
    settings: &Settings,
) -> Result<Solved, SolveError> {
    if let Some(index) = weights.iter().position(|w| !w.is_finite()) {
        return Err(SolveError::NotFinite { index, value: weights[index] });
    }
    let importance = factor.importance();
    let parts = Solve { backend, weights, shape, fit: (), factor, importance };
    match (Blocks::new(grid, range), Extremes::new(grid, range)) {
        (Some(fit), _) => solve(&parts.by(fit), settings, grid, range),
        (_, Some(fit)) => solve(&parts.by(fit), settings, grid, range),
        _ => solve(&parts.by(Integers { grid, range }), settings, grid, range),
    }
}

fn solve<F: Fit>(
    solve: &Solve<'_, F>,
    settings: &Settings,
    grid: Grid,
    range: Range,
) -> Result<Solved, SolveError> {
    let mut solved = if settings.act_order { solve.statically()? } else { solve.in_order()? };
    let importance = Some(&solve.importance[..]);
    let nearest = rtn(solve.weights, solve.shape, grid, range, importance);
    let (losses, rtn_losses) = (solve.losses(&solved)?, solve.losses(&nearest)?);
    let energy = solve.energy()?;
    let mut kept = 0;
    let (mut loss, mut rtn_loss) = (0.0, 0.0);
    for (row, (ours, theirs)) in losses.iter().zip(&rtn_losses).enumerate() {
        // A loss that is not a number never wins.
        if ours > theirs || ours.is_nan() {
            take_row(&mut solved, &nearest, row);
            kept += 1;
        }
        (loss, rtn_loss) = (loss + ours.min(*theirs), rtn_loss + theirs);
    }
    if !(loss.is_finite() && energy.is_finite()) {
        return Err(SolveError::Unsound("the loss is not finite".into()));
    }
    Ok(Solved {
        quantized: solved,
        loss,
        rtn_loss,
        energy,
        rows_kept_from_rtn: kept,
        damping: solve.factor.damping,
    })
}

struct Solve<'a, F> {
    backend: &'a dyn Backend,
    weights: &'a [f32],
    shape: [usize; 2],
    fit: F,
    factor: &'a Factor,
    /// Of each column.
    importance: Vec<f32>,
}

impl<'a> Solve<'a, ()> {
    /// The same by a fit.
    fn by<F: Fit>(self, fit: F) -> Solve<'a, F> {
        let Self { backend, weights, shape, fit: (), factor, importance } = self;
        Solve { backend, weights, shape, fit, factor, importance }
    }
}

impl<F: Fit> Solve<'_, F> {
    /// Scales fitted to the original weights, columns in the factor's order.
    fn statically(&self) -> Result<Quantized, SolveError> {
        let [rows, width] = self.shape;
        let (size, count) = (self.fit.unit(width), self.fit.units(width));
        let mut units = vec![F::Unit::default(); rows * count];
        let chunks = units.par_chunks_mut(count.max(1)).zip(self.weights.par_chunks(width.max(1)));
        chunks.for_each(|(units, row)| self.fit.row(row, Some(&self.importance), units));
        let mut work = self.backend.upload(width, self.permuted())?;
        let mut codes = vec![0i8; rows * width];
        for begin in (0..width).step_by(BLOCK) {
            let end = (begin + BLOCK).min(width);
            let mut errors = self.backend.algebra()?.columns(&work, begin..end)?;
            let chunks = codes.par_chunks_mut(LANES * width);
            let chunks = chunks.zip(errors.par_chunks_mut(LANES * (end - begin)));
            chunks.zip(units.par_chunks(LANES * count)).for_each(|((codes, errors), units)| {
                let unit = |lane: usize, at: usize| {
                    let column = self.factor.order[at];
                    (&units[lane * count + column / size], column % size)
                };
                self.block(begin..end, codes, errors, unit);
            });
            self.update(&mut work, begin..end, &errors)?;
        }
        Ok(self.fit.store(self.shape, self.unpermuted(&codes), &units))
    }

    /// A group's scale is fitted when the solve reaches it, to the weights as they then are.
    fn in_order(&self) -> Result<Quantized, SolveError> {
        let [rows, width] = self.shape;
        let (size, count) = (self.fit.unit(width), self.fit.units(width));
        let mut units = vec![F::Unit::default(); rows * count];
        let mut work = self.backend.upload(width, self.weights.to_vec())?;
        let mut codes = vec![0i8; rows * width];
        let mut begin = 0;
        while begin < width {
            // A block ends where a unit does, so that a unit's first look at its weights sees
            // every update due to them.
            let end = (begin + BLOCK).min((begin / size + 1) * size).min(width);
            let number = begin / size;
            if begin % size == 0 {
                let last = ((number + 1) * size).min(width);
                let seen = match begin {
                    // Nothing was updated yet.
                    0 => Cow::Borrowed(self.weights),
                    _ => Cow::Owned(self.backend.algebra()?.columns(&work, begin..last)?),
                };
                let stride = if begin == 0 { width } else { last - begin };
                let importance = part(Some(&self.importance), begin..last);
                let lanes = seen.par_chunks(stride.max(1)).zip(units.par_chunks_mut(count));
                lanes.for_each(|(row, units)| {
                    units[number] = self.fit.fit(&row[..last - begin], importance);
                });
            }
            let mut errors = self.backend.algebra()?.columns(&work, begin..end)?;
            let chunks = codes.par_chunks_mut(LANES * width);
            let chunks = chunks.zip(errors.par_chunks_mut(LANES * (end - begin)));
            chunks.zip(units.par_chunks(LANES * count)).for_each(|((codes, errors), units)| {
                let unit = |lane: usize, at: usize| (&units[lane * count + number], at % size);
                self.block(begin..end, codes, errors, unit);
            });
            self.update(&mut work, begin..end, &errors)?;
            begin = end;
        }
        Ok(self.fit.store(self.shape, codes, &units))
    }

    /// Solves some columns of up to [`LANES`] rows; `errors` holds their weights `w` and takes
    /// `(w - q) / u` of each.
    fn block<'u>(
        &self,
        columns: std::ops::Range<usize>,
        codes: &mut [i8],
        errors: &mut [f32],
        unit: impl Fn(usize, usize) -> (&'u F::Unit, usize),
    ) where
        F::Unit: 'u,
    {
        let [_, width] = self.shape;
        let depth = columns.len();
        let rows = errors.len() / depth;
        // Column by column, the rows side by side.
        let mut turned = vec![[0f32; LANES]; depth];
        for (lane, row) in errors.chunks(depth).enumerate() {
            turned.iter_mut().zip(row).for_each(|(column, &w)| column[lane] = w);
        }
        for i in 0..depth {
            let at = columns.start + i;
            let upper = &self.factor.upper[at * width..(at + 1) * width];
            let pivot = upper[at];
            let mut error = [0f32; LANES];
            for lane in 0..rows {
                let ((unit, place), w) = (unit(lane, at), turned[i][lane]);
                let code = self.fit.code(unit, place, w);
                codes[lane * width + at] = code;
                error[lane] = (w - self.fit.value(unit, place, code)) / pivot;
                errors[lane * depth + i] = error[lane];
            }
            for (column, &u) in turned[i + 1..].iter_mut().zip(&upper[at + 1..columns.end]) {
                for (w, e) in column.iter_mut().zip(&error) {
                    *w -= e * u;
                }
            }
        }
    }

    /// What the solved columns' errors do to the columns after them.
    fn update(
        &self,
        work: &mut Buffer,
        solved: std::ops::Range<usize>,
        errors: &[f32],
    ) -> Result<(), SolveError> {
        let [_, width] = self.shape;
        if solved.end == width {
            return Ok(());
        }
        let upper = solved.clone().flat_map(|i| {
            self.factor.upper[i * width + solved.end..(i + 1) * width].iter().copied()
        });
        let upper: Vec<f32> = upper.collect();
        let (columns, depth) = (solved.end..width, solved.len());
        let args = RankUpdate { columns, a: errors, b: &upper, depth };
        Ok(self.backend.algebra()?.rank_update(work, &args)?)
    }

    /// The weights with their columns in the factor's order.
    fn permuted(&self) -> Vec<f32> {
        let [rows, width] = self.shape;
        let mut work = vec![0f32; rows * width];
        let rows = work.par_chunks_mut(width.max(1)).zip(self.weights.par_chunks(width.max(1)));
        rows.for_each(|(to, from)| {
            to.iter_mut().zip(&self.factor.order).for_each(|(to, &column)| *to = from[column]);
        });
        work
    }

    fn unpermuted(&self, codes: &[i8]) -> Vec<i8> {
        let [rows, width] = self.shape;
        let mut out = vec![0i8; rows * width];
        let rows = out.par_chunks_mut(width.max(1)).zip(codes.par_chunks(width.max(1)));
        rows.for_each(|(to, from)| {
            from.iter().zip(&self.factor.order).for_each(|(&code, &column)| to[column] = code);
        });
        out
    }

    /// `e^T H e` of each row, `e` what the codes lack of the weights.
    fn losses(&self, codes: &Quantized) -> Result<Vec<f64>, SolveError> {
        let [_, width] = self.shape;
        let mut errors = self.weights.to_vec();
        errors.par_chunks_mut(width.max(1)).enumerate().for_each_init(
            || vec![0f32; width],
            |stored, (row, errors)| {
                codes.dequantize_row(row, stored);
                errors.iter_mut().zip(stored).for_each(|(e, s)| *e -= *s);
            },
        );
        self.forms(errors)
    }

    fn energy(&self) -> Result<f64, SolveError> {
        Ok(self.forms(self.weights.to_vec())?.iter().sum())
    }

    /// `x^T H x` of each row of `x` `[out, in]`.
    fn forms(&self, x: Vec<f32>) -> Result<Vec<f64>, SolveError> {
        let mut forms = forms(self.backend, &self.factor.gram, self.shape[1], x)?;
        forms.iter_mut().for_each(|form| *form *= self.factor.mean);
        Ok(forms)
    }
}

/// Row `row` of `to` becomes that of `from`, which is of the same shape and grid.
fn take_row(to: &mut Quantized, from: &Quantized, row: usize) {
    fn take<T: Copy>(to: &mut [T], from: &[T], [row, rows]: [usize; 2]) {
        let stride = to.len() / rows;
        to[row * stride..][..stride].copy_from_slice(&from[row * stride..][..stride]);
    }
    let at = [row, to.shape[0]];
    take(&mut to.codes, &from.codes, at);
    use ir::Params::{Flat, Nested};
    match (&mut to.params, &from.params) {
        (Flat { scales, zeros }, Flat { scales: of, zeros: points }) => {
            take(scales, of, at);
            take(zeros, points, at);
        }
        (
            Nested { scales, mins, outer_scales, outer_mins },
            Nested { scales: of, mins: lows, outer_scales: outer, outer_mins: outer_lows },
        ) => {
            take(scales, of, at);
            take(mins, lows, at);
            take(outer_scales, outer, at);
            take(outer_mins, outer_lows, at);
        }
        // Both were stored by one fit.
        _ => {}
    }
}
