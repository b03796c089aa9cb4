//! GPTQ: columns are rounded one by one, and the columns after them make up for the error
//! (Frantar et al. 2022, arXiv 2210.17323), with blocked lazy updates, act-order with static
//! groups, and nearest rounding kept for each row that it serves better.

use crate::factor::Factor;
use crate::fit::{Params, Range, assemble, fit, fit_rows};
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
    let solve = Solve { backend, weights, shape, grid, range, factor };
    let mut solved = if settings.act_order { solve.statically()? } else { solve.in_order()? };
    let mut nearest = rtn(weights, shape, grid, range);
    let (losses, rtn_losses) = (solve.losses(&solved)?, solve.losses(&nearest)?);
    let energy = solve.energy()?;
    let mut kept = 0;
    let (mut loss, mut rtn_loss) = (0.0, 0.0);
    for (row, (ours, theirs)) in losses.iter().zip(&rtn_losses).enumerate() {
        // A loss that is not a number never wins.
        if ours > theirs || ours.is_nan() {
            take_row(&mut solved, &mut nearest, row);
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
        damping: factor.damping,
    })
}

struct Solve<'a> {
    backend: &'a dyn Backend,
    weights: &'a [f32],
    shape: [usize; 2],
    grid: Grid,
    range: Range,
    factor: &'a Factor,
}

impl Solve<'_> {
    /// Scales fitted to the original weights, columns in the factor's order.
    fn statically(&self) -> Result<Quantized, SolveError> {
        let [rows, width] = self.shape;
        let (size, groups) = (self.grid.span().size(width), self.grid.span().groups(width));
        let mut params = vec![Params::default(); rows * groups];
        let chunks =
            params.par_chunks_mut(groups.max(1)).zip(self.weights.par_chunks(width.max(1)));
        chunks.for_each(|(params, row)| {
            params.copy_from_slice(&fit_rows(self.grid, self.range, row, width));
        });
        let mut work = self.backend.upload(width, self.permuted())?;
        let mut codes = vec![0i8; rows * width];
        for begin in (0..width).step_by(BLOCK) {
            let end = (begin + BLOCK).min(width);
            let mut errors = self.backend.algebra()?.columns(&work, begin..end)?;
            let chunks = codes.par_chunks_mut(LANES * width);
            let chunks = chunks.zip(errors.par_chunks_mut(LANES * (end - begin)));
            chunks.zip(params.par_chunks(LANES * groups)).for_each(|((codes, errors), params)| {
                let params =
                    |lane: usize, at: usize| params[lane * groups + self.factor.order[at] / size];
                self.block(begin..end, codes, errors, params);
            });
            self.update(&mut work, begin..end, &errors)?;
        }
        Ok(assemble(self.grid, self.shape, self.unpermuted(&codes), &params))
    }

    /// A group's scale is fitted when the solve reaches it, to the weights as they then are.
    fn in_order(&self) -> Result<Quantized, SolveError> {
        let [rows, width] = self.shape;
        let (size, groups) = (self.grid.span().size(width), self.grid.span().groups(width));
        let mut params = vec![Params::default(); rows * groups];
        let mut work = self.backend.upload(width, self.weights.to_vec())?;
        let mut codes = vec![0i8; rows * width];
        let mut begin = 0;
        while begin < width {
            // A block ends where a group does, so that a group's first look at its weights sees
            // every update due to them.
            let end = (begin + BLOCK).min((begin / size + 1) * size).min(width);
            let group = begin / size;
            if begin % size == 0 {
                let last = ((group + 1) * size).min(width);
                let seen = match begin {
                    // Nothing was updated yet.
                    0 => Cow::Borrowed(self.weights),
                    _ => Cow::Owned(self.backend.algebra()?.columns(&work, begin..last)?),
                };
                let stride = if begin == 0 { width } else { last - begin };
                let lanes = seen.par_chunks(stride.max(1)).zip(params.par_chunks_mut(groups));
                lanes.for_each(|(row, params)| {
                    params[group] = fit(self.grid, self.range, &row[..last - begin]);
                });
            }
            let mut errors = self.backend.algebra()?.columns(&work, begin..end)?;
            let chunks = codes.par_chunks_mut(LANES * width);
            let chunks = chunks.zip(errors.par_chunks_mut(LANES * (end - begin)));
            chunks.zip(params.par_chunks(LANES * groups)).for_each(|((codes, errors), params)| {
                let params = |lane: usize, _| params[lane * groups + group];
                self.block(begin..end, codes, errors, params);
            });
            self.update(&mut work, begin..end, &errors)?;
            begin = end;
        }
        Ok(assemble(self.grid, self.shape, codes, &params))
    }

    /// Solves some columns of up to [`LANES`] rows; `errors` holds their weights `w` and takes
    /// `(w - q) / u` of each.
    fn block(
        &self,
        columns: std::ops::Range<usize>,
        codes: &mut [i8],
        errors: &mut [f32],
        params: impl Fn(usize, usize) -> Params,
    ) {
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
                let (params, w) = (params(lane, at), turned[i][lane]);
                let code = params.code(w);
                codes[lane * width + at] = code as i8;
                error[lane] = (w - params.value(code)) / pivot;
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

/// Row `row` of `to` becomes that of `from`.
fn take_row(to: &mut Quantized, from: &mut Quantized, row: usize) {
    let [_, width] = to.shape;
    let groups = to.grid.span().groups(width);
    let (codes, params) = (row * width..(row + 1) * width, row * groups..(row + 1) * groups);
    to.codes[codes.clone()].copy_from_slice(&from.codes[codes]);
    if let (ir::Params::Flat { scales, zeros }, ir::Params::Flat { scales: of, zeros: points }) =
        (&mut to.params, &from.params)
    {
        scales[params.clone()].copy_from_slice(&of[params.clone()]);
        if !zeros.is_empty() {
            zeros[params.clone()].copy_from_slice(&points[params]);
        }
    }
}
