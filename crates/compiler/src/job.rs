//! A compilation to be run, and what is told of it while it runs.

use crate::plan::{Pipeline, Plan};
use crate::recipe::Recipe;
use crate::report::WeightReport;
use crate::survey::Decisions;
use backend::Backend;
use calibration::Model;
use checkpoint::Checkpoint;
use ir::BlockId;
use std::path::Path;
use std::time::Duration;

/// A compilation to be run.
pub struct Job<'a> {
    /// The source.
    pub checkpoint: &'a Checkpoint,
    /// Its programs and weights.
    pub model: Model<'a>,
    /// Keys of its `config.json` that its user said not to mind.
    pub ignored_keys: &'a [String],
    /// What was asked for.
    pub recipe: &'a Recipe,
    /// What the recipe comes to.
    pub pipeline: &'a Pipeline,
    /// What that does to this model.
    pub plan: &'a Plan,
    /// Where to compute.
    pub backend: &'a dyn Backend,
    /// The calibration samples; empty if nothing observes.
    pub samples: Text<'a>,
    /// The held-out tokens; empty if the result is not to be measured.
    pub held_out: Text<'a>,
    /// Bytes of hidden states that may stay in memory.
    pub activations: u64,
    /// What surveys found, of which the pipeline was made.
    pub decisions: &'a Decisions,
    /// Whether weights may be zero or constant, whole or over many rows.
    pub allow_zero: bool,
    /// Where each block is written as text, before and after each stage.
    pub dump: Option<&'a Path>,
}

/// Token sequences and where they came from.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// `built-in`, or the name of a file.
    pub from: &'a str,
    /// The sequences.
    pub sequences: &'a [Vec<u32>],
}

/// What a compilation is doing.
#[derive(Debug)]
pub enum Event<'a> {
    /// A layer is surveyed: which, of how many.
    Survey(BlockId, usize, usize),
    /// A block begins: which, of how many.
    Block(BlockId, usize, usize),
    /// A block that an earlier process finished is gone through: which, of how many.
    Replay(BlockId, usize, usize),
    /// A block that an earlier process finished is damaged, and is done again.
    Damaged(BlockId),
    /// A stage of a pass or of the lowering begins.
    Stage {
        /// On which block.
        block: BlockId,
        /// Which pass, or which solver.
        pass: &'static str,
    },
    /// A weight was put on its grid.
    Weight(&'a WeightReport),
    /// The result is being measured.
    Measure,
    /// An earlier run had finished the work; it is only judged again.
    Kept,
}

/// Where the time went. It is of the run, not of the artifact.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Reading, hashing and laying out weights.
    pub load: Duration,
    /// Forwards and Gram matrices.
    pub forward: Duration,
    /// Running passes and choosing codes.
    pub solve: Duration,
    /// Encoding, writing, and laying out what was written.
    pub write: Duration,
    /// Measuring the result.
    pub measure: Duration,
}

impl Spent {
    /// What both took.
    pub fn and(self, other: Self) -> Self {
        Self {
            load: self.load + other.load,
            forward: self.forward + other.forward,
            solve: self.solve + other.solve,
            write: self.write + other.write,
            measure: self.measure + other.measure,
        }
    }
}

/// Who is told what is being done, and where the time went.
pub(crate) struct Progress<'a> {
    pub(crate) events: &'a mut dyn FnMut(Event<'_>),
    pub(crate) spent: Spent,
}

impl Progress<'_> {
    pub(crate) fn tell(&mut self, event: Event<'_>) {
        (self.events)(event);
    }
}
