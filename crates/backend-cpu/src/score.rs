//! Folding logits into running soft-max statistics: the bodies of [`backend::SoftmaxRow`] and
//! [`backend::DivergenceRow`], compiled for the instruction set and spread over rows.

use crate::isa::{Kernel, Level};
use crate::simd::Simd;
use backend::{DivergenceRow, SoftmaxRow};
use rayon::prelude::*;

/// Folds each row of `logits` `[rows, width]`, the tokens from `first` on, into its soft-max.
pub(crate) fn softmax(
    level: Level,
    logits: &[f32],
    width: usize,
    first: u32,
    rows: &mut [SoftmaxRow],
) {
    let all = rows.par_iter_mut().zip(logits.par_chunks_exact(width));
    all.for_each(|(row, logits)| level.run(Softmax { row, logits, first }));
}

/// Folds each row of both models' logits, `[rows, width]`, into its divergence.
pub(crate) fn divergence(
    level: Level,
    logits: [&[f32]; 2],
    width: usize,
    first: u32,
    rows: &mut [DivergenceRow],
) {
    let [p, q] = logits.map(|logits| logits.par_chunks_exact(width));
    let all = rows.par_iter_mut().zip(p.zip(q));
    all.for_each(|(row, (p, q))| level.run(Divergence { row, p, q, first }));
}

struct Softmax<'a> {
    row: &'a mut SoftmaxRow,
    logits: &'a [f32],
    first: u32,
}

impl Kernel for Softmax<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.row.fold(self.logits, self.first);
    }
}

struct Divergence<'a> {
    row: &'a mut DivergenceRow,
    p: &'a [f32],
    q: &'a [f32],
    first: u32,
}

impl Kernel for Divergence<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.row.fold(self.p, self.q, self.first);
    }
}
