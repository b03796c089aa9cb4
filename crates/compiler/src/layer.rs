//! One layer: read, observed, rewritten, put on grids, written, and gone through as it was written.
//!
//! Of its experts one is in memory at a time: it comes for a stage that names it, for an op that reads
//! it and for the writer, and goes after that. What a pass changed of it stays until it is written.

use crate::CompileError;
use crate::damage::sound;
use crate::dump::dump;
use crate::job::{Event, Job};
use crate::keep::kept;
use crate::pass::{Edit, Held, PassCx, PassError, Stage};
use crate::plan::{Choice, PlannedWeight, SolveStage};
use crate::reader::input;
use crate::solver::{Input, Output, Solved, Solver};
use crate::statistics::{Observe, Statistics};
use crate::streams::Streams;
use crate::turn::{Hashes, Layouts, Turn, prepare_stored};
use backend::{DeviceWeight, Interpreter, Program};
use checkpoint::Rows;
use ir::{Block, Role, Spec, Weight, WeightId};
use rayon::prelude::*;
use std::time::Instant;
use tensor::Tensor;

/// A layer while it is compiled.
struct Layer<'t, 'r, 'a> {
    turn: &'t mut Turn<'r, 'a>,
    host: Block<Held>,
    /// Without experts; `None` if nothing goes through the blocks.
    device: Option<Block<Option<DeviceWeight>>>,
    /// Which weights of experts the output that leads has by now.
    written: Vec<bool>,
    /// Of what was read.
    hashes: Hashes,
}

/// Compiles one layer; the hashes of what was read.
pub(crate) fn layer(turn: &mut Turn<'_, '_>) -> Result<Hashes, CompileError> {
    let planned = turn.planned();
    let mut layer = Layer::begin(turn)?;
    let clock = Instant::now();
    layer.run(|streams, interpreter, program| streams.advance_original(interpreter, program))?;
    layer.turn.progress.spent.forward += clock.elapsed();
    layer.dump("source")?;
    for (pass, stage) in &planned.edits {
        layer.edit(*pass, stage)?;
    }
    layer.check()?;
    for stage in &planned.solves {
        layer.solve(stage)?;
    }
    layer.finish()
}

impl<'t, 'r, 'a> Layer<'t, 'r, 'a> {
    /// Reads what stays in memory, and looks at all of it.
    fn begin(turn: &'t mut Turn<'r, 'a>) -> Result<Self, CompileError> {
        let (clock, mut hashes) = (Instant::now(), Hashes::new());
        let (host, allow_zero) = (turn.read_rest(&mut hashes)?, turn.job.allow_zero);
        let rest = host.weights.par_iter().filter_map(|held| held.weight().ok());
        rest.try_for_each(|weight| sound(weight, allow_zero))?;
        let device = match turn.streams.are_empty() {
            true => None,
            false => {
                // What goes through the layer goes through what was hashed.
                let all_sound = |own: &[Weight]| {
                    own.par_iter().try_for_each(|weight| sound(weight, allow_zero))
                };
                turn.read_experts(&mut hashes, all_sound)?;
                Some(turn.upload(&host)?)
            }
        };
        turn.progress.spent.load += clock.elapsed();
        let written = vec![false; host.weights.len()];
        Ok(Self { turn, host, device, written, hashes })
    }

    /// Calls `go` with the streams and the layer as it now is, if anything goes through it.
    fn run<T: Default>(
        &mut self,
        go: impl FnOnce(&mut Streams, &Interpreter<'a>, Program<'_>) -> Result<T, CompileError>,
    ) -> Result<T, CompileError> {
        let Some(device) = &self.device else { return Ok(T::default()) };
        let (host, written) = (&self.host, &self.written);
        let specs = Held::specs(host).weights;
        let lay_out = |layouts: Layouts<'_, '_>, index: usize| match &host.weights[index] {
            _ if written[index] => layouts.lead_expert(index),
            Held::Dense(weight) => layouts.dense(&weight.spec, weight.tensor.clone()),
            Held::Unread(spec) => layouts.source(spec),
        };
        self.turn.run(&specs, device, lay_out, go)
    }

    /// Reads those of `named` that are not in memory; which they are.
    fn hold(&mut self, named: impl Iterator<Item = WeightId>) -> Result<Vec<usize>, CompileError> {
        let unread = |index: &usize| matches!(self.host.weights.get(*index), Some(Held::Unread(_)));
        let mut indices: Vec<usize> = named.map(|id| id.0 as usize).filter(unread).collect();
        indices.sort_unstable();
        indices.dedup();
        let clock = Instant::now();
        let specs: Vec<_> = indices.iter().map(|&index| self.host.weights[index].spec()).collect();
        let read = self.turn.read(&specs, &mut self.hashes)?;
        let allow_zero = self.turn.job.allow_zero;
        read.par_iter().try_for_each(|weight| sound(weight, allow_zero))?;
        for (&index, weight) in indices.iter().zip(read) {
            self.host.weights[index] = Held::Dense(weight);
        }
        self.turn.progress.spent.load += clock.elapsed();
        Ok(indices)
    }

    /// Drops what [`Self::hold`] read, but for what was changed.
    fn release(&mut self, held: Vec<usize>, changed: &[WeightId]) {
        for index in held.into_iter().filter(|&index| !changed.contains(&WeightId(index as u32))) {
            let held = &mut self.host.weights[index];
            *held = Held::Unread(held.spec().clone());
        }
    }

    /// Runs a stage of a pass, and holds what it made against what was planned.
    fn edit(&mut self, pass: usize, stage: &Stage) -> Result<(), CompileError> {
        let job = self.turn.job;
        let pass = &job.pipeline.passes[pass];
        self.turn.progress.tell(Event::Stage { block: stage.block, pass: pass.name() });
        let statistics = self.observe(&stage.observes)?;
        let observed = stage.observes.iter().map(|what| what.weight());
        let held = self.hold(observed.chain(stage.edits.iter().copied()))?;
        let clock = Instant::now();
        let cx = PassCx { backend: job.backend, statistics: &statistics };
        let edit = pass.run(stage, &self.host, &cx)?;
        self.turn.progress.spent.solve += clock.elapsed();
        let changed: Vec<WeightId> = edit.weights.iter().map(|(id, _)| *id).collect();
        let Edit { weights, program, .. } = edit;
        self.take(pass.name(), stage, weights)?;
        self.release(held, &changed);
        if let Some(program) = program {
            self.replace(pass.name(), program)?;
        }
        self.dump(pass.name())
    }

    /// Takes in what a stage made of the weights that it may change, and of no other.
    fn take(
        &mut self,
        pass: &str,
        stage: &Stage,
        edited: Vec<(WeightId, Tensor)>,
    ) -> Result<(), CompileError> {
        let clock = Instant::now();
        let wrong = |what: &str| PassError::Internal(format!("{pass} on {}: {what}", stage.block));
        for (id, tensor) in edited {
            let index = id.0 as usize;
            if !stage.edits.contains(&id) {
                return Err(wrong("it changed what it had not said").into());
            }
            let Some(Held::Dense(weight)) = self.host.weights.get_mut(index) else {
                return Err(wrong("it changed what is not there").into());
            };
            let finite = tensor.f32s().is_some_and(|v| v.par_iter().all(|x| x.is_finite()));
            if !finite {
                let rule = format!("{pass} made values of it that are not finite");
                return Err(PassError::Weight { tensor: weight.spec.tensor.clone(), rule }.into());
            }
            let on_device = self.device.as_mut().map(|device| &mut device.weights[index]);
            if let Some(Some(own)) = on_device {
                *own = self.turn.layouts().dense(&weight.spec, tensor.clone())?;
            }
            weight.spec.shape = tensor.shape().to_vec();
            weight.spec.dtype = tensor.dtype();
            weight.tensor = tensor;
        }
        self.turn.progress.spent.write += clock.elapsed();
        Ok(())
    }

    /// Puts a stage's program in the place of the block's. What is verified here is what is written.
    fn replace(&mut self, pass: &str, program: Block<WeightId>) -> Result<(), CompileError> {
        let id = self.host.id;
        let wrong = |what: &str| PassError::Internal(format!("{pass} on {id}: {what}"));
        let mut weights: Vec<_> = self.host.weights.drain(..).map(Some).collect();
        let mut laid: Vec<_> = self.device.iter_mut().flat_map(|d| d.weights.drain(..)).collect();
        for named in &program.weights {
            let index = named.0 as usize;
            let held = weights.get_mut(index).and_then(Option::take);
            let held =
                held.ok_or_else(|| wrong("a weight of its program is not there, or twice"))?;
            self.host.weights.push(held);
            if let Some(device) = &mut self.device {
                device.weights.push(laid.get_mut(index).and_then(Option::take));
            }
        }
        self.written = vec![false; self.host.weights.len()];
        self.device.iter_mut().for_each(|device| device.ops.clone_from(&program.ops));
        self.host.ops = program.ops;
        self.verify().map(drop)
    }

    /// The block as it now is, if the verifier accepts it.
    fn verify(&self) -> Result<Block<Spec>, CompileError> {
        let block = Held::specs(&self.host);
        match ir::verify(&block, self.turn.job.plan.model.hidden) {
            Ok(_) => Ok(block),
            Err(broken) => Err(CompileError::Internal(broken.to_string())),
        }
    }

    /// Holds the block against the plan and the verifier, once passes are through with it.
    fn check(&self) -> Result<(), CompileError> {
        let (block, result) = (self.verify()?, self.turn.result());
        let same = |(a, b): (&Spec, &Spec)| a.tensor == b.tensor && a.shape == b.shape;
        let whole = block.weights.len() == result.weights.len();
        let all = block.weights.iter().zip(&result.weights);
        match block.ops == result.ops && whole && all.into_iter().all(same) {
            true => Ok(()),
            false => Err(CompileError::Internal(format!("{} is not as planned", block.id))),
        }
    }

    fn observe(&mut self, wanted: &[Observe]) -> Result<Statistics, CompileError> {
        let clock = Instant::now();
        let block = Held::specs(&self.host);
        let seen = self.run(|streams, interpreter, program| {
            streams.observe(interpreter, &block, program, wanted)
        });
        self.turn.progress.spent.forward += clock.elapsed();
        seen
    }

    /// Puts weights on their grids, in every output.
    fn solve(&mut self, stage: &SolveStage) -> Result<(), CompileError> {
        let (job, id) = (self.turn.job, self.host.id);
        let solver = stage.weights.first().and_then(|weight| {
            let outputs = self.turn.writers.iter().zip(&job.pipeline.outputs);
            let mut own = outputs
                .map(|(w, output)| w.block(self.turn.index)[weight.0 as usize].solver(output));
            own.find_map(|solver| solver)
        });
        let pass = solver.map_or("", Solver::name);
        self.turn.progress.tell(Event::Stage { block: id, pass });
        let mut statistics = Some(self.observe(&stage.observes)?);
        let held = self.hold(stage.weights.iter().copied())?;
        let last = self.turn.writers.len() - 1;
        for (number, output) in job.pipeline.outputs.iter().enumerate() {
            let clock = Instant::now();
            let planned = self.turn.writers[number].block(self.turn.index);
            let seen = statistics.take().unwrap_or_default();
            let cx = PassCx { backend: job.backend, statistics: &seen };
            let mut solved = solve(&self.host, stage, output, planned, job, &cx)?;
            solved.iter_mut().for_each(|(index, solved)| {
                note_tokens(self.host.weights[*index].spec(), *index, &seen, solved);
            });
            // What is not needed any more makes room for what is written.
            statistics = (number < last).then_some(seen);
            self.turn.progress.spent.solve += clock.elapsed();
            self.accept(number, planned, solved)?;
        }
        self.release(held, &[]);
        Ok(())
    }

    /// Writes what was solved, and puts what leads in the place of the originals on the device.
    fn accept(
        &mut self,
        number: usize,
        planned: &[PlannedWeight],
        solved: Vec<(usize, Solved)>,
    ) -> Result<(), CompileError> {
        let clock = Instant::now();
        let (turn, id) = (&mut *self.turn, self.host.id);
        let writer = &mut turn.writers[number];
        writer.put_solved(planned, &solved)?;
        for (index, Solved { quantized, outcome }) in solved {
            let report = writer.report(id, &planned[index], &outcome);
            (turn.progress.events)(Event::Weight(report));
            if number > 0 {
                continue;
            }
            self.written[index] = true;
            let on_device = self.device.as_mut().map(|device| &mut device.weights[index]);
            if let Some(Some(own)) = on_device {
                let (spec, stored) = (&planned[index].spec, Rows::On(quantized));
                *own = prepare_stored(turn.job.backend, spec, &stored)?;
            }
        }
        turn.progress.spent.write += clock.elapsed();
        Ok(())
    }

    /// Writes what stays dense, and sends the streams through what was written.
    fn finish(mut self) -> Result<Hashes, CompileError> {
        for index in 0..self.host.weights.len() {
            let mut own = self.turn.writers.iter().map(|w| &w.block(self.turn.index)[index]);
            if own.any(|weight| matches!(weight.choice, Choice::Dense(_))) {
                self.hold(std::iter::once(WeightId(index as u32)))?;
            }
            let clock = Instant::now();
            if let Held::Dense(weight) = &self.host.weights[index] {
                for writer in &*self.turn.writers {
                    writer.put_dense(&writer.block(self.turn.index)[index], &weight.tensor, 0)?;
                }
            }
            // What is written is not needed any more.
            self.release(vec![index], &[]);
            self.turn.progress.spent.write += clock.elapsed();
        }
        self.written.fill(true);
        let clock = Instant::now();
        if self.turn.ends_samples() {
            self.turn.streams.end_samples();
        }
        self.run(|streams, interpreter, program| streams.advance(interpreter, program))?;
        self.turn.progress.spent.forward += clock.elapsed();
        Ok(self.hashes)
    }

    fn dump(&self, stage: &str) -> Result<(), CompileError> {
        match self.turn.job.dump {
            Some(folder) => dump(folder, self.turn.index, stage, &Held::specs(&self.host)),
            None => Ok(()),
        }
    }
}

/// Solves a stage's weights for one output; by the index of the weight, in order.
fn solve(
    host: &Block<Held>,
    stage: &SolveStage,
    output: &Output,
    planned: &[PlannedWeight],
    job: &Job<'_>,
    cx: &PassCx<'_>,
) -> Result<Vec<(usize, Solved)>, CompileError> {
    let mut weights: Vec<_> = Vec::new();
    for &id in &stage.weights {
        if let Choice::Quantized { rule, grid } = planned[id.0 as usize].choice {
            weights.push((rule, input(host, id), id, grid));
        }
    }
    // Weights of one input share what is made of its Gram matrix.
    weights.sort_by_key(|&(rule, input, ..)| (rule, input));
    let mut solved = Vec::with_capacity(weights.len());
    for same in weights.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let solver = output.rules[same[0].0].solver();
        let first = host.weights[same[0].2.0 as usize].spec();
        let width = first.shape.last().copied().unwrap_or(0);
        let gram = cx.statistics.gram(same[0].2).filter(|_| solver.observes());
        let importance = job.pipeline.importance(first);
        let mut solving = solver.begin(Input { backend: cx.backend, width, gram, importance })?;
        for &(.., id, grid) in same {
            let index = id.0 as usize;
            let weight = host.weights[index].weight()?;
            let own = match solver.keeps() {
                Some(keep) => kept(
                    job.model.source,
                    weight,
                    0..weight.spec.shape[0],
                    grid,
                    keep,
                    &mut *solving,
                )?,
                None => solving.solve(weight, grid)?,
            };
            solved.push((index, own));
        }
    }
    solved.sort_by_key(|(index, _)| *index);
    Ok(solved)
}

/// Notes how many tokens an expert was given: few tell little.
fn note_tokens(spec: &Spec, index: usize, seen: &Statistics, solved: &mut Solved) {
    if let (Role::Expert(..), Some(tokens)) = (spec.role, seen.tokens(WeightId(index as u32))) {
        solved.outcome.notes.insert("tokens".into(), tokens.into());
    }
}
