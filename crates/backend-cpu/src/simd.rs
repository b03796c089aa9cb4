//! Vectors of `f32` and `f64`: the few operations the kernels are written in, and their portable
//! version.
#![expect(unsafe_code, reason = "vectors are loaded and stored through pointers")]

use half::{bf16, f16};

/// A vector of `E`.
///
/// # Safety
/// As [`Simd`].
pub(crate) trait Vector<E>: Copy {
    /// Elements a vector.
    const LANES: usize;

    /// `x` in every lane.
    unsafe fn splat(x: E) -> Self;

    /// `LANES` elements.
    unsafe fn load(at: *const E) -> Self;

    /// Writes `LANES` elements.
    unsafe fn store(self, at: *mut E);

    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;

    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;

    /// `self - b`.
    unsafe fn sub(self, b: Self) -> Self;
}

/// Vectors of one instruction set; the operations are those of vectors of `f32`.
///
/// # Safety
/// Every function must run where the instruction set is enabled (see [`crate::isa::Level::run`]);
/// loads and stores touch exactly the elements they name, of any alignment.
pub(crate) trait Simd {
    /// A vector of `f32`.
    type V: Vector<f32>;

    /// A vector of `f64`.
    type Wide: Vector<f64>;

    /// Elements a vector of `f32`; divides 16.
    const LANES: usize = Self::V::LANES;

    /// Rows of the tallest tile whose sums stay in registers.
    const ROWS: usize;

    /// The same where pairs are multiplied, which may have to be taken apart.
    const PAIR_ROWS: usize = Self::ROWS;

    /// `x` in every lane.
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: the caller's promise is passed on, here and below.
        unsafe { Self::V::splat(x) }
    }

    /// `LANES` elements.
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { Self::V::load(at) }
    }

    /// Writes `LANES` elements.
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: see above.
        unsafe { v.store(at) }
    }

    /// `a * b + c`, rounded once.
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { a.fma(b, c) }
    }

    /// `a + b`.
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { a.add(b) }
    }

    /// Of lanes that hold two bf16 each, the one in the low bits and the one in the high bits.
    unsafe fn halves(pairs: Self::V) -> [Self::V; 2];

    /// `2 * LANES` elements: those at even places, those at odd places.
    #[inline(always)]
    unsafe fn load_bf16_pair(at: *const bf16) -> [Self::V; 2] {
        // SAFETY: see above; a lane is two elements.
        unsafe { Self::halves(Self::load(at.cast())) }
    }

    /// `sum`, the products of the high bf16 of each lane, and then of the low ones, added with one
    /// rounding each. See [`backend::numerics::round_bf16`] for what they may be.
    #[inline(always)]
    unsafe fn dot_pairs(a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let ([a_low, a_high], [b_low, b_high]) = (Self::halves(a), Self::halves(b));
            Self::fma(a_low, b_low, Self::fma(a_high, b_high, sum))
        }
    }

    /// `LANES` elements.
    unsafe fn load_f16(at: *const f16) -> Self::V;

    /// `LANES` elements, given as their bits.
    unsafe fn load_bf16(at: *const u16) -> Self::V;

    /// `LANES` elements.
    unsafe fn load_i8(at: *const i8) -> Self::V;

    /// Brings the cache line of an element near, if the instruction set can say so; touches nothing.
    #[inline(always)]
    unsafe fn prefetch<E>(_at: *const E) {}
}

/// Arrays that the compiler makes vectors of, if it can.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

macro_rules! array {
    ($element:ty, $lanes:expr) => {
        impl Vector<$element> for [$element; $lanes] {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(x: $element) -> Self {
                [x; $lanes]
            }

            #[inline(always)]
            unsafe fn load(at: *const $element) -> Self {
                // SAFETY: the caller vouches for `LANES` elements.
                unsafe { at.cast::<Self>().read_unaligned() }
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut $element) {
                // SAFETY: the caller vouches for `LANES` elements.
                unsafe { at.cast::<Self>().write_unaligned(self) }
            }

            #[inline(always)]
            unsafe fn fma(self, b: Self, c: Self) -> Self {
                std::array::from_fn(|i| self[i].mul_add(b[i], c[i]))
            }

            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                std::array::from_fn(|i| self[i] + b[i])
            }

            #[inline(always)]
            unsafe fn sub(self, b: Self) -> Self {
                std::array::from_fn(|i| self[i] - b[i])
            }
        }
    };
}

array!(f32, LANES);
array!(f64, 4);

impl Simd for Portable {
    type V = [f32; LANES];

    type Wide = [f64; 4];

    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn halves(pairs: Self::V) -> [Self::V; 2] {
        [
            pairs.map(|pair| f32::from_bits(pair.to_bits() << 16)),
            pairs.map(|pair| f32::from_bits(pair.to_bits() & 0xffff_0000)),
        ]
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self::V {
        // SAFETY: the caller vouches for `LANES` elements.
        let words = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        words.map(|word| f16::from_bits(word).to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> Self::V {
        // SAFETY: the caller vouches for `LANES` elements.
        let words = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        words.map(|word| f32::from_bits(u32::from(word) << 16))
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self::V {
        // SAFETY: the caller vouches for `LANES` elements.
        let codes = unsafe { at.cast::<[i8; LANES]>().read_unaligned() };
        codes.map(f32::from)
    }
}
