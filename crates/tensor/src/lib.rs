//! Element types, shapes and host bytes: what a weight is before anybody interprets it.
//!
//! A [`Tensor`] is row-major, contiguous and owned. Nothing here maps a file: weights are read by
//! position into owned memory, so a file that shrinks while it is read is an error, never a signal.

mod bytes;
mod dtype;

pub use bytes::{Bytes, zeroed};
pub use dtype::DType;

use half::{bf16, f16};

/// A dense, row-major, contiguous array in host memory.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Tensor {
    /// A tensor over `bytes`.
    ///
    /// Returns `None` unless `bytes` holds exactly the elements of `shape`, packed.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Option<Self> {
        (dtype.bytes_of(&shape)? == bytes.len()).then_some(Self { dtype, shape, bytes })
    }

    /// A tensor of `f32`. Returns `None` unless `values` holds exactly the elements of `shape`.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Option<Self> {
        Self::new(DType::F32, shape, Bytes::from_slice(bytemuck::cast_slice(values)))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes, slowest dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The raw little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The elements as `f32` without a copy, if that is how they are stored.
    pub fn f32s(&self) -> Option<&[f32]> {
        (self.dtype == DType::F32).then(|| bytemuck::cast_slice(self.bytes()))
    }

    /// The elements as 16-bit words without a copy, if they are `F16` or `BF16`.
    pub fn u16s(&self) -> Option<&[u16]> {
        matches!(self.dtype, DType::F16 | DType::BF16).then(|| bytemuck::cast_slice(self.bytes()))
    }

    /// Writes elements from `first` on, widened to `f32`, to all of `out`.
    ///
    /// Returns whether there are so many and their dtype is one that [`Tensor::to_f32`] widens.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) -> bool {
        let Some(range) = first.checked_add(out.len()).map(|end| first..end) else { return false };
        if let Some(values) = self.f32s() {
            return values.get(range).map(|values| out.copy_from_slice(values)).is_some();
        }
        let Some(words) = self.u16s().and_then(|words| words.get(range)) else { return false };
        let pairs = out.iter_mut().zip(words);
        match self.dtype {
            DType::BF16 => pairs.for_each(|(out, &b)| *out = bf16::from_bits(b).to_f32()),
            _ => pairs.for_each(|(out, &b)| *out = f16::from_bits(b).to_f32()),
        }
        true
    }

    /// The elements widened to `f32`, which is exact for `F16` and `BF16`.
    ///
    /// Returns `None` for other dtypes.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.dtype {
            DType::F32 => self.f32s().map(<[f32]>::to_vec),
            DType::F16 => {
                self.u16s().map(|w| w.iter().map(|&b| f16::from_bits(b).to_f32()).collect())
            }
            DType::BF16 => {
                self.u16s().map(|w| w.iter().map(|&b| bf16::from_bits(b).to_f32()).collect())
            }
            _ => None,
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_value_widens_exactly() {
        for bits in 0..=u16::MAX {
            for (dtype, wide) in [
                (DType::BF16, f32::from_bits(u32::from(bits) << 16)),
                (DType::F16, f16_by_hand(bits)),
            ] {
                let bytes = Bytes::from_slice(&bits.to_le_bytes());
                let tensor = Tensor::new(dtype, vec![1], bytes).unwrap();
                let (got, mut read) = (tensor.to_f32().unwrap()[0], [0.0]);
                assert!(got == wide || got.is_nan() && wide.is_nan(), "{dtype} {bits:#06x}");
                assert!(tensor.read_f32(0, &mut read));
                assert!(read[0] == wide || wide.is_nan() && read[0].is_nan());
                assert!(!tensor.read_f32(1, &mut read) && !tensor.read_f32(usize::MAX, &mut read));
            }
        }
    }

    /// IEEE binary16 from its definition.
    fn f16_by_hand(bits: u16) -> f32 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let fraction = f32::from(bits & 0x3ff);
        match (bits >> 10) & 0x1f {
            0 => sign * fraction * 2f32.powi(-24),
            31 if bits & 0x3ff == 0 => sign * f32::INFINITY,
            31 => f32::NAN,
            e => sign * (1.0 + fraction / 1024.0) * 2f32.powi(i32::from(e) - 15),
        }
    }

    #[test]
    fn a_tensor_holds_exactly_its_shape() {
        assert!(Tensor::new(DType::F32, vec![2, 3], Bytes::zeroed(24)).is_some());
        assert!(Tensor::new(DType::F32, vec![2, 3], Bytes::zeroed(23)).is_none());
        assert!(Tensor::new(DType::F32, vec![usize::MAX, 8], Bytes::zeroed(0)).is_none());
    }
}
