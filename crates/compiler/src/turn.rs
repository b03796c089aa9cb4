//! One block of a run: what is read for it, what it becomes on the device, and what it changes.
//!
//! Of its experts one is there at a time: it is read when an op, a stage or a writer asks for it.

use crate::CompileError;
use crate::dense::converted;
use crate::hash::hex;
use crate::job::{Job, Progress};
use crate::pass::{Held, PassError};
use crate::plan::{Choice, PlannedBlock, PlannedWeight};
use crate::streams::Streams;
use crate::writer::Writer;
use backend::{Backend, BackendError, BackendExt, DeviceWeight, Interpreter, Program};
use calibration::{EvalError, Model, Streamed, expert, experts};
use checkpoint::Rows;
use ir::{Block, ModelSpec, Quantized, ReadError, Spec, Weight, WeightId};
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

    /// Whether no block after it needs the calibration samples.
    pub(crate) fn ends_samples(&self) -> bool {
        !self.job.plan.blocks[self.index + 1..].iter().any(PlannedBlock::observes)
    }

    /// Reads weights of the source: [`read`].
    pub(crate) fn read(
        &self,
        specs: &[&Spec],
        hashes: &mut Hashes,
    ) -> Result<Vec<Weight>, CompileError> {
        read(self.job.model, specs, hashes)
    }

    /// Reads the block but for its experts.
    pub(crate) fn read_rest(&self, hashes: &mut Hashes) -> Result<Block<Held>, CompileError> {
        let block = self.source();
        let rest = block.weights.iter().filter(|spec| expert(spec).is_none());
        let rest: Vec<&Spec> = rest.collect();
        let mut read = self.read(&rest, hashes)?.into_iter();
        let mut held = |spec: &Spec| match expert(spec) {
            Some(_) => Ok(Held::Unread(spec.clone())),
            None => read.next().map(Held::Dense).ok_or_else(|| internal("a weight was not read")),
        };
        let weights = block.weights.iter().map(&mut held).collect::<Result<_, _>>()?;
        Ok(Block { id: block.id, ops: block.ops.clone(), weights })
    }

    /// Reads the experts of the block, one after the other, for their hashes and for `see`.
    pub(crate) fn read_experts(
        &self,
        hashes: &mut Hashes,
        mut see: impl FnMut(&[Weight]) -> Result<(), CompileError>,
    ) -> Result<(), CompileError> {
        let weights = &self.source().weights;
        for own in experts(weights) {
            let own: Vec<&Spec> = own.into_iter().map(|index| &weights[index]).collect();
            see(&self.read(&own, hashes)?)?;
        }
        Ok(())
    }

    /// A block on the device as it will be stored, but for what is to be quantized, and for experts.
    pub(crate) fn upload(
        &self,
        host: &Block<Held>,
    ) -> Result<Block<Option<DeviceWeight>>, CompileError> {
        let layouts = self.layouts();
        let mut weights = Vec::with_capacity(host.weights.len());
        for held in &host.weights {
            weights.push(match held {
                Held::Dense(weight) => Some(layouts.dense(&weight.spec, weight.tensor.clone())?),
                Held::Unread(_) => None,
            });
        }
        Ok(Block { id: host.id, ops: host.ops.clone(), weights })
    }

    /// How the block's weights are laid out.
    pub(crate) fn layouts(&self) -> Layouts<'_, 'a> {
        Layouts { job: self.job, index: self.index, writer: &self.writers[0] }
    }

    /// Calls `go` with the streams and a program of these weights, of which `device` is there and the rest
    /// comes by `lay_out`.
    pub(crate) fn run<T>(
        &mut self,
        specs: &[Spec],
        device: &Block<Option<DeviceWeight>>,
        lay_out: impl Fn(Layouts<'_, 'a>, usize) -> Result<DeviceWeight, CompileError>,
        go: impl FnOnce(&mut Streams, &Interpreter<'a>, Program<'_>) -> Result<T, CompileError>,
    ) -> Result<T, CompileError> {
        let layouts = Layouts { job: self.job, index: self.index, writer: &self.writers[0] };
        let asked = |id: WeightId| lay_out(layouts, id.0 as usize).map_err(of_backend);
        let streamed = Streamed::new(device, specs, &asked);
        go(self.streams, self.interpreter, Program::from(&streamed))
    }
}

/// Lays the weights of a block out for the device.
#[derive(Clone, Copy)]
pub(crate) struct Layouts<'l, 'a> {
    job: &'a Job<'a>,
    index: usize,
    writer: &'l Writer<'a>,
}

impl Layouts<'_, '_> {
    /// A weight as the source has it, in the dtype that the lead stores.
    pub(crate) fn source(&self, spec: &Spec) -> Result<DeviceWeight, CompileError> {
        self.dense(spec, self.job.model.source.read_view(&spec.at, 0..spec.shape[0])?)
    }

    /// A weight of these values, in the dtype that the lead stores, if it does.
    pub(crate) fn dense(&self, spec: &Spec, tensor: Tensor) -> Result<DeviceWeight, CompileError> {
        let mut planned = self.writer.block(self.index).iter();
        let stored = match planned.find(|weight| weight.spec.tensor == spec.tensor) {
            Some(planned) => as_stored(planned, tensor)?,
            None => tensor,
        };
        prepare(self.job.backend, spec, stored)
    }

    /// A weight as the lead has stored it; `None` if another stands for it.
    pub(crate) fn lead(&self, index: usize) -> Result<Option<DeviceWeight>, CompileError> {
        let Some(stored) = self.writer.read(&self.writer.block(self.index)[index])? else {
            return Ok(None);
        };
        let spec = &of_model(&self.job.plan.model, self.index).weights[index];
        prepare_stored(self.job.backend, spec, &stored).map(Some)
    }

    /// [`Self::lead`] of a weight of an expert, for which no other stands.
    pub(crate) fn lead_expert(&self, index: usize) -> Result<DeviceWeight, CompileError> {
        self.lead(index)?.ok_or_else(|| internal("nothing stands for an expert"))
    }
}

/// Reads weights, and hashes each; of one that was read before the hash is the same.
pub(crate) fn read(
    model: Model<'_>,
    specs: &[&Spec],
    hashes: &mut Hashes,
) -> Result<Vec<Weight>, CompileError> {
    let source = model.source;
    let read = |spec: &&Spec| {
        let spec = *spec;
        let tensor = source.read_view(&spec.at, 0..spec.shape[0])?;
        let hash = hex(Sha256::new().chain_update(tensor.bytes()));
        Ok((Weight { spec: spec.clone(), tensor }, hash))
    };
    let all: Vec<(Weight, String)> =
        specs.par_iter().map(read).collect::<Result<_, CompileError>>()?;
    let mut weights = Vec::with_capacity(all.len());
    for (weight, hash) in all {
        let tensor = &weight.spec.tensor;
        if hashes.get(tensor).is_some_and(|before| *before != hash) {
            let rule = "its bytes changed while the model was compiled".into();
            return Err(PassError::Weight { tensor: tensor.clone(), rule }.into());
        }
        hashes.insert(tensor.clone(), hash);
        weights.push(weight);
    }
    Ok(weights)
}

fn internal(what: &str) -> CompileError {
    CompileError::Internal(what.into())
}

/// Why a weight could not be had, as the interpreter says it.
pub(crate) fn of_backend(error: CompileError) -> BackendError {
    match error {
        CompileError::Eval(EvalError::Read(error)) => error.into(),
        CompileError::Eval(EvalError::Backend(error))
        | CompileError::Pass(PassError::Backend(error)) => error,
        CompileError::Pass(PassError::Weight { tensor, rule }) => {
            BackendError::Weight { tensor, rule }
        }
        CompileError::Checkpoint(error) if error.is_machine() => {
            ReadError::Machine(error.to_string()).into()
        }
        CompileError::Checkpoint(error) if !error.is_internal() => {
            ReadError::Input(error.to_string()).into()
        }
        other => BackendError::Internal(other.to_string()),
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
