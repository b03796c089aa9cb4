//! How the codes of a panel are packed: planes of four bits, of two and of one, which shifts and masks
//! make bytes of.
#![expect(unsafe_code, reason = "vectors are loaded through pointers")]

use crate::dots::Dots;
use crate::panel::PANEL;

/// Bytes of a row of a plane: one for each of the four inputs of a quad, of 32 outputs.
pub(crate) const ROW: usize = 4 * PANEL;

/// How many bits a code takes, and where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A plane of two bits: a byte has those of four quads.
    Two,
    /// A plane of two bits and, of two rows of it, one of one bit.
    Three,
    /// A plane of four bits: a byte has those of two quads.
    Four,
    /// Four bits that say which of sixteen levels.
    Levels,
    /// Four bits and, of four rows of them, one of one bit.
    Five,
    /// Four bits and, of two rows of them, one of two bits.
    Six,
    /// Bytes.
    Eight,
}

impl Form {
    /// Those of codes that are their own levels, the narrowest first.
    pub(crate) const CODES: [Self; 6] =
        [Self::Two, Self::Three, Self::Four, Self::Five, Self::Six, Self::Eight];

    /// Bits of a code.
    pub(crate) fn bits(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Three => 3,
            Self::Four | Self::Levels => 4,
            Self::Five => 5,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }

    /// Inputs whose codes share bytes.
    pub(crate) fn columns(self) -> usize {
        match self {
            Self::Eight => 4,
            Self::Four | Self::Levels => 8,
            Self::Two | Self::Six => 16,
            Self::Three | Self::Five => 32,
        }
    }

    /// Bytes of so many inputs of a panel, a multiple of [`Self::columns`].
    pub(crate) fn bytes(self, columns: usize) -> usize {
        columns / 8 * self.bits() * PANEL + columns % 8 / 4 * ROW
    }

    /// Bytes of four inputs of a panel, on average.
    #[inline(always)]
    pub(crate) fn bytes_of_quad(self) -> usize {
        ROW * self.bits() / 8
    }

    /// Puts the code of input `column` and output `lane` among the bytes of a block, which are zero there.
    #[inline(always)]
    pub(crate) fn put(self, block: &mut [u8], lane: usize, column: usize, code: u8) {
        for Bits { byte, shift, from, mask } in self.places(lane, column).into_iter().flatten() {
            block[byte] |= (code >> from & mask) << shift;
        }
    }

    /// The code of input `column` and output `lane`.
    #[inline(always)]
    pub(crate) fn get(self, block: &[u8], lane: usize, column: usize) -> u8 {
        let places = self.places(lane, column).into_iter().flatten();
        places
            .fold(0, |code, bits| code | (block[bits.byte] >> bits.shift & bits.mask) << bits.from)
    }

    /// Where the bits of a code are, in one plane or two.
    #[inline(always)]
    fn places(self, lane: usize, column: usize) -> [Option<Bits>; 2] {
        let (step, quad) = (column / self.columns(), column % self.columns() / 4);
        let at = step * self.bytes(self.columns()) + lane * 4 + column % 4;
        let bits = |row: usize, shift: usize, from: u8, mask: u8| {
            Some(Bits { byte: at + row * ROW, shift: shift as u8, from, mask })
        };
        match self {
            Self::Two => [bits(0, 2 * quad, 0, 3), None],
            Self::Three => [bits(quad / 4, quad % 4 * 2, 0, 3), bits(2, quad, 2, 1)],
            Self::Four | Self::Levels => [bits(0, 4 * quad, 0, 15), None],
            Self::Five => [bits(quad / 2, quad % 2 * 4, 0, 15), bits(4, quad, 4, 1)],
            Self::Six => [bits(quad / 2, quad % 2 * 4, 0, 15), bits(2, 2 * quad, 4, 3)],
            Self::Eight => [bits(0, 0, 0, 255), None],
        }
    }
}

/// Some bits of a code: those from `from` on lie in a byte from `shift` on.
struct Bits {
    byte: usize,
    shift: u8,
    from: u8,
    mask: u8,
}

/// A [`Form`] as vectors of bytes.
pub(crate) trait Planes {
    /// Quads that are made at once.
    const QUADS: usize;

    /// The bytes of quads `step * QUADS..`, of which the first `QUADS` are meant. `from` is where the
    /// vector's outputs begin in the first row of the block, `table` the levels of [`Form::Levels`].
    ///
    /// # Safety
    /// The block has as many quads, and `S` is enabled.
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, table: S::I) -> [S::I; 8];
}

/// The bits of `mask`, at `from` in each byte of a vector, at `to`.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn moved<S: Dots>(bytes: S::I, from: usize, to: usize, mask: u8) -> S::I {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        let moved = match from < to {
            true => S::left(bytes, (to - from) as i32),
            false => S::right(bytes, (from - to) as i32),
        };
        S::and(moved, S::all(i32::from_le_bytes([mask << to; 4])))
    }
}

/// [`Form::Two`].
pub(crate) struct Two;

impl Planes for Two {
    const QUADS: usize = 4;

    #[inline(always)]
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, _: S::I) -> [S::I; 8] {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let bytes = S::bytes(from.add(step * ROW));
            let mut quads = [bytes; 8];
            for (quad, to) in quads.iter_mut().take(4).enumerate() {
                *to = moved::<S>(bytes, 2 * quad, 0, 3);
            }
            quads
        }
    }
}

/// [`Form::Three`].
pub(crate) struct Three;

impl Planes for Three {
    const QUADS: usize = 4;

    #[inline(always)]
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, _: S::I) -> [S::I; 8] {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let (pair, odd) = (from.add(step / 2 * 3 * ROW), step % 2);
            let bytes = S::bytes(pair.add(odd * ROW));
            let high = S::right(S::bytes(pair.add(2 * ROW)), 4 * odd as i32);
            let mut quads = [bytes; 8];
            for (quad, to) in quads.iter_mut().take(4).enumerate() {
                let low = moved::<S>(bytes, 2 * quad, 0, 3);
                *to = S::or(low, moved::<S>(high, quad, 2, 1));
            }
            quads
        }
    }
}

/// [`Form::Four`].
pub(crate) struct Four;

impl Planes for Four {
    const QUADS: usize = 2;

    #[inline(always)]
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, _: S::I) -> [S::I; 8] {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let [low, high] = S::nibbles(S::bytes(from.add(step * ROW)));
            [low, high, low, low, low, low, low, low]
        }
    }
}

/// [`Form::Levels`].
pub(crate) struct Levels;

impl Planes for Levels {
    const QUADS: usize = 2;

    #[inline(always)]
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, table: S::I) -> [S::I; 8] {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let [low, high] = S::nibbles(S::bytes(from.add(step * ROW)));
            let [low, high] = [S::lookup(table, low), S::lookup(table, high)];
            [low, high, low, low, low, low, low, low]
        }
    }
}

/// [`Form::Five`].
pub(crate) struct Five;

impl Planes for Five {
    const QUADS: usize = 8;

    #[inline(always)]
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, _: S::I) -> [S::I; 8] {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let from = from.add(step * 5 * ROW);
            let high = S::bytes(from.add(4 * ROW));
            let mut quads = [high; 8];
            for row in 0..4 {
                let [even, odd] = S::nibbles(S::bytes(from.add(row * ROW)));
                quads[2 * row] = S::or(even, moved::<S>(high, 2 * row, 4, 1));
                quads[2 * row + 1] = S::or(odd, moved::<S>(high, 2 * row + 1, 4, 1));
            }
            quads
        }
    }
}

/// [`Form::Six`].
pub(crate) struct Six;

impl Planes for Six {
    const QUADS: usize = 4;

    #[inline(always)]
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, _: S::I) -> [S::I; 8] {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let from = from.add(step * 3 * ROW);
            let high = S::bytes(from.add(2 * ROW));
            let mut quads = [high; 8];
            for row in 0..2 {
                let [even, odd] = S::nibbles(S::bytes(from.add(row * ROW)));
                quads[2 * row] = S::or(even, moved::<S>(high, 4 * row, 4, 3));
                quads[2 * row + 1] = S::or(odd, moved::<S>(high, 4 * row + 2, 4, 3));
            }
            quads
        }
    }
}

/// [`Form::Eight`].
pub(crate) struct Eight;

impl Planes for Eight {
    const QUADS: usize = 1;

    #[inline(always)]
    unsafe fn quads<S: Dots>(from: *const u8, step: usize, _: S::I) -> [S::I; 8] {
        // SAFETY: the caller's promise is passed on.
        unsafe { [S::bytes(from.add(step * ROW)); 8] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_lie_apart_and_come_back() {
        for form in Form::CODES.into_iter().chain([Form::Levels]) {
            let (columns, mask) = (3 * form.columns(), (1u32 << form.bits()) - 1);
            let mut block = vec![0; form.bytes(columns)];
            let code = |lane: usize, column: usize| ((lane * 37 + column * 11) as u32 & mask) as u8;
            for (lane, column) in (0..PANEL).flat_map(|l| (0..columns).map(move |c| (l, c))) {
                form.put(&mut block, lane, column, code(lane, column));
            }
            for (lane, column) in (0..PANEL).flat_map(|l| (0..columns).map(move |c| (l, c))) {
                assert_eq!(form.get(&block, lane, column), code(lane, column), "{form:?}");
            }
        }
    }
}
