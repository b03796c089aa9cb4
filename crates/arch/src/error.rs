//! Why a configuration or a checkpoint is refused. Every message names the key or the tensor.

use std::fmt;
use tensor::DType;

/// How many tensors a message lists before it only counts.
pub(crate) const LISTED: usize = 20;

/// A refused checkpoint. Every variant but [`Error::Internal`] and
/// [`Error::Undescribed`] is the input's fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `config.json` names no family.
    #[error("config.json: no key \"model_type\"; supported families are {supported}")]
    NoModelType {
        /// The supported families, separated by commas.
        supported: String,
    },
    /// The family is known or unknown, but not supported.
    #[error(
        "config.json: model_type {model_type} ({why}) is not supported; supported families are {supported}"
    )]
    Family {
        /// The family, quoted and escaped.
        model_type: String,
        /// What sets it apart.
        why: &'static str,
        /// The supported families, separated by commas.
        supported: String,
    },
    /// The tensors are those of the model, under names of a wrapper.
    #[error("tensor names begin with {prefix}: {what}")]
    Prefix {
        /// What the names begin with, quoted and escaped.
        prefix: String,
        /// Who writes such names, and what to do.
        what: &'static str,
    },
    /// A multimodal configuration keeps its decoder in a nested object.
    #[error(
        "config.json: model_type {model_type} nests its decoder in \"text_config\", which is not supported"
    )]
    Nested {
        /// The family, quoted and escaped.
        model_type: String,
    },
    /// The weights are stored quantized.
    #[error(
        "config.json: {key:?} says that the weights are quantized (quant_method {method}), \
         which is not supported; use the unquantized checkpoint"
    )]
    Quantized {
        /// The key that says so.
        key: &'static str,
        /// The method, quoted and escaped.
        method: String,
    },
    /// A key that is neither honoured nor known to be inert.
    #[error(
        "config.json: key {key} = {value} is not supported for {reader}, and may change the result"
    )]
    UnknownKey {
        /// The key's path as it is, which [`crate::ignore`] takes.
        path: String,
        /// The key's path, quoted and escaped.
        key: String,
        /// Its value, shortened and escaped.
        value: String,
        /// Who would have to read it: the family, or the kind of rotary scaling.
        reader: String,
    },
    /// A required key is absent.
    #[error("config.json: key {key} is missing")]
    MissingKey {
        /// The key's path, quoted and escaped.
        key: String,
    },
    /// A value breaks a rule.
    #[error("config.json: key {key} = {value}: {rule}")]
    Value {
        /// The key's path, quoted and escaped.
        key: String,
        /// Its value, shortened and escaped.
        value: String,
        /// What must hold and does not.
        rule: String,
    },
    /// Two keys say different things about one quantity.
    #[error("config.json: {what} is {a} by {a_key} but {b} by {b_key}; remove one of them")]
    Contradiction {
        /// The quantity.
        what: &'static str,
        /// The first key's path.
        a_key: String,
        /// What it says.
        a: String,
        /// The second key's path.
        b_key: String,
        /// What it says.
        b: String,
    },
    /// Tensors that the configuration asks for are not stored.
    #[error("{count} tensors that config.json asks for are not stored: {}", names.join(", "))]
    MissingTensors {
        /// How many.
        count: usize,
        /// The first of them, quoted and escaped.
        names: Vec<String>,
    },
    /// Stored shapes are not those of the configuration.
    #[error("the stored shapes of {count} tensors disagree with config.json: {}", join(first))]
    Shapes {
        /// How many.
        count: usize,
        /// The first of them.
        first: Vec<ShapeMismatch>,
    },
    /// Weights of an element type that is not read.
    #[error("{count} weights are stored in a dtype other than F32, F16 or BF16: {}", join(first))]
    DTypes {
        /// How many.
        count: usize,
        /// The first of them.
        first: Vec<Mismatch>,
    },
    /// No configuration of the family says what a model has become.
    #[error("no config.json of {family} describes the model: {what}")]
    Undescribed {
        /// The family's name.
        family: &'static str,
        /// What it cannot say.
        what: String,
    },
    /// An emitted block breaks a rule: a bug of this crate.
    #[error("internal error: the emitted program breaks a rule: {0}")]
    Internal(#[from] ir::VerifyError),
}

/// A stored tensor whose shape is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The tensor's name.
    pub tensor: String,
    /// The shape that the configuration determines.
    pub expected: Vec<usize>,
    /// The shape that is stored.
    pub found: Vec<usize>,
}

/// A stored tensor of an element type that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The tensor's name.
    pub tensor: String,
    /// Its stored element type.
    pub dtype: DType,
}

impl fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found: &[usize] = &self.found[..self.found.len().min(8)];
        write!(f, "{:?} is {found:?}", self.tensor)?;
        if found.len() < self.found.len() {
            write!(f, " and {} more dimensions", self.found.len() - found.len())?;
        }
        write!(f, ", expected {:?}", self.expected)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is {}", self.tensor, self.dtype)
    }
}

fn join(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
