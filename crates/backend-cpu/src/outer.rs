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

/// Panels of `a` that a task should take. Each strip of their rows stays in the first cache while
/// it goes over the panels of `b`, along rows of the result as memory likes it.
pub(crate) const ROW_PANELS: usize = 4;

/// Panels of `b` that a task should take: of 32 KiB, they fill a quarter of a second cache of 1 MiB.
pub(crate) const COLUMN_PANELS: usize = 8;

/// Bytes of a line of the caches.
const LINE: usize = 64;

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
pub(crate) struct Outer<'a, E> {
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
    pub(crate) changes: &'a dyn Fn(usize) -> Range<usize>,
}

impl<E: Element> Kernel for Outer<'_, E> {
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

impl<E: Element> Outer<'_, E> {
    #[inline(always)]
    fn tiles<S: Simd, const R: usize>(&self) {
        let mut side = [[E::default(); PANEL]; R];
        for row in (self.rows.start * PANEL..self.rows.end * PANEL).step_by(R) {
            for panel in self.columns.clone() {
                let changes: [Range<usize>; R] =
                    std::array::from_fn(|r| self.changes(row + r, panel));
                let whole = changes.iter().all(|columns| columns.len() == PANEL);
                let (c, stride) = match whole {
                    // SAFETY: every element of the tile changes, so it exists.
                    true => unsafe { (self.at(row, panel * PANEL), self.stride) },
                    false => (side.as_mut_ptr().cast(), PANEL),
                };
                if changes.iter().all(Range::is_empty) {
                    continue;
                }
                if !whole {
                    self.exchange(row, panel, &changes, |c, r, at| side[r][at].copy_from_slice(c));
                }
                self.tile::<S, R>(row, panel, c, stride);
                if !whole {
                    self.exchange(row, panel, &changes, |c, r, at| c.copy_from_slice(&side[r][at]));
                }
            }
        }
    }

    /// The columns of a panel that change in a row.
    fn changes(&self, row: usize, panel: usize) -> Range<usize> {
        let (first, columns) = (panel * PANEL, (self.changes)(row));
        let clamp = |x: usize| x.clamp(first, first + PANEL) - first;
        clamp(columns.start)..clamp(columns.end)
    }

    /// Gives `f` the elements that change of a tile of which not all do, with their row and columns
    /// in it.
    fn exchange(
        &self,
        row: usize,
        panel: usize,
        changes: &[Range<usize>],
        mut f: impl FnMut(&mut [E], usize, Range<usize>),
    ) {
        for (r, columns) in changes.iter().enumerate().filter(|(_, columns)| !columns.is_empty()) {
            // SAFETY: these elements change, so they exist and are this task's.
            let c = unsafe {
                let c = self.at(row + r, panel * PANEL + columns.start);
                std::slice::from_raw_parts_mut(c, columns.len())
            };
            f(c, r, columns.clone());
        }
    }

    /// An element of the result.
    ///
    /// # Safety
    /// It must exist.
    unsafe fn at(&self, row: usize, column: usize) -> *mut E {
        // SAFETY: the caller's promise.
        unsafe { self.c.start().add(row * self.stride + column) }
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
                // Rows of `c` are far apart: nothing else brings them near in time.
                for r in 0..R {
                    for element in (0..2 * lanes).step_by(LINE / size_of::<E>()) {
                        S::prefetch(c.add(r * stride + column + element));
                    }
                }
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
