//! Slices of logits: the device reduces each row, the host folds what comes of it.

use crate::Cuda;
use crate::device::Memory;
use backend::numerics::exp;
use backend::{BackendError, Buffer, DivergenceRow, SoftmaxRow};
use bytemuck::{Pod, Zeroable};

/// What `kernels/score.cu` says of a row.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Stats {
    max: f32,
    sum: f32,
    target: f32,
    cross: f32,
    best: u32,
    unused: [u32; 3],
}
// As the kernels have it.
const _: () = assert!(size_of::<Stats>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScoreArgs {
    p: u64,
    q: u64,
    targets: u64,
    p_stats: u64,
    q_stats: u64,
    width: u32,
    first: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<ScoreArgs>() == 48);

impl Cuda {
    pub(crate) fn fold_rows(
        &self,
        logits: &Buffer,
        first: u32,
        rows: &mut [SoftmaxRow],
    ) -> Result<(), BackendError> {
        let targets: Vec<u32> = rows.iter().map(|row| row.target).collect();
        let [stats, _] = self.stats([logits, logits], first, &targets, "fold_softmax")?;
        rows.iter_mut().zip(stats).for_each(|(row, stats)| {
            take_in(row, stats, first);
        });
        Ok(())
    }

    pub(crate) fn fold_pairs(
        &self,
        logits: [&Buffer; 2],
        first: u32,
        rows: &mut [DivergenceRow],
    ) -> Result<(), BackendError> {
        let targets: Vec<u32> = rows.iter().map(|row| row.p.target).collect();
        let [p, q] = self.stats(logits, first, &targets, "fold_divergence")?;
        for (row, (p, q)) in rows.iter_mut().zip(p.into_iter().zip(q)) {
            let (old, new) = take_in(&mut row.p, p, first);
            row.cross = row.cross * old + f64::from(p.cross) * new;
            take_in(&mut row.q, q, first);
        }
        Ok(())
    }

    fn stats(
        &self,
        logits: [&Buffer; 2],
        first: u32,
        targets: &[u32],
        kernel: &str,
    ) -> Result<[Vec<Stats>; 2], BackendError> {
        let (rows, width) = (logits[0].rows().min(targets.len()), logits[0].width());
        if rows == 0 {
            return Ok([Vec::new(), Vec::new()]);
        }
        if logits[1].rows() < rows || logits[1].width() != width {
            return Err(BackendError::Internal("both logits have one shape".into()));
        }
        let (p, q) = (self.plain(logits[0])?, self.plain(logits[1])?);
        let targets = Memory::of(&self.steps, targets)?;
        let stats = [self.room(rows * size_of::<Stats>())?, self.room(rows * size_of::<Stats>())?];
        let args = ScoreArgs {
            p: p.at(),
            q: q.at(),
            targets: targets.at(),
            p_stats: stats[0].at(),
            q_stats: stats[1].at(),
            width: width as u32,
            first,
        };
        self.launch(kernel, [rows as u32, 1, 1], 256, 64, &args)?;
        let second = if kernel == "fold_softmax" { Vec::new() } else { stats[1].read(rows)? };
        Ok([stats[0].read(rows)?, second])
    }
}

/// Folds a slice into a row; returns what sums over the old maximum and over the slice's are
/// multiplied by.
fn take_in(row: &mut SoftmaxRow, stats: Stats, first: u32) -> (f64, f64) {
    if stats.target > f32::NEG_INFINITY || stats.target.is_nan() {
        row.target_logit = stats.target;
    }
    let old = row.max;
    if stats.max > row.max {
        (row.max, row.best) = (stats.max, first + stats.best);
    }
    let scale = |top: f32| f64::from(if top == row.max { 1.0 } else { exp(top - row.max) });
    let (old, new) = (scale(old), scale(stats.max));
    row.sum = row.sum * old + f64::from(stats.sum) * new;
    (old, new)
}
