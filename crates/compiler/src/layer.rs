//! One layer: read, observed, rewritten, written, and gone through as it was written.

use crate::CompileError;
use crate::damage::{Kind, check_damage};
use crate::drive::{Driver, Event};
use crate::pass::{Outcome, PassCx, PassError, Rewrite, Stage};
use crate::plan::{Choice, PlannedWeight};
use crate::report::WeightReport;
use backend::{BackendExt, Buffer, DeviceWeight};
use calibration::{Activations, Group};
use checkpoint::Sink;
use ir::{Block, BlockId, Op, Quantized, Spec, Value, Weight};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Instant;
use tensor::{Bytes, DType, Tensor};

/// What goes through the layers.
#[derive(Default)]
pub(crate) struct Streams {
    /// The calibration samples, through the blocks as they are written.
    pub(crate) samples: Option<Activations>,
    /// The held-out tokens, through the blocks as they are written and as they were.
    pub(crate) held: Option<[Activations; 2]>,
}

impl Driver<'_> {
    /// Compiles one layer; `last` if no other follows.
    pub(crate) fn layer(
        &mut self,
        planned: &[PlannedWeight],
        block: &Block<Spec>,
        streams: &mut Streams,
        last: bool,
    ) -> Result<(), CompileError> {
        let clock = Instant::now();
        let (host, source) = self.read(block)?;
        self.hashes.extend(source);
        if !self.job.allow_zero {
            let check = |w: &Weight| check_damage(&w.spec.tensor, Kind::Linear, &w.tensor);
            host.weights.par_iter().try_for_each(check)?;
        }
        let streamed = streams.samples.is_some() || streams.held.is_some();
        let mut device = if streamed { Some(self.upload(&host, planned)?) } else { None };
        self.spent.load += clock.elapsed();
        let clock = Instant::now();
        if let (Some([_, original]), Some(device)) = (&mut streams.held, &device) {
            original.advance(&self.interpreter, device)?;
        }
        self.spent.forward += clock.elapsed();
        let grids: Vec<_> = planned.iter().map(PlannedWeight::grid).collect();
        for (index, pass) in self.job.passes.iter().enumerate() {
            for stage in pass.stages(block) {
                let own = |op: &usize| owner(block, planned, *op) == Some(index);
                let linears: Vec<usize> = stage.linears.iter().copied().filter(own).collect();
                if linears.is_empty() {
                    continue;
                }
                let stage = Stage { linears, ..stage };
                self.progress(Event::Stage { block: block.id, pass: pass.name() });
                let grams = self.observe(&stage, block, device.as_ref(), streams)?;
                let clock = Instant::now();
                let cx = PassCx { backend: self.job.backend, grids: &grids, grams: &grams };
                let rewrites = pass.run(&stage, &host, &cx)?;
                drop(grams);
                self.spent.solve += clock.elapsed();
                self.accept(rewrites, planned, block, device.as_mut())?;
            }
        }
        let clock = Instant::now();
        for (weight, planned) in host.weights.into_iter().zip(planned) {
            if let Choice::Dense(dtype) = planned.choice {
                let tensor = converted(&weight.spec.tensor, weight.tensor, dtype, 0)?;
                self.sink.put_values(&planned.name, 0, &tensor)?;
            }
        }
        self.spent.write += clock.elapsed();
        let clock = Instant::now();
        if let Some(device) = device {
            self.advance(streams, &device, last)?;
        }
        self.spent.forward += clock.elapsed();
        Ok(())
    }

    /// Sends the streams through a layer as it was written; `last` if no other follows.
    pub(crate) fn advance(
        &self,
        streams: &mut Streams,
        device: &Block<DeviceWeight>,
        last: bool,
    ) -> Result<(), CompileError> {
        if let Some(samples) = streams.samples.as_mut().filter(|_| !last) {
            samples.advance(&self.interpreter, device)?;
        }
        if let Some([result, _]) = &mut streams.held {
            result.advance(&self.interpreter, device)?;
        }
        Ok(())
    }

    /// Reads a block whole, and hashes each tensor.
    pub(crate) fn read(
        &self,
        block: &Block<Spec>,
    ) -> Result<(Block, BTreeMap<String, String>), CompileError> {
        let source = self.job.model.source;
        let read = |spec: &Spec| {
            let tensor = source.read_rows(&spec.tensor, 0..spec.shape[0])?;
            let hash = hex(Sha256::new().chain_update(tensor.bytes()));
            Ok((Weight { spec: spec.clone(), tensor }, hash))
        };
        let all: Vec<(Weight, String)> =
            block.weights.par_iter().map(read).collect::<Result<_, CompileError>>()?;
        let mut hashes = BTreeMap::new();
        let mut weights = Vec::with_capacity(all.len());
        for (weight, hash) in all {
            hashes.insert(weight.spec.tensor.clone(), hash);
            weights.push(weight);
        }
        Ok((Block { id: block.id, ops: block.ops.clone(), weights }, hashes))
    }

    /// The block on the device as it will be stored, but for what is to be quantized.
    pub(crate) fn upload(
        &self,
        host: &Block,
        planned: &[PlannedWeight],
    ) -> Result<Block<DeviceWeight>, CompileError> {
        let mut rest = planned.iter();
        host.clone().try_map(|weight| {
            let planned = rest.next().map(|p| p.choice);
            let tensor = match planned {
                Some(Choice::Dense(dtype)) => {
                    converted(&weight.spec.tensor, weight.tensor, dtype, 0)?
                }
                _ => weight.tensor,
            };
            let spec = Spec { dtype: tensor.dtype(), ..weight.spec };
            Ok(self.job.backend.prepare_dense(Weight { spec, tensor })?)
        })
    }

    /// The Gram matrix of each input of the stage's linears.
    fn observe(
        &mut self,
        stage: &Stage,
        block: &Block<Spec>,
        device: Option<&Block<DeviceWeight>>,
        streams: &mut Streams,
    ) -> Result<Vec<(Value, Vec<f32>)>, CompileError> {
        let (Some(samples), Some(device), true) = (&mut streams.samples, device, stage.observes)
        else {
            return Ok(Vec::new());
        };
        let clock = Instant::now();
        let backend = self.job.backend;
        let algebra = backend.algebra()?;
        let mut grams: Vec<(usize, Value, Buffer)> = Vec::new();
        for &op in &stage.linears {
            let Some(Op::Linear { input, weight, .. }) = block.ops.get(op) else { continue };
            if grams.iter().all(|(_, value, _)| value != input) {
                let width = block.weights[weight.0 as usize].shape[1];
                grams.push((op, *input, backend.zeros(width, width)?));
            }
        }
        let end = stage.linears.iter().copied().max().unwrap_or(0);
        let mut see = |group: &Group, op: usize, input: &Buffer| {
            let gram = grams.iter_mut().find(|(first, ..)| *first == op);
            gram.map_or(Ok(()), |(_, _, sum)| algebra.gram(input, &group.sequences, sum))
        };
        samples.observe(&self.interpreter, device, end, &mut see)?;
        let host = |(_, value, sum)| Ok((value, backend.download(sum)?));
        let grams = grams.into_iter().map(host).collect();
        self.spent.forward += clock.elapsed();
        grams
    }

    /// Writes what a stage made, and puts it in the place of the originals on the device.
    fn accept(
        &mut self,
        rewrites: Vec<Rewrite>,
        planned: &[PlannedWeight],
        block: &Block<Spec>,
        mut device: Option<&mut Block<DeviceWeight>>,
    ) -> Result<(), CompileError> {
        let clock = Instant::now();
        let sink = &self.sink;
        let put =
            |r: &Rewrite| put_codes(sink, &planned[r.weight.0 as usize].name, &r.quantized, 0);
        rewrites.par_iter().map(put).collect::<Result<Vec<()>, _>>()?;
        for rewrite in rewrites {
            let index = rewrite.weight.0 as usize;
            self.report(block.id, &planned[index], &rewrite.outcome);
            if let Some(device) = device.as_deref_mut() {
                self.place(device, index, &planned[index], &rewrite.quantized)?;
            }
        }
        self.spent.write += clock.elapsed();
        Ok(())
    }

    /// Puts what is stored of a weight in its place on the device.
    pub(crate) fn place(
        &self,
        device: &mut Block<DeviceWeight>,
        index: usize,
        planned: &PlannedWeight,
        codes: &Quantized,
    ) -> Result<(), CompileError> {
        let shape = codes.shape.to_vec();
        let tensor = Tensor::from_f32(shape.clone(), &dequantized(codes));
        let tensor = tensor.ok_or_else(|| CompileError::Internal("codes".into()))?;
        let spec = Spec { shape, dtype: DType::F32, ..planned.spec.clone() };
        device.weights[index] = self.job.backend.prepare_dense(Weight { spec, tensor })?;
        Ok(())
    }

    /// Notes how a weight was rewritten.
    pub(crate) fn report(&mut self, block: BlockId, weight: &PlannedWeight, outcome: &Outcome) {
        let report = WeightReport {
            block: block.to_string(),
            tensor: weight.name.clone(),
            method: outcome.method.to_string(),
            grid: weight.grid().map(|g| g.to_string()).unwrap_or_default(),
            relative_error: outcome.relative_error,
            output_error: outcome.output_error,
            rows: weight.spec.shape[0],
            rows_rounded: outcome.rows_rounded,
            damping: outcome.damping,
            fallback: outcome.fallback.clone(),
        };
        self.progress(Event::Weight(&report));
        self.weights.push(report);
    }
}

/// Writes codes of the rows from `first` on of a weight.
pub(crate) fn put_codes(
    sink: &Sink,
    name: &str,
    codes: &Quantized,
    first: usize,
) -> Result<(), CompileError> {
    if let Some(scale) = codes.scales().iter().find(|s| !s.is_finite() || **s <= 0.0) {
        return Err(PassError::Internal(format!("{name}: scale {scale}")).into());
    }
    let bits = codes.grid.int().map_or(0, |grid| grid.bits);
    let span = (1u32 << bits) as f32;
    if codes.scales().iter().any(|s| !(s * span).is_finite()) {
        let rule = "its values are too large: a code of theirs would overflow".into();
        return Err(PassError::Weight { tensor: name.into(), rule }.into());
    }
    Ok(sink.put_codes(name, first, codes)?)
}

/// Which pass rewrites the weight of the linear `op`.
fn owner(block: &Block<Spec>, planned: &[PlannedWeight], op: usize) -> Option<usize> {
    let Some(Op::Linear { weight, .. }) = block.ops.get(op) else { return None };
    match planned.get(weight.0 as usize)?.choice {
        Choice::Quantized { pass, .. } => Some(pass),
        _ => None,
    }
}

/// The values of all codes, rows in parallel.
fn dequantized(codes: &Quantized) -> Vec<f32> {
    let [rows, width] = codes.shape;
    let mut values = vec![0.0; rows * width];
    let rows = values.par_chunks_mut(width.max(1)).enumerate();
    rows.for_each(|(row, out)| codes.dequantize_row(row, out));
    values
}

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
    let wrong = |rule: String| PassError::Weight { tensor: name.into(), rule };
    let values = tensor.to_f32().filter(|_| dtype == DType::BF16);
    let values =
        values.ok_or_else(|| wrong(format!("{} cannot become {dtype}", tensor.dtype())))?;
    let mut bytes = Vec::with_capacity(values.len() * 2);
    for (i, &value) in values.iter().enumerate() {
        let rounded = half::bf16::from_f32(value);
        if !rounded.is_finite() {
            let at = place(&tensor, first, i);
            return Err(wrong(format!("element {at}, {value}, does not fit {dtype}")).into());
        }
        bytes.extend_from_slice(&rounded.to_bits().to_le_bytes());
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

/// A finished hash in hexadecimal.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
