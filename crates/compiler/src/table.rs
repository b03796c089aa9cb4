//! The embedding and the head: blocks whose tables are copied or put on grids by slices of rows.

use crate::CompileError;
use crate::damage::{Flat, Kind, check_damage};
use crate::dense::check_finite;
use crate::hash::hex;
use crate::job::{Event, Job};
use crate::keep::kept;
use crate::plan::{Choice, PlannedOutput};
use crate::solver::{Input, Keep, Outcome, Solving};
use crate::statistics::Statistics;
use crate::turn::{Hashes, Turn, prepare};
use crate::writer::Writer;
use backend::{DeviceWeight, Program};
use calibration::SLICE_ROWS;
use ir::{Grid, Spec, View, Weight, WeightId};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::time::Instant;
use tensor::Tensor;

/// A weight that is put on a grid of one output, slice by slice.
struct Part<'s> {
    output: usize,
    grid: Grid,
    /// Whether the codes are those of the source.
    keep: Option<Keep>,
    solving: Box<dyn Solving + 's>,
    outcomes: Vec<Outcome>,
}

/// Writes the weights of the embedding or the head, a slice of rows at a time; the hashes of what was
/// read.
pub(crate) fn table(turn: &mut Turn<'_, '_>) -> Result<Hashes, CompileError> {
    let block = turn.source();
    let statistics = observe(turn)?;
    let mut hashes = Hashes::new();
    for (index, spec) in block.weights.iter().enumerate() {
        let clock = Instant::now();
        let mut parts = begin(turn, WeightId(index as u32), &statistics)?;
        if is_stored(turn, index) {
            hashes.insert(spec.tensor.clone(), slices(turn, index, &mut parts)?);
        }
        for part in parts {
            let Some(outcome) = Outcome::together(part.outcomes) else { continue };
            let writer = &mut turn.writers[part.output];
            let weight = &writer.block(turn.index)[index];
            let report = writer.report(block.id, weight, &outcome);
            (turn.progress.events)(Event::Weight(report));
        }
        turn.progress.spent.write += clock.elapsed();
    }
    Ok(hashes)
}

/// Whether any output stores a weight as its own.
fn is_stored(turn: &Turn<'_, '_>, index: usize) -> bool {
    let own = |writer: &Writer<'_>| writer.block(turn.index)[index].choice != Choice::Shared;
    turn.writers.iter().any(own)
}

/// What the samples show of the inputs of the tables. The table itself is not needed for that: its
/// product is not observed.
fn observe(turn: &mut Turn<'_, '_>) -> Result<Statistics, CompileError> {
    let wanted: Vec<_> =
        turn.planned().solves.iter().flat_map(|stage| stage.observes.iter().copied()).collect();
    if wanted.is_empty() || turn.streams.are_empty() {
        return Ok(Statistics::default());
    }
    let clock = Instant::now();
    let (job, block) = (turn.job, turn.source());
    let narrow = |spec: Spec| -> Result<DeviceWeight, CompileError> {
        let rows = if spec.shape.len() == 2 { 1 } else { spec.shape[0] };
        prepare(job.backend, &spec, job.model.source.read_view(&spec.at, 0..rows)?)
    };
    let device = block.clone().try_map(narrow)?;
    let seen = turn.streams.observe(turn.interpreter, block, Program::from(&device), &wanted);
    turn.progress.spent.forward += clock.elapsed();
    seen
}

/// The outputs that put a weight on a grid.
fn begin<'s, 'a: 's>(
    turn: &Turn<'_, 'a>,
    id: WeightId,
    statistics: &'s Statistics,
) -> Result<Vec<Part<'s>>, CompileError> {
    let (job, index) = (turn.job, id.0 as usize);
    let mut parts = Vec::new();
    for (output, (own, writer)) in job.pipeline.outputs.iter().zip(&*turn.writers).enumerate() {
        let weight = &writer.block(turn.index)[index];
        let (Some(grid), Some(solver)) = (weight.grid(), weight.solver(own)) else { continue };
        let width = weight.spec.shape.last().copied().unwrap_or(0);
        let gram = statistics.gram(id).filter(|_| solver.observes());
        let solving = solver.begin(Input {
            backend: job.backend,
            width,
            gram,
            importance: job.pipeline.importance(&weight.spec),
        })?;
        let keep = solver.keeps();
        parts.push(Part { output, grid, keep, solving, outcomes: Vec::new() });
    }
    Ok(parts)
}

/// Reads a weight by slices of rows and writes each to every output; the hash of what was read.
fn slices(
    turn: &mut Turn<'_, '_>,
    index: usize,
    parts: &mut [Part<'_>],
) -> Result<String, CompileError> {
    let (job, spec) = (turn.job, &turn.source().weights[index]);
    let mut hash = Sha256::new();
    let rows = spec.shape[0];
    let mut flat = Flat::new(Kind::Table, rows);
    for slice in by_slices(rows) {
        let tensor = job.model.source.read_view(&spec.at, slice.clone())?;
        hash.update(tensor.bytes());
        match spec.shape.len() {
            _ if job.allow_zero => {}
            2 => flat.see(&tensor),
            _ => check_damage(&spec.tensor, Kind::Table, &tensor)?,
        }
        for writer in &*turn.writers {
            writer.put_dense(&writer.block(turn.index)[index], &tensor, slice.start)?;
        }
        if parts.is_empty() {
            continue;
        }
        check_finite(&spec.tensor, &tensor, slice.start)?;
        let spec = Spec { shape: tensor.shape().to_vec(), ..spec.clone() };
        let weight = Weight { spec, tensor };
        for part in &mut *parts {
            let solved = match part.keep {
                Some(keep) => {
                    let (source, solving) = (job.model.source, &mut *part.solving);
                    kept(source, &weight, slice.clone(), part.grid, keep, solving)?
                }
                None => part.solving.solve(&weight, part.grid)?,
            };
            let writer = &turn.writers[part.output];
            let planned = &writer.block(turn.index)[index];
            writer.put_codes(planned, &solved.quantized, slice.start)?;
            part.outcomes.push(solved.outcome);
        }
    }
    flat.check(&spec.tensor)?;
    Ok(hex(hash))
}

/// The slices of so many rows.
fn by_slices(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(SLICE_ROWS).map(move |at| at..(at + SLICE_ROWS).min(rows))
}

/// SHA-256 of some rows after the other of what lies in the source.
fn hash_rows(
    job: &Job<'_>,
    at: &View,
    rows: usize,
    mut see: impl FnMut(Range<usize>, Tensor) -> Result<(), CompileError>,
) -> Result<String, CompileError> {
    let mut hash = Sha256::new();
    for slice in by_slices(rows) {
        let part = job.model.source.read_view(at, slice.clone())?;
        hash.update(part.bytes());
        see(slice, part)?;
    }
    Ok(hex(hash))
}

/// SHA-256 of a weight of this shape in the source.
pub(crate) fn hash_of(job: &Job<'_>, at: &View, shape: &[usize]) -> Result<String, CompileError> {
    hash_rows(job, at, shape.first().copied().unwrap_or(1), |_, _| Ok(()))
}

/// SHA-256 of the source tensors of the embedding or the head that are stored.
pub(crate) fn hashes_of(turn: &Turn<'_, '_>) -> Result<Hashes, CompileError> {
    let weights = turn.source().weights.iter().enumerate();
    let stored = weights.filter(|(index, _)| is_stored(turn, *index));
    stored
        .map(|(_, spec)| Ok((spec.tensor.clone(), hash_of(turn.job, &spec.at, &spec.shape)?)))
        .collect()
}

/// Copies the tensors that no block reads, byte by byte; the hashes of what was read.
pub(crate) fn carry(job: &Job<'_>, writers: &[Writer<'_>]) -> Result<Hashes, CompileError> {
    let mut hashes = Hashes::new();
    for tensor in job.plan.carried() {
        let rows = tensor.shape.first().copied().unwrap_or(1);
        let hash = hash_rows(job, &View::whole(&*tensor.name), rows, |slice, part| {
            let put = |writer: &Writer<'_>| {
                Ok(writer.sink.put_values(&tensor.name, slice.start, &part)?)
            };
            // Not every container takes in every one.
            let carries =
                |output: &PlannedOutput| output.carried.iter().any(|t| t.name == tensor.name);
            let writers = writers.iter().zip(&job.plan.outputs);
            writers
                .filter(|(_, output)| carries(output))
                .map(|(writer, _)| writer)
                .try_for_each(put)
        })?;
        hashes.insert(tensor.name.clone(), hash);
    }
    Ok(hashes)
}
