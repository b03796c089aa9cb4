//! Blocks, values and weights.

use crate::cache::CacheId;
use crate::op::{Heads, Op};
use crate::role::Role;
use crate::view::View;
use tensor::{DType, Tensor};

/// Which part of a decoder a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockId {
    /// Token ids to hidden states.
    Embedding,
    /// The decoder layer of this index.
    Layer(u32),
    /// Hidden states to logits.
    Head,
}

/// The result of an op, or a block's input.
///
/// `Value(0)` is the block's input, `Value(i + 1)` the result of `ops[i]`. Each is an array
/// `[rows, width]` of `f32`, a row a token (the input of the embedding is the token ids).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

impl Value {
    /// The block's input.
    pub const INPUT: Self = Self(0);
}

/// An index into a block's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// A straight-line program and its weights. The last op's result is the block's output.
///
/// `W` is [`Spec`] when planned, [`Weight`] when loaded, a device's own type when run.
#[derive(Clone, Debug, PartialEq)]
pub struct Block<W = Weight> {
    /// Which block this is.
    pub id: BlockId,
    /// The program, in order of execution.
    pub ops: Vec<Op>,
    /// What [`WeightId`]s index.
    pub weights: Vec<W>,
}

/// What is known of a weight before it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What it is to its block.
    pub role: Role,
    /// Its name: that of the tensor that holds it where each weight has one of its own.
    pub tensor: String,
    /// Where it lies.
    pub at: View,
    /// Its sizes: `[out, in]` of a linear, `[width]` of a norm or a bias.
    pub shape: Vec<usize>,
    /// Its stored element type.
    pub dtype: DType,
}

/// A weight in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// What was planned of it.
    pub spec: Spec,
    /// Its elements, of the planned shape and dtype.
    pub tensor: Tensor,
}

impl<W> Block<W> {
    /// The block's output value.
    pub fn output(&self) -> Value {
        Value(self.ops.len() as u32)
    }

    /// The op that computes `value`, or `None` for the block's input.
    pub fn definition(&self, value: Value) -> Option<&Op> {
        self.ops.get((value.0 as usize).checked_sub(1)?)
    }

    /// The indices of the ops that read `value`.
    pub fn uses(&self, value: Value) -> impl Iterator<Item = usize> {
        let reads = move |op: &Op| op.inputs().contains(&value);
        self.ops.iter().enumerate().filter(move |(_, op)| reads(op)).map(|(i, _)| i)
    }

    /// The heads and the window of the block's only attention.
    pub fn attention(&self) -> Option<(Heads, Option<u32>)> {
        let mut found = self.ops.iter().filter_map(|op| match *op {
            Op::Attend { heads, window, .. } => Some((heads, window)),
            _ => None,
        });
        found.next().filter(|_| found.next().is_none())
    }

    /// The caches that its ops use.
    pub fn caches(&self) -> impl Iterator<Item = CacheId> {
        self.ops.iter().filter_map(|op| match *op {
            Op::Attend { cache, .. } => Some(cache),
            _ => None,
        })
    }

    /// Whether it has the ops of another block but for their caches.
    pub fn has_ops_of<V>(&self, other: &Block<V>) -> bool {
        let mut pairs = self.ops.iter().zip(&other.ops);
        self.ops.len() == other.ops.len() && pairs.all(|(a, b)| a.is_alike(b))
    }

    /// The table that token ids select rows of, in the embedding.
    pub fn table(&self) -> Option<WeightId> {
        self.ops.iter().find_map(|op| match *op {
            Op::Embed { weight, .. } => Some(weight),
            _ => None,
        })
    }

    /// The weight of the linear that the block ends in: what projects to logits, in the head.
    pub fn projection(&self) -> Option<WeightId> {
        match self.ops.last() {
            Some(&Op::Linear { weight, .. }) => Some(weight),
            _ => None,
        }
    }

    /// What `id` indexes.
    pub fn weight(&self, id: WeightId) -> Option<&W> {
        self.weights.get(id.0 as usize)
    }

    /// The same program over other weights.
    pub fn try_map<V, E>(self, f: impl FnMut(W) -> Result<V, E>) -> Result<Block<V>, E> {
        let weights = self.weights.into_iter().map(f).collect::<Result<_, _>>()?;
        Ok(Block { id: self.id, ops: self.ops, weights })
    }
}

impl Block<Weight> {
    /// The block without its values.
    pub fn specs(&self) -> Block<Spec> {
        let weights = self.weights.iter().map(|weight| weight.spec.clone()).collect();
        Block { id: self.id, ops: self.ops.clone(), weights }
    }
}

impl Spec {
    /// A weight that is of no block.
    pub fn alone(tensor: impl Into<String>, shape: &[usize], dtype: DType) -> Self {
        let tensor = tensor.into();
        let at = View::whole(&*tensor);
        Self { role: Role::Other, tensor, at, shape: shape.to_vec(), dtype }
    }

    /// Whether it is a stored tensor of its name.
    pub fn is_alone(&self) -> bool {
        self.at == View::whole(&*self.tensor)
    }

    /// The bytes the stored weight takes. The front end has checked that they do not overflow.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes_of(&self.shape).unwrap_or(usize::MAX)
    }
}

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Layer(i) => write!(f, "layer {i}"),
            Self::Head => f.write_str("head"),
        }
    }
}
