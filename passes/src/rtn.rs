//! Nearest rounding: each weight takes the code nearest to it.

use crate::fit::{Params, Range, assemble, fit};
use ir::{Grid, Quantized};
use rayon::prelude::*;

/// Puts `weights` `[out, in]` on `grid`, each value by itself; rows in parallel.
pub fn rtn(weights: &[f32], shape: [usize; 2], grid: Grid, range: Range) -> Quantized {
    let [rows, width] = shape;
    let (size, groups) = (grid.span().size(width), grid.span().groups(width));
    let mut codes = vec![0i8; rows * width];
    let mut params = vec![Params::default(); rows * groups];
    let rows = weights.par_chunks(width.max(1)).zip(codes.par_chunks_mut(width.max(1)));
    rows.zip(params.par_chunks_mut(groups.max(1))).for_each(|((row, codes), params)| {
        let parts = row.chunks(size).zip(codes.chunks_mut(size));
        for ((group, codes), params) in parts.zip(params) {
            *params = fit(grid, range, group);
            params.codes(group, codes);
        }
    });
    assemble(grid, shape, codes, &params)
}
