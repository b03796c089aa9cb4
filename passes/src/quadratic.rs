//! Quadratic forms of a Gram matrix: what an error of weights does to outputs.

use backend::{Backend, BackendError, BackendExt, Linear};
use ir::{Spec, Weight};
use rayon::prelude::*;
use tensor::{DType, Tensor};

/// Rows of the Gram matrix that are laid out at once.
pub(crate) const ROWS: usize = 2048;

/// `x^T G x` of each row of `x` `[rows, width]`, where `gram` `[width, width]` is whole.
///
/// # Errors
/// If the device fails.
pub(crate) fn forms(
    backend: &dyn Backend,
    gram: &[f32],
    width: usize,
    x: Vec<f32>,
) -> Result<Vec<f64>, BackendError> {
    let rows = x.len() / width.max(1);
    let mut forms = vec![0f64; rows];
    let input = backend.upload(width, x.clone())?;
    for begin in (0..width).step_by(ROWS) {
        let end = (begin + ROWS).min(width);
        let part = &gram[begin * width..end * width];
        let shape = vec![end - begin, width];
        let spec = Spec::alone("gram", &shape, DType::F32);
        let tensor = Tensor::from_f32(shape, part);
        let tensor = tensor.ok_or_else(|| BackendError::Internal("a Gram matrix".into()))?;
        let weight = backend.prepare_dense(Weight { spec, tensor })?;
        let linear = Linear { input: &input, weight: &weight, bias: None, decode: 0 };
        let product = backend.download(backend.linear(&linear)?)?;
        let rows = forms.par_iter_mut().zip(product.par_chunks(end - begin));
        rows.zip(x.par_chunks(width.max(1))).for_each(|((form, product), x)| {
            let pairs = product.iter().zip(&x[begin..end]);
            *form += pairs.fold(0.0, |s, (&p, &x)| s + f64::from(p) * f64::from(x));
        });
    }
    Ok(forms)
}

/// A Gram matrix whole, of its lower triangle, each element as `of` has it.
pub(crate) fn whole(lower: &[f32], width: usize, of: impl Fn(f32) -> f32) -> Vec<f32> {
    let mut whole = vec![0f32; width * width];
    for i in 0..width {
        for j in 0..=i {
            let value = of(lower[i * width + j]);
            whole[i * width + j] = value;
            whole[j * width + i] = value;
        }
    }
    whole
}
