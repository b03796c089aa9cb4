//! The vectors of aarch64: NEON, which every such CPU has, and its integer dot products.
//!
//! The products of bytes and the conversion of `f16` are not among the stable intrinsics; they are
//! written as the one instruction each that they are.
#![expect(unsafe_code, reason = "intrinsics and instructions that need features and take pointers")]

use crate::dots::Dots;
use crate::simd::{Simd, Vector};
use half::f16;
use std::arch::aarch64::*;
use std::arch::asm;

/// 4 lanes, 32 registers; products of bytes are widened.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// [`Neon`] with the dot product of signed bytes (`FEAT_DotProd`).
#[derive(Clone, Copy)]
pub(crate) struct DotProd;

/// [`Neon`] with the dot product of unsigned and signed bytes (`FEAT_I8MM`).
#[derive(Clone, Copy)]
pub(crate) struct I8mm;

// SAFETY of every block below: the trait's contract says that the features are enabled and that the
// pointers reach as many elements as the function names; no load asks for more than the alignment
// of its element, which is there or is read as bytes.
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
                unsafe { $fma(c, self, b) }
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

vector!(float32x4_t, f32, 4, [vdupq_n_f32, vld1q_f32, vst1q_f32, vfmaq_f32, vaddq_f32, vsubq_f32]);
vector!(float64x2_t, f64, 2, [vdupq_n_f64, vld1q_f64, vst1q_f64, vfmaq_f64, vaddq_f64, vsubq_f64]);

/// The vectors are the same, whatever multiplies bytes.
macro_rules! simd {
    ($set:ty) => {
        impl Simd for $set {
            type V = float32x4_t;

            type Wide = float64x2_t;

            const ROWS: usize = 12;

            #[inline(always)]
            unsafe fn halves(pairs: Self::V) -> [Self::V; 2] {
                // SAFETY: see above.
                unsafe {
                    let words = vreinterpretq_u32_f32(pairs);
                    let odd = vandq_u32(words, vdupq_n_u32(0xffff_0000));
                    [
                        vreinterpretq_f32_u32(vshlq_n_u32::<16>(words)),
                        vreinterpretq_f32_u32(odd),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn load_f16(at: *const f16) -> Self::V {
                // SAFETY: see above.
                unsafe {
                    let halves = vld1_u8(at.cast());
                    let wide: float32x4_t;
                    asm!(
                        "fcvtl {wide:v}.4s, {halves:v}.4h",
                        wide = lateout(vreg) wide,
                        halves = in(vreg) halves,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                    wide
                }
            }

            #[inline(always)]
            unsafe fn load_bf16(at: *const u16) -> Self::V {
                // SAFETY: see above.
                unsafe {
                    let words = vreinterpret_u16_u8(vld1_u8(at.cast()));
                    vreinterpretq_f32_u32(vshll_n_u16::<16>(words))
                }
            }

            #[inline(always)]
            unsafe fn load_i8(at: *const i8) -> Self::V {
                // SAFETY: see above; four bytes are read, into the low half of a vector.
                unsafe {
                    let four = vcreate_s8(u64::from(at.cast::<u32>().read_unaligned()));
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(four))))
                }
            }

            #[inline(always)]
            unsafe fn prefetch<E>(at: *const E) {
                // SAFETY: a hint, which reads nothing.
                unsafe {
                    asm!(
                        "prfm pldl1keep, [{at}]",
                        at = in(reg) at,
                        options(readonly, nostack, preserves_flags),
                    );
                }
            }
        }
    };
}

simd!(Neon);
simd!(DotProd);
simd!(I8mm);

/// Everything but the dot product.
macro_rules! integers {
    () => {
        type I = int32x4_t;

        const TALLEST: usize = 8;

        #[inline(always)]
        unsafe fn all(x: i32) -> Self::I {
            // SAFETY: see above.
            unsafe { vdupq_n_s32(x) }
        }

        #[inline(always)]
        unsafe fn spread(at: *const i8) -> Self::I {
            // SAFETY: see above.
            unsafe { vdupq_n_s32(at.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn bytes(at: *const u8) -> Self::I {
            // SAFETY: see above.
            unsafe { vreinterpretq_s32_u8(vld1q_u8(at)) }
        }

        #[inline(always)]
        unsafe fn put(at: *mut u8, bytes: Self::I) {
            // SAFETY: see above.
            unsafe { vst1q_u8(at, vreinterpretq_u8_s32(bytes)) }
        }

        #[inline(always)]
        unsafe fn widen(at: *const i8) -> Self::I {
            // SAFETY: see above; four bytes are read, into the low half of a vector.
            unsafe {
                let four = vcreate_s8(u64::from(at.cast::<u32>().read_unaligned()));
                vmovl_s16(vget_low_s16(vmovl_s8(four)))
            }
        }

        #[inline(always)]
        unsafe fn table(of: &[u8; 16]) -> Self::I {
            // SAFETY: see above.
            unsafe { vreinterpretq_s32_u8(vld1q_u8(of.as_ptr())) }
        }

        #[inline(always)]
        unsafe fn lookup(table: Self::I, places: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe {
                let (table, places) = (vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(places));
                vreinterpretq_s32_u8(vqtbl1q_u8(table, places))
            }
        }

        #[inline(always)]
        unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { vandq_s32(a, b) }
        }

        #[inline(always)]
        unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { vorrq_s32(a, b) }
        }

        #[inline(always)]
        unsafe fn left(a: Self::I, by: i32) -> Self::I {
            // SAFETY: see above.
            unsafe { vshlq_s32(a, vdupq_n_s32(by)) }
        }

        #[inline(always)]
        unsafe fn right(a: Self::I, by: i32) -> Self::I {
            // SAFETY: see above; what moves up by less than nothing moves down.
            unsafe {
                let bits = vreinterpretq_u32_s32(a);
                vreinterpretq_s32_u32(vshlq_u32(bits, vdupq_n_s32(-by)))
            }
        }

        #[inline(always)]
        unsafe fn sum(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { vaddq_s32(a, b) }
        }

        #[inline(always)]
        unsafe fn nibbles(bytes: Self::I) -> [Self::I; 2] {
            // SAFETY: see above.
            unsafe {
                let bytes = vreinterpretq_u8_s32(bytes);
                let low = vandq_u8(bytes, vdupq_n_u8(0x0f));
                [vreinterpretq_s32_u8(low), vreinterpretq_s32_u8(vshrq_n_u8::<4>(bytes))]
            }
        }

        #[inline(always)]
        unsafe fn times(a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: see above.
            unsafe { vmulq_s32(a, b) }
        }

        #[inline(always)]
        unsafe fn float(a: Self::I) -> Self::V {
            // SAFETY: see above.
            unsafe { vcvtq_f32_s32(a) }
        }

        #[inline(always)]
        unsafe fn product(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: see above.
            unsafe { vmulq_f32(a, b) }
        }
    };
}

impl Dots for Neon {
    integers!();

    /// Bytes as 16 bits, whose products are whole in 32; two lanes of them make one.
    #[inline(always)]
    unsafe fn dot(sum: Self::I, w: Self::I, x: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let (w, x) = (vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(x));
            let w_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(w)));
            let w_high = vreinterpretq_s16_u16(vmovl_high_u8(w));
            let (x_low, x_high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            let pairs = [
                vmull_s16(vget_low_s16(w_low), vget_low_s16(x_low)),
                vmull_high_s16(w_low, x_low),
                vmull_s16(vget_low_s16(w_high), vget_low_s16(x_high)),
                vmull_high_s16(w_high, x_high),
            ];
            // Each vector has the four products of one lane of the sums.
            let low = vpaddq_s32(pairs[0], pairs[1]);
            let high = vpaddq_s32(pairs[2], pairs[3]);
            vaddq_s32(sum, vpaddq_s32(low, high))
        }
    }
}

impl Dots for DotProd {
    integers!();

    /// `w` less 128 is signed; what that takes away is 128 times the sum of `x`.
    #[inline(always)]
    unsafe fn dot(sum: Self::I, w: Self::I, x: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let less = veorq_s32(w, vdupq_n_s32(i32::from_le_bytes([0x80; 4])));
            let of_x = sdot(vdupq_n_s32(0), vdupq_n_s32(0x0101_0101), x);
            sdot(vaddq_s32(sum, vshlq_n_s32::<7>(of_x)), less, x)
        }
    }
}

/// `sum` and the products of the bytes of `a` and `b`, both signed.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: see the caller's promise.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inlateout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl Dots for I8mm {
    integers!();

    #[inline(always)]
    unsafe fn dot(mut sum: Self::I, w: Self::I, x: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe {
            asm!(
                ".arch_extension i8mm",
                "usdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inlateout(vreg) sum,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}
