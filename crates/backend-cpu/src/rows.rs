//! The rows behind a buffer, and a short list of freed ones to be used again: a fresh allocation
//! of this size costs a page fault every few thousand elements.

use std::sync::{Arc, Mutex, PoisonError};

/// Freed vectors that are kept.
const KEPT: usize = 8;

/// `f32`s that go back to their pool when they are dropped.
#[derive(Debug)]
pub(crate) struct Rows {
    values: Vec<f32>,
    pool: Arc<Pool>,
}

/// The freed vectors of a backend.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Rows {
    /// Rows over `values`.
    pub(crate) fn new(values: Vec<f32>, pool: &Arc<Pool>) -> Self {
        Self { values, pool: Arc::clone(pool) }
    }

    /// `len` elements of any value, to be overwritten.
    pub(crate) fn unset(len: usize, pool: &Arc<Pool>) -> Self {
        Self::new(pool.take(len), pool)
    }

    /// The elements.
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The elements, to be changed.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The elements, for good.
    pub(crate) fn into_values(mut self) -> Vec<f32> {
        std::mem::take(&mut self.values)
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.values));
    }
}

impl Pool {
    /// The smallest freed vector that has room, unless it is more than twice too large.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |values: &Vec<f32>| values.capacity() >= len && values.capacity() / 2 <= len;
        let all = free.iter().enumerate().filter(|(_, values)| fits(values));
        let best = all.min_by_key(|(_, values)| values.capacity()).map(|(index, _)| index);
        let Some(mut values) = best.map(|index| free.swap_remove(index)) else {
            drop(free);
            return vec![0.0; len];
        };
        drop(free);
        values.resize(len, 0.0);
        values
    }

    /// Keeps `values`; of too many, the one that was freed first goes.
    fn give(&self, values: Vec<f32>) {
        if values.capacity() == 0 {
            return;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(values);
        let oldest = (free.len() > KEPT).then(|| free.remove(0));
        drop(free);
        drop(oldest);
    }
}
