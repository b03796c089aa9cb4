//! Nearest rounding: each weight takes the code nearest to it.

use crate::blocks::Blocks;
use crate::extremes::Extremes;
use crate::fit::{Range, nearest};
use crate::integers::Integers;
use ir::{Grid, Quantized};

/// Puts `weights` `[out, in]` on `grid`, each value by itself; rows in parallel. `importance` `[in]` is
/// what [`Range::Weighted`] weighs by.
pub fn rtn(
    weights: &[f32],
    shape: [usize; 2],
    grid: Grid,
    range: Range,
    importance: Option<&[f32]>,
) -> Quantized {
    let width = shape[1];
    let read = |row: usize, out: &mut [f32]| {
        out.copy_from_slice(&weights[row * width..(row + 1) * width]);
    };
    rounded(shape, grid, range, importance, read).0
}

/// [`rtn`] on rows that `read` gives one at a time; see [`nearest`].
pub(crate) fn rounded(
    shape: [usize; 2],
    grid: Grid,
    range: Range,
    importance: Option<&[f32]>,
    read: impl Fn(usize, &mut [f32]) + Sync,
) -> (Quantized, Vec<[f64; 2]>) {
    match (Blocks::new(grid, range), Extremes::new(grid, range)) {
        (Some(fit), _) => nearest(fit, shape, importance, read),
        (_, Some(fit)) => nearest(fit, shape, importance, read),
        _ => nearest(Integers { grid, range }, shape, importance, read),
    }
}
