//! The solvers: from codes to what a report says of them.

use crate::factor::Factor;
use crate::fit::Range;
use crate::gptq::{Settings, SolveError, gptq};
use crate::rtn;
use backend::Backend;
use compiler::{Input, Keep, Misfit, Outcome, PassError, Solved, Solver, Solving};
use ir::{Grid, Quantized, Weight};
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Nearest rounding: each weight takes the code nearest to it.
pub(crate) struct Rtn {
    pub(crate) range: Range,
}

/// GPTQ: codes whose error the weights after them make up for.
pub(crate) struct Gptq {
    pub(crate) range: Range,
    pub(crate) settings: Settings,
    pub(crate) sequential: bool,
}

/// The codes that the source has.
pub(crate) struct Kept {
    pub(crate) keep: Keep,
}

impl Solver for Kept {
    fn name(&self) -> &'static str {
        "kept"
    }

    fn observes(&self) -> bool {
        false
    }

    fn keeps(&self) -> Option<Keep> {
        Some(self.keep)
    }

    fn bytes(&self, _: [usize; 2]) -> u64 {
        0
    }

    /// What cannot be kept is rounded, so that the squared error is least.
    fn begin<'a>(&'a self, _: Input<'a>) -> Result<Box<dyn Solving + 'a>, PassError> {
        Ok(Box::new(Rounding { range: Range::MeanSquare, importance: None }))
    }
}

impl Solver for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn observes(&self) -> bool {
        self.range == Range::Weighted
    }

    fn takes_importance(&self) -> bool {
        true
    }

    fn bytes(&self, _: [usize; 2]) -> u64 {
        0
    }

    fn begin<'a>(&'a self, input: Input<'a>) -> Result<Box<dyn Solving + 'a>, PassError> {
        Ok(Box::new(Rounding { range: self.range, importance: importance(&input) }))
    }
}

impl Solver for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn observes(&self) -> bool {
        true
    }

    fn is_sequential(&self) -> bool {
        self.sequential
    }

    fn bytes(&self, shape: [usize; 2]) -> u64 {
        self.settings.bytes(shape)
    }

    fn begin<'a>(&'a self, input: Input<'a>) -> Result<Box<dyn Solving + 'a>, PassError> {
        let importance = importance(&input);
        let Input { backend, width, gram, .. } = input;
        let factor = match gram {
            None => Err("no calibration tokens".into()),
            Some(gram) => match Factor::new(backend, gram, width, &self.settings) {
                Ok(factor) => Ok(factor),
                Err(SolveError::Unsound(why)) => Err(why),
                Err(SolveError::Backend(error)) => return Err(error.into()),
                Err(error) => return Err(PassError::Internal(error.to_string())),
            },
        };
        Ok(Box::new(Compensating { solver: self, backend, factor, importance }))
    }
}

/// The mean square of each column of an input, or a multiple of it; `None` if nobody knows it, or it is not
/// a number.
fn importance(input: &Input<'_>) -> Option<Vec<f32>> {
    let width = input.width;
    let diagonal: Vec<f32> = match (input.importance, input.gram) {
        (Some(given), _) if given.len() == width => given.to_vec(),
        (_, Some(gram)) => (0..width).map(|i| gram[i * width + i]).collect(),
        _ => return None,
    };
    let sound = diagonal.iter().all(|x| x.is_finite()) && diagonal.iter().any(|&x| x > 0.0);
    sound.then_some(diagonal)
}

struct Rounding {
    range: Range,
    importance: Option<Vec<f32>>,
}

impl Solving for Rounding {
    fn solve(&mut self, weight: &Weight, grid: Grid) -> Result<Solved, PassError> {
        rounded(weight, grid, self.range, self.importance.as_deref(), None)
    }
}

struct Compensating<'a> {
    solver: &'a Gptq,
    backend: &'a dyn Backend,
    /// What is made of the Gram matrix, or why there is nothing to make of it.
    factor: Result<Factor, String>,
    importance: Option<Vec<f32>>,
}

impl Solving for Compensating<'_> {
    fn solve(&mut self, weight: &Weight, grid: Grid) -> Result<Solved, PassError> {
        let Gptq { range, settings, .. } = self.solver;
        let importance = self.importance.as_deref();
        let factor = match &self.factor {
            Ok(factor) => factor,
            Err(why) => return rounded(weight, grid, *range, importance, Some(why.clone())),
        };
        let (values, shape) = matrix(weight)?;
        match gptq(self.backend, &values, shape, grid, *range, factor, settings) {
            Ok(solved) => {
                let mut notes = counted(solved.rows_kept_from_rtn);
                notes.insert("damping".into(), solved.damping.into());
                let outcome = Outcome {
                    method: "gptq",
                    weight: misfit(&values, &solved.quantized),
                    output: Some(Misfit { error: solved.loss, of: solved.energy }),
                    fallback: None,
                    notes,
                };
                Ok(Solved { quantized: solved.quantized, outcome })
            }
            Err(SolveError::Unsound(why)) => rounded(weight, grid, *range, importance, Some(why)),
            Err(SolveError::Backend(error)) => Err(error.into()),
            Err(error) => Err(wrong(weight, error.to_string())),
        }
    }
}

/// The notes of a solver that kept so many rows as nearest rounding has them.
fn counted(rows: usize) -> Map<String, Value> {
    [("rows_rounded".to_string(), rows.into())].into_iter().collect()
}

fn wrong(weight: &Weight, rule: String) -> PassError {
    PassError::Weight { tensor: weight.spec.tensor.clone(), rule }
}

fn shape(weight: &Weight) -> Result<[usize; 2], PassError> {
    weight.tensor.shape().try_into().map_err(|_| wrong(weight, "is no matrix".into()))
}

fn unknown(weight: &Weight) -> PassError {
    wrong(weight, format!("dtype {} is F32, F16 or BF16", weight.tensor.dtype()))
}

/// A weight's values, which must all be finite, and its shape.
pub(crate) fn matrix(weight: &Weight) -> Result<(Cow<'_, [f32]>, [usize; 2]), PassError> {
    let shape = shape(weight)?;
    let values = match weight.tensor.f32s() {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(weight.tensor.to_f32().ok_or_else(|| unknown(weight))?),
    };
    let rows = values.par_chunks(shape[1].max(1)).enumerate();
    let bad = rows
        .find_map_first(|(row, values)| Some((row, values.iter().position(|v| !v.is_finite())?)));
    if let Some((row, column)) = bad {
        let value = values[row * shape[1] + column];
        return Err(wrong(weight, format!("element [{row}, {column}] is {value}")));
    }
    Ok((values, shape))
}

/// The nearest codes of a weight, read row by row: it is never resident as `f32`. `fallback` is why
/// another solver was asked for and not used.
fn rounded(
    weight: &Weight,
    grid: Grid,
    range: Range,
    importance: Option<&[f32]>,
    fallback: Option<String>,
) -> Result<Solved, PassError> {
    let shape = shape(weight)?;
    if !weight.tensor.read_f32(0, &mut []) {
        return Err(unknown(weight));
    }
    let read = |row: usize, out: &mut [f32]| {
        weight.tensor.read_f32(row * shape[1], out);
    };
    let (quantized, sums) = rtn::rounded(shape, grid, range, importance, read);
    if let Some(row) = sums.iter().position(|[_, square]| !square.is_finite()) {
        let mut values = vec![0.0; shape[1]];
        read(row, &mut values);
        let bad = values.iter().enumerate().find(|(_, v)| !v.is_finite());
        let (column, value) = bad.ok_or_else(|| PassError::Internal("a finite row".into()))?;
        return Err(wrong(weight, format!("element [{row}, {column}] is {value}")));
    }
    let outcome =
        Outcome { method: "rtn", weight: sum(&sums), output: None, fallback, notes: counted(0) };
    Ok(Solved { quantized, outcome })
}

/// Squared error and square of all rows, in order.
fn sum(rows: &[[f64; 2]]) -> Misfit {
    let [error, of] = rows.iter().fold([0.0, 0.0], |s, r| [s[0] + r[0], s[1] + r[1]]);
    Misfit { error, of }
}

/// Squared error of the codes, and the square of the values, summed row by row, in order.
fn misfit(values: &[f32], codes: &Quantized) -> Misfit {
    let [_, width] = codes.shape;
    let square = |x: f64| x * x;
    let row = |(row, values): (usize, &[f32])| {
        let mut decoded = vec![0.0; width];
        codes.dequantize_row(row, &mut decoded);
        let pairs = values.iter().zip(&decoded).map(|(v, d)| (f64::from(*v), f64::from(*d)));
        pairs.fold([0.0, 0.0], |[e, s], (v, d)| [e + square(v - d), s + square(v)])
    };
    let sums: Vec<[f64; 2]> = values.par_chunks(width.max(1)).enumerate().map(row).collect();
    sum(&sums)
}
