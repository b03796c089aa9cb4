//! The streamed forward: a model larger than memory, one block at a time.
//!
//! Sequences go through the blocks in groups. Resident are one block, of its experts one, the hidden
//! states of one batch of sequences, and a slice of rows of the embedding or of the head.

use crate::EvalError;
use crate::pages::Pages;
use crate::streamed::{Streamed, expert, resident};
use backend::{BackendError, BackendExt, Buffer, Call, DeviceWeight, Embed, Interpreter, KvDType};
use ir::{Block, ModelSpec, Op, Source, Spec, Weight, WeightId};
use std::ops::Range;

/// Rows of the embedding or the head that are resident at once. It fixes the order in which a
/// soft-max is summed, so it is not a setting.
pub const SLICE_ROWS: usize = 4096;

/// Rows that go through a block together: enough to be bound by arithmetic, few enough that the
/// values inside a block stay small beside its weights.
pub const GROUP_ROWS: usize = 2048;

/// Groups that go through a block of experts together, so that an expert is read once for all of them.
pub const EXPERT_GROUPS: usize = 4;

/// How many groups go through a program together.
pub(crate) fn together(ops: &[Op]) -> usize {
    let experts = ops.iter().any(|op| matches!(op, Op::Experts { .. }));
    if experts { EXPERT_GROUPS } else { 1 }
}

/// A model opened for streaming: what is known of it and where its weights are.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The programs.
    pub spec: &'a ModelSpec,
    /// The weights.
    pub source: &'a dyn Source,
}

impl<'a> Model<'a> {
    /// The model, computed exactly.
    pub fn exact(self) -> Forward<'a> {
        Forward { model: self, precision: Precision::Exact }
    }

    /// The model as the runtime serves it, with keys and values stored as `keys`.
    pub fn served(self, keys: KvDType) -> Forward<'a> {
        Forward { model: self, precision: Precision::Served(keys) }
    }
}

/// How a forward computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// With the `f32` that weights stand for, and with keys and values as they were computed.
    Exact,
    /// As the runtime serves: activations are rounded to int8 where a weight is on an integer grid,
    /// keys and values are read back as they are stored.
    Served(KvDType),
}

/// A model, and how it is run.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// What is run.
    pub model: Model<'a>,
    /// How.
    pub precision: Precision,
}

/// Some sequences that go through the model together.
pub struct Group {
    /// The rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    /// Their token ids, concatenated.
    pub tokens: Vec<u32>,
}

impl Group {
    /// Cuts `sequences` into groups of about [`GROUP_ROWS`], a sequence at least.
    pub fn cut<'t>(sequences: impl Iterator<Item = &'t [u32]>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for tokens in sequences {
            let fits = |g: &&mut Self| g.tokens.len() + tokens.len() <= GROUP_ROWS;
            match groups.last_mut().filter(fits) {
                Some(group) => group.push(tokens),
                None => {
                    groups.push(Self { sequences: Vec::new(), tokens: Vec::new() });
                    groups.iter_mut().last().into_iter().for_each(|g| g.push(tokens));
                }
            }
        }
        groups
    }

    fn push(&mut self, tokens: &[u32]) {
        let begin = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.sequences.push(begin..self.tokens.len());
    }
}

/// Bytes of hidden state that a token of `model` takes between blocks.
pub(crate) fn bytes_a_token(model: &ModelSpec) -> usize {
    model.hidden.saturating_mul(size_of::<f32>())
}

/// Runs the embedding and every layer. The result is a buffer `[rows, hidden]` a group.
///
/// `done` is told after each block.
pub(crate) fn hidden_states(
    interpreter: &Interpreter<'_>,
    forward: Forward<'_>,
    groups: &[Group],
    done: &mut dyn FnMut(),
) -> Result<Vec<Buffer>, EvalError> {
    let mut states = embed(interpreter, forward.model, groups)?;
    done();
    for layer in &forward.model.spec.layers {
        let held = forward.load(interpreter, layer)?;
        let lay_out = |id| forward.expert(interpreter, layer, id);
        let block = Streamed::new(&held, &layer.weights, &lay_out);
        let pages = forward.pages(interpreter, layer, groups)?;
        let step = together(&layer.ops);
        for (groups, states) in groups.chunks(step).zip(states.chunks_mut(step)) {
            let none = || Buffer::new(0, 0, ());
            let inputs = states.iter_mut().map(|state| std::mem::replace(state, none()));
            let inputs = inputs.zip(groups);
            let outputs = match &pages {
                Some(pages) => pages.run(interpreter, &block, inputs)?,
                None => {
                    let calls = inputs.map(|(input, group)| Call::whole(input, &group.sequences));
                    interpreter.run_all(&block, calls.collect())?
                }
            };
            states.iter_mut().zip(outputs).for_each(|(state, output)| *state = output);
        }
        done();
    }
    Ok(states)
}

/// The slices of the vocabulary that the head goes through.
pub(crate) fn slices(vocab: usize) -> impl Iterator<Item = Range<usize>> {
    (0..vocab).step_by(SLICE_ROWS).map(move |begin| begin..(begin + SLICE_ROWS).min(vocab))
}

impl Forward<'_> {
    /// The head with only rows `slice` of its projection: its output is the logits of those tokens.
    pub(crate) fn head_slice(
        &self,
        interpreter: &Interpreter<'_>,
        slice: Range<usize>,
    ) -> Result<Block<DeviceWeight>, EvalError> {
        let head = &self.model.spec.head;
        let last = head.projection().and_then(|_| head.ops.last());
        let last = last.ok_or_else(|| EvalError::Internal("a head ends in a linear".into()))?;
        let sliced = last.weights();
        let mut ids = (0..).map(WeightId);
        head.clone().try_map(|spec| {
            let is_sliced = ids.next().is_some_and(|id| sliced.contains(&id));
            let rows = if is_sliced { slice.clone() } else { 0..spec.shape[0] };
            Ok(self.weight(interpreter, &spec, rows)?)
        })
    }

    /// Reads a block's weights but those of experts, one at a time, and lays them out for the device.
    fn load(
        &self,
        interpreter: &Interpreter<'_>,
        block: &Block<Spec>,
    ) -> Result<Block<Option<DeviceWeight>>, EvalError> {
        block.clone().try_map(|spec| {
            let held = expert(&spec).is_none().then_some(0..spec.shape[0]);
            Ok(held.map(|rows| self.weight(interpreter, &spec, rows)).transpose()?)
        })
    }

    /// Reads a weight of an expert, and lays it out for the device.
    fn expert(
        &self,
        interpreter: &Interpreter<'_>,
        block: &Block<Spec>,
        id: WeightId,
    ) -> Result<DeviceWeight, BackendError> {
        let absent = || BackendError::Internal(format!("weight {} is not there", id.0));
        let spec = block.weight(id).ok_or_else(absent)?;
        self.weight(interpreter, spec, 0..spec.shape[0])
    }

    /// A layer's keys and values, if they are to be read back as stored.
    fn pages(
        &self,
        interpreter: &Interpreter<'_>,
        layer: &Block<Spec>,
        groups: &[Group],
    ) -> Result<Option<Pages>, EvalError> {
        match self.precision {
            Precision::Exact => Ok(None),
            Precision::Served(dtype) => Pages::new(interpreter, layer, dtype, groups).map(Some),
        }
    }

    fn weight(
        &self,
        interpreter: &Interpreter<'_>,
        spec: &Spec,
        rows: Range<usize>,
    ) -> Result<DeviceWeight, BackendError> {
        let Model { spec: model, source } = self.model;
        // A table that embeds too is dense for both, as it is when served.
        let dense = model.table().is_some_and(|table| table.at == spec.at);
        if self.precision != Precision::Exact
            && !dense
            && let Some(weight) = source.read_view_quantized(&spec.at, rows.clone())?
        {
            return interpreter.backend().prepare_quantized(&spec.tensor, weight);
        }
        prepare(interpreter, source, spec, rows)
    }
}

fn prepare(
    interpreter: &Interpreter<'_>,
    source: &dyn Source,
    spec: &Spec,
    rows: Range<usize>,
) -> Result<DeviceWeight, BackendError> {
    let tensor = source.read_view(&spec.at, rows)?;
    let spec = Spec { shape: tensor.shape().to_vec(), ..spec.clone() };
    interpreter.backend().prepare_dense(Weight { spec, tensor })
}

/// The embeddings of every token, by the embedding's program: a buffer `[rows, hidden]` a group. Of its
/// table only a slice of rows is resident.
pub(crate) fn embed(
    interpreter: &Interpreter<'_>,
    model: Model<'_>,
    groups: &[Group],
) -> Result<Vec<Buffer>, EvalError> {
    let (backend, block) = (interpreter.backend(), &model.spec.embedding);
    let (Some(table), Some(spec)) = (block.table(), model.spec.table()) else {
        return Err(EvalError::Internal("an embedding has a table".into()));
    };
    let zeros = |g: &Group| backend.zeros(g.tokens.len(), spec.shape[1]);
    let mut states = groups.iter().map(zeros).collect::<Result<Vec<_>, _>>()?;
    for slice in slices(model.spec.vocab) {
        let inside = |t: &u32| slice.contains(&(*t as usize));
        if !groups.iter().any(|g| g.tokens.iter().any(inside)) {
            continue;
        }
        let first = slice.start as u32;
        let weight = prepare(interpreter, model.source, spec, slice)?;
        for (group, state) in groups.iter().zip(&mut states) {
            backend.embed(&Embed { tokens: &group.tokens, weight: &weight, first }, state)?;
        }
    }
    let mut ids = (0..).map(WeightId);
    let rest = block.clone().try_map(|spec| {
        let rows = 0..spec.shape[0];
        let held = ids.next() != Some(table);
        held.then(|| prepare(interpreter, model.source, &spec, rows)).transpose()
    })?;
    let run = |state| Ok(interpreter.run_gathered(&rest, state)?);
    states.into_iter().map(run).collect()
}

/// The largest block's bytes as stored, with one of its experts: what a streamed forward holds of the
/// weights.
pub fn largest_block(model: &ModelSpec) -> usize {
    let of = |b: &Block<Spec>| resident(&b.weights, |index| b.weights[index].bytes() as u64);
    let layers = model.layers.iter().map(|b| of(b) as usize);
    let slice = model.table().map(|t| t.dtype.bytes_of(&[SLICE_ROWS, t.shape[1]]));
    layers.chain(slice.flatten()).max().unwrap_or(0)
}
