//! Integer dot products of four bytes a lane: unsigned weights times signed activations, summed in
//! `i32` without saturation, so that every instruction set gives the same sums.
#![expect(unsafe_code, reason = "vectors are loaded through pointers")]

use crate::simd::{Portable, Simd};

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

    /// Writes `4 * LANES` bytes.
    unsafe fn put(at: *mut u8, bytes: Self::I);

    /// `LANES` bytes of a sign, each a lane.
    unsafe fn widen(at: *const i8) -> Self::I;

    /// Sixteen bytes for [`Self::lookup`].
    unsafe fn table(of: &[u8; 16]) -> Self::I;

    /// The byte of a table that each byte, below 16, is the place of.
    unsafe fn lookup(table: Self::I, places: Self::I) -> Self::I;

    /// The low and the high halves of bytes.
    unsafe fn nibbles(bytes: Self::I) -> [Self::I; 2];

    /// The bits of both.
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;

    /// The bits of either.
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;

    /// The bits of each lane moved up by `by`, at most 31.
    unsafe fn left(a: Self::I, by: i32) -> Self::I;

    /// The bits of each lane moved down by `by`, at most 31.
    unsafe fn right(a: Self::I, by: i32) -> Self::I;

    /// `a + b`.
    unsafe fn sum(a: Self::I, b: Self::I) -> Self::I;

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
    unsafe fn put(at: *mut u8, bytes: Self::I) {
        // SAFETY: the caller vouches for `4 * LANES` bytes.
        unsafe { at.cast::<[[u8; 4]; LANES]>().write_unaligned(bytes.map(i32::to_le_bytes)) }
    }

    #[inline(always)]
    unsafe fn widen(at: *const i8) -> Self::I {
        // SAFETY: the caller vouches for `LANES` bytes.
        unsafe { at.cast::<[i8; LANES]>().read_unaligned() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn table(of: &[u8; 16]) -> Self::I {
        std::array::from_fn(|lane| {
            let at = lane % 4 * 4;
            i32::from_le_bytes([of[at], of[at + 1], of[at + 2], of[at + 3]])
        })
    }

    #[inline(always)]
    unsafe fn lookup(table: Self::I, places: Self::I) -> Self::I {
        places.map(|four| {
            i32::from_le_bytes(four.to_le_bytes().map(|place| {
                let place = usize::from(place & 15);
                table[place / 4].to_le_bytes()[place % 4]
            }))
        })
    }

    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| a[lane] & b[lane])
    }

    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| a[lane] | b[lane])
    }

    #[inline(always)]
    unsafe fn left(a: Self::I, by: i32) -> Self::I {
        a.map(|x| x << by)
    }

    #[inline(always)]
    unsafe fn right(a: Self::I, by: i32) -> Self::I {
        a.map(|x| (x as u32 >> by) as i32)
    }

    #[inline(always)]
    unsafe fn sum(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
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
