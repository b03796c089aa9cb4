//! The microkernel: a strip of rows times a panel, its sums held in registers.
//!
//! Every element is one chain of fused multiply-adds over the depth, in order: vectors run across
//! outputs, never along the depth.
#![expect(unsafe_code, reason = "the innermost loop works on pointers")]

use crate::panel::{Factor, PANEL};
use crate::simd::Simd;
use backend::numerics::LINEAR_CHUNK;

/// Elements from one row of a strip to the next. Odd in cache lines, so that the rows of a strip
/// lie in different sets of the cache; a constant, so that they need one register.
pub(crate) const STRIDE: usize = LINEAR_CHUNK + 16;

/// Rows of the tallest strip on any instruction set.
pub(crate) const MAX_ROWS: usize = 12;

/// What becomes of the sums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They start at zero and are added to zero, which makes -0 a 0 as the first sum of pieces does.
    First,
    /// They start at zero and are added to the result.
    Add,
    /// They go on from the result.
    Continue,
}

/// `rows` rows of `a` times one or more panels of `b`.
#[derive(Clone, Copy)]
pub(crate) struct Tile<T> {
    /// Row `r` begins at `a + r * STRIDE`.
    pub(crate) a: *const f32,
    /// `depth` rows of a panel.
    pub(crate) b: *const T,
    /// The number of terms of each sum; at most [`LINEAR_CHUNK`].
    pub(crate) depth: usize,
    /// Elements from one panel of `b` to the next.
    pub(crate) panel: usize,
    /// Row `r` begins at `c + r * stride`; panel `p` is 32 elements from `32 * p` on.
    pub(crate) c: *mut f32,
    /// Elements from one row of `c` to the next.
    pub(crate) stride: usize,
    /// What becomes of the sums.
    pub(crate) mode: Mode,
}

impl Tile<f32> {
    /// The same tile over words of another kind, of the same size.
    #[inline(always)]
    pub(crate) fn of<T: Factor>(&self) -> Tile<T> {
        let Self { a, b, depth, panel, c, stride, mode } = *self;
        Tile { a, b: b.cast(), depth, panel, c, stride, mode }
    }
}

/// How many of `panels` panels to take at once: enough to hide the latency of few rows.
#[inline(always)]
pub(crate) fn at_once(rows: usize, panels: usize) -> usize {
    match (rows, panels) {
        (1, 4..) => 4,
        (1..=3, 2..) => 2,
        _ => 1,
    }
}

/// Runs `tile` over `rows` rows (at most `S::ROWS`) and [`at_once`] panels.
///
/// # Safety
/// `S` is enabled, and `tile` points to as much as its fields say.
#[inline(always)]
pub(crate) unsafe fn strip<S: Simd, T: Factor>(rows: usize, panels: usize, tile: &Tile<T>) {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        match (rows, panels) {
            (1, 4) => sums::<S, T, 1, 4>(tile),
            (1, 2) => sums::<S, T, 1, 2>(tile),
            (2, 2) => sums::<S, T, 2, 2>(tile),
            (3, 2) => sums::<S, T, 3, 2>(tile),
            (1, _) => sums::<S, T, 1, 1>(tile),
            (2, _) => sums::<S, T, 2, 1>(tile),
            (3, _) => sums::<S, T, 3, 1>(tile),
            (4, _) => sums::<S, T, 4, 1>(tile),
            (5, _) => sums::<S, T, 5, 1>(tile),
            (6, _) => sums::<S, T, 6, 1>(tile),
            (7, _) if S::ROWS > 6 => sums::<S, T, 7, 1>(tile),
            (8, _) if S::ROWS > 6 => sums::<S, T, 8, 1>(tile),
            (9, _) if S::ROWS > 6 => sums::<S, T, 9, 1>(tile),
            (10, _) if S::ROWS > 6 => sums::<S, T, 10, 1>(tile),
            (11, _) if S::ROWS > 6 => sums::<S, T, 11, 1>(tile),
            (12, _) if S::ROWS > 6 => sums::<S, T, 12, 1>(tile),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn sums<S: Simd, T: Factor, const R: usize, const P: usize>(t: &Tile<T>) {
    for half in 0..16 / S::LANES {
        // SAFETY: row r < R of `a` has `depth` elements, panel p < P of `b` has `depth` rows, and
        // row r of `c` has 32 elements a panel, of which this touches those of its `half`.
        unsafe {
            let at = |r: usize, p: usize, v: usize| {
                t.c.add(r * t.stride + p * PANEL + v * 16 + half * S::LANES)
            };
            let mut acc = [[[S::splat(0.0); 2]; P]; R];
            if t.mode == Mode::Continue {
                for (r, row) in acc.iter_mut().enumerate() {
                    for (p, pair) in row.iter_mut().enumerate() {
                        *pair = [S::load(at(r, p, 0)), S::load(at(r, p, 1))];
                    }
                }
            }
            for k in 0..t.depth {
                let mut b = [[S::splat(0.0); 2]; P];
                for (p, pair) in b.iter_mut().enumerate() {
                    *pair = T::pair::<S>(t.b.add(p * t.panel + k * PANEL), half);
                }
                for (r, row) in acc.iter_mut().enumerate() {
                    let a = S::splat(*t.a.add(r * STRIDE + k));
                    for (sums, b) in row.iter_mut().zip(&b) {
                        sums[0] = T::multiply::<S>(a, b[0], sums[0]);
                        sums[1] = T::multiply::<S>(a, b[1], sums[1]);
                    }
                }
            }
            for (r, row) in acc.iter().enumerate() {
                for (p, pair) in row.iter().enumerate() {
                    for (v, &sum) in pair.iter().enumerate() {
                        let result = match t.mode {
                            Mode::First => S::add(S::splat(0.0), sum),
                            Mode::Add => S::add(S::load(at(r, p, v)), sum),
                            Mode::Continue => sum,
                        };
                        S::store(at(r, p, v), result);
                    }
                }
            }
        }
    }
}
