//! What a weight multiplies.

use ir::{Block, Input, WeightId};

/// The rows that a matrix multiplies: weights of one input share its statistics.
pub(crate) fn input<W>(block: &Block<W>, weight: WeightId) -> Option<Input> {
    block.matrices().into_iter().find(|matrix| matrix.weight == weight).map(|matrix| matrix.input)
}
