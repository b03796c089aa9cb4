//! What a pass is: a pure function of a block and its statistics, planned on shapes first.

use backend::Backend;
use ir::{Block, Grid, Quantized, Spec, Value, WeightId};

/// Rewrites the weights of a block, one block at a time. It keeps nothing between blocks and names
/// no layer of an architecture.
pub trait Pass: Send + Sync {
    /// What recipes and reports call it.
    fn name(&self) -> &'static str;

    /// The grid that each of the block's weights will be on, by index; `None` leaves it alone.
    ///
    /// # Errors
    /// If a weight cannot be put on the grid that was asked for.
    fn plan(&self, block: &Block<Spec>) -> Result<Vec<Option<Grid>>, Refusal>;

    /// The parts of the pass that each need a look at the block as the part before left it.
    /// Together they rewrite every planned weight once.
    fn stages(&self, block: &Block<Spec>) -> Vec<Stage>;

    /// Rewrites the weights of one stage.
    ///
    /// # Errors
    /// If a weight has values that cannot be stored, or the device fails.
    fn run(&self, stage: &Stage, block: &Block, cx: &PassCx<'_>)
    -> Result<Vec<Rewrite>, PassError>;
}

/// A part of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The linears whose weights it rewrites, as indices of the block's ops.
    pub linears: Vec<usize>,
    /// Whether it needs the Gram matrix of each linear's input.
    pub observes: bool,
}

/// What a stage may look at beside the block.
pub struct PassCx<'a> {
    /// Where to compute.
    pub backend: &'a dyn Backend,
    /// The grid of each weight of the block, as planned.
    pub grids: &'a [Option<Grid>],
    /// The Gram matrix `[in, in]` (lower triangle) of each input that the stage's linears read,
    /// summed over all calibration tokens. Empty if the stage does not observe, or if there are no
    /// tokens.
    pub grams: &'a [(Value, Vec<f32>)],
}

impl PassCx<'_> {
    /// The Gram matrix of a value.
    pub fn gram(&self, value: Value) -> Option<&[f32]> {
        self.grams.iter().find(|(v, _)| *v == value).map(|(_, gram)| &gram[..])
    }
}

/// A weight with its codes.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// Which weight of the block.
    pub weight: WeightId,
    /// What it becomes.
    pub quantized: Quantized,
    /// How that went.
    pub outcome: Outcome,
}

/// How a weight's quantization went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The solver that chose the codes.
    pub method: &'static str,
    /// Squared error of the weight over its square: the same measure for every solver.
    pub relative_error: f64,
    /// Squared error of the linear's output over its square, on the calibration tokens that it was
    /// fitted to; `None` where no input was observed.
    pub output_error: Option<f64>,
    /// Rows for which nearest rounding did better than the solver, and was kept.
    pub rows_rounded: usize,
    /// What was added to the diagonal, as a share of its mean.
    pub damping: Option<f64>,
    /// Why another solver than the one asked for was used.
    pub fallback: Option<String>,
}

/// Something that was asked for and cannot be done, known before a weight is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {rule}")]
pub struct Refusal {
    /// The tensor, or the setting.
    pub what: String,
    /// What must hold and does not.
    pub rule: String,
}

/// Why a pass did not rewrite a weight.
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
