//! Weights on their way into the layouts of the kernels: from memory, or read by rows, so that a
//! weight is never there twice.

use crate::Prepared;
use crate::packed::Packed;
use crate::panel::{PANEL, Panels, Word, lay_out};
use backend::{BackendError, Incoming, Whole, computed_with, dense};
use ir::{Grid, Quantized, Source, Spec, Weight};
use rayon::prelude::*;
use tensor::{DType, Tensor};

/// Elements that a thread reads at once.
const PART: usize = 1 << 20;

/// Lays out a weight: its shape, and what the kernels read.
pub(crate) fn prepare(weight: Incoming<'_>) -> Result<(Vec<usize>, Prepared), BackendError> {
    Ok(match weight {
        Incoming::Stored { source, spec, integers } => {
            (spec.shape.clone(), load(source, spec, integers)?)
        }
        Incoming::Memory(Whole::Dense(weight)) => {
            let prepared = prepare_dense(&weight)?;
            (weight.spec.shape, prepared)
        }
        Incoming::Memory(Whole::On { tensor, codes }) if !computed_with(codes.grid) => {
            (codes.shape.to_vec(), prepare_dense(&dense(tensor, &codes)?)?)
        }
        Incoming::Memory(Whole::On { tensor, codes }) => {
            let packed = prepare_quantized(tensor, &codes)?;
            (codes.shape.to_vec(), Prepared::Quantized(packed))
        }
    })
}

/// Lays out a dense weight.
fn prepare_dense(weight: &Weight) -> Result<Prepared, BackendError> {
    let (spec, tensor) = (&weight.spec, &weight.tensor);
    if tensor.shape() != spec.shape {
        let (shape, planned) = (tensor.shape(), &spec.shape);
        return Err(refuse(spec, format!("shape {shape:?} is {planned:?}, as planned")));
    }
    match spec.shape[..] {
        [_] => tensor.to_f32().map(Prepared::Vector).ok_or_else(|| dtype(spec, tensor.dtype())),
        _ => match tensor.dtype() {
            DType::F32 => panels(spec, tensor).map(Prepared::F32),
            DType::BF16 => panels(spec, tensor).map(Prepared::Bf16),
            DType::F16 => panels(spec, tensor).map(Prepared::F16),
            other => Err(dtype(spec, other)),
        },
    }
}

fn panels<T: Word>(spec: &Spec, tensor: &Tensor) -> Result<Panels<T>, BackendError> {
    let words = T::stored(tensor).ok_or_else(|| dtype(spec, tensor.dtype()))?;
    let size = matrix(spec)?;
    Panels::of(size, words).ok_or_else(|| short(&spec.tensor, dense_bytes::<T>(size)))
}

/// Lays out a weight on a grid.
fn prepare_quantized(tensor: &str, weight: &Quantized) -> Result<Packed, BackendError> {
    let refuse = || unfit(tensor, weight.grid);
    if !weight.is_whole() {
        return Err(refuse());
    }
    let asymmetric = !weight.zeros().is_empty();
    let mut packed = packed_room(tensor, weight.shape, weight.grid, asymmetric)?;
    packed.parts(1).for_each(|mut part| part.fill(weight, part.rows.start));
    Ok(packed)
}

/// Reads a weight by rows and lays it out; one on a grid as that, if `integers`.
fn load(source: &dyn Source, spec: &Spec, integers: bool) -> Result<Prepared, BackendError> {
    let rows = spec.shape.first().copied().unwrap_or(0);
    let first = if integers { source.read_view_quantized(&spec.at, 0..rows.min(1))? } else { None };
    let first = first.filter(|first| computed_with(first.grid));
    if let (Some(first), &[out, inputs]) = (first, &spec.shape[..]) {
        return load_quantized(source, spec, [out, inputs], &first).map(Prepared::Quantized);
    }
    let by_rows = Some(spec.dtype).filter(|_| spec.at.by_rows());
    match (&spec.shape[..], by_rows) {
        ([_, _], Some(DType::F32)) => load_panels(source, spec).map(Prepared::F32),
        ([_, _], Some(DType::BF16)) => load_panels(source, spec).map(Prepared::Bf16),
        ([_, _], Some(DType::F16)) => load_panels(source, spec).map(Prepared::F16),
        _ => {
            let tensor = source.read_view(&spec.at, 0..rows)?;
            prepare_dense(&Weight { spec: spec.clone(), tensor })
        }
    }
}

fn load_panels<T: Word>(source: &dyn Source, spec: &Spec) -> Result<Panels<T>, BackendError> {
    let size = matrix(spec)?;
    let panels = Panels::<T>::zeroed(size);
    let mut panels = panels.ok_or_else(|| short(&spec.tensor, dense_bytes::<T>(size)))?;
    let (inputs, step) = (size[1], step(panels.panels(), size[1]));
    panels.parts(step).try_for_each(|(rows, part)| {
        let shape = [rows.len(), inputs];
        let tensor = source.read_view(&spec.at, rows)?;
        let words = T::stored(&tensor).filter(|_| tensor.shape() == shape);
        let words = words.ok_or_else(|| {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            refuse(spec, format!("its rows, {dtype} {shape:?}, are of its shape and dtype"))
        })?;
        lay_out(part, inputs, words);
        Ok::<_, BackendError>(())
    })?;
    Ok(panels)
}

fn load_quantized(
    source: &dyn Source,
    spec: &Spec,
    shape: [usize; 2],
    first: &Quantized,
) -> Result<Packed, BackendError> {
    let asymmetric = !first.zeros().is_empty();
    let mut packed = packed_room(&spec.tensor, shape, first.grid, asymmetric)?;
    let step = step(shape[0].div_ceil(PANEL), shape[1]);
    packed.parts(step).try_for_each(|mut part| {
        let shape = [part.rows.len(), shape[1]];
        let read = source.read_view_quantized(&spec.at, part.rows.clone())?;
        let fits = |read: &Quantized| {
            let alike = read.grid == first.grid && read.zeros().is_empty() != asymmetric;
            read.shape == shape && alike && read.is_whole()
        };
        let read = read.filter(fits).ok_or_else(|| unfit(&spec.tensor, first.grid))?;
        part.fill(&read, 0);
        Ok::<_, BackendError>(())
    })?;
    Ok(packed)
}

/// Panels of a part: few enough that little is held beside the weight, and that every thread has one.
fn step(panels: usize, inputs: usize) -> usize {
    let share = panels.div_ceil(rayon::current_num_threads());
    (PART / inputs.max(1) / PANEL).clamp(1, share.max(1))
}

/// The sizes of a matrix.
fn matrix(spec: &Spec) -> Result<[usize; 2], BackendError> {
    match spec.shape[..] {
        [out, inputs] if out > 0 && inputs > 0 => Ok([out, inputs]),
        ref shape => {
            Err(refuse(spec, format!("shape {shape:?} is a vector or a matrix, not empty")))
        }
    }
}

fn packed_room(
    tensor: &str,
    shape: [usize; 2],
    grid: Grid,
    asymmetric: bool,
) -> Result<Packed, BackendError> {
    let bytes = Packed::bytes(shape, grid, asymmetric).ok_or_else(|| unfit(tensor, grid))?;
    Packed::zeroed(shape, grid, asymmetric).ok_or_else(|| short(tensor, bytes))
}

/// Bytes of a weight that is laid out.
pub(crate) fn bytes(spec: &Spec, grid: Option<Grid>) -> u64 {
    // What is not computed with on its grid is dense.
    match (&spec.shape[..], grid.filter(|grid| computed_with(*grid))) {
        (&[out, inputs], Some(grid)) => {
            Packed::bytes([out, inputs], grid, !grid.is_symmetric()).unwrap_or(u64::MAX)
        }
        (&[out, inputs], None) => match spec.dtype {
            DType::F32 => dense_bytes::<f32>([out, inputs]),
            _ => dense_bytes::<half::bf16>([out, inputs]),
        },
        (shape, _) => shape.iter().fold(4, |bytes, &n| bytes.saturating_mul(n as u64)),
    }
}

fn dense_bytes<T>([out, inputs]: [usize; 2]) -> u64 {
    let rows = out.next_multiple_of(PANEL) as u64;
    rows.saturating_mul(inputs as u64).saturating_mul(size_of::<T>() as u64)
}

fn refuse(spec: &Spec, rule: String) -> BackendError {
    BackendError::Weight { tensor: spec.tensor.clone(), rule }
}

fn dtype(spec: &Spec, dtype: DType) -> BackendError {
    refuse(spec, format!("dtype {dtype} is F32, F16 or BF16"))
}

fn unfit(tensor: &str, grid: Grid) -> BackendError {
    let rule = format!("a matrix on {grid} that has all of its codes and scales");
    BackendError::Weight { tensor: tensor.into(), rule }
}

fn short(tensor: &str, bytes: u64) -> BackendError {
    BackendError::Memory { what: format!("the weight {tensor:?}"), bytes }
}
