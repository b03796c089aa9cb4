//! What a step must read and compute: the numerators of MBU and MFU.

use ir::{Block, ModelSpec, Op, Spec, WeightId};

/// Bytes and operations of a model, from its programs and what is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights that every step reads, as stored: all but the embedding's other rows, and the
    /// experts that a row is not given to.
    pub weights: u64,
    /// Operations of the layers' linears a token, two a product.
    pub layers: u64,
    /// Operations of the head a row of logits.
    pub head: u64,
    /// Operations of attention a token, for each position that it sees.
    pub seen: u64,
}

impl Cost {
    /// The cost of `spec`; `stored` gives the bytes that a weight takes.
    pub fn new(spec: &ModelSpec, stored: impl Fn(&Spec) -> u64) -> Self {
        let blocks = spec.layers.iter().chain([&spec.head]);
        let weights = blocks.map(|block| read(block, &stored)).sum();
        let attention = |op: &Op| match op {
            Op::Attend { heads, .. } => 4 * (heads.query * heads.dim) as u64,
            _ => 0,
        };
        let ops = spec.layers.iter().flat_map(|b| &b.ops);
        Self {
            weights,
            layers: spec.layers.iter().map(linears).sum(),
            head: linears(&spec.head),
            seen: ops.map(attention).sum(),
        }
    }
}

/// What of `all` experts' share falls on those that a row is given to.
fn given(block: &Block<Spec>, op: &Op, all: u64) -> u64 {
    let [top, of] = block.given(op).unwrap_or([1, 1]);
    all / of.max(1) as u64 * top as u64
}

/// Bytes of a block's weights that a row needs.
fn read(block: &Block<Spec>, stored: impl Fn(&Spec) -> u64) -> u64 {
    let bytes = |id: WeightId| block.weight(id).map_or(0, &stored);
    let op = |op: &Op| given(block, op, op.weights().into_iter().map(bytes).sum());
    block.ops.iter().map(op).sum()
}

/// Operations of a block's matrices a row.
fn linears(block: &Block<Spec>) -> u64 {
    let elements = |id: WeightId| {
        let shape = block.weight(id).map(|w| &w.shape[..]);
        2 * shape.unwrap_or(&[0]).iter().product::<usize>() as u64
    };
    let op = |op: &Op| match op {
        Op::Linear { weight, .. } => elements(*weight),
        Op::Experts { .. } => given(block, op, op.weights().into_iter().map(elements).sum()),
        _ => 0,
    };
    block.ops.iter().map(op).sum()
}
