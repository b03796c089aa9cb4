//! The blocks whose codes are points of a table: `IQ1`, `IQ2` and `IQ3` name a point for four or eight
//! elements, the ternary types five elements by one byte. They are read, not written.
//!
//! A point's elements are small integers, so once read a block is codes of a byte each under scales of units, as
//! any other. Where things lie is ggml's `ggml-common.h` and `ggml-quants.c`.

use half::f16;
use ir::BlockKind;

/// The points of all tables, one after the other; `tests/interop/make_lattices.py` has them of llama.cpp's
/// reader. Each is 16 bits, little-endian: eight elements of two bits, or four of three.
static POINTS: &[u8; 9216] = include_bytes!("lattices.bin");

/// A table of points.
struct Table {
    /// Points before it.
    first: usize,
    /// Bits of an element.
    bits: u32,
    /// What an element's bits stand for.
    values: [i8; 8],
}

const IQ2: [i8; 8] = [8, 25, 43, 0, 0, 0, 0, 0];

static IQ2_XXS: Table = Table { first: 0, bits: 2, values: IQ2 };
static IQ2_XS: Table = Table { first: 256, bits: 2, values: IQ2 };
static IQ2_S: Table = Table { first: 768, bits: 2, values: IQ2 };
static IQ3_XXS: Table = Table { first: 1792, bits: 3, values: [4, 12, 20, 28, 36, 44, 52, 62] };
static IQ3_S: Table = Table { first: 2048, bits: 3, values: [1, 3, 5, 7, 9, 11, 13, 15] };
/// In eighths, before they are moved by one.
static IQ1: Table = Table { first: 2560, bits: 2, values: [-8, 0, 8, 0, 0, 0, 0, 0] };

impl Table {
    /// The elements of point `index`, eight or four.
    fn point(&self, index: usize, codes: &mut [i8]) {
        let at = 2 * (self.first + index);
        let word = u16::from_le_bytes([POINTS[at], POINTS[at + 1]]);
        for (j, code) in codes.iter_mut().enumerate() {
            *code =
                self.values[usize::from(word >> (self.bits * j as u32) & ((1 << self.bits) - 1))];
        }
    }
}

/// A block of 256, once read.
pub(super) struct Block {
    /// What the scales are multiplied by.
    pub outer: f32,
    pub codes: [i8; 256],
    /// The codes of the scales; as many count as there are units.
    pub scales: [i8; 16],
}

fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn long(block: &[u8], at: usize) -> u32 {
    u32::from(word(block, at)) | u32::from(word(block, at + 2)) << 16
}

/// The low or the high half of a byte.
fn half_byte(block: &[u8], at: usize, high: usize) -> i8 {
    (block[at] >> (4 * high) & 15) as i8
}

/// The signs of eight elements, of the first seven: an even number are set.
fn signs(seven: u32) -> u8 {
    let seven = seven & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// Turns the sign of the elements whose bit is set.
fn turn(codes: &mut [i8], signs: u8) {
    for (j, code) in codes.iter_mut().enumerate() {
        *code = if signs >> j & 1 == 1 { -*code } else { *code };
    }
}

/// A block of `kind`; `None` if codes of it are stored each by itself.
pub(super) fn decode(kind: BlockKind, block: &[u8]) -> Option<Block> {
    let mut read = Block { outer: 0.0, codes: [0; 256], scales: [0; 16] };
    let at = match kind {
        BlockKind::Tq1_0 => ternary(block, &mut read.codes),
        BlockKind::Tq2_0 => twos(block, &mut read.codes),
        _ => {
            for (eight, codes) in read.codes.chunks_exact_mut(8).enumerate() {
                let (unit, scale) = eighth(kind, block, eight, codes)?;
                read.scales[unit] = scale;
            }
            if kind == BlockKind::Iq1M { None } else { Some(0) }
        }
    };
    let half = at.map_or_else(|| spread(block), |at| word(block, at));
    read.outer = f16::from_bits(half).to_f32();
    Some(read)
}

/// Reads elements `8 eight` on; gives their unit and the code of its scale.
fn eighth(kind: BlockKind, block: &[u8], eight: usize, codes: &mut [i8]) -> Option<(usize, i8)> {
    // Of 32 elements, which, and which eight of them.
    let (group, l) = (eight / 4, eight % 4);
    let low = |at: usize| usize::from(block[at]);
    Some(match kind {
        BlockKind::Iq2Xxs => {
            let both = long(block, 6 + 8 * group);
            IQ2_XXS.point(low(2 + 8 * group + l), codes);
            turn(codes, signs(both >> (7 * l)));
            (group, (both >> 28) as i8)
        }
        BlockKind::Iq2Xs => {
            let both = word(block, 2 + 2 * eight);
            IQ2_XS.point(usize::from(both & 511), codes);
            turn(codes, signs(u32::from(both >> 9)));
            (eight / 2, half_byte(block, 66 + group, l / 2))
        }
        BlockKind::Iq2S => {
            let high = low(66 + group) >> (2 * l) & 3;
            IQ2_S.point(low(2 + eight) | high << 8, codes);
            turn(codes, block[34 + eight]);
            (eight / 2, half_byte(block, 74 + group, l / 2))
        }
        BlockKind::Iq3Xxs => {
            let both = long(block, 66 + 4 * group);
            for (four, codes) in codes.chunks_exact_mut(4).enumerate() {
                IQ3_XXS.point(low(2 + 2 * eight + four), codes);
            }
            turn(codes, signs(both >> (7 * l)));
            (group, (both >> 28) as i8)
        }
        BlockKind::Iq3S => {
            for (four, codes) in codes.chunks_exact_mut(4).enumerate() {
                let high = low(66 + group) >> (2 * l + four) & 1;
                IQ3_S.point(low(2 + 2 * eight + four) | high << 8, codes);
            }
            turn(codes, block[74 + eight]);
            (group, half_byte(block, 106 + group / 2, group % 2))
        }
        BlockKind::Iq1S => {
            let high = word(block, 34 + 2 * group);
            IQ1.point(low(2 + eight) | usize::from(high >> (3 * l) & 7) << 8, codes);
            moved(codes, high >> 15 == 1);
            (group, (high >> 12 & 7) as i8)
        }
        BlockKind::Iq1M => {
            let high = half_byte(block, 32 + eight / 2, eight % 2);
            IQ1.point(low(eight) | usize::from(high as u8 & 7) << 8, codes);
            moved(codes, high & 8 == 8);
            let scales = word(block, 48 + group / 2 * 2);
            (eight / 2, (scales >> (6 * (group % 2) + 3 * (l / 2)) & 7) as i8)
        }
        _ => return None,
    })
}

/// Moves elements by an eighth, down or up.
fn moved(codes: &mut [i8], down: bool) {
    codes.iter_mut().for_each(|code| *code += if down { -1 } else { 1 });
}

/// The outer number of `IQ1_M`: four bits of it above each four scales.
fn spread(block: &[u8]) -> u16 {
    (0..4).fold(0, |half, part| half | word(block, 48 + 2 * part) >> 12 << (4 * part))
}

/// Five elements a byte, each a digit of a fraction to the base of three; the last 16 are four a byte.
fn ternary(block: &[u8], codes: &mut [i8; 256]) -> Option<usize> {
    let mut begin = 0;
    for (bytes, digits) in [(0..32, 5), (32..48, 5), (48..52, 4)] {
        for power in [1u8, 3, 9, 27, 81].into_iter().take(digits) {
            for &byte in &block[bytes.clone()] {
                let fraction = byte.wrapping_mul(power);
                codes[begin] = ((u16::from(fraction) * 3) >> 8) as i8 - 1;
                begin += 1;
            }
        }
    }
    Some(52)
}

/// Two bits an element: those of every 32nd element share a byte.
fn twos(block: &[u8], codes: &mut [i8; 256]) -> Option<usize> {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = (block[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) as i8 - 1;
    }
    Some(64)
}
