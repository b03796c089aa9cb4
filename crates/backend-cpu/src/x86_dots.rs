//! Integer dot products of x86-64: VNNI where there is one, else 16-bit products.
#![expect(unsafe_code, reason = "intrinsics that need target features and take pointers")]

use crate::dots::Dots;
use crate::simd::Simd;
use crate::x86::{Avx2, Avx512};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// [`Avx512`] with VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

// SAFETY of every block below: the trait's contract says that the features are enabled and that the
// pointers reach as many elements as the function names; none of the loads asks for alignment.
impl Simd for Vnni {
    type V = <Avx512 as Simd>::V;

    type Wide = <Avx512 as Simd>::Wide;

    const ROWS: usize = Avx512::ROWS;

    #[inline(always)]
    unsafe fn load_bf16_pair(at: *const bf16) -> [Self::V; 2] {
        // SAFETY: see above.
        unsafe { Avx512::load_bf16_pair(at) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self::V {
        // SAFETY: see above.
        unsafe { Avx512::load_f16(at) }
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> Self::V {
        // SAFETY: see above.
        unsafe { Avx512::load_bf16(at) }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self::V {
        // SAFETY: see above.
        unsafe { Avx512::load_i8(at) }
    }

    #[inline(always)]
    unsafe fn prefetch<E>(at: *const E) {
        // SAFETY: see above.
        unsafe { Avx512::prefetch(at) }
    }
}

/// Everything but the dot product, over vectors of one width.
macro_rules! integers {
    ($vector:ty, $tallest:expr, [$set1:ident, $load:ident, $and:ident, $shift:ident, $mul:ident, $float:ident, $mul_ps:ident]) => {
        type I = $vector;

        const TALLEST: usize = $tallest;

        #[inline(always)]
        unsafe fn all(x: i32) -> Self::I {
            // SAFETY: see above.
            unsafe { $set1(x) }
        }

        #[inline(always)]
        unsafe fn spread(at: *const i8) -> Self::I {
            // SAFETY: see above.
            unsafe { $set1(at.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn bytes(at: *const u8) -> Self::I {
            // SAFETY: see above.
            unsafe { $load(at.cast()) }
        }

        #[inline(always)]
        unsafe fn nibbles(bytes: Self::I) -> [Self::I; 2] {
            // SAFETY: see above.
            unsafe {
                let low = $set1(0x0f0f_0f0f);
                [$and(bytes, low), $and($shift::<4>(bytes), low)]
            }
        }

        #[inline(always)]
        unsafe fn times(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { $mul(a, b) }
        }

        #[inline(always)]
        unsafe fn float(a: Self::I) -> Self::V {
            // SAFETY: see above.
            unsafe { $float(a) }
        }

        #[inline(always)]
        unsafe fn product(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { $mul_ps(a, b) }
        }
    };
}

/// Products of bytes at even and at odd places in 16 bits, summed in pairs: nothing saturates.
macro_rules! widened {
    ([$set1_16:ident, $and:ident, $srli:ident, $srai:ident, $slli:ident, $madd:ident,
      $add:ident]) => {
        #[inline(always)]
        unsafe fn dot(sum: Self::I, w: Self::I, x: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe {
                let even = $madd($and(w, $set1_16(0xff)), $srai::<8>($slli::<8>(x)));
                let odd = $madd($srli::<8>(w), $srai::<8>(x));
                $add(sum, $add(even, odd))
            }
        }
    };
}

impl Dots for Vnni {
    integers!(
        __m512i,
        12,
        [
            _mm512_set1_epi32,
            _mm512_loadu_si512,
            _mm512_and_si512,
            _mm512_srli_epi32,
            _mm512_mullo_epi32,
            _mm512_cvtepi32_ps,
            _mm512_mul_ps
        ]
    );

    #[inline(always)]
    unsafe fn dot(sum: Self::I, w: Self::I, x: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }
}

impl Dots for Avx512 {
    integers!(
        __m512i,
        8,
        [
            _mm512_set1_epi32,
            _mm512_loadu_si512,
            _mm512_and_si512,
            _mm512_srli_epi32,
            _mm512_mullo_epi32,
            _mm512_cvtepi32_ps,
            _mm512_mul_ps
        ]
    );

    widened!([
        _mm512_set1_epi16,
        _mm512_and_si512,
        _mm512_srli_epi16,
        _mm512_srai_epi16,
        _mm512_slli_epi16,
        _mm512_madd_epi16,
        _mm512_add_epi32
    ]);
}

impl Dots for Avx2 {
    integers!(
        __m256i,
        4,
        [
            _mm256_set1_epi32,
            _mm256_loadu_si256,
            _mm256_and_si256,
            _mm256_srli_epi32,
            _mm256_mullo_epi32,
            _mm256_cvtepi32_ps,
            _mm256_mul_ps
        ]
    );

    widened!([
        _mm256_set1_epi16,
        _mm256_and_si256,
        _mm256_srli_epi16,
        _mm256_srai_epi16,
        _mm256_slli_epi16,
        _mm256_madd_epi16,
        _mm256_add_epi32
    ]);
}
