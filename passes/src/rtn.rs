//! Nearest rounding: each weight takes the code nearest to it.

use crate::fit::{Params, Range, assemble, fit, squares};
use ir::{Grid, Quantized};
use rayon::prelude::*;

/// Puts `weights` `[out, in]` on `grid`, each value by itself; rows in parallel.
pub fn rtn(weights: &[f32], shape: [usize; 2], grid: Grid, range: Range) -> Quantized {
    let width = shape[1];
    let read = |row: usize, out: &mut [f32]| {
        out.copy_from_slice(&weights[row * width..(row + 1) * width]);
    };
    nearest(shape, grid, range, read).0
}

/// [`rtn`] on rows that `read` gives one at a time, and of each row the squared error of its codes
/// and its square; the latter is not finite exactly if an element is not.
pub(crate) fn nearest(
    shape: [usize; 2],
    grid: Grid,
    range: Range,
    read: impl Fn(usize, &mut [f32]) + Sync,
) -> (Quantized, Vec<[f64; 2]>) {
    let [rows, width] = shape;
    let (size, groups) = (grid.span().size(width), grid.span().groups(width));
    let mut codes = vec![0i8; rows * width];
    let mut params = vec![Params::default(); rows * groups];
    let mut sums = vec![[0f64; 2]; rows];
    let out = codes.par_chunks_mut(width.max(1)).zip(params.par_chunks_mut(groups.max(1)));
    out.zip(&mut sums).enumerate().for_each_init(
        || vec![0f32; width],
        |weights, (row, ((codes, params), sums))| {
            read(row, weights);
            let parts = weights.chunks(size).zip(codes.chunks_mut(size));
            for ((group, codes), params) in parts.zip(params) {
                *params = fit(grid, range, group);
                params.codes(group, codes);
                let [error, square] = squares(params, group, codes);
                *sums = [sums[0] + error, sums[1] + square];
            }
        },
    );
    (assemble(grid, shape, codes, &params), sums)
}
