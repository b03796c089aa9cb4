//! Codes of the source that are kept as they are.

use crate::CompileError;
use crate::pass::PassError;
use crate::recode::recoded;
use crate::solver::{Keep, Misfit, Outcome, Solved, Solving};
use ir::{Grid, Source, Weight};
use serde_json::Map;
use std::ops::Range;

/// Some rows of a weight, which has their values, with the codes that the source has of them, on `grid`.
///
/// # Errors
/// If they have not the same values there and are not to be rounded, or cannot be read.
pub(crate) fn kept(
    source: &dyn Source,
    weight: &Weight,
    rows: Range<usize>,
    grid: Grid,
    keep: Keep,
    solving: &mut dyn Solving,
) -> Result<Solved, CompileError> {
    let tensor = &weight.spec.tensor;
    let stored = source.read_view_quantized(&weight.spec.at, rows)?;
    let stored = stored.ok_or_else(|| CompileError::Internal(format!("{tensor} has no codes")))?;
    match recoded(&stored, grid) {
        Ok(quantized) => {
            let square = |x: &f32| f64::from(*x) * f64::from(*x);
            let of = weight.tensor.f32s().map_or(0.0, |values| values.iter().map(square).sum());
            let weight = Misfit { error: 0.0, of };
            let (method, output, fallback, notes) = ("kept", None, None, Map::new());
            let outcome = Outcome { method, weight, output, fallback, notes };
            Ok(Solved { quantized, outcome })
        }
        Err(why) if keep == Keep::OrRounded => {
            let mut solved = solving.solve(weight, grid)?;
            solved.outcome.fallback = Some(why);
            Ok(solved)
        }
        Err(why) => {
            let rule = format!("cannot be {grid} exactly: {why}; --requantize rounds it");
            Err(PassError::Weight { tensor: tensor.clone(), rule }.into())
        }
    }
}
