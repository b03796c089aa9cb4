//! Everything known before a weight is read: every output tensor, every refusal, memory and work.

use crate::output;
use crate::pass::{Pass, Refusal};
use crate::recipe::{Dtype, Recipe};
use calibration::{GROUP_ROWS, HEAD_ROWS, SLICE_ROWS, SPILL_PART};
use checkpoint::{Checkpoint, TensorInfo};
use ir::{Block, BlockId, Grid, ModelSpec, Op, Spec, held_elements};
use std::collections::BTreeSet;
use tensor::DType;

/// Resident before any model is read: the program, its threads, what the allocator keeps.
pub const BASE_BYTES: u64 = 14 << 20;

/// What kernels pack their operands into, at most.
const SCRATCH_BYTES: u64 = 16 << 20;

/// Rows of a Gram matrix that a solver lays out at once to measure losses.
const LOSS_ROWS: usize = 2048;

/// What a compilation will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each block's weights: the embedding, the layers, the head.
    pub blocks: Vec<(BlockId, Vec<PlannedWeight>)>,
    /// The tensors of the artifact, in order.
    pub tensors: Vec<checkpoint::Planned>,
    /// Whether the artifact's head reads its embedding.
    pub tied: bool,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the artifact's tensors.
    pub artifact_bytes: u64,
    /// Bytes of hidden states between blocks, if all stay in memory.
    pub activation_bytes: u64,
    /// The most memory that a layer takes, beside hidden states between blocks.
    pub working_bytes: u64,
    /// What embedding takes, beside hidden states.
    pub starting_bytes: u64,
    /// What copying the embedding and the head and measuring the result takes, hidden states included.
    pub ending_bytes: u64,
    /// Floating-point operations of forwards and Gram matrices.
    pub operations: f64,
    /// Floating-point operations of the forwards through what is finished, when a killed run goes
    /// on: the most there can be.
    pub replay_operations: f64,
    /// Whether a pass needs calibration samples.
    pub observes: bool,
    /// The tensors that no block reads: they are copied as they are, and are among `tensors`.
    pub carried: Vec<checkpoint::Planned>,
}

/// A weight and what becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedWeight {
    /// The stored tensor.
    pub spec: Spec,
    /// The name that the artifact gives it.
    pub name: String,
    /// What becomes of it.
    pub choice: Choice,
}

/// What becomes of a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// It is stored as it is, in this dtype.
    Dense(DType),
    /// The pass of this index puts it on this grid.
    Quantized {
        /// Which pass.
        pass: usize,
        /// Its grid.
        grid: Grid,
    },
    /// Another block stores it.
    Shared,
}

/// How many tokens go through the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the calibration samples.
    pub calibration: usize,
    /// Of the held-out stream.
    pub held_out: usize,
    /// Of the longest sequence of either.
    pub longest: usize,
}

impl PlannedWeight {
    /// Its grid, if it is to be on one.
    pub fn grid(&self) -> Option<Grid> {
        match self.choice {
            Choice::Quantized { grid, .. } => Some(grid),
            _ => None,
        }
    }
}

impl Plan {
    /// Plans a compilation of `model`.
    ///
    /// # Errors
    /// Everything that was asked for and cannot be done.
    pub fn new(
        model: &ModelSpec,
        recipe: &Recipe,
        passes: &[Box<dyn Pass>],
        tokens: Tokens,
    ) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let mut blocks = Vec::new();
        for block in model.blocks() {
            match plan_block(model, block, recipe, passes) {
                Ok(weights) => blocks.push((block.id, weights)),
                Err(refused) => refusals.extend(refused),
            }
        }
        let weights = || blocks.iter().flat_map(|(_, w)| w);
        let tensors = output::tensors(weights(), &mut refusals);
        if !refusals.is_empty() {
            let mut said = BTreeSet::new();
            refusals.retain(|refusal| said.insert(refusal.to_string()));
            return Err(refusals);
        }
        let observes = model
            .blocks()
            .any(|b| passes.iter().flat_map(|p| p.stages(b)).any(|stage| stage.observes));
        let calibration = if observes { tokens.calibration } else { 0 };
        let tokens = Tokens { calibration, ..tokens };
        let untied = weights().any(|w| w.choice != Choice::Shared && w.name != w.spec.tensor);
        let mut plan = Self {
            tied: model.tied && !untied,
            // A tied tensor is stored once, whatever becomes of it.
            source_bytes: model.tensors().iter().map(|spec| spec.bytes() as u64).sum(),
            carried: Vec::new(),
            artifact_bytes: tensors.iter().filter_map(checkpoint::Planned::bytes).sum(),
            activation_bytes: ((tokens.calibration + 2 * tokens.held_out) * model.hidden * 4)
                as u64,
            working_bytes: 0,
            starting_bytes: 0,
            ending_bytes: 0,
            operations: 0.0,
            replay_operations: 0.0,
            observes,
            tensors,
            blocks: Vec::new(),
        };
        let rows = tokens.calibration.max(tokens.held_out).min(GROUP_ROWS.max(tokens.longest));
        let layers = model.layers.iter().zip(&blocks[1..]);
        let work = layers.map(|(block, (_, weights))| Work::of(block, weights, observes, rows));
        plan.working_bytes = BASE_BYTES + work.clone().map(|w| w.bytes).max().unwrap_or(0);
        let table = SLICE_ROWS.min(model.vocab) * model.table().map_or(0, Spec::bytes);
        plan.starting_bytes = BASE_BYTES + 2 * (table / model.vocab.max(1)) as u64;
        plan.ending_bytes = BASE_BYTES + slices(model, tokens);
        let replay = work.clone().map(|w| w.replay_operations(tokens)).sum::<f64>();
        plan.operations = work.map(|w| w.operations(tokens)).sum::<f64>();
        plan.replay_operations = replay;
        plan.operations += 4.0 * (tokens.held_out * model.vocab * model.hidden) as f64;
        plan.blocks = blocks;
        Ok(plan)
    }

    /// Takes in what the checkpoint holds: the bytes that its tensors really take, and those that no
    /// block reads, which are carried over.
    ///
    /// # Errors
    /// If one of them has a name that the artifact gives to another.
    pub fn with_stored(
        mut self,
        checkpoint: &Checkpoint,
        model: &ModelSpec,
    ) -> Result<Self, Refusal> {
        self.source_bytes = checkpoint.stored().iter().map(TensorInfo::bytes).sum();
        let read: BTreeSet<&str> = model.tensors().iter().map(|s| s.tensor.as_str()).collect();
        let taken: BTreeSet<String> = self.tensors.iter().map(|t| t.name.clone()).collect();
        for info in checkpoint.tensors().iter().filter(|t| !read.contains(t.name.as_str())) {
            let refusal = |rule: &str| Refusal { what: info.name.clone(), rule: rule.into() };
            if info.grid.is_some() {
                return Err(refusal("is packed, and nothing reads it: it cannot be carried over"));
            }
            if taken.contains(&info.name) {
                return Err(refusal(
                    "is read by nothing, and the artifact has another of its name",
                ));
            }
            let (name, dtype, shape) = (info.name.clone(), info.dtype, info.shape.clone());
            self.carried.push(checkpoint::Planned { name, dtype, shape });
            self.artifact_bytes += info.bytes();
        }
        self.tensors.extend(self.carried.iter().cloned());
        Ok(self)
    }

    /// The peak memory it predicts, where so many bytes of hidden states stay in memory.
    pub fn peak_memory(&self, resident: u64) -> u64 {
        let held = |room: u64| self.activation_bytes.min(room);
        let starting = self.starting_bytes + held(resident.saturating_add(SPILL_PART as u64));
        (self.working_bytes + held(resident)).max(starting).max(self.ending_bytes)
    }

    /// How many bytes of hidden states may stay in memory, so that the process keeps within `memory`;
    /// `None` if it cannot.
    pub fn resident(&self, memory: u64) -> Option<u64> {
        if self.peak_memory(u64::MAX) <= memory {
            return Some(u64::MAX);
        }
        let room = memory.checked_sub(self.working_bytes)?;
        let start = memory.saturating_sub(self.starting_bytes).saturating_sub(SPILL_PART as u64);
        [room, room.min(start)].into_iter().find(|&room| self.peak_memory(room) <= memory)
    }
}

fn plan_block(
    model: &ModelSpec,
    block: &Block<Spec>,
    recipe: &Recipe,
    passes: &[Box<dyn Pass>],
) -> Result<Vec<PlannedWeight>, Vec<Refusal>> {
    let as_asked = |asked, stored| match asked {
        Dtype::AsSource => stored,
        Dtype::Bf16 => DType::BF16,
    };
    let mut shown = block.clone();
    shown.weights.iter_mut().for_each(|s| s.dtype = as_asked(recipe.dtype, s.dtype));
    let projection = shown.projection().filter(|_| block.id == BlockId::Head);
    let projection = projection.and_then(|id| shown.weights.get_mut(id.0 as usize));
    projection.into_iter().for_each(|s| s.dtype = as_asked(recipe.head, s.dtype));
    let mut grids = vec![None; block.weights.len()];
    let mut refusals = Vec::new();
    for (pass, planned) in passes.iter().map(|p| p.plan(&shown)).enumerate() {
        match planned {
            Ok(planned) => grids.iter_mut().zip(planned).for_each(|(grid, new)| {
                *grid = grid.or(new.map(|grid| (pass, grid)));
            }),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let table = model.table().filter(|_| model.tied && block.id == BlockId::Head);
    let tied = |spec: &Spec| table.is_some_and(|table| spec.tensor == table.tensor);
    let as_table = |dtype| table.is_some_and(|t| dtype == as_asked(recipe.dtype, t.dtype));
    let weights = block.weights.iter().zip(&shown.weights).zip(grids);
    let planned = weights.map(|((spec, shown), grid)| PlannedWeight {
        name: if tied(spec) { output::HEAD.into() } else { spec.tensor.clone() },
        choice: match grid {
            Some((pass, grid)) => Choice::Quantized { pass, grid },
            None if tied(spec) && as_table(shown.dtype) => Choice::Shared,
            None => Choice::Dense(shown.dtype),
        },
        spec: spec.clone(),
    });
    Ok(planned.collect())
}

/// What a layer costs.
#[derive(Clone, Copy)]
struct Work {
    bytes: u64,
    /// Elements of linears.
    linear: f64,
    /// Elements of the last linear, whose output is not observed.
    last: f64,
    /// Squares of the widths that are observed.
    gram: f64,
    rewritten: bool,
}

impl Work {
    fn of(block: &Block<Spec>, weights: &[PlannedWeight], observes: bool, rows: usize) -> Self {
        let elements = |s: &Spec| s.shape.iter().product::<usize>();
        let mut inputs = BTreeSet::new();
        let (mut gram, mut solver, mut codes) = (0u64, 0u64, 0u64);
        let (mut linear, mut last) = (0f64, 0f64);
        for op in &block.ops {
            let Op::Linear { input, weight, .. } = op else { continue };
            let planned = &weights[weight.0 as usize];
            let n = elements(&planned.spec);
            (linear, last) = (linear + n as f64, n as f64);
            if planned.grid().is_none() {
                continue;
            }
            // A byte a code, and what is made of them to be written.
            codes += n as u64 * 9 / 8;
            if observes {
                let width = planned.spec.shape[1];
                let square = (width * width) as u64;
                // While it is factored: the matrix in f64, its source, the factor. Then the last
                // two, some rows of the source as the device wants them, and of the weights the
                // originals, what is left of them, and their errors.
                let rows = (width * width.min(LOSS_ROWS)) as u64;
                solver = solver.max(square * 16).max(square * 8 + rows * 8 + n as u64 * 24);
                if inputs.insert(*input) {
                    gram += square;
                }
            }
        }
        let host: u64 = weights.iter().map(|w| w.spec.bytes() as u64).sum();
        let written: u64 = weights
            .iter()
            .map(|w| w.grid().map_or(w.spec.bytes(), |_| elements(&w.spec) * 4) as u64)
            .sum();
        let (before, after) = if rows > 0 { (host, written) } else { (0, 0) };
        let values = rows as u64 * 4 * held_elements(block);
        let values = values + values.min(SCRATCH_BYTES);
        let bytes = [
            host + before + gram * 4 + values,
            host + before + gram * 4 + solver + codes + if observes { SCRATCH_BYTES } else { 0 },
            host + after + codes,
            after + values,
        ];
        let bytes = bytes.into_iter().max().unwrap_or(0);
        let rewritten = weights.iter().any(|w| w.grid().is_some());
        Self { bytes, linear, last, gram: gram as f64, rewritten }
    }

    /// Of the forwards alone.
    fn replay_operations(&self, tokens: Tokens) -> f64 {
        let held = if self.rewritten { 4.0 } else { 2.0 };
        (2.0 * tokens.calibration as f64 + held * tokens.held_out as f64) * self.linear
    }

    fn operations(&self, tokens: Tokens) -> f64 {
        let (t, h) = (tokens.calibration as f64, tokens.held_out as f64);
        let observed =
            if self.gram > 0.0 { 2.0 * (self.linear - self.last) + self.gram } else { 0.0 };
        let held = if self.rewritten { 4.0 } else { 2.0 };
        t * (observed + 2.0 * self.linear) + h * held * self.linear
    }
}

/// Slices of the embedding and the head: as stored and as written, or, where logits are compared, of
/// two heads as stored and as laid out, and the logits of both.
fn slices(model: &ModelSpec, tokens: Tokens) -> u64 {
    let rows = SLICE_ROWS.min(model.vocab);
    let copied = rows * model.hidden * 5;
    let scored = 2 * (rows * model.hidden * 8 + HEAD_ROWS * (rows + model.hidden) * 4);
    let states = 2 * tokens.held_out * model.hidden * 4;
    let scored = (scored + states) as u64 + (scored as u64).min(SCRATCH_BYTES);
    if tokens.held_out > 0 { scored.max(copied as u64) } else { copied as u64 }
}
