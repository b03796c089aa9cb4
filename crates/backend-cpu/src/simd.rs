//! Vectors of `f32`: the few operations the kernels are written in, and their portable version.
#![expect(unsafe_code, reason = "vectors are loaded and stored through pointers")]

use half::{bf16, f16};

/// Vectors of one instruction set.
///
/// # Safety
/// Every function must run where the instruction set is enabled (see [`crate::isa::Level::run`]);
/// loads and stores touch exactly the elements they name, of any alignment.
pub(crate) trait Simd {
    /// A vector.
    type V: Copy;

    /// Elements a vector; divides 16.
    const LANES: usize;

    /// Rows of the tallest tile whose sums stay in registers.
    const ROWS: usize;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self::V;

    /// `LANES` elements.
    unsafe fn load(at: *const f32) -> Self::V;

    /// Writes `LANES` elements.
    unsafe fn store(at: *mut f32, v: Self::V);

    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;

    /// `2 * LANES` elements: those at even places, those at odd places.
    unsafe fn load_bf16_pair(at: *const bf16) -> [Self::V; 2];

    /// `LANES` elements.
    unsafe fn load_f16(at: *const f16) -> Self::V;
}

/// Arrays that the compiler makes vectors of, if it can.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

impl Simd for Portable {
    type V = [f32; LANES];

    const LANES: usize = LANES;

    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: the caller vouches for `LANES` elements.
        unsafe { at.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for `LANES` elements.
        unsafe { at.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn load_bf16_pair(at: *const bf16) -> [Self::V; 2] {
        // SAFETY: the caller vouches for `2 * LANES` elements.
        let words = unsafe { at.cast::<[u16; 2 * LANES]>().read_unaligned() };
        let wide = |word: u16| f32::from_bits(u32::from(word) << 16);
        [
            std::array::from_fn(|i| wide(words[2 * i])),
            std::array::from_fn(|i| wide(words[2 * i + 1])),
        ]
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self::V {
        // SAFETY: the caller vouches for `LANES` elements.
        let words = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        words.map(|word| f16::from_bits(word).to_f32())
    }
}
