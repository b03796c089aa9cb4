//! How many blocks of keys and values fit.

use crate::error::LoadError;
use backend::{KV_BLOCK, KvDType};
use engine::GroupKind;
use ir::{Block, Heads, ModelSpec};

/// The cache groups of a model, and the blocks there are of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
    /// What a layer stores.
    pub dtype: KvDType,
    /// Each group and its blocks.
    pub groups: Vec<(GroupKind, usize)>,
    /// The group of each layer.
    pub layers: Vec<usize>,
    /// Bytes that a token takes, in all layers.
    pub token: u64,
    /// Bytes of all blocks.
    pub bytes: u64,
}

impl KvPlan {
    /// As many blocks as `memory` bytes hold, and no more than `sequences` of the whole context
    /// need.
    ///
    /// # Errors
    /// If not even two blocks fit.
    pub fn new(
        spec: &ModelSpec,
        dtype: KvDType,
        memory: u64,
        sequences: usize,
    ) -> Result<Self, LoadError> {
        let (mut groups, mut layers, mut token) = (Vec::new(), Vec::new(), 0u64);
        for layer in &spec.layers {
            let Some((heads, kind)) = attention(layer) else {
                return Err(LoadError::Internal("a layer attends once"));
            };
            let group = groups.iter().position(|g| *g == kind).unwrap_or_else(|| {
                groups.push(kind);
                groups.len() - 1
            });
            layers.push(group);
            token = token.saturating_add(dtype.bytes(heads) as u64);
        }
        let block = token.saturating_mul(KV_BLOCK as u64).max(1);
        let most = spec.context.div_ceil(KV_BLOCK).saturating_mul(sequences).max(2);
        let blocks = (memory / block).min(most as u64).min(u64::from(u32::MAX - 1));
        if blocks < 2 {
            let tokens = 2 * KV_BLOCK;
            return Err(LoadError::Memory { tokens, needed: block.saturating_mul(2), memory });
        }
        let groups = groups.into_iter().map(|kind| (kind, blocks as usize)).collect();
        Ok(Self { dtype, groups, layers, token, bytes: blocks * block })
    }
}

/// The heads of a layer's only attention, and what it keeps.
pub(crate) fn attention<W>(layer: &Block<W>) -> Option<(Heads, GroupKind)> {
    let (heads, window) = layer.attention()?;
    Some((heads, window.map_or(GroupKind::Full, GroupKind::Window)))
}
