//! Dense weights: held to what can be stored, and in the dtype that is.

use crate::CompileError;
use crate::pass::PassError;
use rayon::prelude::*;
use tensor::{Bytes, DType, Tensor};

/// Some rows of a tensor, from row `first` on, in the dtype that is stored, rounded to nearest even.
///
/// # Errors
/// If a value is not finite, or does not fit.
pub(crate) fn converted(
    name: &str,
    tensor: Tensor,
    dtype: DType,
    first: usize,
) -> Result<Tensor, CompileError> {
    check_finite(name, &tensor, first)?;
    if tensor.dtype() == dtype {
        return Ok(tensor);
    }
    if let (DType::F32, Some(values)) = (dtype, tensor.to_f32()) {
        let converted = Tensor::from_f32(tensor.shape().to_vec(), &values);
        return converted.ok_or_else(|| CompileError::Internal("a converted tensor's size".into()));
    }
    let wrong = |rule: String| PassError::Weight { tensor: name.into(), rule };
    let rounded: Option<fn(f32) -> (u16, bool)> = match dtype {
        DType::BF16 => {
            Some(|x| (half::bf16::from_f32(x).to_bits(), half::bf16::from_f32(x).is_finite()))
        }
        DType::F16 => {
            Some(|x| (half::f16::from_f32(x).to_bits(), half::f16::from_f32(x).is_finite()))
        }
        _ => None,
    };
    let (Some(rounded), Some(values)) = (rounded, tensor.to_f32()) else {
        return Err(wrong(format!("{} cannot become {dtype}", tensor.dtype())).into());
    };
    let mut bytes = Vec::with_capacity(values.len() * 2);
    for (i, &value) in values.iter().enumerate() {
        let (bits, fits) = rounded(value);
        if !fits {
            let at = place(&tensor, first, i);
            return Err(wrong(format!("element {at}, {value}, does not fit {dtype}")).into());
        }
        bytes.extend_from_slice(&bits.to_le_bytes());
    }
    let converted = Tensor::new(dtype, tensor.shape().to_vec(), Bytes::from_slice(&bytes));
    converted.ok_or_else(|| CompileError::Internal("a converted tensor's size".into()))
}

/// Refuses values that are not finite in some rows of a tensor, from row `first` on.
pub(crate) fn check_finite(name: &str, tensor: &Tensor, first: usize) -> Result<(), CompileError> {
    let bad = match (tensor.f32s(), tensor.u16s(), tensor.dtype()) {
        (Some(values), ..) => values.par_iter().position_first(|v| !v.is_finite()),
        (_, Some(words), dtype) => {
            // The largest exponent is that of infinities and of what is no number.
            let exponent = if dtype == DType::F16 { 0x7c00 } else { 0x7f80 };
            words.par_iter().position_first(|w| w & exponent == exponent)
        }
        // Integers are finite.
        _ => None,
    };
    let Some(i) = bad else { return Ok(()) };
    let value = match (tensor.f32s(), tensor.u16s()) {
        (Some(values), _) => values.get(i).copied(),
        (_, words) => words.and_then(|w| w.get(i)).map(|&word| match tensor.dtype() {
            DType::F16 => half::f16::from_bits(word).to_f32(),
            _ => half::bf16::from_bits(word).to_f32(),
        }),
    };
    let rule = format!("element {} is {}", place(tensor, first, i), value.unwrap_or(f32::NAN));
    Err(PassError::Weight { tensor: name.into(), rule }.into())
}

/// Where element `i` of some rows of a tensor is, from row `first` on.
fn place(tensor: &Tensor, first: usize, i: usize) -> String {
    match tensor.shape() {
        [_, width] => format!("[{}, {}]", first + i / width.max(&1), i % width.max(&1)),
        _ => format!("[{}]", first + i),
    }
}
