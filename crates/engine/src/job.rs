//! A step that another executor computes while the engine goes on.

use crate::pool::KvTable;
use crate::request::Sampling;
use crate::sequence::SeqId;
use crate::step::{Row, Step};
use std::ops::Range;

/// A step of prompts on its way: it owns what it says, and its blocks stay as they are until it
/// comes back.
#[derive(Debug)]
pub struct Job {
    rows: Vec<Owned>,
}

/// A [`Row`] that borrows nothing.
#[derive(Debug)]
struct Owned {
    seq: SeqId,
    context: Vec<u32>,
    positions: Range<usize>,
    tables: Vec<KvTable>,
    samples: Range<usize>,
    scores: Range<usize>,
    sampling: Sampling,
    prompt: usize,
    logprobs: Option<usize>,
    alternatives: usize,
}

impl Job {
    pub(crate) fn new(step: &Step<'_>) -> Self {
        let own = |row: &Row<'_>| Owned {
            seq: row.seq,
            context: row.context.to_vec(),
            positions: row.positions.clone(),
            tables: row.tables.to_vec(),
            samples: row.samples.clone(),
            scores: row.scores.clone(),
            sampling: row.sampling.clone(),
            prompt: row.prompt,
            logprobs: row.logprobs,
            alternatives: row.alternatives,
        };
        Self { rows: step.rows.iter().map(own).collect() }
    }

    /// What is to be computed.
    pub fn step(&self) -> Step<'_> {
        Step { rows: self.rows.iter().map(Owned::lend).collect() }
    }
}

impl Owned {
    fn lend(&self) -> Row<'_> {
        Row {
            seq: self.seq,
            context: &self.context,
            positions: self.positions.clone(),
            tables: &self.tables,
            samples: self.samples.clone(),
            scores: self.scores.clone(),
            sampling: &self.sampling,
            prompt: self.prompt,
            logprobs: self.logprobs,
            alternatives: self.alternatives,
        }
    }
}
