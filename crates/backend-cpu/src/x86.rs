//! The vectors of x86-64: AVX-512 and AVX2.
#![expect(unsafe_code, reason = "intrinsics that need target features and take pointers")]

use crate::simd::{Simd, Vector};
use half::f16;
use std::arch::x86_64::*;

/// 16 lanes, 32 registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// 8 lanes, 16 registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// The bits of the odd words of a vector.
const ODD: i32 = 0xffff_0000_u32 as i32;

// SAFETY of every block below: the trait's contract says that the features are enabled and that the
// pointers reach as many elements as the function names; none of the loads asks for alignment.
macro_rules! vector {
    ($vector:ty, $element:ty, $lanes:expr,
     [$set1:ident, $load:ident, $store:ident, $fma:ident, $add:ident, $sub:ident]) => {
        impl Vector<$element> for $vector {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(x: $element) -> Self {
                // SAFETY: see above.
                unsafe { $set1(x) }
            }

            #[inline(always)]
            unsafe fn load(at: *const $element) -> Self {
                // SAFETY: see above.
                unsafe { $load(at) }
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut $element) {
                // SAFETY: see above.
                unsafe { $store(at, self) }
            }

            #[inline(always)]
            unsafe fn fma(self, b: Self, c: Self) -> Self {
                // SAFETY: see above.
                unsafe { $fma(self, b, c) }
            }

            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                // SAFETY: see above.
                unsafe { $add(self, b) }
            }

            #[inline(always)]
            unsafe fn sub(self, b: Self) -> Self {
                // SAFETY: see above.
                unsafe { $sub(self, b) }
            }
        }
    };
}

vector!(
    __m512,
    f32,
    16,
    [
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_sub_ps
    ]
);
vector!(
    __m512d,
    f64,
    8,
    [
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd,
        _mm512_add_pd,
        _mm512_sub_pd
    ]
);
vector!(
    __m256,
    f32,
    8,
    [
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_sub_ps
    ]
);
vector!(
    __m256d,
    f64,
    4,
    [
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd,
        _mm256_add_pd,
        _mm256_sub_pd
    ]
);

impl Simd for Avx512 {
    type V = __m512;

    type Wide = __m512d;

    const ROWS: usize = 12;

    #[inline(always)]
    unsafe fn halves(pairs: Self::V) -> [Self::V; 2] {
        // SAFETY: see above.
        unsafe {
            let words = _mm512_castps_si512(pairs);
            let even = _mm512_slli_epi32::<16>(words);
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(ODD));
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn prefetch<E>(at: *const E) {
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

impl Simd for Avx2 {
    type V = __m256;

    type Wide = __m256d;

    const ROWS: usize = 6;

    const PAIR_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn halves(pairs: Self::V) -> [Self::V; 2] {
        // SAFETY: see above.
        unsafe {
            let words = _mm256_castps_si256(pairs);
            let even = _mm256_slli_epi32::<16>(words);
            let odd = _mm256_and_si256(words, _mm256_set1_epi32(ODD));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn prefetch<E>(at: *const E) {
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
