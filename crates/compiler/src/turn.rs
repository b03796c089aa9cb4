//! One block of a run: what is read for it, what it becomes on the device, and what it changes.

use crate::CompileError;
use crate::dense::converted;
use crate::hash::hex;
use crate::job::{Job, Progress};
use crate::plan::{Choice, PlannedBlock, PlannedWeight};
use crate::streams::Streams;
use crate::writer::Writer;
use backend::{Backend, BackendExt, DeviceWeight, Interpreter};
use checkpoint::Rows;
use ir::{Block, ModelSpec, Quantized, Spec, Weight};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tensor::Tensor;

/// SHA-256 of tensors, by name.
pub(crate) type Hashes = BTreeMap<String, String>;

/// A block and what its work reads and changes.
pub(crate) struct Turn<'r, 'a> {
    pub(crate) job: &'a Job<'a>,
    pub(crate) interpreter: &'r Interpreter<'a>,
    /// Which block: the embedding is 0.
    pub(crate) index: usize,
    pub(crate) streams: &'r mut Streams,
    pub(crate) writers: &'r mut [Writer<'a>],
    pub(crate) progress: &'r mut Progress<'a>,
}

impl<'a> Turn<'_, 'a> {
    /// The block as the source has it.
    pub(crate) fn source(&self) -> &'a Block<Spec> {
        of_model(self.job.model.spec, self.index)
    }

    /// The block as passes leave it.
    pub(crate) fn result(&self) -> &'a Block<Spec> {
        of_model(&self.job.plan.model, self.index)
    }

    /// What is done to it.
    pub(crate) fn planned(&self) -> &'a PlannedBlock {
        &self.job.plan.blocks[self.index]
    }

    /// Its weights in the output that leads.
    pub(crate) fn lead(&self) -> &'a [PlannedWeight] {
        self.writers[0].block(self.index)
    }

    /// Whether no block after it needs the calibration samples.
    pub(crate) fn ends_samples(&self) -> bool {
        !self.job.plan.blocks[self.index + 1..].iter().any(PlannedBlock::observes)
    }

    /// Reads it whole, and hashes each tensor.
    pub(crate) fn read(&self) -> Result<(Block, Hashes), CompileError> {
        let (source, block) = (self.job.model.source, self.source());
        let read = |spec: &Spec| {
            let tensor = source.read_view(&spec.at, 0..spec.shape[0])?;
            let hash = hex(Sha256::new().chain_update(tensor.bytes()));
            Ok((Weight { spec: spec.clone(), tensor }, hash))
        };
        let all: Vec<(Weight, String)> =
            block.weights.par_iter().map(read).collect::<Result<_, CompileError>>()?;
        let mut hashes = Hashes::new();
        let mut weights = Vec::with_capacity(all.len());
        for (weight, hash) in all {
            hashes.insert(weight.spec.tensor.clone(), hash);
            weights.push(weight);
        }
        Ok((Block { id: block.id, ops: block.ops.clone(), weights }, hashes))
    }

    /// A block on the device as it will be stored, but for what is to be quantized.
    pub(crate) fn upload(&self, host: &Block) -> Result<Block<DeviceWeight>, CompileError> {
        let mut rest = self.lead().iter();
        host.clone().try_map(|weight| {
            let tensor = match rest.next() {
                Some(planned) => as_stored(planned, weight.tensor)?,
                None => weight.tensor,
            };
            prepare(self.job.backend, &weight.spec, tensor)
        })
    }
}

fn of_model(model: &ModelSpec, index: usize) -> &Block<Spec> {
    match index.checked_sub(1) {
        None => &model.embedding,
        Some(layer) => model.layers.get(layer).unwrap_or(&model.head),
    }
}

/// A weight in the dtype that the lead stores it in, if it stays dense.
pub(crate) fn as_stored(planned: &PlannedWeight, tensor: Tensor) -> Result<Tensor, CompileError> {
    match planned.choice {
        Choice::Dense(dtype) => converted(&planned.spec.tensor, tensor, dtype, 0),
        _ => Ok(tensor),
    }
}

/// Lays a weight out for the device.
pub(crate) fn prepare(
    backend: &dyn Backend,
    spec: &Spec,
    tensor: Tensor,
) -> Result<DeviceWeight, CompileError> {
    let spec = Spec { shape: tensor.shape().to_vec(), dtype: tensor.dtype(), ..spec.clone() };
    Ok(backend.prepare_dense(Weight { spec, tensor })?)
}

/// Lays out what is stored of a weight.
pub(crate) fn prepare_stored(
    backend: &dyn Backend,
    spec: &Spec,
    stored: &Rows,
) -> Result<DeviceWeight, CompileError> {
    let tensor = match stored {
        Rows::Dense(tensor) => tensor.clone(),
        Rows::On(codes) => values(codes)?,
    };
    prepare(backend, spec, tensor)
}

/// The values that codes stand for, `[out, in]` in `F32`; rows in parallel.
pub(crate) fn values(codes: &Quantized) -> Result<Tensor, CompileError> {
    let [rows, width] = codes.shape;
    let mut values = vec![0.0; rows * width];
    let rows = values.par_chunks_mut(width.max(1)).enumerate();
    rows.for_each(|(row, out)| codes.dequantize_row(row, out));
    let tensor = Tensor::from_f32(codes.shape.to_vec(), &values);
    tensor.ok_or_else(|| CompileError::Internal("codes".into()))
}
