//! Products `a^T b` of matrices that lie as panels with the summed dimension first: what Gram
//! matrices, the elimination of rows and rank updates come down to.
//!
//! Every element is one chain of fused multiply-adds over the depth, in order: vectors run across
//! columns, never along the depth.
#![expect(unsafe_code, reason = "the innermost loop works on pointers")]

use crate::isa::Kernel;
use crate::panel::{PANEL, Row};
use crate::simd::{Simd, Vector};
use crate::tasks::Output;
use std::ops::Range;

/// Panels of `a` that a task should take: with a result of `f32`s they fill half of a second cache
/// of 1 MiB together with one panel of `b`.
pub(crate) const ROW_PANELS: usize = 4;

/// Panels of `b` that a task should take.
pub(crate) const COLUMN_PANELS: usize = 8;

/// Rows of a tile with vectors of 512 bits, and with narrower ones: they divide a panel.
const TALL: usize = 8;
const LOW: usize = 4;

/// What a product is made of.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// A vector of this.
    type V<S: Simd>: Vector<Self>;
}

impl Element for f32 {
    type V<S: Simd> = S::V;
}

impl Element for f64 {
    type V<S: Simd> = S::Wide;
}

/// What becomes of the sums, which start at zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Apply {
    /// They are the result.
    Set,
    /// They are added to the result.
    Add,
    /// They are taken from the result.
    Subtract,
}

/// Some panels of `a` by some panels of `b`.
pub(crate) struct Outer<'a, E, K> {
    /// The left matrix.
    pub(crate) a: &'a [Row<E>],
    /// The right matrix.
    pub(crate) b: &'a [Row<E>],
    /// The number of terms of each sum: rows of a panel.
    pub(crate) depth: usize,
    /// Rows from one panel to the next, of both matrices; at least `depth`.
    pub(crate) spacing: usize,
    /// Panels of `a`.
    pub(crate) rows: Range<usize>,
    /// Panels of `b`.
    pub(crate) columns: Range<usize>,
    /// The result of the first column of panel 0 of `a` with that of `b`.
    pub(crate) c: Output<E>,
    /// Elements from one row of the result to the next.
    pub(crate) stride: usize,
    /// What becomes of the sums.
    pub(crate) apply: Apply,
    /// The columns of a row that change, of all those of `b`. They must be in the result, and no
    /// other task may touch them in the meantime.
    pub(crate) changes: K,
}

impl<E: Element, K: Fn(usize) -> Range<usize>> Kernel for Outer<'_, E, K> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        assert!(self.depth <= self.spacing, "rows of a panel");
        assert!(self.rows.end * self.spacing <= self.a.len(), "panels of a");
        assert!(self.columns.end * self.spacing <= self.b.len(), "panels of b");
        match S::LANES {
            16 => self.tiles::<S, TALL>(),
            _ => self.tiles::<S, LOW>(),
        }
    }
}

impl<E: Element, K: Fn(usize) -> Range<usize>> Outer<'_, E, K> {
    #[inline(always)]
    fn tiles<S: Simd, const R: usize>(&self) {
        for panel in self.columns.clone() {
            let first = panel * PANEL;
            for row in (self.rows.start * PANEL..self.rows.end * PANEL).step_by(R) {
                let changes: [Range<usize>; R] = std::array::from_fn(|r| {
                    let columns = (self.changes)(row + r);
                    let clamp = |x: usize| x.clamp(first, first + PANEL) - first;
                    clamp(columns.start)..clamp(columns.end)
                });
                if changes.iter().all(|columns| columns.len() == PANEL) {
                    // SAFETY: every element of the tile changes, and so is this task's.
                    let c = unsafe { self.c.start().add(row * self.stride + first) };
                    self.tile::<S, R>(row, panel, c, self.stride);
                } else if changes.iter().any(|columns| !columns.is_empty()) {
                    self.edge::<S, R>(row, panel, &changes);
                }
            }
        }
    }

    /// A tile of which only some elements change: it is computed on the side.
    #[inline(always)]
    fn edge<S: Simd, const R: usize>(&self, row: usize, panel: usize, changes: &[Range<usize>; R]) {
        let mut side = [[E::default(); PANEL]; R];
        let of = |r: usize, columns: &Range<usize>| {
            let at = (row + r) * self.stride + panel * PANEL + columns.start;
            // SAFETY: these elements change, so they exist and are this task's.
            unsafe { std::slice::from_raw_parts_mut(self.c.start().add(at), columns.len()) }
        };
        let changing = || changes.iter().enumerate().filter(|(_, columns)| !columns.is_empty());
        for (r, columns) in changing() {
            side[r][columns.clone()].copy_from_slice(of(r, columns));
        }
        self.tile::<S, R>(row, panel, side.as_mut_ptr().cast(), PANEL);
        for (r, columns) in changing() {
            of(r, columns).copy_from_slice(&side[r][columns.clone()]);
        }
    }

    /// Rows `row..row + R` of `a`, all of one panel, by a panel of `b`; `c` is their result.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, row: usize, panel: usize, c: *mut E, stride: usize) {
        let lanes = E::V::<S>::LANES;
        let a: *const E = self.a[row / PANEL * self.spacing..].as_ptr().cast();
        let b: *const E = self.b[panel * self.spacing..].as_ptr().cast();
        for column in (0..PANEL).step_by(2 * lanes) {
            // SAFETY: both panels have `depth` rows of 32 elements, `R` divides 32, so the rows are
            // of one panel of `a`; `c` has `R` rows of 32 elements.
            unsafe {
                let (a, b) = (a.add(row % PANEL), b.add(column));
                let mut sums = [[E::V::<S>::splat(E::default()); 2]; R];
                for k in 0..self.depth {
                    let b = b.add(k * PANEL);
                    let b = [E::V::<S>::load(b), E::V::<S>::load(b.add(lanes))];
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = E::V::<S>::splat(*a.add(k * PANEL + r));
                        sums[0] = a.fma(b[0], sums[0]);
                        sums[1] = a.fma(b[1], sums[1]);
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (v, &sum) in sums.iter().enumerate() {
                        let at = c.add(r * stride + column + v * lanes);
                        let result = match self.apply {
                            Apply::Set => sum,
                            Apply::Add => E::V::<S>::load(at).add(sum),
                            Apply::Subtract => E::V::<S>::load(at).sub(sum),
                        };
                        result.store(at);
                    }
                }
            }
        }
    }
}

/// Copies rows of a matrix, from column `first` on, to a panel; beyond the rows' end are zeros.
#[inline]
pub(crate) fn pack<'a, E: Element>(
    rows: impl Iterator<Item = &'a [E]>,
    first: usize,
    panel: &mut [Row<E>],
) {
    for (row, packed) in rows.zip(panel) {
        match row.get(first..first + PANEL) {
            Some(whole) => packed.0.copy_from_slice(whole),
            None => {
                let (last, beyond) = packed.0.split_at_mut(row.len() - first);
                last.copy_from_slice(&row[first..]);
                beyond.fill(E::default());
            }
        }
    }
}
