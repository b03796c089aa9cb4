//! Keys and values of one layer, read back as they are stored, for one group of sequences at a time.

use crate::EvalError;
use crate::forward::Group;
use backend::{
    BackendError, Buffer, Cached, Caches, Interpreter, KV_BLOCK, KvCache, KvDType, Program, Span,
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

    /// Runs `block` over whole sequences; `input` is `[rows, width]`.
    pub(crate) fn run<'p>(
        &self,
        interpreter: &Interpreter<'_>,
        block: impl Into<Program<'p>>,
        input: Buffer,
        sequences: &[Range<usize>],
    ) -> Result<Buffer, BackendError> {
        let mut rest = &self.blocks[..];
        let spans = sequences.iter().map(|rows| {
            let (blocks, others) = rest.split_at(blocks_of(rows).min(rest.len()));
            rest = others;
            Span { rows: rows.clone(), start: 0, blocks }
        });
        let spans: Vec<Span<'_>> = spans.collect();
        interpreter.run_cached(block, input, &spans, &Alone { caches: &self.caches, spans: &spans })
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
