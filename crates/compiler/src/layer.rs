//! One layer: read, observed, rewritten, put on grids, written, and gone through as it was written.

use crate::CompileError;
use crate::damage::{Kind, check_damage};
use crate::dump::dump;
use crate::job::Event;
use crate::pass::{Edit, PassCx, PassError, Stage};
use crate::plan::{Choice, PlannedWeight, SolveStage};
use crate::reader::input;
use crate::solver::{Input, Output, Solved, Solver};
use crate::statistics::{Observe, Statistics};
use crate::turn::{Hashes, Turn, as_stored, prepare, prepare_stored};
use backend::DeviceWeight;
use checkpoint::Rows;
use ir::{Block, Role, Spec, Weight, WeightId};
use rayon::prelude::*;
use std::time::Instant;

/// A layer while it is compiled.
struct Layer<'t, 'r, 'a> {
    turn: &'t mut Turn<'r, 'a>,
    host: Block,
    device: Option<Block<DeviceWeight>>,
}

/// Compiles one layer; the hashes of what was read.
pub(crate) fn layer(turn: &mut Turn<'_, '_>) -> Result<Hashes, CompileError> {
    let clock = Instant::now();
    let (host, hashes) = turn.read()?;
    if !turn.job.allow_zero {
        let check = |w: &Weight| check_damage(&w.spec.tensor, Kind::Linear, &w.tensor);
        host.weights.par_iter().try_for_each(check)?;
    }
    let device = if turn.streams.are_empty() { None } else { Some(turn.upload(&host)?) };
    turn.progress.spent.load += clock.elapsed();
    let clock = Instant::now();
    if let Some(device) = &device {
        turn.streams.advance_original(turn.interpreter, device)?;
    }
    turn.progress.spent.forward += clock.elapsed();
    let planned = turn.planned();
    let mut layer = Layer { turn, host, device };
    layer.dump("source")?;
    for (pass, stage) in &planned.edits {
        layer.edit(*pass, stage)?;
    }
    layer.check()?;
    for stage in &planned.solves {
        layer.solve(stage)?;
    }
    layer.finish()?;
    Ok(hashes)
}

impl Layer<'_, '_, '_> {
    /// Runs a stage of a pass, and holds what it made against what was planned.
    fn edit(&mut self, pass: usize, stage: &Stage) -> Result<(), CompileError> {
        let job = self.turn.job;
        let pass = &job.pipeline.passes[pass];
        self.turn.progress.tell(Event::Stage { block: stage.block, pass: pass.name() });
        let statistics = self.observe(&stage.observes)?;
        let clock = Instant::now();
        let cx = PassCx { backend: job.backend, statistics: &statistics };
        let edit = pass.run(stage, &self.host, &cx)?;
        self.turn.progress.spent.solve += clock.elapsed();
        self.take(pass.name(), stage, edit)?;
        self.dump(pass.name())
    }

    /// Takes in what a stage made: of the weights that it may change, and of no other.
    fn take(&mut self, pass: &str, stage: &Stage, edit: Edit) -> Result<(), CompileError> {
        let clock = Instant::now();
        let wrong = |what: &str| PassError::Internal(format!("{pass} on {}: {what}", stage.block));
        let (backend, lead, result) = (self.turn.job.backend, self.turn.lead(), self.turn.result());
        for (id, tensor) in edit.weights {
            let index = id.0 as usize;
            let (Some(spec), true) = (result.weights.get(index), stage.edits.contains(&id)) else {
                return Err(wrong("it changed what it had not said").into());
            };
            let Some(weight) = self.host.weights.get_mut(index) else {
                return Err(wrong("it changed what is not there").into());
            };
            let finite = tensor.f32s().is_some_and(|v| v.par_iter().all(|x| x.is_finite()));
            if !finite {
                let rule = format!("{pass} made values of it that are not finite");
                return Err(PassError::Weight { tensor: spec.tensor.clone(), rule }.into());
            }
            if let Some(device) = &mut self.device {
                let stored = as_stored(&lead[index], tensor.clone())?;
                device.weights[index] = prepare(backend, spec, stored)?;
            }
            weight.spec =
                Spec { shape: tensor.shape().to_vec(), dtype: tensor.dtype(), ..spec.clone() };
            weight.tensor = tensor;
        }
        self.turn.progress.spent.write += clock.elapsed();
        Ok(())
    }

    /// Holds the block against the plan and the verifier, once passes are through with it.
    fn check(&self) -> Result<(), CompileError> {
        let result = self.turn.result();
        let shapes = |weights: &[Spec]| weights.iter().map(|s| s.shape.clone()).collect::<Vec<_>>();
        let block = self.host.specs();
        ir::verify(&block, self.turn.job.plan.model.hidden)
            .map_err(|broken| CompileError::Internal(broken.to_string()))?;
        match block.ops == result.ops && shapes(&block.weights) == shapes(&result.weights) {
            true => Ok(()),
            false => Err(CompileError::Internal(format!("{} is not as planned", block.id))),
        }
    }

    fn observe(&mut self, wanted: &[Observe]) -> Result<Statistics, CompileError> {
        let clock = Instant::now();
        let (turn, block) = (&mut *self.turn, self.host.specs());
        let seen = turn.streams.observe(turn.interpreter, &block, self.device.as_ref(), wanted);
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
        let last = self.turn.writers.len() - 1;
        for (number, output) in job.pipeline.outputs.iter().enumerate() {
            let clock = Instant::now();
            let planned = self.turn.writers[number].block(self.turn.index);
            let seen = statistics.take().unwrap_or_default();
            let cx = PassCx { backend: job.backend, statistics: &seen };
            let mut solved = solve(&self.host, stage, output, planned, &cx)?;
            solved.iter_mut().for_each(|(index, solved)| {
                note_tokens(&self.host.weights[*index].spec, *index, &seen, solved);
            });
            // What is not needed any more makes room for what is written.
            statistics = (number < last).then_some(seen);
            self.turn.progress.spent.solve += clock.elapsed();
            self.accept(number, planned, solved)?;
        }
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
            if let (0, Some(device)) = (number, &mut self.device) {
                let (spec, stored) = (&planned[index].spec, Rows::On(quantized));
                device.weights[index] = prepare_stored(turn.job.backend, spec, &stored)?;
            }
        }
        turn.progress.spent.write += clock.elapsed();
        Ok(())
    }

    /// Writes what stays dense, and sends the streams through what was written.
    fn finish(self) -> Result<(), CompileError> {
        let clock = Instant::now();
        let Self { turn, host, device } = self;
        for (index, weight) in host.weights.into_iter().enumerate() {
            for writer in &*turn.writers {
                writer.put_dense(&writer.block(turn.index)[index], &weight.tensor, 0)?;
            }
        }
        turn.progress.spent.write += clock.elapsed();
        let clock = Instant::now();
        if turn.ends_samples() {
            turn.streams.end_samples();
        }
        if let Some(device) = device {
            turn.streams.advance(turn.interpreter, &device)?;
        }
        turn.progress.spent.forward += clock.elapsed();
        Ok(())
    }

    fn dump(&self, stage: &str) -> Result<(), CompileError> {
        match self.turn.job.dump {
            Some(folder) => dump(folder, self.turn.index, stage, &self.host.specs()),
            None => Ok(()),
        }
    }
}

/// Solves a stage's weights for one output; by the index of the weight, in order.
fn solve(
    host: &Block,
    stage: &SolveStage,
    output: &Output,
    planned: &[PlannedWeight],
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
        let first = &host.weights[same[0].2.0 as usize];
        let width = first.spec.shape.last().copied().unwrap_or(0);
        let gram = cx.statistics.gram(same[0].2).filter(|_| solver.observes());
        let mut solving = solver.begin(Input { backend: cx.backend, width, gram })?;
        for &(.., id, grid) in same {
            let index = id.0 as usize;
            solved.push((index, solving.solve(&host.weights[index], grid)?));
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
