//! Ops that work on rows or elements one by one: the bodies of [`backend::numerics`], compiled for
//! the instruction set and spread over rows.

use crate::isa::{Kernel, Level};
use crate::simd::Simd;
use crate::tasks;
use backend::RopeTable;
use backend::numerics::{inverse_rms, rotate, silu};
use std::ops::Range;

/// Elements that a thread takes at a time, roughly.
const SHARE: usize = 1 << 15;

/// Norms every run of `weight.len()` elements of `x` into `y`.
pub(crate) fn norm(level: Level, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let share = SHARE.next_multiple_of(weight.len());
    tasks::chunks(y, share, |index, y| {
        let x = &x[index * share..][..y.len()];
        level.run(Norm { x, weight, eps, y });
    });
}

/// Rotates the heads of the rows of each of `sequences` in `x`; `starts` as [`backend::Rope`].
pub(crate) fn rope(
    level: Level,
    table: &RopeTable,
    head_dim: usize,
    sequences: &[Range<usize>],
    starts: &[usize],
    x: &mut [f32],
    width: usize,
) {
    for (index, sequence) in sequences.iter().enumerate() {
        let start = starts.get(index).copied().unwrap_or(0);
        let rows = &mut x[sequence.start * width..sequence.end * width];
        let share = SHARE.div_ceil(width);
        tasks::chunks(rows, share * width, |index, rows| {
            level.run(Rotate { rows, width, head_dim, table, first: start + index * share });
        });
    }
}

/// `x = x * sigmoid(x)`.
pub(crate) fn activate(level: Level, x: &mut [f32]) {
    tasks::chunks(x, SHARE, |_, x| level.run(Silu { x }));
}

/// `x = x * by`.
pub(crate) fn scale(level: Level, by: f32, x: &mut [f32]) {
    tasks::chunks(x, SHARE, |_, x| level.run(Scale { by, x }));
}

/// `a = a * b`.
pub(crate) fn mul(level: Level, a: &mut [f32], b: &[f32]) {
    tasks::chunks(a, SHARE, |index, a| {
        let b = &b[index * SHARE..][..a.len()];
        level.run(Mul { a, b });
    });
}

/// `a = a + b`.
pub(crate) fn add(level: Level, a: &mut [f32], b: &[f32]) {
    tasks::chunks(a, SHARE, |index, a| {
        let b = &b[index * SHARE..][..a.len()];
        level.run(Add { a, b });
    });
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let len = self.weight.len();
        for (y, x) in self.y.chunks_exact_mut(len).zip(self.x.chunks_exact(len)) {
            let inverse = inverse_rms(x, self.eps);
            let elements = y.iter_mut().zip(x).zip(self.weight);
            elements.for_each(|((y, x), w)| *y = *x * inverse * w);
        }
    }
}

struct Rotate<'a> {
    rows: &'a mut [f32],
    width: usize,
    head_dim: usize,
    table: &'a RopeTable,
    first: usize,
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        for (index, row) in self.rows.chunks_exact_mut(self.width).enumerate() {
            let (cos, sin) = self.table.at(self.first + index);
            row.chunks_exact_mut(self.head_dim).for_each(|head| rotate(head, cos, sin));
        }
    }
}

struct Silu<'a> {
    x: &'a mut [f32],
}

impl Kernel for Silu<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.x.iter_mut().for_each(|x| *x = silu(*x));
    }
}

struct Scale<'a> {
    by: f32,
    x: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.x.iter_mut().for_each(|x| *x *= self.by);
    }
}

struct Mul<'a> {
    a: &'a mut [f32],
    b: &'a [f32],
}

impl Kernel for Mul<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.a.iter_mut().zip(self.b).for_each(|(a, b)| *a *= b);
    }
}

struct Add<'a> {
    a: &'a mut [f32],
    b: &'a [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.a.iter_mut().zip(self.b).for_each(|(a, b)| *a += b);
    }
}
