//! What goes into the next step.
//!
//! One budget of tokens: rows that decode first, the oldest first, then chunks of prompts in the
//! order of arrival. When blocks run out the newest sequence gives way and is computed again later;
//! whoever waits is newer than all who run, so the oldest always goes on and nobody starves.

use crate::engine::Options;
use crate::pool::KvPool;
use crate::sequence::Sequence;
use crate::step::Limits;
use std::collections::VecDeque;

/// Who runs and who waits, each in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) running: Vec<Sequence>,
    pub(crate) waiting: VecDeque<Sequence>,
    /// How often a sequence gave way.
    pub(crate) preemptions: u64,
}

impl Queues {
    /// Sets what every running sequence computes in the next step, and takes in who waits.
    pub(crate) fn schedule(&mut self, pool: &mut KvPool, limits: &Limits, options: &Options) {
        let mut budget = options.tokens.clamp(1, limits.tokens.max(1));
        let before = self.preemptions;
        self.running.iter_mut().for_each(|s| s.scheduled = 0);
        for decode in [true, false] {
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                let sequence = &self.running[index];
                if sequence.is_decoding() == decode {
                    self.give(index, &mut budget, pool, options);
                }
                index += 1;
            }
        }
        // Who gave way in this step would only take back what it gave.
        if self.preemptions == before {
            self.admit(&mut budget, pool, limits, options);
        }
    }

    /// Gives one sequence as much of the budget as it can use and has blocks for.
    fn give(&mut self, index: usize, budget: &mut usize, pool: &mut KvPool, options: &Options) {
        loop {
            let sequence = &mut self.running[index];
            let wanted = match sequence.is_decoding() {
                true => 1 + sequence.drafts.len(),
                false => sequence.remaining().min(options.chunk.max(1)),
            };
            let count = wanted.min(*budget);
            sequence.drafts.truncate(count - 1);
            let end = sequence.computed + count;
            if sequence.held.as_mut().is_some_and(|held| pool.grow(held, end)) {
                sequence.scheduled = count;
                *budget -= count;
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
            *budget += self.preempt(pool);
        }
    }

    /// The newest gives everything back; returns what it was given of this step's budget.
    fn preempt(&mut self, pool: &mut KvPool) -> usize {
        let Some(mut newest) = self.running.pop() else { return 0 };
        newest.held.take().into_iter().for_each(|held| pool.release(held));
        newest.computed = 0;
        newest.drafts.clear();
        let given = std::mem::take(&mut newest.scheduled);
        self.waiting.push_front(newest);
        self.preemptions += 1;
        given
    }

    /// Takes in who waits, in order, as long as there is room for all its tokens.
    fn admit(&mut self, budget: &mut usize, pool: &mut KvPool, limits: &Limits, options: &Options) {
        let chunk = options.tokens.min(limits.tokens);
        while *budget > 0 && self.running.len() < limits.rows.max(1) {
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
