//! A step as data, and who runs it.

use crate::depth::CostTable;
use crate::engine::{Engine, Event};
use crate::pool::{GroupKind, KvTable};
use crate::request::Sampling;
use crate::sampler::{SampleError, Sampled, Scored};
use crate::sequence::SeqId;
use crate::speculate::Speculator;
use std::ops::Range;

/// Tokens of some sequences, computed together.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// A row a sequence, in the order of the results.
    pub rows: Vec<Row<'a>>,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The sequence. What was computed of a sequence of this name stays as it is from step to step.
    pub seq: SeqId,
    /// Every token of the sequence that is known, drafts included.
    pub context: &'a [u32],
    /// The positions that are computed; those before are in the cache.
    pub positions: Range<usize>,
    /// Where each cache group holds keys and values, a block of 16 positions.
    pub tables: &'a [KvTable],
    /// Those of the positions that draw the token after them: none while a prompt is unfinished,
    /// one in decoding, one more than the drafts in verification.
    pub samples: Range<usize>,
    /// Those of the positions of which is asked how likely the context's next token is.
    pub scores: Range<usize>,
    /// How tokens are drawn.
    pub sampling: &'a Sampling,
    /// Where the prompt ends and what was generated begins.
    pub prompt: usize,
    /// Log-probabilities with each drawn token, and of so many alternatives.
    pub logprobs: Option<usize>,
    /// Alternatives with each score.
    pub alternatives: usize,
}

/// The results of a step, a row each.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// In the order of the step's rows.
    pub rows: Vec<RowOutput>,
}

/// The results of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowOutput {
    /// A token each of the row's `samples`, in order.
    pub sampled: Vec<Result<Sampled, SampleError>>,
    /// What each of the row's `scores` says of its next token, in order.
    pub scored: Vec<Result<Scored, SampleError>>,
}

/// What an executor can take.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Tokens of the longest sequence.
    pub context: usize,
    /// The most tokens a step computes.
    pub tokens: usize,
    /// The most rows of a step, and so the most sequences that run at once.
    pub rows: usize,
    /// The cache groups of the model, and the blocks there are in each.
    pub groups: Vec<(GroupKind, usize)>,
    /// What a step of so many positions costs.
    pub cost: CostTable,
}

/// Runs steps. The result of a row depends on its own sequence alone.
pub trait Executor {
    /// What it can take.
    fn limits(&self) -> Limits;

    /// Computes `step`: its positions' keys and values are in the cache afterwards.
    ///
    /// # Errors
    /// If nothing was computed. A row whose logits are not numbers is no error of the step.
    fn run(&mut self, step: &Step<'_>, out: &mut Outputs) -> Result<(), ExecError>;
}

/// Takes an engine a step further: an executor does, and so do two of them together.
pub trait Stepper {
    /// See [`Engine::step`].
    ///
    /// # Errors
    /// If a step was not computed. Its sequences have ended; the engine goes on.
    fn step(
        &mut self,
        engine: &mut Engine,
        speculator: Option<&mut dyn Speculator>,
        events: &mut Vec<Event>,
    ) -> Result<(), ExecError>;
}

impl<E: Executor> Stepper for E {
    fn step(
        &mut self,
        engine: &mut Engine,
        speculator: Option<&mut dyn Speculator>,
        events: &mut Vec<Event>,
    ) -> Result<(), ExecError> {
        engine.step(self, speculator, events).map(drop)
    }
}

/// A step that was not computed. Its sequences end; the engine goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// Something that cannot be: a bug.
    #[error("{0}")]
    Bug(String),
    /// The device failed: memory, a kernel, the driver.
    #[error("{0}")]
    Device(String),
}
