//! Rows of activations, rounded to int8 as the linears over a grid want them.
#![expect(unsafe_code, reason = "tasks write parts of rows that lie apart")]

use crate::dots::Dots;
use crate::isa::{DotKernel, Level};
use crate::packed::Layout;
use crate::tasks::{self, Output};
use backend::numerics::{quantize, quantize_rest};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Rows that a thread rounds at a time.
const ROUNDED: usize = 8;

/// The narrowest unit of columns that share an integer.
pub(crate) const UNIT: usize = 16;

/// Sums of a block of columns whose units have integers.
pub(crate) const SUMS: usize = 8;

/// What sums are told in to be multiplied as bytes.
pub(crate) const DIGIT: i32 = 64;

/// Rows of activations, rounded.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    pub(crate) all: Codes,
    /// What is left of the blocks that [`quantize_rest`] rounds again: the others have a scale of 0,
    /// and codes that may be anything.
    pub(crate) rest: Codes,
    /// Whether there are such blocks.
    any_rest: AtomicBool,
}

/// Codes, a block of columns after the other, and in each a row after the other.
#[derive(Debug, Default)]
pub(crate) struct Codes {
    /// `[blocks][rows][columns of the block]`.
    pub(crate) codes: Vec<i8>,
    /// `[blocks][rows]`.
    pub(crate) scales: Vec<f32>,
    /// The sums of the codes, `[blocks][rows]`; where units have integers `[blocks][rows][SUMS]`, one
    /// every [`UNIT`] columns.
    pub(crate) sums: Vec<i32>,
    /// `[blocks][rows]` where units have integers, else empty.
    pub(crate) digits: Vec<Digits>,
}

/// The sums of a block's units, with the sign turned, as `64 * high + low`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Digits {
    /// Of units of 16.
    pub(crate) high: [i8; SUMS],
    pub(crate) low: [i8; SUMS],
    /// Of units of 32.
    pub(crate) high_32: [i8; SUMS / 2],
    pub(crate) low_32: [i8; SUMS / 2],
}

impl Digits {
    #[inline(always)]
    fn of(sums: [i32; SUMS]) -> Self {
        // A sum is at most 32 * 127 in size.
        let high = |sum: i32| (DIGIT / 2 - sum) >> DIGIT.ilog2();
        let low = |sum: i32| -sum - DIGIT * high(sum);
        let pairs: [i32; SUMS / 2] = std::array::from_fn(|i| sums[2 * i] + sums[2 * i + 1]);
        Self {
            high: sums.map(|sum| high(sum) as i8),
            low: sums.map(|sum| low(sum) as i8),
            high_32: pairs.map(|sum| high(sum) as i8),
            low_32: pairs.map(|sum| low(sum) as i8),
        }
    }
}

impl Activations {
    /// Whether there are blocks that are rounded again.
    pub(crate) fn any_rest(&self) -> bool {
        self.any_rest.load(Ordering::Relaxed)
    }

    /// Rounds every block of every row of `x` `[rows, inputs]`.
    pub(crate) fn round(&mut self, level: Level, x: &[f32], rows: usize, layout: &Layout) {
        let (width, blocks) = (layout.width(), layout.places.len());
        let inputs = x.len() / rows.max(1);
        // What a block is padded with must be zero.
        self.all.codes.clear();
        let [all, rest] = [&mut self.all, &mut self.rest].map(|to| {
            let nested = layout.unit.is_some();
            to.codes.resize(rows * width, 0);
            to.scales.resize(rows * blocks, 0.0);
            to.sums.resize(rows * blocks * if nested { SUMS } else { 1 }, 0);
            to.digits.resize(if nested { rows * blocks } else { 0 }, Digits::default());
            Parts {
                codes: Output::new(&mut to.codes),
                scales: Output::new(&mut to.scales),
                sums: Output::new(&mut to.sums),
                digits: Output::new(&mut to.digits),
            }
        });
        let any_rest = &self.any_rest;
        any_rest.store(false, Ordering::Relaxed);
        tasks::run(
            rows.div_ceil(ROUNDED),
            || (),
            |(), index| {
                for row in index * ROUNDED..rows.min((index + 1) * ROUNDED) {
                    let x = &x[row * inputs..(row + 1) * inputs];
                    level.run_dots(Round { x, layout, row, rows, all, rest, any_rest });
                }
            },
        );
    }
}

/// Activations that are no longer needed: their memory is used again.
#[derive(Debug, Default)]
pub(crate) struct RoundedPool(Mutex<Vec<Activations>>);

impl RoundedPool {
    pub(crate) fn take(&self) -> Activations {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, activations: Activations) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(activations);
    }
}

/// [`Codes`] that are being written.
#[derive(Clone, Copy)]
struct Parts {
    codes: Output<i8>,
    scales: Output<f32>,
    sums: Output<i32>,
    digits: Output<Digits>,
}

/// A row that is being rounded.
struct Round<'a> {
    x: &'a [f32],
    layout: &'a Layout,
    row: usize,
    rows: usize,
    all: Parts,
    rest: Parts,
    any_rest: &'a AtomicBool,
}

impl DotKernel for Round<'_> {
    #[inline(always)]
    fn run<S: Dots>(self) {
        let Round { layout, row, rows, all, rest, .. } = self;
        for (index, place) in layout.places.iter().enumerate() {
            let (x, len) = (&self.x[place.block.columns.clone()], 4 * place.quads);
            let (at, spot) = (place.begin * rows + row * len, index * rows + row);
            // SAFETY: the block's codes of the row, and its numbers, lie within the vectors, and this task
            // alone has them.
            unsafe {
                let codes = std::slice::from_raw_parts_mut(all.codes.start().add(at), x.len());
                let scale = quantize(x, codes);
                *all.scales.start().add(spot) = scale;
                sum(codes, layout, all, spot);
                let others = std::slice::from_raw_parts_mut(rest.codes.start().add(at), len);
                let (others, padding) = others.split_at_mut(x.len());
                let finer = quantize_rest(x, codes, scale, others);
                *rest.scales.start().add(spot) = finer;
                if finer > 0.0 {
                    padding.fill(0);
                    sum(others, layout, rest, spot);
                    self.any_rest.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Sums the codes of a block of a row.
///
/// # Safety
/// `spot` is that block of that row among those of `to`, which nobody else writes.
#[inline(always)]
unsafe fn sum(codes: &[i8], layout: &Layout, to: Parts, spot: usize) {
    let total = |codes: &[i8]| -> i32 { codes.iter().map(|&code| i32::from(code)).sum() };
    // SAFETY: the caller's promise is passed on.
    unsafe {
        if layout.unit.is_none() {
            *to.sums.start().add(spot) = total(codes);
            return;
        }
        let mut sums = [0; SUMS];
        for (sum, codes) in sums.iter_mut().zip(codes.chunks(UNIT)) {
            *sum = total(codes);
        }
        to.sums.start().add(spot * SUMS).cast::<[i32; SUMS]>().write(sums);
        *to.digits.start().add(spot) = Digits::of(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_make_the_sums() {
        let most = UNIT as i32 * 127;
        for sum in -most..=most {
            let digits = Digits::of([sum; SUMS]);
            let value = |high: i8, low: i8| -(DIGIT * i32::from(high) + i32::from(low));
            assert_eq!(value(digits.high[3], digits.low[3]), sum);
            assert_eq!(value(digits.high_32[1], digits.low_32[1]), 2 * sum);
        }
    }
}
