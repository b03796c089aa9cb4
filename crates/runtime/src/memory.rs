//! How many blocks of keys and values fit.

use crate::Settings;
use crate::error::LoadError;
use backend::{KV_BLOCK, KvDType};
use engine::GroupKind;
use ir::{Keep, ModelSpec};

/// The cache groups of a model, and the blocks there are of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
    /// What keys and values are stored as.
    pub dtype: KvDType,
    /// Each group and its blocks.
    pub groups: Vec<(GroupKind, usize)>,
    /// The group of each of the model's caches.
    pub caches: Vec<usize>,
    /// Bytes that a token takes, in all caches.
    pub token: u64,
    /// Bytes of all blocks.
    pub bytes: u64,
    /// Tokens that there are blocks for, of all sequences together.
    pub tokens: usize,
}

/// What keys and values are to be kept of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvRoom {
    /// Bytes that they may take.
    pub memory: u64,
    /// Sequences of the whole context, of which no more is kept.
    pub sequences: usize,
    /// Sequences that run at once, at most.
    pub running: usize,
    /// Tokens that a step computes, at most.
    pub step: usize,
}

impl KvRoom {
    /// For so many sequences of the whole context, which run under the settings that are the default.
    pub fn new(memory: u64, sequences: usize) -> Self {
        let Settings { tokens: step, rows: running } = Settings::default();
        Self { memory, sequences, running, step }
    }
}

impl KvPlan {
    /// Blocks for as many tokens as fit, and no more than `room.sequences` of the whole context have.
    ///
    /// A group that keeps a window need not have a block for each token: it has what the sequences
    /// that run see, and of the rest as much as memory is left for, since what has left the window of
    /// one sequence may be a prefix of the next.
    ///
    /// # Errors
    /// If not even two blocks fit.
    pub fn new(spec: &ModelSpec, dtype: KvDType, room: &KvRoom) -> Result<Self, LoadError> {
        // Bytes of a block in the caches of each group.
        let mut groups: Vec<(GroupKind, u64)> = Vec::new();
        let (mut caches, mut token) = (Vec::new(), 0u64);
        for cache in &spec.caches {
            let kind = match cache.keep {
                Keep::Full => GroupKind::Full,
                Keep::Window(n) => GroupKind::Window(n),
            };
            let group = groups.iter().position(|(g, _)| *g == kind).unwrap_or_else(|| {
                groups.push((kind, 0));
                groups.len() - 1
            });
            caches.push(group);
            let bytes = dtype.bytes(cache.heads) as u64;
            token = token.saturating_add(bytes);
            let block = &mut groups[group].1;
            *block = block.saturating_add(bytes.saturating_mul(KV_BLOCK as u64));
        }
        // Where there are blocks for so many tokens, and a group that keeps a window has this many or
        // as many as it must.
        let blocks_of = |kind: GroupKind, all: u64, windows: u64| match kind {
            GroupKind::Full => all,
            GroupKind::Window(_) => {
                let tokens = (all as usize).saturating_mul(KV_BLOCK);
                let seen = kind.blocks_of(room.running.max(1), tokens, room.step);
                all.min(windows.max(seen as u64))
            }
        };
        let bytes = |all: u64, windows: u64| {
            let of = |&(kind, block): &(GroupKind, u64)| {
                block.saturating_mul(blocks_of(kind, all, windows))
            };
            groups.iter().map(of).fold(0u64, u64::saturating_add)
        };
        let most = spec.context.div_ceil(KV_BLOCK).saturating_mul(room.sequences).max(2);
        let most = (most as u64).min(u64::from(u32::MAX - 1));
        let all = largest(most, |all| bytes(all, 0) <= room.memory);
        if all < 2 {
            let (tokens, needed) = (2 * KV_BLOCK, bytes(2, 2));
            return Err(LoadError::Memory { tokens, needed, memory: room.memory });
        }
        let windows = largest(all, |windows| bytes(all, windows) <= room.memory);
        let (bytes, tokens) = (bytes(all, windows), (all as usize).saturating_mul(KV_BLOCK));
        let blocks = |(kind, _)| (kind, blocks_of(kind, all, windows) as usize);
        let groups = groups.into_iter().map(blocks).collect();
        Ok(Self { dtype, groups, caches, token, bytes, tokens })
    }
}

/// The largest number up to `most` that fits, where what is less than one that fits does too.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = high - (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::{Block, BlockId, Cache, Heads, Rotary, Scaling};

    /// A model that has a cache for each of these windows.
    fn model(windows: &[Option<u32>]) -> ModelSpec {
        let heads = Heads { query: 2, kv: 1, dim: 8 };
        let empty = |id| Block { id, ops: Vec::new(), weights: Vec::new() };
        ModelSpec {
            family: "none",
            hidden: 16,
            vocab: 1,
            context: 16_000,
            tied: false,
            rotary: Rotary { base: 10_000.0, scaling: Scaling::Default },
            caches: windows.iter().map(|window| Cache::of(heads, *window)).collect(),
            embedding: empty(BlockId::Embedding),
            layers: Vec::new(),
            head: empty(BlockId::Head),
        }
    }

    /// Keys and values of 8 elements in two bytes each, of the 16 tokens of a block.
    const BLOCK: u64 = 2 * 8 * 2 * 16;

    fn plan(windows: &[Option<u32>], blocks: u64, running: usize) -> KvPlan {
        let room = KvRoom { memory: blocks * BLOCK, sequences: 1, running, step: 64 };
        KvPlan::new(&model(windows), KvDType::Bf16, &room).unwrap()
    }

    fn blocks(plan: &KvPlan) -> Vec<usize> {
        plan.groups.iter().map(|(_, blocks)| *blocks).collect()
    }

    #[test]
    fn what_keeps_all_has_a_block_for_every_token() {
        let some = plan(&[None, None], 21, 1);
        assert_eq!((blocks(&some), some.tokens, some.bytes), (vec![10], 160, 20 * BLOCK));
        let all = plan(&[None, None], 1 << 20, 1);
        assert_eq!((blocks(&all), all.tokens), (vec![1000], 16_000));
        assert_eq!((all.token, all.caches), (2 * BLOCK / 16, vec![0, 0]));
        let room = KvRoom::new(3 * BLOCK, 1);
        let refused = KvPlan::new(&model(&[None, None]), KvDType::Bf16, &room);
        assert!(matches!(refused, Err(LoadError::Memory { needed, .. }) if needed == 4 * BLOCK));
    }

    /// A sequence sees 32 tokens, in at most four blocks, and a step computes four blocks.
    #[test]
    fn a_window_gives_way_to_what_keeps_all() {
        let windows = [None, Some(32)];
        assert_eq!(blocks(&plan(&windows, 2000, 1)), [1000, 1000]);
        // There is room for all tokens, and for most of what has left the windows.
        assert_eq!(blocks(&plan(&windows, 1900, 1)), [1000, 900]);
        let tight = plan(&windows, 1008, 1);
        assert_eq!((blocks(&tight), tight.tokens), (vec![1000, 8], 16_000));
        assert_eq!(blocks(&plan(&windows, 508, 1)), [500, 8]);
        assert_eq!(blocks(&plan(&windows, 508, 10)), [464, 44]);
        // So many run that every token may be seen.
        assert_eq!(blocks(&plan(&windows, 508, 1000)), [254, 254]);
        assert_eq!(blocks(&plan(&windows, 4, 1)), [2, 2]);
        let only = plan(&[Some(32)], 100, 2);
        assert_eq!((blocks(&only), only.tokens, only.bytes), (vec![100], 16_000, 100 * BLOCK));
    }
}
