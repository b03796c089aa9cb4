//! The plain versions of what the compiler computes on a device: Gram matrices, the factor of an
//! inverse, rank updates. Their sums have one order, so every backend of the default class gives
//! these bits.

use crate::RankUpdate;
use crate::numerics::GRAM_CHUNK;
use std::ops::Range;

/// Columns that [`inverse_factor`] eliminates together: the pieces of its sums.
pub const FACTOR_BLOCK: usize = 64;

/// Adds `x^T x` to the lower triangle of `sum` `[width, width]`; `x` is `[rows, width]`.
///
/// Each sequence is cut at multiples of [`GRAM_CHUNK`] rows from its start. In a piece an entry is
/// summed from zero over the rows in order, with fused multiply-adds; the pieces are added to `sum`
/// in order.
pub fn gram(x: &[f32], width: usize, sequences: &[Range<usize>], sum: &mut [f32]) {
    for sequence in sequences {
        for begin in sequence.clone().step_by(GRAM_CHUNK) {
            let rows = begin..(begin + GRAM_CHUNK).min(sequence.end);
            for i in 0..width {
                for j in 0..=i {
                    let piece = rows
                        .clone()
                        .fold(0f32, |s, r| x[r * width + i].mul_add(x[r * width + j], s));
                    sum[i * width + j] += piece;
                }
            }
        }
    }
}

/// Replaces `H` `[n, n]`, lower triangle, by the upper triangular `U` with `H^-1 = U^T U`.
///
/// `H = V V^T` with `V` upper triangular is Cholesky's factorization from the last column to the
/// first; `U = V^-1`. `false` if a pivot is not above zero, or not finite.
///
/// With columns numbered from the last, an entry of `V` is summed in pieces of [`FACTOR_BLOCK`]
/// columns: each from zero, in order, with fused multiply-adds, then taken from the entry. An
/// entry of `U` is `-(sum of v_ik u_kj over i < k <= j) / v_ii`, its pieces cut at multiples of
/// [`FACTOR_BLOCK`] of `k`, from `j` down to `i`, each piece summed with `k` ascending.
pub fn inverse_factor(matrix: &mut [f64], n: usize) -> bool {
    factor(matrix, n) && {
        invert(matrix, n);
        true
    }
}

/// `matrix[i][j]`, `i <= j`, becomes `V`; below the diagonal zeros.
fn factor(matrix: &mut [f64], n: usize) -> bool {
    // The upper triangle is where the result goes.
    for i in 0..n {
        for j in i + 1..n {
            matrix[i * n + j] = matrix[j * n + i];
            matrix[j * n + i] = 0.0;
        }
    }
    for j in (0..n).rev() {
        for i in (0..=j).rev() {
            let mut entry = matrix[i * n + j];
            // Columns after j, from the last, in pieces.
            let mut end = n;
            while end > j + 1 {
                let begin = (j + 1).max(n - (n - end + FACTOR_BLOCK).min(n));
                let piece = (begin..end)
                    .rev()
                    .fold(0f64, |s, k| matrix[i * n + k].mul_add(matrix[j * n + k], s));
                entry -= piece;
                end = begin;
            }
            if i == j {
                if !(entry > 0.0 && entry.is_finite()) {
                    return false;
                }
                matrix[j * n + j] = entry.sqrt();
            } else {
                matrix[i * n + j] = entry / matrix[j * n + j];
            }
        }
    }
    true
}

/// An upper triangular matrix becomes its inverse.
fn invert(matrix: &mut [f64], n: usize) {
    for j in 0..n {
        matrix[j * n + j] = 1.0 / matrix[j * n + j];
    }
    // Row by row from the last: row i reads v_ik of its own row and u_kj of the rows below.
    let mut row = vec![0.0; n];
    for i in (0..n).rev() {
        for j in i + 1..n {
            let mut sum = 0.0;
            let mut end = j + 1;
            while end > i + 1 {
                let begin = ((end - 1) / FACTOR_BLOCK * FACTOR_BLOCK).max(i + 1);
                sum +=
                    (begin..end).fold(0f64, |s, k| matrix[i * n + k].mul_add(matrix[k * n + j], s));
                end = begin;
            }
            row[j] = -sum * matrix[i * n + i];
        }
        matrix[i * n + i + 1..(i + 1) * n].copy_from_slice(&row[i + 1..]);
    }
}

/// `c -= a b` on `columns`: an entry of `a b` is summed from zero with fused multiply-adds, in
/// order, then taken from `c`.
pub fn rank_update(args: &mut RankUpdate<'_>) {
    let RankUpdate { a, b, depth, width, .. } = *args;
    let columns = args.columns.clone();
    for (c, a) in args.c.chunks_exact_mut(width).zip(a.chunks_exact(depth)) {
        for (j, c) in c[columns.clone()].iter_mut().enumerate() {
            *c -= (0..depth).fold(0f32, |s, i| a[i].mul_add(b[i * columns.len() + j], s));
        }
    }
}
