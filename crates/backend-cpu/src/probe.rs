//! Work of a known size, to measure what a machine allows: reading memory, multiply-adds, integer
//! dot products, on every thread of the current pool.
#![expect(unsafe_code, reason = "vectors are made in the instruction set that is measured")]

use crate::dots::Dots;
use crate::isa::{DotKernel, Kernel, Level};
use crate::simd::Simd;
use crate::tasks;
use crate::{Cpu, Isa};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words that a thread reads at a time.
const SHARE: usize = 1 << 17;

/// Sums that do not wait for each other: enough for two units of four cycles.
const SUMS: usize = 12;

impl Cpu {
    /// Reads every word; returns their sum. With vectors of half the width if `narrow`, where these are of
    /// 64 bytes: it depends on the pace of memory which of the two loops is faster, by up to a tenth.
    pub fn read(&self, words: &[u64], narrow: bool) -> u64 {
        let wide = matches!(self.isa(), Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512);
        let half = if narrow && wide { Level::new(Isa::Avx2) } else { None };
        let level = half.unwrap_or(self.level);
        let total = AtomicU64::new(0);
        let shares = words.chunks(SHARE).collect::<Vec<_>>();
        tasks::run(
            shares.len(),
            || (),
            |(), index| {
                let mut sum = 0;
                level.run(Read { words: shares[index], sum: &mut sum });
                total.fetch_add(sum, Ordering::Relaxed);
            },
        );
        total.into_inner()
    }

    /// Does `rounds` of `f32` multiply-adds on every thread; returns the operations, two each.
    pub fn multiply_f32(&self, rounds: usize) -> f64 {
        let lanes = AtomicU64::new(0);
        let threads = rayon::current_num_threads();
        tasks::run(threads, || (), |(), _| self.level.run(Multiply { rounds, lanes: &lanes }));
        (threads * rounds * SUMS * 2) as f64 * lanes.into_inner() as f64
    }

    /// Does `rounds` of `bf16` dot products, summed in `f32`, on every thread; returns the
    /// operations, two a product. `None` if the instruction set has no such products.
    pub fn multiply_bf16(&self, rounds: usize) -> Option<f64> {
        let wide = matches!(self.isa(), Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512);
        if !wide || !has_bf16() {
            return None;
        }
        let threads = rayon::current_num_threads();
        // SAFETY: the machine was found to have the features.
        tasks::run(threads, || (), |(), _| unsafe { dot_bf16(rounds) });
        Some((threads * rounds * SUMS * 2 * 32) as f64)
    }

    /// Does `rounds` of int8 dot products on every thread; returns the operations, two a product.
    pub fn multiply_int8(&self, rounds: usize) -> f64 {
        let lanes = AtomicU64::new(0);
        let threads = rayon::current_num_threads();
        tasks::run(threads, || (), |(), _| self.level.run_dots(Dot { rounds, lanes: &lanes }));
        (threads * rounds * SUMS * 8) as f64 * lanes.into_inner() as f64
    }
}

struct Read<'a> {
    words: &'a [u64],
    sum: &'a mut u64,
}

impl Kernel for Read<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        *self.sum = self.words.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word));
    }
}

struct Multiply<'a> {
    rounds: usize,
    lanes: &'a AtomicU64,
}

impl Kernel for Multiply<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        self.lanes.store(S::LANES as u64, Ordering::Relaxed);
        // SAFETY: registers only; `S` is enabled.
        unsafe {
            let (a, b) = (S::splat(black_box(0.5)), S::splat(black_box(1.0)));
            let mut sums = [S::splat(0.0); SUMS];
            for _ in 0..self.rounds {
                sums.iter_mut().for_each(|sum| *sum = S::fma(*sum, a, b));
            }
            black_box(sums);
        }
    }
}

struct Dot<'a> {
    rounds: usize,
    lanes: &'a AtomicU64,
}

impl DotKernel for Dot<'_> {
    #[inline(always)]
    fn run<S: Dots>(self) {
        self.lanes.store(S::LANES as u64, Ordering::Relaxed);
        // SAFETY: registers only; `S` is enabled.
        unsafe {
            let (w, x) = (S::all(black_box(0x0102_0304)), S::all(black_box(0x0101_0101)));
            let mut sums = [S::all(0); SUMS];
            for _ in 0..self.rounds {
                sums.iter_mut().for_each(|sum| *sum = S::dot(*sum, w, x));
            }
            black_box(sums);
        }
    }
}

/// Whether the machine multiplies pairs of `bf16` in vectors of 512 bits.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16(rounds: usize) {
    use std::arch::x86_64::{__m512bh, _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_set1_ps};
    let pairs = |x: f32| -> __m512bh {
        let half = _mm512_cvtneps_pbh(_mm512_set1_ps(black_box(x)));
        // SAFETY: any 64 bytes are 32 bf16.
        unsafe { std::mem::transmute([half, half]) }
    };
    let (a, b) = (pairs(0.5), pairs(1.0));
    let mut sums = [_mm512_set1_ps(0.0); SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, a, b));
    }
    black_box(sums);
}

/// Never entered: no such machine has the products.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn dot_bf16(_: usize) {}
