//! The plain versions of what the compiler computes on a device: Gram matrices, the factor of an
//! inverse, rank updates. Their sums have one order, so every backend of the default class gives
//! these bits.

use crate::RankUpdate;
use crate::numerics::GRAM_CHUNK;
use std::ops::Range;

/// Rows that [`inverse_factor`] eliminates together: the pieces of its sums.
pub const FACTOR_BLOCK: usize = 128;

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
/// first, and `U = V^-1`: the row operations that make `V^T` of `H` make `U` of the identity. Both
/// are kept in one matrix, `V^T` below the diagonal and `U` from the diagonal on. Rows are
/// eliminated from the last to the first, in blocks cut at multiples of [`FACTOR_BLOCK`]:
///
/// 1. [`eliminate`] within the columns of the block.
/// 2. In each other column, a row of the block becomes the sum, over the block's rows in order, of
///    their entries times its own entries in the columns of the block.
/// 3. From the entry `(i, j)` of a row before the block, `j` up to `i` or from the block on, the sum
///    over the block's rows in order of the products of their entries in columns `i` and `j` is
///    taken.
///
/// These sums begin at zero and use fused multiply-adds.
///
/// `false`, and a `matrix` of no meaning, if a pivot is not above zero, or not finite.
pub fn inverse_factor(matrix: &mut [f64], n: usize) -> bool {
    (0..n).for_each(|i| matrix[i * n + i + 1..(i + 1) * n].fill(0.0));
    for begin in (0..n).step_by(FACTOR_BLOCK).rev() {
        let block = begin..(begin + FACTOR_BLOCK).min(n);
        if !eliminate(matrix, n, &block) {
            return false;
        }
        for j in (0..block.start).chain(block.end..n) {
            let column: Vec<f64> = block.clone().map(|k| matrix[k * n + j]).collect();
            for i in block.clone() {
                let row = &matrix[i * n..][block.clone()];
                let sum = row.iter().zip(&column).fold(0f64, |s, (u, x)| u.mul_add(*x, s));
                matrix[i * n + j] = sum;
            }
        }
        for i in 0..begin {
            for j in (0..=i).chain(begin..n) {
                let entries = |k: usize| (matrix[k * n + i], matrix[k * n + j]);
                let sum = block.clone().map(entries).fold(0f64, |s, (v, x)| v.mul_add(x, s));
                matrix[i * n + j] -= sum;
            }
        }
    }
    (0..n).for_each(|i| matrix[i * n..i * n + i].fill(0.0));
    true
}

/// Eliminates the rows of a block, from the last to the first, within the columns of the block.
///
/// A row is multiplied by one over the root of its pivot, its diagonal becomes that factor; then
/// from each row of the block before it, in the columns up to that row's diagonal and in those from
/// the pivot on, a multiple of it is taken with fused multiply-adds. What is below the diagonal in
/// the end is cleared. `false` if a pivot is not above zero, or not finite.
#[inline(always)]
pub fn eliminate(matrix: &mut [f64], n: usize, block: &Range<usize>) -> bool {
    for k in block.clone().rev() {
        let (before, from) = matrix.split_at_mut(k * n);
        let row = &mut from[block.clone()];
        let pivot = k - block.start;
        if !(row[pivot] > 0.0 && row[pivot].is_finite()) {
            return false;
        }
        let scale = 1.0 / row[pivot].sqrt();
        row.iter_mut().for_each(|x| *x *= scale);
        row[pivot] = scale;
        for i in block.start..k {
            let other = &mut before[i * n..][block.clone()];
            let factor = -row[i - block.start];
            let take = |(y, x): (&mut f64, &f64)| *y = factor.mul_add(*x, *y);
            let diagonal = i - block.start;
            other[..=diagonal].iter_mut().zip(&row[..=diagonal]).for_each(take);
            other[pivot..].iter_mut().zip(&row[pivot..]).for_each(take);
        }
    }
    block.clone().for_each(|k| matrix[k * n + block.start..k * n + k].fill(0.0));
    true
}

/// `c -= a b` on `columns`: an entry of `a b` is summed from zero with fused multiply-adds, in
/// order, then taken from `c`.
pub fn rank_update(c: &mut [f32], width: usize, args: &RankUpdate<'_>) {
    let &RankUpdate { a, b, depth, ref columns } = args;
    for (c, a) in c.chunks_exact_mut(width).zip(a.chunks_exact(depth)) {
        for (j, c) in c[columns.clone()].iter_mut().enumerate() {
            *c -= (0..depth).fold(0f32, |s, i| a[i].mul_add(b[i * columns.len() + j], s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Noise(u64);

    impl Noise {
        fn values(&mut self, n: usize) -> Vec<f64> {
            let next = |_| {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (self.0 >> 33) as f64 / f64::from(1u32 << 30) - 1.0
            };
            (0..n).map(next).collect()
        }

        /// `A A^T / n + I / 10`.
        fn definite(&mut self, n: usize) -> Vec<f64> {
            let a = self.values(n * n);
            let mut h = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    let dot: f64 = (0..n).map(|k| a[i * n + k] * a[j * n + k]).sum();
                    h[i * n + j] = dot / n as f64 + if i == j { 0.1 } else { 0.0 };
                }
            }
            h
        }
    }

    #[test]
    fn the_factor_is_of_the_inverse() {
        let mut noise = Noise(1);
        for n in [0, 1, 2, 31, 127, 128, 129, 200, 257, 300] {
            let h = noise.definite(n);
            let mut u = h.clone();
            // What lies above the diagonal is not read.
            (0..n).for_each(|i| u[i * n + i + 1..(i + 1) * n].fill(f64::NAN));
            assert!(inverse_factor(&mut u, n), "n = {n}");
            for i in 0..n {
                assert!(u[i * n..i * n + i].iter().all(|x| x.to_bits() == 0), "n = {n}, row {i}");
                assert!(u[i * n + i] > 0.0);
            }
            let uh: Vec<f64> = (0..n * n)
                .map(|at| (at / n..n).map(|k| u[at / n * n + k] * h[k * n + at % n]).sum())
                .collect();
            for i in 0..n {
                for j in 0..n {
                    let got: f64 = (0..=i).map(|k| u[k * n + i] * uh[k * n + j]).sum();
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!((got - want).abs() < 1e-10, "n = {n}: [{i}, {j}] is {got}");
                }
            }
        }
    }

    #[test]
    fn matrices_that_are_not_definite_have_no_factor() {
        let mut noise = Noise(2);
        for n in [1, 3, 129, 200] {
            let good = noise.definite(n);
            for bad in [-1.0, 0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                for i in [0, n / 2, n - 1] {
                    let mut h = good.clone();
                    h[i * n + i] = bad;
                    assert!(!inverse_factor(&mut h, n), "n = {n}: {bad} at [{i}, {i}]");
                }
            }
            for bad in [100.0, f64::NAN, f64::INFINITY] {
                for i in [1, n / 2, n - 1].into_iter().filter(|&i| (1..n).contains(&i)) {
                    for j in [0, i - 1] {
                        let mut h = good.clone();
                        h[i * n + j] = bad;
                        assert!(!inverse_factor(&mut h, n), "n = {n}: {bad} at [{i}, {j}]");
                    }
                }
            }
        }
    }

    #[test]
    fn grams_and_updates_are_sums_of_products() {
        let x: Vec<f32> = Noise(3).values(600 * 3).iter().map(|&x| x as f32).collect();
        let mut sum = vec![1.0; 9];
        gram(&x, 3, &[1..290, 290..291, 400..600], &mut sum);
        for (at, got) in sum.iter().enumerate() {
            let (i, j) = (at / 3, at % 3);
            let rows = (1..291).chain(400..600);
            let dot: f64 = rows.map(|r| f64::from(x[r * 3 + i]) * f64::from(x[r * 3 + j])).sum();
            let want = if j <= i { 1.0 + dot } else { 1.0 };
            assert!((f64::from(*got) - want).abs() < 1e-3, "[{i}, {j}] is {got}, not {want}");
        }
        let mut c = vec![10.0; 2 * 4];
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let columns = 1..3;
        rank_update(&mut c, 4, &RankUpdate { columns, a: &a, b: &b, depth: 2 });
        assert_eq!(c, [10.0, -9.0, -12.0, 10.0, 10.0, -33.0, -40.0, 10.0]);
    }
}
