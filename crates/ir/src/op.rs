//! The op kinds of a block program.

use crate::block::{Value, WeightId};
use crate::cache::CacheId;
use std::sync::Arc;

/// One step of a block program. Shapes are `[rows, width]`; a row is a token.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Rows of an embedding table `[vocab, hidden]`, selected by the input token ids.
    Embed {
        /// The token ids.
        input: Value,
        /// `[vocab, hidden]`.
        weight: WeightId,
    },
    /// `y = x W^T + b`.
    Linear {
        /// `[rows, in]`.
        input: Value,
        /// `[out, in]`.
        weight: WeightId,
        /// `[out]`.
        bias: Option<WeightId>,
    },
    /// Root-mean-square normalization of each consecutive run of `len(weight)` elements of a row:
    /// the whole row for a layer norm, each head for q/k norms (Zhang & Sennrich 2019).
    Norm {
        /// `[rows, width]`, `width` a multiple of `len(weight)`.
        input: Value,
        /// `[len]`, multiplied into the normalized run.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
    },
    /// Rotary position embedding of every head (Su et al. 2021), half-split layout: element `i` of
    /// a head is paired with element `i + rotary / 2`, as Hugging Face stores it.
    Rope {
        /// `[rows, heads * head_dim]`.
        input: Value,
        /// The size of a head.
        head_dim: usize,
        /// The frequencies.
        rope: Arc<Rope>,
    },
    /// Causal grouped-query attention over the sequence so far.
    Attend {
        /// `[rows, heads.query * heads.dim]`.
        q: Value,
        /// `[rows, heads.kv * heads.dim]`.
        k: Value,
        /// `[rows, heads.kv * heads.dim]`.
        v: Value,
        /// How rows are cut into heads.
        heads: Heads,
        /// Multiplied into `q . k`.
        scale: f32,
        /// A row at position `p` sees the positions `p - window + 1 ..= p`; all up to `p` if none.
        window: Option<u32>,
        /// Where the keys and values of earlier steps are. A whole sequence needs none.
        cache: CacheId,
    },
    /// Which experts each row is given to, and how much each counts: of the `top` largest scores of a
    /// row the soft-max, of all others 0 (Shazeer et al. 2017). Of equal scores the first counts.
    Route {
        /// Scores `[rows, experts]`.
        input: Value,
        /// How many experts a row is given to.
        top: usize,
        /// Whether the soft-max is over the chosen scores, so that weights add up to 1, or over all.
        normalized: bool,
    },
    /// The weighted sum of gated feed-forwards: `sum_e routes_e * down_e(kind(gate_e(x)) * up_e(x))`, in
    /// the order of the experts, over those whose weight is not 0.
    Experts {
        /// `[rows, hidden]`.
        input: Value,
        /// `[rows, experts]`, as [`Op::Route`] gives them.
        routes: Value,
        /// The experts.
        experts: Vec<Expert>,
        /// What is applied to the gate.
        kind: Activation,
    },
    /// An element-wise non-linearity.
    Activate {
        /// `[rows, width]`.
        input: Value,
        /// Which one.
        kind: Activation,
    },
    /// `x * by`, element by element.
    Scale {
        /// `[rows, width]`.
        input: Value,
        /// The factor.
        by: f32,
    },
    /// `a * b`, element by element.
    Mul {
        /// `[rows, width]`.
        a: Value,
        /// `[rows, width]`.
        b: Value,
    },
    /// `a + b`, element by element.
    Add {
        /// `[rows, width]`.
        a: Value,
        /// `[rows, width]`.
        b: Value,
    },
}

/// The matrices of an expert: a gated feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expert {
    /// `[ffn, hidden]`.
    pub gate: WeightId,
    /// `[ffn, hidden]`.
    pub up: WeightId,
    /// `[hidden, ffn]`.
    pub down: WeightId,
}

/// How an attention row is cut into heads. `query` is a multiple of `kv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; each serves `query / kv` consecutive query heads.
    pub kv: usize,
    /// The size of a head.
    pub dim: usize,
}

/// Rotary frequencies with their context scaling already applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians a position, one a pair of elements: `[rotary / 2]`, `rotary <= head_dim`.
    pub inv_freq: Vec<f32>,
    /// Multiplied into sine and cosine (yarn's attention factor; 1 otherwise).
    pub magnitude: f32,
}

/// An element-wise non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

impl Op {
    /// Whether it is the same op but for its cache: of layers with one program each has its own.
    pub fn is_alike(&self, other: &Self) -> bool {
        let mut other = other.clone();
        if let (&Self::Attend { cache: own, .. }, Self::Attend { cache, .. }) = (self, &mut other) {
            *cache = own;
        }
        *self == other
    }

    /// The values this op reads, in argument order.
    pub fn inputs(&self) -> Vec<Value> {
        match *self {
            Self::Embed { input, .. }
            | Self::Linear { input, .. }
            | Self::Norm { input, .. }
            | Self::Rope { input, .. }
            | Self::Activate { input, .. }
            | Self::Scale { input, .. }
            | Self::Route { input, .. } => vec![input],
            Self::Experts { input, routes, .. } => vec![input, routes],
            Self::Attend { q, k, v, .. } => vec![q, k, v],
            Self::Mul { a, b } | Self::Add { a, b } => vec![a, b],
        }
    }

    /// The weights this op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match *self {
            Self::Embed { weight, .. } | Self::Norm { weight, .. } => vec![weight],
            Self::Experts { ref experts, .. } => {
                experts.iter().flat_map(|e| [e.gate, e.up, e.down]).collect()
            }
            Self::Linear { weight, bias, .. } => {
                [Some(weight), bias].into_iter().flatten().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The op's name as the printer and the reports write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::Linear { .. } => "linear",
            Self::Norm { .. } => "norm",
            Self::Rope { .. } => "rope",
            Self::Attend { .. } => "attend",
            Self::Activate { .. } => "activate",
            Self::Route { .. } => "route",
            Self::Experts { .. } => "experts",
            Self::Scale { .. } => "scale",
            Self::Mul { .. } => "mul",
            Self::Add { .. } => "add",
        }
    }
}
