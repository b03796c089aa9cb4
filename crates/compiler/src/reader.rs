//! What reads a weight.

use ir::{Block, Op, Value, WeightId};

/// The linear that reads a weight as its matrix, and its input.
pub(crate) fn reader<W>(block: &Block<W>, weight: WeightId) -> Option<(usize, Value)> {
    block.ops.iter().enumerate().find_map(|(index, op)| match *op {
        Op::Linear { input, weight: own, .. } if own == weight => Some((index, input)),
        _ => None,
    })
}
