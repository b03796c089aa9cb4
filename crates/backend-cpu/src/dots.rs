//! Integer dot products of four bytes a lane: unsigned weights times signed activations, summed in
//! `i32` without saturation, so that every instruction set gives the same sums.
#![expect(unsafe_code, reason = "vectors are loaded through pointers")]

use crate::simd::{Portable, Simd};
use half::{bf16, f16};
use tensor::DType;

/// Vectors of `i32` beside those of `f32`, of as many lanes.
///
/// # Safety
/// As [`Simd`].
pub(crate) trait Dots: Simd {
    /// A vector of `LANES` `i32`, or of `4 * LANES` bytes.
    type I: Copy;

    /// Rows of the tallest tile whose sums stay in registers.
    const TALLEST: usize;

    /// `x` in every lane.
    unsafe fn all(x: i32) -> Self::I;

    /// Four bytes in every lane.
    unsafe fn spread(at: *const i8) -> Self::I;

    /// `4 * LANES` bytes.
    unsafe fn bytes(at: *const u8) -> Self::I;

    /// The low and the high halves of bytes.
    unsafe fn nibbles(bytes: Self::I) -> [Self::I; 2];

    /// `sum` and the products of the bytes of `w`, unsigned, and of `x`, signed.
    unsafe fn dot(sum: Self::I, w: Self::I, x: Self::I) -> Self::I;

    /// The low halves of `a * b`.
    unsafe fn times(a: Self::I, b: Self::I) -> Self::I;

    /// As `f32`, rounded to the nearest.
    unsafe fn float(a: Self::I) -> Self::V;

    /// `a * b`.
    unsafe fn product(a: Self::V, b: Self::V) -> Self::V;
}

const LANES: usize = <Portable as Simd>::LANES;

impl Dots for Portable {
    type I = [i32; LANES];

    const TALLEST: usize = 2;

    #[inline(always)]
    unsafe fn all(x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn spread(at: *const i8) -> Self::I {
        // SAFETY: the caller vouches for four bytes.
        [i32::from_le_bytes(unsafe { at.cast::<[u8; 4]>().read_unaligned() }); LANES]
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8) -> Self::I {
        // SAFETY: the caller vouches for `4 * LANES` bytes.
        unsafe { at.cast::<[[u8; 4]; LANES]>().read_unaligned() }.map(i32::from_le_bytes)
    }

    #[inline(always)]
    unsafe fn nibbles(bytes: Self::I) -> [Self::I; 2] {
        [bytes.map(|x| x & 0x0f0f_0f0f), bytes.map(|x| (x >> 4) & 0x0f0f_0f0f)]
    }

    #[inline(always)]
    unsafe fn dot(sum: Self::I, w: Self::I, x: Self::I) -> Self::I {
        std::array::from_fn(|lane| {
            let (w, x) = (w[lane].to_le_bytes(), x[lane].to_le_bytes());
            let products = w.iter().zip(x).map(|(&w, x)| i32::from(w) * i32::from(x as i8));
            sum[lane] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn times(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| a[lane].wrapping_mul(b[lane]))
    }

    #[inline(always)]
    unsafe fn float(a: Self::I) -> Self::V {
        a.map(|x| x as f32)
    }

    #[inline(always)]
    unsafe fn product(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
}

/// Scales, each in the dtype that the grid has rounded it to.
pub(crate) enum Scales {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// As bits.
    Bf16(Vec<u16>),
}

/// Some of them, to be filled.
pub(crate) enum ScalesMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [u16]),
}

impl ScalesMut<'_> {
    /// Puts a scale in its place.
    pub(crate) fn set(&mut self, at: usize, scale: f32) {
        match self {
            Self::F32(scales) => scales[at] = scale,
            Self::F16(scales) => scales[at] = f16::from_f32(scale),
            Self::Bf16(scales) => scales[at] = bf16::from_f32(scale).to_bits(),
        }
    }
}

impl Scales {
    /// `count` scales of `dtype`, all zero; `None` if memory is short.
    pub(crate) fn zeroed(dtype: DType, count: usize) -> Option<Self> {
        match dtype {
            DType::F16 => tensor::zeroed(count).map(Self::F16),
            DType::BF16 => tensor::zeroed(count).map(Self::Bf16),
            _ => tensor::zeroed(count).map(Self::F32),
        }
    }

    /// Parts of so many scales, in order.
    pub(crate) fn parts(&mut self, count: usize) -> Vec<ScalesMut<'_>> {
        match self {
            Self::F32(scales) => scales.chunks_mut(count).map(ScalesMut::F32).collect(),
            Self::F16(scales) => scales.chunks_mut(count).map(ScalesMut::F16).collect(),
            Self::Bf16(scales) => scales.chunks_mut(count).map(ScalesMut::Bf16).collect(),
        }
    }

    /// Brings the scales from `at` on near; touches nothing.
    ///
    /// # Safety
    /// `S` is enabled.
    #[inline(always)]
    pub(crate) unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: a prefetch may name any address.
        unsafe {
            match self {
                Self::F32(scales) => {
                    S::prefetch(scales.as_ptr().wrapping_add(at));
                    S::prefetch(scales.as_ptr().wrapping_add(at + 16));
                }
                Self::F16(scales) => S::prefetch(scales.as_ptr().wrapping_add(at)),
                Self::Bf16(scales) => S::prefetch(scales.as_ptr().wrapping_add(at)),
            }
        }
    }

    /// `S::LANES` scales from `at` on.
    ///
    /// # Safety
    /// There are as many, and `S` is enabled.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd>(&self, at: usize) -> S::V {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            match self {
                Self::F32(scales) => S::load(scales.as_ptr().add(at)),
                Self::F16(scales) => S::load_f16(scales.as_ptr().add(at)),
                Self::Bf16(scales) => S::load_bf16(scales.as_ptr().add(at)),
            }
        }
    }
}
