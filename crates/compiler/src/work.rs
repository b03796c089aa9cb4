//! What planned work takes: memory and operations.

use crate::pass::Cost;
use crate::plan::{Pipeline, PlannedBlock, PlannedWeight, Tokens};
use crate::reader::input;
use crate::solver::Output;
use calibration::{EXPERT_GROUPS, GROUP_ROWS, HEAD_ROWS, SLICE_ROWS, expert, resident};
use ir::{Block, ModelSpec, Op, Spec, WeightId, held_elements};
use std::collections::BTreeSet;

/// What kernels pack their operands into, at most.
const SCRATCH_BYTES: u64 = 16 << 20;

/// What a layer costs.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// The most that is held at once, in bytes.
    pub(crate) bytes: u64,
    /// Elements of linears.
    linear: f64,
    /// Elements of the last linear, whose output is not observed.
    last: f64,
    /// Squares of the widths that are observed.
    gram: f64,
    /// Operations of passes.
    edits: f64,
    rewritten: bool,
}

/// The most rows that go through a block at once.
fn rows(tokens: Tokens) -> usize {
    tokens.calibration.max(tokens.held_out).min(GROUP_ROWS.max(tokens.longest))
}

impl Work {
    pub(crate) fn of(
        block: &Block<Spec>,
        planned: &PlannedBlock,
        pipeline: &Pipeline,
        outputs: &[&[PlannedWeight]],
        tokens: Tokens,
    ) -> Self {
        let rows = rows(tokens);
        let elements = |s: &Spec| s.shape.iter().product::<usize>();
        let lead = outputs[0];
        let (mut linear, mut last) = (0f64, 0f64);
        for op in &block.ops {
            let Op::Linear { weight, .. } = op else { continue };
            let n = elements(&block.weights[weight.0 as usize]) as f64;
            (linear, last) = (linear + n, n);
        }
        let edits = planned.edits.iter().map(|(_, stage)| stage.cost);
        let edits = edits.fold(Cost::default(), |all, cost| Cost {
            bytes: all.bytes.max(cost.bytes),
            operations: all.operations + cost.operations,
        });
        let observed = planned.edits.iter().flat_map(|(_, stage)| &stage.observes);
        let observed = observed.chain(planned.solves.iter().flat_map(|stage| &stage.observes));
        let squares = squares(block, observed.map(|what| what.weight()));
        // Of experts, one and its statistics are there at a time.
        let all = |of: &dyn Fn(usize) -> u64| resident(&block.weights, of);
        let gram = all(&|index| squares[index]);
        let solver = solving(block, &pipeline.outputs, outputs).max(edits.bytes);
        // A byte a code, and what is made of them to be written.
        let codes = |own: &&[PlannedWeight]| {
            let of = |index: usize| own[index].grid().map_or(0, |_| elements(&own[index].spec));
            all(&|index| of(index) as u64) * 9 / 8
        };
        let codes = outputs.iter().map(codes).max().unwrap_or(0);
        let host = all(&|index| block.weights[index].bytes() as u64) + edited(block, planned);
        let written = all(&|index| {
            let weight = &lead[index];
            weight.grid().map_or(weight.spec.bytes(), |_| elements(&weight.spec) * 4) as u64
        });
        let (before, after) = if rows > 0 { (host, written) } else { (0, 0) };
        let values = rows as u64 * 4 * held_elements(block);
        let values = values + values.min(SCRATCH_BYTES) + waiting(block, tokens, rows);
        let scratch = if planned.observes() { SCRATCH_BYTES } else { 0 };
        let bytes = [
            host + before + gram * 4 + values,
            host + before + gram * 4 + solver + codes + scratch,
            host + after + codes,
            after + values,
        ];
        let bytes = bytes.into_iter().max().unwrap_or(0);
        let rewritten = lead.iter().any(|w| w.grid().is_some()) || !planned.edits.is_empty();
        let gram = squares.iter().sum::<u64>() as f64;
        Self { bytes, linear, last, gram, edits: edits.operations, rewritten }
    }

    /// Of the forwards alone.
    pub(crate) fn replay_operations(&self, tokens: Tokens) -> f64 {
        let held = if self.rewritten { 4.0 } else { 2.0 };
        (2.0 * tokens.calibration as f64 + held * tokens.held_out as f64) * self.linear
    }

    pub(crate) fn operations(&self, tokens: Tokens) -> f64 {
        let (t, h) = (tokens.calibration as f64, tokens.held_out as f64);
        let observed =
            if self.gram > 0.0 { 2.0 * (self.linear - self.last) + self.gram } else { 0.0 };
        let held = if self.rewritten { 4.0 } else { 2.0 };
        t * (observed + 2.0 * self.linear) + h * held * self.linear + self.edits
    }
}

/// What is there of groups that wait while another goes through an expert: of each row the residual, what
/// experts read, their sum, and how much each of them counts.
fn waiting(block: &Block<Spec>, tokens: Tokens, rows: usize) -> u64 {
    let experts = block.ops.iter().find_map(|op| match op {
        Op::Experts { experts, .. } => {
            let gate = block.weight(experts.first()?.gate)?;
            Some(3 * gate.shape.last()? + experts.len())
        }
        _ => None,
    });
    let together = tokens.calibration.max(tokens.held_out).min(EXPERT_GROUPS * rows);
    (together.saturating_sub(rows) * experts.unwrap_or(0) * 4) as u64
}

/// Squares of the widths of the inputs of some weights, by weight: each input at the first that reads it.
fn squares(block: &Block<Spec>, weights: impl Iterator<Item = WeightId>) -> Vec<u64> {
    let mut inputs = BTreeSet::new();
    let mut squares = vec![0; block.weights.len()];
    for weight in weights {
        let index = weight.0 as usize;
        let width = block.weights[index].shape.last().map_or(0, |&n| n as u64);
        if input(block, weight).is_some_and(|input| inputs.insert(input)) {
            squares[index] = width * width;
        }
    }
    squares
}

/// What passes change of experts, which stays until it is written.
fn edited(block: &Block<Spec>, planned: &PlannedBlock) -> u64 {
    let all: BTreeSet<&WeightId> =
        planned.edits.iter().flat_map(|(_, stage)| &stage.edits).collect();
    let specs = all.into_iter().filter_map(|id| block.weight(*id));
    let experts = specs.filter(|spec| expert(spec).is_some());
    experts.map(|spec| spec.shape.iter().product::<usize>() as u64 * 4).sum()
}

/// The most that a solver takes of a block's weights.
pub(crate) fn solving(
    block: &Block<Spec>,
    outputs: &[Output],
    planned: &[&[PlannedWeight]],
) -> u64 {
    let mut most = 0;
    for (output, own) in outputs.iter().zip(planned) {
        for (weight, spec) in own.iter().zip(&block.weights) {
            if let (Some(solver), &[rows, width]) = (weight.solver(output), &spec.shape[..]) {
                // A table is solved by slices.
                let sliced = !matches!(block.id, ir::BlockId::Layer(_));
                let rows = if sliced { rows.min(SLICE_ROWS) } else { rows };
                let gram = if sliced && solver.observes() { (width * width * 4) as u64 } else { 0 };
                most = most.max(solver.bytes([rows, width]) + gram);
            }
        }
    }
    most
}

/// A slice of the embedding, as stored and laid out.
pub(crate) fn table(model: &ModelSpec) -> u64 {
    let table = SLICE_ROWS.min(model.vocab) * model.table().map_or(0, Spec::bytes);
    2 * (table / model.vocab.max(1)) as u64
}

/// Slices of the embedding and the head: as stored and as written, or, where logits are compared, of
/// two heads as stored and as laid out, and the logits of both.
pub(crate) fn slices(model: &ModelSpec, tokens: Tokens) -> u64 {
    let rows = SLICE_ROWS.min(model.vocab);
    let copied = rows * model.hidden * 5;
    let scored = 2 * (rows * model.hidden * 8 + HEAD_ROWS * (rows + model.hidden) * 4);
    let states = 2 * tokens.held_out * model.hidden * 4;
    let scored = (scored + states) as u64 + (scored as u64).min(SCRATCH_BYTES);
    if tokens.held_out > 0 { scored.max(copied as u64) } else { copied as u64 }
}
