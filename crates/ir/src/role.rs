//! What a weight is to its block, and what its matrices multiply.

use crate::block::{Block, Value, WeightId};
use crate::op::Op;
use std::fmt;

/// What a weight is to its block. A pass selects by it, never by a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The table whose rows are selected by token ids.
    Table,
    /// The weights of a norm.
    Norm,
    /// The matrix of a linear.
    Matrix(Projection),
    /// The bias of a linear.
    Bias(Projection),
    /// A matrix of the expert of this index.
    Expert(u32, Projection),
    /// None that a decoder has: a weight alone, in a trial or a test.
    #[default]
    Other,
}

/// What a linear projects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// What was attended, back to the hidden state.
    Output,
    /// The gate of a feed-forward.
    Gate,
    /// What the gate is multiplied into.
    Up,
    /// Back to the hidden state.
    Down,
    /// A score for each expert.
    Router,
    /// Logits.
    Head,
}

/// The rows that a matrix multiplies. Matrices of one input share its statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// All rows of a value.
    All(Value),
    /// The rows that `ops[op]` gives to an expert.
    Given {
        /// The index of [`Op::Experts`].
        op: usize,
        /// The expert.
        expert: usize,
    },
    /// What the gate and the up projection of that expert make of them.
    Gated {
        /// The index of [`Op::Experts`].
        op: usize,
        /// The expert.
        expert: usize,
    },
}

/// A matrix that rows are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// The op that it is of.
    pub op: usize,
    /// `[out, in]`.
    pub weight: WeightId,
    /// `[out]`.
    pub bias: Option<WeightId>,
    /// What it multiplies.
    pub input: Input,
}

impl<W> Block<W> {
    /// Every matrix that rows are multiplied by, in order of execution: those of linears, and of each
    /// expert its gate, its up and its down projection.
    pub fn matrices(&self) -> Vec<Matrix> {
        let mut all = Vec::new();
        for (op, of) in self.ops.iter().enumerate() {
            match of {
                &Op::Linear { input, weight, bias } => {
                    all.push(Matrix { op, weight, bias, input: Input::All(input) });
                }
                Op::Experts { experts, .. } => {
                    all.extend(experts.iter().enumerate().flat_map(|(expert, of)| {
                        let (given, gated) =
                            (Input::Given { op, expert }, Input::Gated { op, expert });
                        [(of.gate, given), (of.up, given), (of.down, gated)]
                            .map(|(weight, input)| Matrix { op, weight, bias: None, input })
                    }));
                }
                _ => {}
            }
        }
        all
    }

    /// How many experts each row is given to, of how many, for [`Op::Experts`].
    pub fn given(&self, experts: &Op) -> Option<[usize; 2]> {
        let &Op::Experts { routes, experts: ref all, .. } = experts else { return None };
        match self.definition(routes) {
            Some(&Op::Route { top, .. }) => Some([top, all.len()]),
            _ => None,
        }
    }
}

impl Projection {
    /// Every one.
    pub(crate) const ALL: [Self; 9] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::Router,
        Self::Head,
    ];

    /// How reports and recipes spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q",
            Self::Key => "k",
            Self::Value => "v",
            Self::Output => "o",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
            Self::Router => "router",
            Self::Head => "head",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("table"),
            Self::Norm => f.write_str("norm"),
            Self::Matrix(of) => f.write_str(of.name()),
            Self::Bias(of) => write!(f, "{} bias", of.name()),
            Self::Expert(expert, of) => write!(f, "expert {expert} {}", of.name()),
            Self::Other => f.write_str("other"),
        }
    }
}
