//! Weights in the order that lanes of a warp read them, packed on the device: see `kernels/linear.cuh`.

use crate::Cuda;
use crate::device::Memory;
use crate::linear::{Matrix, Prepared};
use backend::{BackendError, DeviceWeight};
use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use ir::{Grid, IntGrid, Quantized, Weight};
use std::sync::{Arc, PoisonError};
use tensor::{DType, Tensor};

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

/// What goes with the codes of a weight on an integer grid.
pub(crate) struct Scales {
    /// `[stripes, groups, 16]`.
    pub(crate) scales: Vec<u8>,
    /// As the kernels number them.
    pub(crate) kind: u32,
    /// `[stripes, groups, 16]`; empty on a symmetric grid.
    pub(crate) zeros: Vec<i8>,
    pub(crate) groups: usize,
    /// Columns that share a scale.
    pub(crate) span: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PackArgs {
    from: u64,
    to: u64,
    words: u64,
    out: u32,
    width: u32,
    tiles: u32,
    kind: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<PackArgs>() == 40);

impl Format {
    /// As it is spelled in the names of kernels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
        }
    }

    fn bits(self) -> usize {
        match self {
            Self::Int4 => 4,
            Self::Int8 => 8,
            Self::Bf16 => 16,
        }
    }
}

impl Cuda {
    /// A dense weight for the kernels, a matrix as bf16.
    pub(crate) fn pack_weight(&self, weight: Weight) -> Result<DeviceWeight, BackendError> {
        let refused = || BackendError::Weight {
            tensor: weight.spec.tensor.clone(),
            rule: format!("dtype {} is F32, F16 or BF16", weight.spec.dtype),
        };
        let prepared = match weight.spec.shape[..] {
            [out, width] => {
                let codes = self.pack_dense(&weight.tensor, [out, width])?;
                Prepared::Matrix(Matrix::dense(codes.ok_or_else(refused)?, [out, width]))
            }
            _ => {
                let values = weight.tensor.to_f32().ok_or_else(refused)?;
                Prepared::Vector(Arc::new(Memory::of(&self.device, &values)?))
            }
        };
        Ok(DeviceWeight::new(weight.spec.shape, prepared))
    }

    /// A weight on an integer grid for the kernels; `tensor` names it in errors.
    pub(crate) fn pack_quantized(
        &self,
        tensor: &str,
        weight: &Quantized,
    ) -> Result<DeviceWeight, BackendError> {
        let shape = weight.shape;
        let matrix = match scales(weight) {
            Some((format, scales)) => {
                let codes = self.pack_codes(weight, format)?;
                Matrix::quantized(self, format, codes, &scales, shape)?
            }
            // Grids and groups that no kernel has are served as the bf16 nearest to what the weights stand for.
            None => {
                let dense = Tensor::from_f32(shape.to_vec(), &weight.dequantize());
                let packed = dense.map(|dense| self.pack_dense(&dense, shape)).transpose()?;
                let lost = || BackendError::Weight {
                    tensor: tensor.into(),
                    rule: "its values fill its shape".into(),
                };
                Matrix::dense(packed.flatten().ok_or_else(lost)?, shape)
            }
        };
        Ok(DeviceWeight::new(shape.to_vec(), Prepared::Matrix(matrix)))
    }

    /// Packs a dense matrix as bf16; `None` for an element type that is not read.
    pub(crate) fn pack_dense(
        &self,
        tensor: &Tensor,
        shape: [usize; 2],
    ) -> Result<Option<Memory>, BackendError> {
        let kind = match tensor.dtype() {
            DType::F32 => 0,
            DType::F16 => 1,
            DType::BF16 => 2,
            _ => return Ok(None),
        };
        let _alone = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        let from = Memory::of(&self.device, tensor.bytes())?;
        self.pack("pack_dense", &from, Format::Bf16, shape, kind).map(Some)
    }

    /// Packs codes; `format` has room for them.
    pub(crate) fn pack_codes(
        &self,
        weight: &Quantized,
        format: Format,
    ) -> Result<Memory, BackendError> {
        let _alone = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        let from = Memory::of(&self.device, &weight.codes)?;
        let kernel = format!("pack_{}", format.name());
        self.pack(&kernel, &from, format, weight.shape, 0)
    }

    fn pack(
        &self,
        kernel: &str,
        from: &Memory,
        format: Format,
        [out, width]: [usize; 2],
        kind: u32,
    ) -> Result<Memory, BackendError> {
        let (tiles, stripes) = (width.div_ceil(TILE), stripes(out));
        let words = stripes * tiles * STRIPE * TILE * format.bits() / 32;
        let to = Memory::new(&self.device, 4 * words)?;
        let (out, width, tiles) = (out as u32, width as u32, tiles as u32);
        let words_64 = words as u64;
        let args =
            PackArgs { from: from.at(), to: to.at(), words: words_64, out, width, tiles, kind };
        self.launch(kernel, [words.div_ceil(256) as u32, 1, 1], 256, 0, &args)?;
        self.launch("pack_done", [1; 3], 32, 0, &args)?;
        Ok(to)
    }
}

/// Stripes of so many outputs, with their padding.
fn stripes(out: usize) -> usize {
    out.div_ceil(STRIPE).next_multiple_of(STRIPES)
}

/// The grid of rows of `width` if a kernel computes with it.
pub(crate) fn computed_with(grid: Grid, width: usize) -> Option<IntGrid> {
    let int = grid.int()?;
    let (groups, size) = (int.span.groups(width), int.span.size(width));
    let tiles = size.is_multiple_of(TILE) && (size / TILE).is_power_of_two();
    (groups == 1 || size == 32 || tiles).then_some(int)
}

/// The scales of a weight as the kernels read them, and the format of its codes; `None` if no kernel
/// has such groups.
pub(crate) fn scales(weight: &Quantized) -> Option<(Format, Scales)> {
    let [out, width] = weight.shape;
    let IntGrid { bits, span, scale, .. } = computed_with(weight.grid, width)?;
    let (groups, size) = (span.groups(width), span.size(width));
    // Scales of a stripe's outputs lie side by side.
    let at = |i: usize| -> Option<usize> {
        let (stripe, group, row) = (i / STRIPE / groups, i / STRIPE % groups, i % STRIPE);
        let o = stripe * STRIPE + row;
        (o < out).then_some(o * groups + group)
    };
    let count = stripes(out) * groups * STRIPE;
    let all_scales = weight.scales();
    let scale_of = |i| at(i).map_or(0.0, |at| all_scales[at]);
    let (kind, scales) = match scale {
        DType::BF16 => (0, bits_of((0..count).map(|i| bf16::from_f32(scale_of(i)).to_bits()))),
        DType::F16 => (1, bits_of((0..count).map(|i| f16::from_f32(scale_of(i)).to_bits()))),
        _ => (2, bytemuck::cast_slice(&(0..count).map(scale_of).collect::<Vec<f32>>()).to_vec()),
    };
    let all_zeros = weight.zeros();
    let zero_of = |i| at(i).map_or(0, |at| all_zeros[at]);
    let zeros = match all_zeros.is_empty() {
        true => Vec::new(),
        false => (0..count).map(zero_of).collect(),
    };
    let format = if bits <= 4 { Format::Int4 } else { Format::Int8 };
    Some((format, Scales { scales, kind, zeros, groups, span: size }))
}

fn bits_of(bits: impl Iterator<Item = u16>) -> Vec<u8> {
    bytemuck::cast_slice(&bits.collect::<Vec<_>>()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::{BlockKind, Span};

    #[test]
    fn grids_that_no_kernel_has_are_known() {
        let int =
            |n| Grid::Int { bits: 4, symmetric: true, span: Span::Group(n), scale: DType::F16 };
        assert!([32, 64, 128, 512].iter().all(|&n| computed_with(int(n), 512).is_some()));
        assert!([16, 48, 96].iter().all(|&n| computed_with(int(n), 512).is_none()));
        assert!(computed_with(Grid::Block(BlockKind::Q4K), 512).is_none());
    }
}
