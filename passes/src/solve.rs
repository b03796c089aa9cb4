//! From solvers to what a pass reports: the weight's name, its error, why another solver was used.

use crate::factor::Factor;
use crate::fit::Range;
use crate::gptq::{Settings, SolveError, gptq};
use crate::rtn::nearest;
use backend::Backend;
use compiler::{Outcome, PassError, Rewrite};
use ir::{Block, Grid, Quantized, WeightId};
use rayon::prelude::*;
use std::borrow::Cow;

/// The weight of a linear that is to be solved.
struct Matrix<'a> {
    id: WeightId,
    name: &'a str,
    values: Cow<'a, [f32]>,
    shape: [usize; 2],
    grid: Grid,
}

impl<'a> Matrix<'a> {
    /// A weight's values, which must all be finite.
    fn new(id: WeightId, block: &'a Block, grid: Grid) -> Result<Self, PassError> {
        let weight = block.weights.get(id.0 as usize);
        let weight = weight.ok_or_else(|| PassError::Internal("no such weight".into()))?;
        let name = &weight.spec.tensor;
        let wrong = |rule| PassError::Weight { tensor: name.clone(), rule };
        let shape: [usize; 2] =
            weight.tensor.shape().try_into().map_err(|_| wrong("is no matrix".into()))?;
        let values = match weight.tensor.f32s() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(weight.tensor.to_f32().ok_or_else(|| {
                wrong(format!("dtype {} is F32, F16 or BF16", weight.tensor.dtype()))
            })?),
        };
        let rows = values.par_chunks(shape[1].max(1)).enumerate();
        let bad = rows.find_map_first(|(row, values)| {
            Some((row, values.iter().position(|v| !v.is_finite())?))
        });
        if let Some((row, column)) = bad {
            let value = values[row * shape[1] + column];
            return Err(wrong(format!("element [{row}, {column}] is {value}")));
        }
        Ok(Self { id, name, values, shape, grid })
    }
}

/// The nearest codes of a weight, read row by row: it is never resident as `f32`.
pub(crate) fn rounded(
    id: WeightId,
    block: &Block,
    grid: Grid,
    range: Range,
) -> Result<Rewrite, PassError> {
    let weight = block.weights.get(id.0 as usize);
    let weight = weight.ok_or_else(|| PassError::Internal("no such weight".into()))?;
    let wrong = |rule| PassError::Weight { tensor: weight.spec.tensor.clone(), rule };
    let shape: [usize; 2] =
        weight.tensor.shape().try_into().map_err(|_| wrong("is no matrix".into()))?;
    if !weight.tensor.read_f32(0, &mut []) {
        return Err(wrong(format!("dtype {} is F32, F16 or BF16", weight.tensor.dtype())));
    }
    let read = |row: usize, out: &mut [f32]| {
        weight.tensor.read_f32(row * shape[1], out);
    };
    let (quantized, sums) = nearest(shape, grid, range, read);
    if let Some(row) = sums.iter().position(|[_, square]| !square.is_finite()) {
        let mut values = vec![0.0; shape[1]];
        read(row, &mut values);
        let bad = values.iter().enumerate().find(|(_, v)| !v.is_finite());
        let (column, value) = bad.ok_or_else(|| PassError::Internal("a finite row".into()))?;
        return Err(wrong(format!("element [{row}, {column}] is {value}")));
    }
    Ok(Rewrite { weight: id, quantized, outcome: outcome(&sums, None) })
}

/// Nearest rounding where GPTQ was asked for, and why.
fn fallen_back(matrix: &Matrix<'_>, range: Range, why: String) -> Rewrite {
    let width = matrix.shape[1];
    let read = |row: usize, out: &mut [f32]| {
        out.copy_from_slice(&matrix.values[row * width..(row + 1) * width]);
    };
    let (quantized, sums) = nearest(matrix.shape, matrix.grid, range, read);
    Rewrite { weight: matrix.id, quantized, outcome: outcome(&sums, Some(why)) }
}

/// Squared error over square, of all rows.
fn outcome(sums: &[[f64; 2]], fallback: Option<String>) -> Outcome {
    let [error, square] = sums.iter().fold([0.0, 0.0], |s, r| [s[0] + r[0], s[1] + r[1]]);
    let relative_error = share(error, square);
    Outcome {
        method: "rtn",
        relative_error,
        output_error: None,
        rows_rounded: 0,
        damping: None,
        fallback,
    }
}

/// An error as a share of what it is an error of.
fn share(error: f64, of: f64) -> f64 {
    if of > 0.0 { error / of } else { 0.0 }
}

/// Squared error of the codes over the square of the values, summed row by row, in order.
fn of_weight(values: &[f32], codes: &Quantized) -> f64 {
    let [_, width] = codes.shape;
    let square = |x: f64| x * x;
    let row = |(row, values): (usize, &[f32])| {
        let mut decoded = vec![0.0; width];
        codes.dequantize_row(row, &mut decoded);
        let pairs = values.iter().zip(&decoded).map(|(v, d)| (f64::from(*v), f64::from(*d)));
        pairs.fold([0.0, 0.0], |[e, s], (v, d)| [e + square(v - d), s + square(v)])
    };
    let sums: Vec<[f64; 2]> = values.par_chunks(width.max(1)).enumerate().map(row).collect();
    let [error, of] = sums.iter().fold([0.0, 0.0], |s, r| [s[0] + r[0], s[1] + r[1]]);
    share(error, of)
}

/// GPTQ on weights that read the same input, whose Gram matrix is given. One weight at a time is
/// resident as `f32`.
pub(crate) fn solved(
    backend: &dyn Backend,
    block: &Block,
    weights: &[(WeightId, Grid)],
    gram: Option<&[f32]>,
    range: Range,
    settings: &Settings,
) -> Result<Vec<Rewrite>, PassError> {
    let mut factor: Option<Result<Factor, String>> = None;
    let mut rewrites = Vec::with_capacity(weights.len());
    for &(id, grid) in weights {
        let matrix = Matrix::new(id, block, grid)?;
        if factor.is_none() {
            factor = Some(match gram {
                None => Err("no calibration tokens".into()),
                Some(gram) => match Factor::new(backend, gram, matrix.shape[1], settings) {
                    Ok(factor) => Ok(factor),
                    Err(SolveError::Unsound(why)) => Err(why),
                    Err(error) => return Err(failed(&matrix, error)),
                },
            });
        }
        rewrites.push(match &factor {
            Some(Ok(factor)) => solve(backend, &matrix, range, factor, settings)?,
            Some(Err(why)) => fallen_back(&matrix, range, why.clone()),
            None => return Err(PassError::Internal("no factor".into())),
        });
    }
    Ok(rewrites)
}

fn solve(
    backend: &dyn Backend,
    matrix: &Matrix<'_>,
    range: Range,
    factor: &Factor,
    settings: &Settings,
) -> Result<Rewrite, PassError> {
    let (values, shape, grid) = (&matrix.values, matrix.shape, matrix.grid);
    match gptq(backend, values, shape, grid, range, factor, settings) {
        Ok(solved) => {
            let outcome = Outcome {
                method: "gptq",
                relative_error: of_weight(values, &solved.quantized),
                output_error: Some(share(solved.loss, solved.energy)),
                rows_rounded: solved.rows_kept_from_rtn,
                damping: Some(solved.damping),
                fallback: None,
            };
            Ok(Rewrite { weight: matrix.id, quantized: solved.quantized, outcome })
        }
        Err(SolveError::Unsound(why)) => Ok(fallen_back(matrix, range, why)),
        Err(error) => Err(failed(matrix, error)),
    }
}

fn failed(matrix: &Matrix<'_>, error: SolveError) -> PassError {
    match error {
        SolveError::Backend(error) => error.into(),
        error => PassError::Weight { tensor: matrix.name.into(), rule: error.to_string() },
    }
}
