//! Weights on grids that a device does not compute with, as the dense ones that they stand for.

use crate::BackendError;
use ir::{Quantized, Spec, Weight};
use tensor::{DType, Tensor};

/// The weight that `weight` stands for, `F32`. `tensor` names it in errors.
///
/// # Errors
/// If codes or scales are missing.
pub fn dense(tensor: &str, weight: &Quantized) -> Result<Weight, BackendError> {
    let shape = weight.shape.to_vec();
    let values = weight.is_whole().then(|| weight.dequantize());
    let whole = values.and_then(|values| Tensor::from_f32(shape.clone(), &values));
    let whole = whole.ok_or_else(|| BackendError::Weight {
        tensor: tensor.into(),
        rule: format!("a matrix on {} that has all of its codes and scales", weight.grid),
    })?;
    Ok(Weight { spec: Spec::alone(tensor, &shape, DType::F32), tensor: whole })
}
