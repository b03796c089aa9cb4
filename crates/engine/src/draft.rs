//! A smaller model that drafts for a larger one.

use crate::pool::{Held, KvPool};
use crate::sequence::SeqId;
use crate::speculate::{Ask, Speculator};
use crate::step::{Executor, Limits, Outputs, Row, Step};
use std::collections::BTreeMap;

/// A model as a speculator, with a cache of its own. It draws with the noise of the sequence it
/// drafts for, so where the two models nearly agree they draw the same token.
#[derive(Debug)]
pub struct DraftModel<E> {
    executor: E,
    limits: Limits,
    pool: KvPool,
    sequences: BTreeMap<SeqId, Known>,
    outputs: Outputs,
}

/// What the draft model has of a sequence.
#[derive(Debug)]
struct Known {
    /// The tokens whose keys and values are in the cache.
    computed: Vec<u32>,
    held: Held,
}

/// A sequence that is being drafted for.
struct Draft<'a> {
    ask: &'a Ask<'a>,
    place: usize,
    /// The sequence's tokens and the draft so far.
    tokens: Vec<u32>,
}

impl<E: Executor> DraftModel<E> {
    /// A speculator over `executor`, whose vocabulary must be the target's.
    pub fn new(executor: E) -> Self {
        let limits = executor.limits();
        let pool = KvPool::new(&limits.groups);
        let (sequences, outputs) = (BTreeMap::new(), Outputs::default());
        Self { executor, limits, pool, sequences, outputs }
    }

    /// The model's cache.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Finds or makes what is known of the sequence, brought back to what its tokens still share.
    fn know(&mut self, ask: &Ask<'_>) -> Option<()> {
        if let Some(known) = self.sequences.get_mut(&ask.seq) {
            let same = known.computed.iter().zip(ask.tokens).take_while(|(a, b)| a == b).count();
            // The last token is computed for its logits.
            known.computed.truncate(same.min(ask.tokens.len() - 1));
            return Some(());
        }
        let chunk = self.limits.tokens;
        let limit = ask.tokens.len() - 1;
        let (held, cached) = self.pool.admit(ask.salt, ask.tokens, limit, chunk)?;
        let known = Known { computed: ask.tokens[..cached].to_vec(), held };
        self.sequences.insert(ask.seq, known);
        Some(())
    }

    /// One step for all of `drafts`: whoever has caught up gets a token. `None` if nothing can be
    /// computed any more; a draft that cannot go on is dropped.
    fn step(&mut self, drafts: &mut Vec<Draft<'_>>, out: &mut [Vec<u32>]) -> Option<()> {
        let mut budget = self.limits.tokens;
        let mut ends = Vec::new();
        drafts.retain(|draft| {
            let Some(known) = self.sequences.get_mut(&draft.ask.seq) else { return false };
            let count = (draft.tokens.len() - known.computed.len()).min(budget);
            let end = known.computed.len() + count;
            let grown = count > 0
                && draft.tokens.len() < self.limits.context
                && ends.len() < self.limits.rows
                && self.pool.grow(&mut known.held, end);
            if grown {
                budget -= count;
                ends.push(end);
            }
            grown
        });
        let sequences = &self.sequences;
        let rows = drafts.iter().zip(&ends).filter_map(|(draft, &end)| {
            let known = sequences.get(&draft.ask.seq)?;
            let caught_up = end == draft.tokens.len();
            Some(Row {
                seq: draft.ask.seq,
                context: &draft.tokens,
                positions: known.computed.len()..end,
                tables: &known.held.tables,
                samples: end - usize::from(caught_up)..end,
                scores: end..end,
                sampling: draft.ask.sampling,
                prompt: draft.ask.prompt,
                logprobs: None,
                alternatives: 0,
            })
        });
        let step = Step { rows: rows.collect() };
        if step.rows.is_empty() {
            return None;
        }
        self.outputs.rows.clear();
        self.executor.run(&step, &mut self.outputs).ok()?;
        let mut results = self.outputs.rows.drain(..).zip(ends);
        drafts.retain_mut(|draft| {
            let Some((output, end)) = results.next() else { return false };
            let Some(known) = self.sequences.get_mut(&draft.ask.seq) else { return false };
            known.computed.extend_from_slice(&draft.tokens[known.computed.len()..end]);
            // Only what the target has said itself is kept as a prefix.
            let sure = end.min(draft.ask.tokens.len());
            self.pool.commit(&mut known.held, &draft.tokens, sure);
            let draft_of = &mut out[draft.place];
            match output.sampled.into_iter().next() {
                Some(Ok(sampled)) => {
                    draft.tokens.push(sampled.token);
                    draft_of.push(sampled.token);
                    draft_of.len() < draft.ask.most
                }
                Some(Err(_)) => false,
                None => true,
            }
        });
        Some(())
    }
}

impl<E: Executor> Speculator for DraftModel<E> {
    fn cost(&self, rows: usize) -> f64 {
        self.limits.cost.cost(rows)
    }

    fn propose(&mut self, asked: &[Ask<'_>], out: &mut [Vec<u32>]) {
        let mut drafts = Vec::new();
        for (place, ask) in asked.iter().enumerate() {
            if self.know(ask).is_some() {
                drafts.push(Draft { ask, place, tokens: ask.tokens.to_vec() });
            }
        }
        while !drafts.is_empty() && self.step(&mut drafts, out).is_some() {}
    }

    fn forget(&mut self, seq: SeqId) {
        let known = self.sequences.remove(&seq);
        known.into_iter().for_each(|known| self.pool.release(known.held));
    }
}
