//! Keys and values of one layer, read back as they are stored, for one group of sequences at a time.

use crate::EvalError;
use crate::forward::Group;
use backend::{
    BackendError, Buffer, Cached, Caches, Call, Interpreter, KV_BLOCK, KvCache, KvDType, Program,
    Span,
};
use ir::{Block, CacheId, Op, Spec};
use std::ops::Range;

/// Caches that hold the largest of some groups. Each group begins at position 0, so it overwrites
/// all that it reads, and the next may use the same blocks.
pub(crate) struct Pages {
    /// By the names that the layer has for them.
    caches: Vec<(CacheId, KvCache)>,
    /// The blocks of each cache, in order; each sequence has the next few.
    blocks: Vec<u32>,
}

impl Pages {
    /// Room for the keys and values that `layer` computes of any of `groups`.
    pub(crate) fn new(
        interpreter: &Interpreter<'_>,
        layer: &Block<Spec>,
        dtype: KvDType,
        groups: &[Group],
    ) -> Result<Self, EvalError> {
        let blocks = groups.iter().map(|g| g.sequences.iter().map(blocks_of).sum::<usize>());
        let blocks = blocks.max().unwrap_or(0);
        let cache = |op: &Op| match *op {
            Op::Attend { heads, cache, .. } => {
                let made = interpreter.backend().kv_cache(heads, dtype, blocks);
                Some(made.map(|made| (cache, made)))
            }
            _ => None,
        };
        let caches = layer.ops.iter().filter_map(cache).collect::<Result<_, _>>()?;
        Ok(Self { caches, blocks: (0..blocks as u32).collect() })
    }

    /// Runs `block` over the whole sequences of groups, of each its rows `[rows, width]`. A group has attended
    /// before the next one does, so all of them may use one cache.
    pub(crate) fn run<'p, 'g>(
        &self,
        interpreter: &Interpreter<'_>,
        block: impl Into<Program<'p>>,
        inputs: impl Iterator<Item = (Buffer, &'g Group)>,
    ) -> Result<Vec<Buffer>, BackendError> {
        let (inputs, spans): (Vec<_>, Vec<_>) =
            inputs.map(|(input, group)| (input, self.spans(&group.sequences))).unzip();
        let alone = |spans| Alone { caches: &self.caches, spans };
        let alone: Vec<Alone<'_>> = spans.iter().map(|spans| alone(&spans[..])).collect();
        let calls = inputs.into_iter().zip(&alone);
        let calls = calls.map(|(input, own)| Call::cached(input, own.spans, own)).collect();
        interpreter.run_all(block, calls)
    }

    fn spans(&self, sequences: &[Range<usize>]) -> Vec<Span<'_>> {
        let mut rest = &self.blocks[..];
        let span = |rows: &Range<usize>| {
            let (blocks, others) = rest.split_at(blocks_of(rows).min(rest.len()));
            rest = others;
            Span { rows: rows.clone(), start: 0, blocks }
        };
        sequences.iter().map(span).collect()
    }
}

/// The caches of a layer while it is run; sequences lie in each at the same places.
struct Alone<'a> {
    caches: &'a [(CacheId, KvCache)],
    spans: &'a [Span<'a>],
}

impl Caches for Alone<'_> {
    fn get(&self, id: CacheId) -> Option<Cached<'_>> {
        let found = self.caches.iter().find(|(of, _)| *of == id);
        found.map(|(_, cache)| Cached { cache, spans: self.spans })
    }
}

/// Blocks that a sequence of these rows takes.
fn blocks_of(rows: &Range<usize>) -> usize {
    rows.len().div_ceil(KV_BLOCK)
}
