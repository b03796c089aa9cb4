//! What a step must read and compute: the numerators of MBU and MFU.

use ir::{Block, ModelSpec, Op, Spec};

/// Bytes and operations of a model, from its programs and what is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights that every step reads, as stored: all but the embedding's other rows.
    pub weights: u64,
    /// Operations of the layers' linears a token, two a product.
    pub layers: u64,
    /// Operations of the head a row of logits.
    pub head: u64,
    /// Operations of attention a token, for each position that it sees.
    pub seen: u64,
}

impl Cost {
    /// The cost of `spec`; `stored` gives the bytes that a tensor takes.
    pub fn new(spec: &ModelSpec, stored: impl Fn(&str) -> u64) -> Self {
        let blocks = || spec.layers.iter().chain([&spec.head]);
        let weights = blocks().flat_map(|b| &b.weights).map(|w| stored(&w.tensor)).sum();
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

/// Operations of a block's linears a row.
fn linears(block: &Block<Spec>) -> u64 {
    let op = |op: &Op| match op {
        Op::Linear { weight, .. } => {
            let shape = block.weights.get(weight.0 as usize).map(|w| &w.shape[..]);
            2 * shape.unwrap_or(&[0]).iter().product::<usize>() as u64
        }
        _ => 0,
    };
    block.ops.iter().map(op).sum()
}
