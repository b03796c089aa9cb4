//! Dot products of x86-64: of bytes by VNNI where there is one, else by 16-bit products; of bf16
//! pairs.
#![expect(unsafe_code, reason = "intrinsics that need target features and take pointers")]

use crate::dots::Dots;
use crate::isa::Isa;
use crate::panel::pair;
use crate::simd::Simd;
use crate::x86::{Avx2, Avx512};
use backend::numerics::round_bf16;
use half::f16;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// [`Avx512`] with VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

/// [`Avx512`] with the dot product of bf16 pairs.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

// SAFETY of every block below: the trait's contract says that the features are enabled and that the
// pointers reach as many elements as the function names; none of the loads asks for alignment.
macro_rules! as_avx512 {
    ($set:ty $(, $own:item)?) => {
        impl Simd for $set {
            type V = <Avx512 as Simd>::V;

            type Wide = <Avx512 as Simd>::Wide;

            const ROWS: usize = Avx512::ROWS;

            #[inline(always)]
            unsafe fn halves(pairs: Self::V) -> [Self::V; 2] {
                // SAFETY: see above.
                unsafe { Avx512::halves(pairs) }
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

            $($own)?
        }
    };
}

as_avx512!(Vnni);
as_avx512!(
    Bf16,
    #[inline(always)]
    unsafe fn dot_pairs(a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        // SAFETY: see above; the operands are 32 bf16 each.
        unsafe {
            let [a, b] = [a, b].map(|pairs| std::mem::transmute::<__m512, __m512bh>(pairs));
            _mm512_dpbf16_ps(sum, a, b)
        }
    }
);

/// Whether the machine's dot product of pairs is two fused multiply-adds, the high ones first: so it
/// is described, and so it must be for the bits to be those of other machines.
pub(crate) fn pairs_are_fused() -> bool {
    static FUSED: OnceLock<bool> = OnceLock::new();
    *FUSED.get_or_init(|| {
        if !std::is_x86_feature_detected!("avx512bf16") || !Isa::Avx512Vnni.is_available() {
            return false;
        }
        // SAFETY: the features were found.
        unsafe { try_pairs() }
    })
}

/// Compares sums of a few thousand pairs of all magnitudes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn try_pairs() -> bool {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u32
    };
    let mut sums = [0.0f32; 16];
    for _ in 0..512 {
        let [a, b]: [[[f32; 2]; 16]; 2] = std::array::from_fn(|_| {
            std::array::from_fn(|_| {
                std::array::from_fn(|_| {
                    let bits = next();
                    // Exponents from -45 to 18.
                    let exponent = 82 + (bits >> 8 & 63);
                    round_bf16(f32::from_bits(bits & 0x80ff_0000 | exponent << 23))
                })
            })
        });
        let pairs = |x: &[[f32; 2]; 16]| x.map(|[low, high]| pair(low, high));
        let mut got = sums;
        // SAFETY: the arrays have 16 elements.
        unsafe {
            let (a, b) = (pairs(&a), pairs(&b));
            let vector = Bf16::dot_pairs(
                Bf16::load(a.as_ptr()),
                Bf16::load(b.as_ptr()),
                Bf16::load(got.as_ptr()),
            );
            Bf16::store(got.as_mut_ptr(), vector);
        }
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum = a[lane][1].mul_add(b[lane][1], *sum);
            *sum = a[lane][0].mul_add(b[lane][0], *sum);
        }
        if got.map(f32::to_bits) != sums.map(f32::to_bits) {
            return false;
        }
    }
    true
}

/// Everything but the dot product, over vectors of one width.
macro_rules! integers {
    ($vector:ty, $tallest:expr,
     [$set1:ident, $load:ident, $and:ident, $shift:ident, $mul:ident, $float:ident, $mul_ps:ident],
     [$store:ident, $widen:ident, $load_narrow:ident, $broadcast:ident, $shuffle:ident, $or:ident,
      $left:ident, $right:ident, $add:ident]) => {
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
        unsafe fn put(at: *mut u8, bytes: Self::I) {
            // SAFETY: see above.
            unsafe { $store(at.cast(), bytes) }
        }

        #[inline(always)]
        unsafe fn widen(at: *const i8) -> Self::I {
            // SAFETY: see above.
            unsafe { $widen($load_narrow(at.cast())) }
        }

        #[inline(always)]
        unsafe fn table(of: &[u8; 16]) -> Self::I {
            // SAFETY: see above.
            unsafe { $broadcast(_mm_loadu_si128(of.as_ptr().cast())) }
        }

        #[inline(always)]
        unsafe fn lookup(table: Self::I, places: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { $shuffle(table, places) }
        }

        #[inline(always)]
        unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { $and(a, b) }
        }

        #[inline(always)]
        unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { $or(a, b) }
        }

        #[inline(always)]
        unsafe fn left(a: Self::I, by: i32) -> Self::I {
            // SAFETY: see above.
            unsafe { $left(a, $set1(by)) }
        }

        #[inline(always)]
        unsafe fn right(a: Self::I, by: i32) -> Self::I {
            // SAFETY: see above.
            unsafe { $right(a, $set1(by)) }
        }

        #[inline(always)]
        unsafe fn sum(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { $add(a, b) }
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
        ],
        [
            _mm512_storeu_si512,
            _mm512_cvtepi8_epi32,
            _mm_loadu_si128,
            _mm512_broadcast_i32x4,
            _mm512_shuffle_epi8,
            _mm512_or_si512,
            _mm512_sllv_epi32,
            _mm512_srlv_epi32,
            _mm512_add_epi32
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
        ],
        [
            _mm512_storeu_si512,
            _mm512_cvtepi8_epi32,
            _mm_loadu_si128,
            _mm512_broadcast_i32x4,
            _mm512_shuffle_epi8,
            _mm512_or_si512,
            _mm512_sllv_epi32,
            _mm512_srlv_epi32,
            _mm512_add_epi32
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
        ],
        [
            _mm256_storeu_si256,
            _mm256_cvtepi8_epi32,
            _mm_loadl_epi64,
            _mm256_broadcastsi128_si256,
            _mm256_shuffle_epi8,
            _mm256_or_si256,
            _mm256_sllv_epi32,
            _mm256_srlv_epi32,
            _mm256_add_epi32
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
