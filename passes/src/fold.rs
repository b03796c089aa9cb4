//! Where a block's function stays the same if one weight is divided, channel by channel, and what reads
//! it is multiplied: found by def-use, never by names.

use ir::{Block, Op, Spec, Value, WeightId};

/// Channels of a value, what makes them, and the linears that read them, all of which follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// What is divided.
    pub source: Source,
    /// Channels of the source.
    pub width: usize,
    /// The matrices `[out, in]` whose columns are multiplied.
    pub targets: Vec<WeightId>,
    /// The size of a head, and how many heads of the input share one of the source; where there are
    /// no heads, one head of all channels that nothing shares.
    heads: Heads,
}

/// What makes channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The weight of a norm, an element a channel.
    Norm(WeightId),
    /// A matrix whose rows make them, and the bias that is added.
    Rows {
        /// `[channels, in]`.
        weight: WeightId,
        /// `[channels]`.
        bias: Option<WeightId>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    dim: usize,
    shared: usize,
}

impl Fold {
    /// The channel of the source that each column of the targets reads.
    pub fn sources(&self, columns: usize) -> Vec<usize> {
        let Heads { dim, shared } = self.heads;
        (0..columns).map(|at| at / dim / shared * dim + at % dim).collect()
    }

    /// Every weight that changes, in order.
    pub fn edits(&self) -> Vec<WeightId> {
        let mut all = self.targets.clone();
        match self.source {
            Source::Norm(weight) => all.push(weight),
            Source::Rows { weight, bias } => all.extend([Some(weight), bias].into_iter().flatten()),
        }
        all.sort_unstable();
        all
    }
}

/// Every fold of a block, in the order of the linears that read.
pub fn folds(block: &Block<Spec>) -> Vec<Fold> {
    let mut all: Vec<Fold> = Vec::new();
    for op in &block.ops {
        let Op::Linear { input, .. } = *op else { continue };
        if let Some(fold) = fold(block, input).filter(|fold| !all.contains(fold)) {
            all.push(fold);
        }
    }
    all
}

/// The fold of a value that linears alone read.
fn fold(block: &Block<Spec>, input: Value) -> Option<Fold> {
    let targets = block.uses(input).map(|index| match block.ops[index] {
        Op::Linear { weight, .. } => Some(weight),
        _ => None,
    });
    let targets = targets.collect::<Option<Vec<_>>>()?;
    let shape = |id: WeightId| &block.weights[id.0 as usize].shape;
    let whole = |width: usize| Heads { dim: width, shared: 1 };
    // A weight that another op reads too must not change.
    let own = |id: WeightId| block.ops.iter().filter(|op| op.weights().contains(&id)).count() == 1;
    let (source, width, heads) = match *block.definition(input)? {
        Op::Norm { weight, .. } => {
            let width = *shape(weight).first()?;
            // A norm of heads has one weight for all of them.
            let is_row = shape(*targets.first()?).get(1) == Some(&width);
            is_row.then_some((Source::Norm(weight), width, whole(width)))?
        }
        // What is multiplied is linear in each factor, unless both are one; the second is no gate.
        Op::Mul { a, b } if a != b => {
            let factor = [b, a].into_iter().find_map(|value| rows(block, value));
            let (source, width) = factor?;
            (source, width, whole(width))
        }
        Op::Attend { q, k, v, heads, .. } if v != q && v != k => {
            let (source, width) = rows(block, v)?;
            (source, width, Heads { dim: heads.dim, shared: heads.query / heads.kv.max(1) })
        }
        _ => return None,
    };
    let fold = Fold { source, width, targets, heads };
    fold.edits().into_iter().all(own).then_some(fold)
}

/// The linear that makes a value that only one op reads, and how many rows it has.
fn rows(block: &Block<Spec>, value: Value) -> Option<(Source, usize)> {
    match *block.definition(value)? {
        Op::Linear { weight, bias, .. } if block.uses(value).count() == 1 => {
            let width = *block.weights[weight.0 as usize].shape.first()?;
            Some((Source::Rows { weight, bias }, width))
        }
        _ => None,
    }
}
