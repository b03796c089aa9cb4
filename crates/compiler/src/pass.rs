//! What a pass is: a rewrite of a layer's program and its dense weights, planned on shapes first. The driver
//! refuses a block that is not the one that was planned, and one that the verifier refuses.
//!
//! A pass edits; putting weights on grids is the lowering's ([`crate::Solver`]). So a pass works for
//! every grid and format, and what it changed is what all of them store.

use crate::refusal::Refusal;
use crate::statistics::{Observe, Statistics};
use backend::Backend;
use ir::{Block, BlockId, ModelSpec, Spec, Weight, WeightId};
use serde_json::{Map, Value};
use tensor::Tensor;

/// Rewrites a model, a block at a time. It keeps nothing between blocks and names no layer of an
/// architecture.
pub trait Pass: Send + Sync {
    /// What recipes and reports call it.
    fn name(&self) -> &'static str;

    /// Changes the layers as its run will, and gives its stages, in the order of the blocks
    /// that they are of.
    ///
    /// # Errors
    /// If the model cannot be rewritten so.
    fn plan(&self, model: &mut ModelSpec) -> Result<Vec<Stage>, Refusal>;

    /// What a stage makes of its block: a pure function of block and statistics.
    ///
    /// # Errors
    /// If a weight holds what cannot be rewritten, or the device fails.
    fn run(&self, stage: &Stage, block: &Block<Held>, cx: &PassCx<'_>) -> Result<Edit, PassError>;
}

/// A weight of a block that is being compiled.
#[derive(Clone, Debug)]
pub enum Held {
    /// It is not in memory: it is of an expert, and the stage names no weight of that expert.
    Unread(Spec),
    /// As the passes before left it.
    Dense(Weight),
}

impl Held {
    /// What is known of it.
    pub fn spec(&self) -> &Spec {
        match self {
            Self::Unread(spec) => spec,
            Self::Dense(weight) => &weight.spec,
        }
    }

    /// The weight.
    ///
    /// # Errors
    /// If it is not in memory: a bug of the stage, which has not named it.
    pub fn weight(&self) -> Result<&Weight, PassError> {
        match self {
            Self::Dense(weight) => Ok(weight),
            Self::Unread(spec) => {
                let tensor = &spec.tensor;
                Err(PassError::Internal(format!("{tensor:?} was not asked for, and is not read")))
            }
        }
    }

    /// A block without its values.
    pub fn specs(block: &Block<Self>) -> Block<Spec> {
        let weights = block.weights.iter().map(|held| held.spec().clone()).collect();
        Block { id: block.id, ops: block.ops.clone(), weights }
    }

    /// A block of which every weight is in memory.
    pub fn all(block: Block) -> Block<Self> {
        let weights = block.weights.into_iter().map(Self::Dense).collect();
        Block { id: block.id, ops: block.ops, weights }
    }
}

/// A part of a pass that needs a look of its own at a block, as the part before left it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The block that it is of.
    pub block: BlockId,
    /// What it needs to see. Of an expert, the weights that it names here and below are in memory.
    pub observes: Vec<Observe>,
    /// The weights that it may change. What it changes of an expert stays in memory until it is written.
    pub edits: Vec<WeightId>,
    /// What running it takes beside the block.
    pub cost: Cost,
}

/// What some work takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// The most bytes held at once.
    pub bytes: u64,
    /// Floating-point operations.
    pub operations: f64,
}

/// What a stage may look at beside the block.
pub struct PassCx<'a> {
    /// Where to compute.
    pub backend: &'a dyn Backend,
    /// What the stage asked to see; empty if there are no calibration tokens.
    pub statistics: &'a Statistics,
}

/// What a stage made.
#[derive(Debug, Default)]
pub struct Edit {
    /// The new values of weights, of the planned shapes, in `F32`.
    pub weights: Vec<(WeightId, Tensor)>,
    /// The block's new program, if it changes. Its weights are those of the block that it names, each
    /// once; the others go.
    pub program: Option<Block<WeightId>>,
    /// What the report says of it.
    pub notes: Map<String, Value>,
}

/// Why a pass or a solver did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The weight holds what cannot be stored.
    #[error("tensor {tensor:?}: {rule}")]
    Weight {
        /// The stored tensor.
        tensor: String,
        /// What must hold and does not.
        rule: String,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] backend::BackendError),
    /// A bug.
    #[error("internal: {0}")]
    Internal(String),
}
