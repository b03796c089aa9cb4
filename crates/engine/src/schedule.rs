//! What goes into the next step.
//!
//! One budget of tokens: rows that decode first, the oldest first, then chunks of prompts in the
//! order of arrival. When blocks run out the newest sequence gives way and is computed again later;
//! whoever waits is newer than all who run, so the oldest always goes on and nobody starves.
//!
//! Where prompts are computed apart, a step has the rows of its lane alone. What is in flight there
//! keeps its blocks: who needs them waits for it to land, and no other prompt starts before that.

use crate::engine::Options;
use crate::pool::KvPool;
use crate::sequence::Sequence;
use crate::step::Limits;
use std::collections::VecDeque;

/// What a step may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Rows that decode, and prompts.
    Both,
    /// Rows that decode.
    Decode,
    /// Prompts.
    Prefill,
}

/// What is left of a step.
struct Budget {
    tokens: usize,
    rows: usize,
}

impl Budget {
    fn is_left(&self) -> bool {
        self.tokens > 0 && self.rows > 0
    }
}

/// Who runs and who waits, each in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) running: Vec<Sequence>,
    pub(crate) waiting: VecDeque<Sequence>,
    /// Whether a row that decodes waits for blocks of what is in flight.
    pressed: bool,
    /// How often a sequence gave way.
    pub(crate) preemptions: u64,
}

impl Queues {
    /// Sets what every running sequence computes in the next step of `lane`, and takes in who
    /// waits. `limits` are those of the executor that runs it; at most `sequences` run at once.
    pub(crate) fn schedule(
        &mut self,
        pool: &mut KvPool,
        limits: &Limits,
        sequences: usize,
        options: &Options,
        lane: Lane,
    ) {
        let tokens = options.tokens.clamp(1, limits.tokens.max(1));
        let mut budget = Budget { tokens, rows: limits.rows.max(1) };
        let before = self.preemptions;
        self.running.iter_mut().filter(|s| !s.flying).for_each(|s| s.scheduled = 0);
        if lane == Lane::Prefill && self.pressed {
            return;
        }
        self.pressed = false;
        for (decode, other) in [(true, Lane::Prefill), (false, Lane::Decode)] {
            let mut index = 0;
            while index < self.running.len() && budget.is_left() && lane != other {
                let sequence = &self.running[index];
                if !sequence.flying && sequence.is_decoding() == decode {
                    self.give(index, &mut budget, pool, options);
                }
                index += 1;
            }
        }
        // Who gave way in this step would only take back what it gave.
        if self.preemptions == before && lane != Lane::Decode {
            self.admit(&mut budget, pool, limits, sequences, options);
        }
    }

    /// Gives one sequence as much of the budget as it can use and has blocks for.
    fn give(&mut self, index: usize, budget: &mut Budget, pool: &mut KvPool, options: &Options) {
        loop {
            let sequence = &mut self.running[index];
            let wanted = match sequence.is_decoding() {
                true => 1 + sequence.drafts.len(),
                false => sequence.remaining().min(options.chunk.max(1)),
            };
            let count = wanted.min(budget.tokens);
            sequence.drafts.truncate(count - 1);
            let end = sequence.computed + count;
            if sequence.held.as_mut().is_some_and(|held| pool.grow(held, end)) {
                sequence.scheduled = count;
                budget.tokens -= count;
                budget.rows -= 1;
                return;
            }
            // A guess is never worth anybody's work.
            if !sequence.drafts.is_empty() {
                sequence.drafts.clear();
                continue;
            }
            // The newest waits for the others to end; everybody else makes it give way.
            if index + 1 == self.running.len() {
                return;
            }
            if self.running.last().is_some_and(|newest| newest.flying) {
                self.pressed = true;
                return;
            }
            self.preempt(budget, pool);
        }
    }

    /// The newest gives everything back, and what it was given of this step's budget.
    fn preempt(&mut self, budget: &mut Budget, pool: &mut KvPool) {
        let Some(mut newest) = self.running.pop() else { return };
        newest.held.take().into_iter().for_each(|held| pool.release(held));
        newest.computed = 0;
        newest.drafts.clear();
        let given = std::mem::take(&mut newest.scheduled);
        budget.tokens += given;
        budget.rows += usize::from(given > 0);
        self.waiting.push_front(newest);
        self.preemptions += 1;
    }

    /// Takes in who waits, in order, as long as there is room for all its tokens.
    fn admit(
        &mut self,
        budget: &mut Budget,
        pool: &mut KvPool,
        limits: &Limits,
        sequences: usize,
        options: &Options,
    ) {
        let chunk = options.tokens.min(limits.tokens);
        while budget.is_left() && self.running.len() < sequences.max(1) {
            let Some(next) = self.waiting.front_mut() else { return };
            let limit = if options.prefix_cache { next.cacheable() } else { 0 };
            let salt = next.request.salt;
            let Some((held, cached)) = pool.admit(salt, &next.tokens, limit, chunk) else { return };
            (next.held, next.computed, next.cached) = (Some(held), cached, cached);
            self.running.extend(self.waiting.pop_front());
            self.give(self.running.len() - 1, budget, pool, options);
        }
    }
}
