//! A step of decoding that a device is at before the host knows the tokens that it reads: the device has
//! drawn them itself. When the engine asks for that very step, its results are under way; when it asks for
//! another, they are dropped, and nothing is lost but the device's time: what was written lies at
//! positions that nobody has computed yet, and is written again by whoever does.

use crate::draw::Underway;
use backend::{KV_BLOCK, Shortlist};
use engine::{KvTable, Row, Sampling, SeqId, Step};

/// A step that was launched.
pub(crate) struct Ahead {
    rows: Vec<Next>,
    pub(crate) underway: Underway,
}

/// A row of it: the token after those of a sequence, and what is drawn after it.
pub(crate) struct Next {
    seq: SeqId,
    /// The last is not known until [`Ahead::learn`].
    context: Vec<u32>,
    tables: Vec<KvTable>,
    sampling: Sampling,
    prompt: usize,
    logprobs: Option<usize>,
}

/// The rows after those of `step`, if each draws one token, has room for it, and draws the next one
/// without looking at what was said before.
pub(crate) fn next(step: &Step<'_>, context: usize) -> Option<Vec<Next>> {
    let next = |row: &Row<'_>| {
        let position = row.positions.end;
        let one = row.samples == (position.checked_sub(1)?..position) && row.scores.is_empty();
        let known = row.context.len() == position && position + 1 < context;
        let has_room = row
            .tables
            .iter()
            .all(|table| table.get(position / KV_BLOCK).is_some_and(Option::is_some));
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = row.sampling;
        let blind = [*repetition_penalty - 1.0, *presence_penalty, *frequency_penalty] == [0.0; 3]
            && row.sampling.rules.is_empty();
        (one && known && has_room && blind).then(|| Next {
            seq: row.seq,
            context: row.context.iter().copied().chain([0]).collect(),
            tables: row.tables.to_vec(),
            sampling: row.sampling.clone(),
            prompt: row.prompt,
            logprobs: row.logprobs,
        })
    };
    step.rows.iter().map(next).collect()
}

impl Next {
    pub(crate) fn row(&self) -> Row<'_> {
        let end = self.context.len();
        Row {
            seq: self.seq,
            context: &self.context,
            positions: end - 1..end,
            tables: &self.tables,
            samples: end - 1..end,
            scores: 0..0,
            sampling: &self.sampling,
            prompt: self.prompt,
            logprobs: self.logprobs,
            alternatives: 0,
        }
    }
}

impl Ahead {
    pub(crate) fn new(rows: Vec<Next>, underway: Underway) -> Self {
        Self { rows, underway }
    }

    /// Says which tokens the step reads.
    pub(crate) fn learn(&mut self, found: &[Shortlist]) {
        for (row, found) in self.rows.iter_mut().zip(found) {
            if let Some(last) = row.context.last_mut() {
                *last = found.token;
            }
        }
    }

    /// Whether it is `step`.
    pub(crate) fn is(&self, step: &Step<'_>) -> bool {
        let same = |(own, row): (&Next, &Row<'_>)| {
            let mine = own.row();
            mine.seq == row.seq
                && mine.positions == row.positions
                && mine.samples == row.samples
                && row.scores.is_empty()
                && mine.context == row.context
                && mine.tables == row.tables
                && mine.sampling == row.sampling
                && mine.prompt == row.prompt
                && mine.logprobs == row.logprobs
        };
        self.rows.len() == step.rows.len() && self.rows.iter().zip(&step.rows).all(same)
    }
}
