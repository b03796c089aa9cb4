//! Weights in the order that lanes of a warp read them: see `kernels/linear.cuh`.

use half::{bf16, f16};
use ir::Quantized;
use tensor::DType;

/// Outputs of a stripe.
pub(crate) const STRIPE: usize = 16;

/// Inputs of a tile.
pub(crate) const TILE: usize = 64;

/// Stripes are padded to so many, so that no kernel reads past them.
const STRIPES: usize = 8;

/// What the codes of a packed weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Int4,
    Int8,
    Bf16,
}

/// A packed matrix, still on the host.
pub(crate) struct Packed {
    pub(crate) format: Format,
    /// `[stripes, tiles]` of 16 by 64.
    pub(crate) codes: Vec<u8>,
    /// `[stripes, groups, 16]`; empty for [`Format::Bf16`].
    pub(crate) scales: Vec<u8>,
    /// As the kernels number them.
    pub(crate) scale_kind: u32,
    /// `[stripes, groups, 16]`; empty on a symmetric grid.
    pub(crate) zeros: Vec<i8>,
    pub(crate) groups: usize,
    /// Columns that share a scale.
    pub(crate) span: usize,
}

/// The shape of a packed matrix.
#[derive(Clone, Copy)]
struct Extent {
    out: usize,
    width: usize,
    tiles: usize,
    stripes: usize,
}

impl Extent {
    fn new(out: usize, width: usize) -> Self {
        let stripes = out.div_ceil(STRIPE).next_multiple_of(STRIPES);
        Self { out, width, tiles: width.div_ceil(TILE), stripes }
    }

    /// Calls `put` with the place of each value: tile, step, lane, register pair's row half, and
    /// which of the step's four inputs of the lane; then its output and input.
    fn each(self, mut put: impl FnMut(Place, Option<usize>)) {
        for stripe in 0..self.stripes {
            for tile in 0..self.tiles {
                for step in 0..4 {
                    for lane in 0..32 {
                        for half in 0..2 {
                            for input in 0..4 {
                                let o = stripe * STRIPE + half * 8 + lane / 4;
                                let k = tile * TILE + step * 16 + lane % 4 * 4 + input;
                                let there = o < self.out && k < self.width;
                                let tile = stripe * self.tiles + tile;
                                put(
                                    Place { tile, step, lane, half, input },
                                    there.then_some(o * self.width + k),
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Where a value lies among the fragments of a tile.
#[derive(Clone, Copy)]
struct Place {
    tile: usize,
    step: usize,
    lane: usize,
    half: usize,
    input: usize,
}

impl Place {
    /// The register of the step that holds it, and which of the pair it is.
    fn register(self) -> (usize, usize) {
        (self.half + self.input / 2 * 2, self.input % 2)
    }

    fn bf16(self) -> usize {
        let (register, which) = self.register();
        ((self.tile * 4 + self.step) * 32 + self.lane) * 8 + register * 2 + which
    }

    fn int8(self) -> usize {
        let word = self.step % 2 * 2 + self.half;
        ((self.tile * 2 + self.step / 2) * 32 + self.lane) * 16 + word * 4 + self.input
    }

    /// The byte, and the shift of the nibble in it.
    fn int4(self) -> (usize, usize) {
        let (register, which) = self.register();
        let nibble = register + 4 * which;
        let word = (self.tile * 32 + self.lane) * 4 + self.step;
        (word * 4 + nibble / 2, nibble % 2 * 4)
    }
}

/// Packs a dense matrix `[out, width]` as bf16.
pub(crate) fn dense(values: &[f32], out: usize, width: usize) -> Packed {
    let extent = Extent::new(out, width);
    let mut codes = vec![0u16; extent.stripes * extent.tiles * STRIPE * TILE];
    extent.each(|place, from| {
        if let Some(from) = from {
            codes[place.bf16()] = bf16::from_f32(values[from]).to_bits();
        }
    });
    let codes = bytemuck::cast_slice(&codes).to_vec();
    let (scales, zeros) = (Vec::new(), Vec::new());
    let format = Format::Bf16;
    Packed { format, codes, scales, scale_kind: 0, zeros, groups: 1, span: width }
}

/// Packs a matrix on an integer grid; `None` if the kernels have no such groups.
pub(crate) fn quantized(weight: &Quantized) -> Option<Packed> {
    let [out, width] = weight.shape;
    let ir::Grid::Int { bits, span, scale, .. } = weight.grid;
    let (groups, size) = (span.groups(width), span.size(width));
    if groups > 1 && size != 32 && !size.is_multiple_of(TILE) {
        return None;
    }
    let extent = Extent::new(out, width);
    let values = extent.stripes * extent.tiles * STRIPE * TILE;
    let (format, codes) = if bits <= 4 {
        let mut codes = vec![0u8; values / 2];
        extent.each(|place, from| {
            let (byte, shift) = place.int4();
            // Padding has the code of zero, where zero points are zero.
            let code = from.map_or(0, |from| weight.codes[from]);
            codes[byte] |= ((code + 8) as u8 & 15) << shift;
        });
        (Format::Int4, codes)
    } else {
        let mut codes = vec![0u8; values];
        extent.each(|place, from| {
            codes[place.int8()] = from.map_or(0, |from| weight.codes[from]) as u8;
        });
        (Format::Int8, codes)
    };
    // Scales of a stripe's outputs lie side by side.
    let at = |i: usize| -> Option<usize> {
        let (stripe, group, row) = (i / STRIPE / groups, i / STRIPE % groups, i % STRIPE);
        let o = stripe * STRIPE + row;
        (o < out).then_some(o * groups + group)
    };
    let count = extent.stripes * groups * STRIPE;
    let scale_of = |i| at(i).map_or(0.0, |at| weight.scales[at]);
    let (scale_kind, scales) = match scale {
        DType::BF16 => (0, bits_of((0..count).map(|i| bf16::from_f32(scale_of(i)).to_bits()))),
        DType::F16 => (1, bits_of((0..count).map(|i| f16::from_f32(scale_of(i)).to_bits()))),
        _ => (2, bytemuck::cast_slice(&(0..count).map(scale_of).collect::<Vec<f32>>()).to_vec()),
    };
    let zero_of = |i| at(i).map_or(0, |at| weight.zeros[at]);
    let zeros = match weight.zeros.is_empty() {
        true => Vec::new(),
        false => (0..count).map(zero_of).collect(),
    };
    Some(Packed { format, codes, scales, scale_kind, zeros, groups, span: size })
}

fn bits_of(bits: impl Iterator<Item = u16>) -> Vec<u8> {
    bytemuck::cast_slice(&bits.collect::<Vec<_>>()).to_vec()
}

/// The slot of a column among bf16 rows: see `kernels/dev.cuh`.
#[cfg(test)]
pub(crate) fn slot(column: usize) -> usize {
    (column & !63) | (column >> 2 & 3) << 4 | (column >> 4 & 3) << 2 | (column & 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_a_permutation_of_each_run() {
        let mut seen = [false; 128];
        (0..128).for_each(|column| seen[slot(column)] = true);
        assert!(seen.iter().all(|&seen| seen));
        // What lane t needs of step s.
        for (s, t, i) in [(0, 0, 0), (1, 2, 3), (3, 3, 3)] {
            assert_eq!(slot(16 * s + 4 * t + i), 16 * t + 4 * s + i);
        }
    }

    #[test]
    fn every_value_has_a_place_of_its_own() {
        let extent = Extent::new(40, 100);
        let size = extent.stripes * extent.tiles * STRIPE * TILE;
        let (mut dense, mut bytes, mut nibbles) = (vec![0; size], vec![0; size], vec![0; size]);
        let mut there = 0;
        extent.each(|place, from| {
            dense[place.bf16()] += 1;
            bytes[place.int8()] += 1;
            let (byte, shift) = place.int4();
            nibbles[byte * 2 + shift / 4] += 1;
            there += usize::from(from.is_some());
        });
        assert_eq!(there, 40 * 100);
        assert!([dense, bytes, nibbles].iter().flatten().all(|&n| n == 1));
    }
}
