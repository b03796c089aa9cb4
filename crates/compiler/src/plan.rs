//! Everything known before a weight is read: every output tensor, every refusal, memory and work.

use crate::output;
use crate::pass::{Pass, Stage};
use crate::reader::input;
use crate::recipe::Dtype;
use crate::recode;
use crate::refusal::Refusal;
use crate::solver::{Asked, Kept, Output, Solver, Target};
use crate::statistics::Observe;
use crate::survey::Survey;
use crate::work::{self, Work};
use calibration::{SPILL_PART, expert};
use checkpoint::{Checkpoint, Format, TensorInfo};
use ir::{Block, BlockId, Grid, ModelSpec, Projection, Role, Spec, WeightId};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use tensor::DType;

/// Resident before any model is read: the program, its threads, what the allocator keeps.
pub const BASE_BYTES: u64 = 14 << 20;

/// What a recipe comes to: what rewrites the model, and what is written of it.
pub struct Pipeline {
    /// What looks at the original before this is planned. Until it has, rules that wait for it are about all that
    /// they could be about.
    pub surveys: Vec<Box<dyn Survey>>,
    /// The passes, in order.
    pub passes: Vec<Box<dyn Pass>>,
    /// The outputs; the first leads.
    pub outputs: Vec<Output>,
    /// The grids of weights that the source has on one, by tensor: what rules may keep.
    pub stored: BTreeMap<String, Grid>,
    /// What each column of a weight's input is worth, by tensor, where somebody gave it: those who want that
    /// alone need no samples.
    pub importance: BTreeMap<String, Vec<f32>>,
}

impl Pipeline {
    /// What each column of a weight's input is worth, if somebody gave it.
    pub(crate) fn importance(&self, spec: &Spec) -> Option<&[f32]> {
        self.importance.get(&spec.tensor).map(Vec::as_slice)
    }
}

/// What a compilation will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model as the passes leave it.
    pub model: ModelSpec,
    /// What is done to each block, in order: the embedding, the layers, the head.
    pub blocks: Vec<PlannedBlock>,
    /// What is written; the first leads.
    pub outputs: Vec<PlannedOutput>,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
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
    /// Whether anything needs calibration samples.
    pub observes: bool,
}

/// What is done to a block.
#[derive(Clone, Debug)]
pub struct PlannedBlock {
    /// Which block.
    pub id: BlockId,
    /// The stages of passes, each with the pass's index.
    pub edits: Vec<(usize, Stage)>,
    /// The stages of the lowering.
    pub solves: Vec<SolveStage>,
}

/// Weights that are put on grids after one look at the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolveStage {
    /// Which weights, in the order of the ops that read them.
    pub weights: Vec<WeightId>,
    /// What is observed for them.
    pub observes: Vec<Observe>,
}

/// An artifact that will be written.
#[derive(Clone, Debug)]
pub struct PlannedOutput {
    /// What its folder is called, where there are several.
    pub name: String,
    /// How it lies in files.
    pub format: &'static Format,
    /// The element type of what is not quantized, if it is not the source's.
    pub dtype: Dtype,
    /// The most bytes of data of a file, where there are to be several.
    pub shard_size: Option<u64>,
    /// Each block's weights: the embedding, the layers, the head.
    pub blocks: Vec<(BlockId, Vec<PlannedWeight>)>,
    /// Its tensors, in order.
    pub tensors: Vec<checkpoint::Planned>,
    /// What its `config.json` says otherwise than the source's, where passes changed programs.
    pub config: Map<String, Value>,
    /// Whether its head reads its embedding.
    pub tied: bool,
    /// Bytes of its tensors.
    pub artifact_bytes: u64,
    /// The tensors that no block reads: they are copied as they are, and are among `tensors`.
    pub carried: Vec<checkpoint::Planned>,
}

/// A weight and what becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedWeight {
    /// What it is, and where it lies in the source.
    pub spec: Spec,
    /// The name that the artifact gives it.
    pub name: String,
    /// What becomes of it.
    pub choice: Choice,
    /// The grid that was meant for it, where its rows are no whole blocks of that.
    pub instead_of: Option<Grid>,
}

/// What becomes of a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// It is stored as it is, in this dtype.
    Dense(DType),
    /// The output's rule of this index puts it on this grid.
    Quantized {
        /// Which rule.
        rule: usize,
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

/// Weights that are stored otherwise than was meant, since their rows are no whole blocks of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    /// The grid that was meant.
    pub meant: Grid,
    /// What they are stored as.
    pub choice: Choice,
    /// Elements of a row.
    pub width: usize,
    /// How many.
    pub weights: usize,
    /// Their bytes, less those that the grid which was meant would take if blocks could be cut.
    pub cost: i64,
}

impl PlannedOutput {
    /// Its weights that are stored otherwise than was meant, by what was meant and by width.
    pub fn fallbacks(&self) -> Vec<Fallback> {
        let mut all: Vec<Fallback> = Vec::new();
        for weight in self.blocks.iter().flat_map(|(_, weights)| weights) {
            let (Some(meant), &[rows, width]) = (weight.instead_of, &weight.spec.shape[..]) else {
                continue;
            };
            let block = meant.block().map_or(1, |block| block.get());
            let whole = meant.bytes([rows, block]) as f64 * width as f64 / block as f64;
            let cost = (weight.bytes() as f64 - whole) as i64;
            let same = |one: &&mut Fallback| {
                (one.meant, one.choice, one.width) == (meant, weight.choice, width)
            };
            match all.iter_mut().find(same) {
                Some(one) => (one.weights, one.cost) = (one.weights + 1, one.cost + cost),
                None => {
                    let choice = weight.choice;
                    all.push(Fallback { meant, choice, width, weights: 1, cost });
                }
            }
        }
        all
    }
}

impl PlannedWeight {
    /// Its grid, if it is to be on one.
    pub fn grid(&self) -> Option<Grid> {
        match self.choice {
            Choice::Quantized { grid, .. } => Some(grid),
            _ => None,
        }
    }

    /// Its bytes, as it is stored.
    pub fn bytes(&self) -> u64 {
        match self.choice {
            Choice::Dense(dtype) => dtype.bytes_of(&self.spec.shape).unwrap_or(0) as u64,
            Choice::Quantized { grid, .. } => {
                self.spec.shape[..].try_into().map_or(0, |shape| grid.bytes(shape))
            }
            Choice::Shared => 0,
        }
    }

    /// The solver that puts it on its grid.
    pub(crate) fn solver<'o>(&self, output: &'o Output) -> Option<&'o dyn Solver> {
        match self.choice {
            Choice::Quantized { rule, .. } => output.rules.get(rule).map(|rule| rule.solver()),
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
        pipeline: &Pipeline,
        tokens: Tokens,
    ) -> Result<Self, Vec<Refusal>> {
        let mut edited = model.clone();
        let mut refusals = Vec::new();
        let mut edits: Vec<(usize, Stage)> = Vec::new();
        for (index, pass) in pipeline.passes.iter().enumerate() {
            match pass.plan(&mut edited) {
                Ok(stages) => edits.extend(stages.into_iter().map(|stage| (index, stage))),
                Err(refusal) => refusals.push(refusal),
            }
        }
        if let Err(broken) = ir::verify_caches(&edited) {
            let (what, rule) = (broken.block.to_string(), format!("internal: {broken}"));
            refusals.push(Refusal { what, rule });
        }
        let config = described(model, &edited).unwrap_or_else(|refusal| {
            refusals.push(refusal);
            Map::new()
        });
        let mut outputs = Vec::new();
        for output in &pipeline.outputs {
            match plan_output(&edited, output, &pipeline.stored) {
                Ok(planned) => {
                    outputs.push(PlannedOutput { config: config.clone(), ..planned });
                }
                Err(refused) => refusals.extend(refused),
            }
        }
        if !refusals.is_empty() {
            let mut said = BTreeSet::new();
            refusals.retain(|refusal| said.insert(refusal.to_string()));
            return Err(refusals);
        }
        let planned = |(index, block): (usize, &Block<Spec>)| PlannedBlock {
            id: block.id,
            edits: edits.iter().filter(|(_, stage)| stage.block == block.id).cloned().collect(),
            solves: solves(block, pipeline, &of_block(&outputs, index)),
        };
        let blocks: Vec<PlannedBlock> = edited.blocks().enumerate().map(planned).collect();
        let observes = !pipeline.surveys.is_empty() || blocks.iter().any(PlannedBlock::observes);
        let calibration = if observes { tokens.calibration } else { 0 };
        let mut plan = Self {
            // A tied tensor is stored once, whatever becomes of it.
            source_bytes: model.tensors().iter().map(|spec| spec.bytes() as u64).sum(),
            activation_bytes: ((calibration + 2 * tokens.held_out) * model.hidden * 4) as u64,
            working_bytes: 0,
            starting_bytes: 0,
            ending_bytes: 0,
            operations: 0.0,
            replay_operations: 0.0,
            observes,
            model: edited,
            blocks,
            outputs,
        };
        plan.weigh(model, pipeline, Tokens { calibration, ..tokens });
        Ok(plan)
    }

    /// The tensors that no block reads, of the output that carries most of them.
    pub(crate) fn carried(&self) -> &[checkpoint::Planned] {
        let all = self.outputs.iter().map(|output| output.carried.as_slice());
        all.max_by_key(|carried| carried.len()).unwrap_or_default()
    }

    /// The output that leads.
    ///
    /// # Panics
    /// Never: a recipe has an output.
    pub fn lead(&self) -> &PlannedOutput {
        &self.outputs[0]
    }

    /// Bytes of the tensors of all outputs.
    pub fn artifact_bytes(&self) -> u64 {
        self.outputs.iter().fold(0, |sum, output| sum.saturating_add(output.artifact_bytes))
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
        let read: BTreeSet<&str> = model.tensors().iter().map(|s| s.at.tensor.as_str()).collect();
        let unread: Vec<&TensorInfo> =
            checkpoint.tensors().iter().filter(|t| !read.contains(t.name.as_str())).collect();
        for output in &mut self.outputs {
            let taken: BTreeSet<String> = output.tensors.iter().map(|t| t.name.clone()).collect();
            let container = output.format.container;
            for info in unread.iter().filter(|info| !container.leaves_out(&info.name)) {
                let refusal = |rule: &str| Refusal { what: info.name.clone(), rule: rule.into() };
                if info.grid.is_some() {
                    let rule = "is packed, and nothing reads it: it cannot be carried over";
                    return Err(refusal(rule));
                }
                if taken.contains(&info.name) {
                    return Err(refusal(
                        "is read by nothing, and the artifact has another of its name",
                    ));
                }
                let (name, dtype, shape) = (info.name.clone(), info.dtype, info.shape.clone());
                output.carried.push(checkpoint::Planned { name, dtype, shape });
                output.artifact_bytes += info.bytes();
            }
            output.tensors.extend(output.carried.iter().cloned());
        }
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

    /// Adds up memory and operations.
    fn weigh(&mut self, model: &ModelSpec, pipeline: &Pipeline, tokens: Tokens) {
        let works: Vec<Work> = self
            .model
            .layers
            .iter()
            .enumerate()
            .map(|(layer, block)| {
                let index = layer + 1;
                let outputs = of_block(&self.outputs, index);
                Work::of(block, &self.blocks[index], pipeline, &outputs, tokens)
            })
            .collect();
        let layers = works.iter().map(|work| work.bytes).max().unwrap_or(0);
        self.working_bytes = BASE_BYTES + layers;
        self.starting_bytes = BASE_BYTES + work::table(&self.model);
        let head = of_block(&self.outputs, self.blocks.len() - 1);
        let solving = work::solving(&self.model.head, &pipeline.outputs, &head);
        self.ending_bytes = BASE_BYTES + work::slices(&self.model, tokens) + solving;
        self.operations = works.iter().map(|work| work.operations(tokens)).sum();
        let surveys = self.surveys(model, pipeline, tokens);
        let most = surveys.iter().map(|work| work.bytes).max().unwrap_or(0);
        self.working_bytes = self.working_bytes.max(BASE_BYTES + most);
        let surveyed = surveys.iter().map(|work| work.operations(Tokens { held_out: 0, ..tokens }));
        self.operations += surveyed.sum::<f64>();
        self.replay_operations = works.iter().map(|work| work.replay_operations(tokens)).sum();
        self.operations += 4.0 * (tokens.held_out * self.model.vocab * self.model.hidden) as f64;
    }
}

impl Plan {
    /// What looking at each layer of the original takes.
    fn surveys(&self, model: &ModelSpec, pipeline: &Pipeline, tokens: Tokens) -> Vec<Work> {
        let stages = pipeline.surveys.iter().flat_map(|survey| survey.stages(model));
        let stages: Vec<(usize, Stage)> = stages.map(|stage| (0, stage)).collect();
        if stages.is_empty() {
            return Vec::new();
        }
        let work = |block: &Block<Spec>| {
            let own = stages.iter().filter(|(_, stage)| stage.block == block.id).cloned();
            let planned = PlannedBlock { id: block.id, edits: own.collect(), solves: Vec::new() };
            let dense = |spec: &Spec| PlannedWeight {
                name: spec.tensor.clone(),
                choice: Choice::Dense(spec.dtype),
                instead_of: None,
                spec: spec.clone(),
            };
            let dense: Vec<PlannedWeight> = block.weights.iter().map(dense).collect();
            Work::of(block, &planned, pipeline, &[&dense], tokens)
        };
        model.layers.iter().map(work).collect()
    }
}

impl PlannedBlock {
    /// Whether anything that is done to it needs calibration samples.
    pub fn observes(&self) -> bool {
        let edits = self.edits.iter().any(|(_, stage)| !stage.observes.is_empty());
        edits || self.solves.iter().any(|stage| !stage.observes.is_empty())
    }
}

/// The weights of one block in every output.
pub(crate) fn of_block(outputs: &[PlannedOutput], index: usize) -> Vec<&[PlannedWeight]> {
    outputs.iter().map(|output| &output.blocks[index].1[..]).collect()
}

/// The weights that can be on a grid, in the order of the ops that read them.
fn matrices(block: &Block<Spec>) -> impl Iterator<Item = WeightId> + '_ {
    block.table().into_iter().chain(block.matrices().into_iter().map(|matrix| matrix.weight))
}

/// The stages of the lowering: those of the rules of the output that leads, in their order, then
/// what only others put on a grid.
fn solves(
    block: &Block<Spec>,
    pipeline: &Pipeline,
    planned: &[&[PlannedWeight]],
) -> Vec<SolveStage> {
    let outputs = &pipeline.outputs;
    let rule = |output: usize, weight: WeightId| match planned[output][weight.0 as usize].choice {
        Choice::Quantized { rule, .. } => Some(rule),
        _ => None,
    };
    let mut stages: Vec<SolveStage> = Vec::new();
    let mut add = |weights: Vec<WeightId>| {
        let given = |weight: &WeightId| {
            let spec = block.weight(*weight);
            spec.is_some_and(|spec| pipeline.importance(spec).is_some())
        };
        let seen = |weight: &&WeightId| {
            let all = planned.iter().zip(outputs);
            let solvers = all.filter_map(|(own, output)| own[weight.0 as usize].solver(output));
            solvers.into_iter().any(|s| s.observes() && !(s.takes_importance() && given(weight)))
        };
        let observes = weights.iter().filter(seen).map(|weight| Observe::Gram(*weight)).collect();
        if !weights.is_empty() {
            stages.push(SolveStage { weights, observes });
        }
    };
    for (index, own) in outputs[0].rules.iter().enumerate() {
        let weights: Vec<WeightId> =
            matrices(block).filter(|weight| rule(0, *weight) == Some(index)).collect();
        if own.solver().is_sequential() {
            let of = |weight: &WeightId| input(block, *weight);
            weights.chunk_by(|a, b| of(a) == of(b)).for_each(|same| add(same.to_vec()));
        } else {
            by_expert(block, &weights).for_each(|of| add(of.to_vec()));
        }
    }
    let others = |weight: &WeightId| {
        rule(0, *weight).is_none() && (1..outputs.len()).any(|o| rule(o, *weight).is_some())
    };
    let others: Vec<WeightId> = matrices(block).filter(others).collect();
    by_expert(block, &others).for_each(|of| add(of.to_vec()));
    stages
}

/// Weights in runs of one expert: the weights and statistics of one are in memory at a time.
fn by_expert<'w>(
    block: &Block<Spec>,
    weights: &'w [WeightId],
) -> impl Iterator<Item = &'w [WeightId]> {
    let of = |weight: &WeightId| block.weight(*weight).and_then(expert);
    weights.chunk_by(move |a, b| of(a) == of(b))
}

/// What the configuration of a model says otherwise, now that passes have changed it.
fn described(source: &ModelSpec, edited: &ModelSpec) -> Result<Map<String, Value>, Refusal> {
    let refusal = |rule: String| Refusal { what: "passes".into(), rule };
    let ids = |model: &ModelSpec| model.layers.iter().map(|layer| layer.id).collect::<Vec<_>>();
    if source.embedding != edited.embedding || source.head != edited.head {
        return Err(refusal("change the embedding or the head: only layers can be changed".into()));
    }
    if ids(source) != ids(edited) {
        return Err(refusal("change which layers there are: only what they do can be".into()));
    }
    if source.layers == edited.layers {
        return Ok(Map::new());
    }
    let of = |model| arch::describe(model).map_err(|error| refusal(error.to_string()));
    let (before, mut now) = (of(source)?, of(edited)?);
    now.retain(|key, value| before.get(key) != Some(value));
    Ok(now)
}

/// What becomes of every weight in an output, and its tensors.
fn plan_output(
    model: &ModelSpec,
    output: &Output,
    stored: &BTreeMap<String, Grid>,
) -> Result<PlannedOutput, Vec<Refusal>> {
    let format = output::format(output.format.as_deref()).map_err(|one| vec![one])?;
    let mut refusals = Vec::new();
    let mut blocks = Vec::new();
    for block in model.blocks() {
        // The embedding comes first.
        let table = blocks.first().filter(|_| format.ties_codes).and_then(
            |(_, own): &(_, Vec<PlannedWeight>)| {
                own.get(model.embedding.table()?.0 as usize)?.grid()
            },
        );
        let from = From { model, block, table, stored };
        match plan_block(&from, output, format) {
            Ok(weights) => blocks.push((block.id, weights)),
            Err(refused) => refusals.extend(refused),
        }
    }
    let mut tensors = Vec::new();
    for (block, (_, weights)) in model.blocks().zip(&blocks) {
        let width = if block.id == BlockId::Embedding { 1 } else { model.hidden };
        match ir::verify(block, width) {
            Ok(verified) => {
                tensors.extend(output::tensors(&verified, format, weights, &mut refusals));
            }
            Err(broken) => {
                let (what, rule) = (block.id.to_string(), format!("internal: {broken}"));
                refusals.push(Refusal { what, rule });
            }
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let untied = blocks
        .iter()
        .flat_map(|(_, weights)| weights)
        .any(|w: &PlannedWeight| w.choice != Choice::Shared && w.name != w.spec.tensor);
    Ok(PlannedOutput {
        name: output.name.clone(),
        format,
        dtype: output.dtype,
        shard_size: output.shard_size,
        tied: model.tied && !untied,
        artifact_bytes: tensors.iter().filter_map(checkpoint::Planned::bytes).sum(),
        config: Map::new(),
        carried: Vec::new(),
        tensors,
        blocks,
    })
}

/// A block that is planned.
struct From<'a> {
    model: &'a ModelSpec,
    block: &'a Block<Spec>,
    /// The grid of an embedding that a tied head may read.
    table: Option<Grid>,
    /// The grids that the source has weights on.
    stored: &'a BTreeMap<String, Grid>,
}

/// What becomes of a block's weights.
fn plan_block(
    from: &From<'_>,
    output: &Output,
    format: &'static Format,
) -> Result<Vec<PlannedWeight>, Vec<Refusal>> {
    let &From { model, block, table: table_grid, .. } = from;
    let as_asked = |asked: Dtype, stored| asked.of(stored);
    let mut shown = block.clone();
    shown.weights.iter_mut().for_each(|s| {
        // A router's few rows are kept as exact as a vector, where readers know it so only.
        let exact = s.shape.len() == 1 || s.role == Role::Matrix(Projection::Router);
        let vectors = format.vectors.filter(|_| exact);
        s.dtype = vectors.unwrap_or_else(|| as_asked(output.dtype, s.dtype));
    });
    let projection = shown.projection().filter(|_| block.id == BlockId::Head);
    let projection = projection.and_then(|id| shown.weights.get_mut(id.0 as usize));
    projection.into_iter().for_each(|s| s.dtype = as_asked(output.head, s.dtype));
    let mut refusals = Vec::new();
    let mut targets: Vec<Option<(usize, Target)>> = vec![None; block.weights.len()];
    for weight in matrices(block) {
        match decided(from, &shown, weight, output, format) {
            Ok(target) => targets[weight.0 as usize] = target,
            Err(refusal) => refusals.push(refusal),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let table = model.table().filter(|_| model.tied && block.id == BlockId::Head);
    let tied = |spec: &Spec| table.is_some_and(|table| spec.at == table.at);
    let as_table = |dtype| table.is_some_and(|t| dtype == as_asked(output.dtype, t.dtype));
    let choose = |spec: &Spec, shown: &Spec, target: Option<(usize, Target)>| {
        let kept = target.map_or(Kept::Dense(shown.dtype), |(_, target)| target.kept);
        match (kept, target) {
            (Kept::On(grid), _) if tied(spec) && table_grid == Some(grid) => Choice::Shared,
            (Kept::On(grid), Some((rule, _))) => Choice::Quantized { rule, grid },
            (Kept::Dense(dtype), _) if tied(spec) && as_table(dtype) => Choice::Shared,
            (Kept::Dense(dtype), _) => Choice::Dense(dtype),
            // Only a rule names a grid, and what is kept has one by now.
            (Kept::On(_), None) | (Kept::AsStored, _) => Choice::Dense(shown.dtype),
        }
    };
    let weights = block.weights.iter().zip(&shown.weights).zip(targets);
    let planned = weights.map(|((spec, shown), target)| PlannedWeight {
        name: if tied(spec) { output::HEAD.into() } else { spec.tensor.clone() },
        choice: choose(spec, shown, target),
        instead_of: target.and_then(|(_, target)| target.instead_of),
        spec: spec.clone(),
    });
    Ok(planned.collect())
}

/// What the rules make of a weight: the first that is about it, and can do what it says.
fn decided(
    from: &From<'_>,
    shown: &Block<Spec>,
    weight: WeightId,
    output: &Output,
    format: &'static Format,
) -> Result<Option<(usize, Target)>, Refusal> {
    let spec = shown.weight(weight);
    let stored = spec.and_then(|spec| from.stored.get(&spec.at.tensor).copied());
    let asked = Asked { model: from.model, block: shown, weight, scales: format.scales, stored };
    let shape = spec.and_then(|spec| spec.shape[..].try_into().ok());
    let mut refusal = None;
    for (index, rule) in output.rules.iter().enumerate() {
        let Some(target) = rule.target(&asked)? else { continue };
        let (Kept::AsStored, Some(stored), Some(shape)) = (target.kept, stored, shape) else {
            return Ok(Some((index, target)));
        };
        match recode::grid(stored, format, shape) {
            Ok(grid) => return Ok(Some((index, Target::on(grid)))),
            // Of all weights on a grid the same, so that it is said once.
            Err(rule) => refusal = Some(Refusal { what: stored.to_string(), rule }),
        }
    }
    refusal.map_or(Ok(None), Err)
}
