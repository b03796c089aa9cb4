//! The lowering's parts: which weights go on which grid, and how their codes are chosen.

use crate::pass::PassError;
use crate::recipe::Dtype;
use crate::refusal::Refusal;
use backend::Backend;
use ir::{Block, Grid, ModelSpec, Quantized, Spec, Weight, WeightId};
use serde_json::{Map, Value};
use tensor::DType;

/// An artifact that is to be written.
pub struct Output {
    /// What its folder is called, where there are several.
    pub name: String,
    /// How it lies in files; the first of all formats if nothing is said.
    pub format: Option<String>,
    /// The element type of what is not quantized, and of scales.
    pub dtype: Dtype,
    /// The element type of the head, where no rule puts it on a grid.
    pub head: Dtype,
    /// The most bytes of data of a file, where there are to be several.
    pub shard_size: Option<u64>,
    /// The first that gives a weight a grid decides it; a weight that none gives one stays dense.
    pub rules: Vec<Box<dyn Rule>>,
}

/// A weight that a rule may be about, and where it is.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The whole model.
    pub model: &'a ModelSpec,
    /// The block; the dtype that its specs have is that of the output.
    pub block: &'a Block<Spec>,
    /// Which of its weights.
    pub weight: WeightId,
    /// The dtype of scales, where the format has one only.
    pub scales: Option<DType>,
    /// The grid that the source has it on.
    pub stored: Option<Grid>,
}

impl<'a> Asked<'a> {
    /// What is known of the weight.
    pub fn spec(&self) -> Option<&'a Spec> {
        self.block.weight(self.weight)
    }
}

/// What a rule makes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// How it is stored.
    pub kept: Kept,
    /// The grid that was meant, where rows of this width are no whole blocks of it.
    pub instead_of: Option<Grid>,
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// With the codes that the source has, on the grid of the format that holds their values.
    AsStored,
    /// As codes on a grid.
    On(Grid),
    /// As elements of a dtype.
    Dense(DType),
}

impl Target {
    /// A grid.
    pub fn on(grid: Grid) -> Self {
        Self { kept: Kept::On(grid), instead_of: None }
    }

    /// A dtype.
    pub fn dense(dtype: DType) -> Self {
        Self { kept: Kept::Dense(dtype), instead_of: None }
    }

    /// The grid, if it is one.
    pub fn grid(self) -> Option<Grid> {
        match self.kept {
            Kept::On(grid) => Some(grid),
            Kept::Dense(_) | Kept::AsStored => None,
        }
    }
}

/// Which weights, on which grid, by which solver.
pub trait Rule: Send + Sync {
    /// What becomes of a weight; `None` if the rule is not about it.
    ///
    /// # Errors
    /// If the weight is meant and cannot be put on the grid that was asked for.
    fn target(&self, asked: &Asked<'_>) -> Result<Option<Target>, Refusal>;

    /// How codes are chosen.
    fn solver(&self) -> &dyn Solver;
}

/// Chooses codes.
pub trait Solver: Send + Sync {
    /// What reports call it.
    fn name(&self) -> &'static str;

    /// Whether it needs the Gram matrix of a weight's input.
    fn observes(&self) -> bool;

    /// Whether what each column is worth is all that it wants of an input.
    fn takes_importance(&self) -> bool {
        false
    }

    /// Whether the inputs of a weight are observed with the weights before it already rewritten.
    fn is_sequential(&self) -> bool {
        false
    }

    /// Whether it keeps codes that the source has.
    fn keeps(&self) -> Option<Keep> {
        None
    }

    /// The most bytes that solving a weight `[out, in]` holds beside the weight and the Gram matrix.
    fn bytes(&self, shape: [usize; 2]) -> u64;

    /// Begins with the weights that read one input: what they share is done once.
    ///
    /// # Errors
    /// If the device fails.
    fn begin<'a>(&'a self, input: Input<'a>) -> Result<Box<dyn Solving + 'a>, PassError>;
}

/// How codes of the source are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// With every value as it is; else the weight is refused.
    Exactly,
    /// So if it can be; else the values are rounded.
    OrRounded,
}

/// What some weights read.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Where to compute.
    pub backend: &'a dyn Backend,
    /// Its width.
    pub width: usize,
    /// Its Gram matrix `[width, width]` (lower triangle); `None` if it was not observed.
    pub gram: Option<&'a [f32]>,
    /// What each column is worth by somebody else's account; `None` if nobody gave one.
    pub importance: Option<&'a [f32]>,
}

/// A solver at work on weights that read one input.
pub trait Solving {
    /// Puts a weight, or some of its rows, on a grid.
    ///
    /// # Errors
    /// If the weight has values that cannot be stored, or the device fails.
    fn solve(&mut self, weight: &Weight, grid: Grid) -> Result<Solved, PassError>;
}

/// A weight on its grid.
#[derive(Clone, Debug)]
pub struct Solved {
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
    /// The squared error of the weight, and its square: the same measure for every solver.
    pub weight: Misfit,
    /// The same of the linear's output, on the calibration tokens that it was fitted to; `None`
    /// where no input was observed.
    pub output: Option<Misfit>,
    /// Why another solver than the one asked for was used.
    pub fallback: Option<String>,
    /// What else the solver has to say, by the keys of the report.
    pub notes: Map<String, Value>,
}

/// A squared error, and the square of what it is an error of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Misfit {
    /// The squared error.
    pub error: f64,
    /// The square.
    pub of: f64,
}

impl Misfit {
    /// The error as a share; 0 of nothing.
    pub fn share(self) -> f64 {
        if self.of > 0.0 { self.error / self.of } else { 0.0 }
    }

    fn and(self, other: Self) -> Self {
        Self { error: self.error + other.error, of: self.of + other.of }
    }
}

impl Outcome {
    /// The outcomes of slices of rows of a weight as one. Counts among the notes are summed; of other
    /// notes the first slice's stay.
    pub(crate) fn together(slices: Vec<Self>) -> Option<Self> {
        slices.into_iter().reduce(|mut all, next| {
            all.weight = all.weight.and(next.weight);
            all.output = all.output.zip(next.output).map(|(a, b)| a.and(b));
            all.fallback = all.fallback.or(next.fallback);
            for (key, value) in next.notes {
                let sum = all.notes.get(&key).and_then(Value::as_u64).zip(value.as_u64());
                if let Some((a, b)) = sum {
                    all.notes.insert(key, (a + b).into());
                }
            }
            all
        })
    }
}
