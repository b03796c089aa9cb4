//! A step of decoding that a device is at before the host knows the tokens that it reads: the device has
//! drawn them itself. When the engine asks for that very step, its results are under way; when it asks for
//! another, they are dropped, and nothing is lost but the device's time: what was written lies at
//! positions that nobody has computed yet, and is written again by whoever does.
//!
//! Launching, keeping and recognizing a step takes work a row, whatever was said before: rows are lent by
//! the step before, and what was computed of a sequence is known by its name ([`Row::seq`]).

use crate::draw::Underway;
use backend::KV_BLOCK;
use engine::{Found, History, KvBlock, Row, Sampling, SeqId, Step, wish};

/// A step that was launched.
pub(crate) struct Ahead {
    rows: Vec<Next>,
    pub(crate) underway: Underway,
}

/// What a row of it is known by.
#[derive(Debug, PartialEq)]
struct Next {
    seq: SeqId,
    position: usize,
    /// The token at that position; not known until [`Ahead::learn`].
    token: Option<u32>,
    /// Where each cache group holds the position.
    blocks: Vec<Option<KvBlock>>,
}

/// The rows after those of `step`, if each draws one token, has room for it, and draws the next one
/// without looking at what was said before. The tokens that they read are not in their contexts.
pub(crate) fn next<'a>(step: &Step<'a>, context: usize) -> Option<Step<'a>> {
    let next = |row: &Row<'a>| {
        let position = row.positions.end;
        let one = row.samples == (position.checked_sub(1)?..position) && row.scores.is_empty();
        let known = row.context.len() == position && position + 1 < context;
        let has_room = blocks(row, position).iter().all(Option::is_some);
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = row.sampling;
        let blind = [*repetition_penalty - 1.0, *presence_penalty, *frequency_penalty] == [0.0; 3]
            && row.sampling.rules.is_empty();
        let positions = position..position + 1;
        let samples = positions.clone();
        let next = || Row { positions, samples, scores: 0..0, alternatives: 0, ..row.clone() };
        (one && known && has_room && blind).then(next)
    };
    Some(Step { rows: step.rows.iter().map(next).collect::<Option<_>>()? })
}

/// Where each cache group holds a position of a row.
fn blocks(row: &Row<'_>, position: usize) -> Vec<Option<KvBlock>> {
    let block = |table: &Vec<_>| table.get(position / KV_BLOCK).copied().flatten();
    row.tables.iter().map(block).collect()
}

impl Next {
    /// What tells a row of one position from others.
    fn of(row: &Row<'_>) -> Self {
        let position = row.positions.start;
        let token = row.context.get(position).copied();
        Self { seq: row.seq, position, token, blocks: blocks(row, position) }
    }
}

impl Ahead {
    /// The step of `rows`, launched, and the search for the tokens after it.
    pub(crate) fn new(step: &Step<'_>, underway: Underway) -> Self {
        Self { rows: step.rows.iter().map(Next::of).collect(), underway }
    }

    /// Says which tokens the step reads.
    pub(crate) fn learn(&mut self, found: &[Found]) {
        self.rows.iter_mut().zip(found).for_each(|(row, found)| row.token = Some(found.token));
    }

    /// Whether it is `step`.
    pub(crate) fn is(&self, step: &Step<'_>) -> bool {
        let same = |((own, wished), row): ((&Next, &engine::Wish), &Row<'_>)| {
            let one = own.position..own.position + 1;
            let history = History::new(row.context, row.prompt);
            row.positions == one
                && row.samples == one
                && row.scores.is_empty()
                && row.context.len() == one.end
                && Next::of(row) == *own
                && wish(history, row.sampling, row.logprobs).as_ref() == Some(wished)
        };
        let own = self.rows.iter().zip(&self.underway.wishes);
        self.rows.len() == step.rows.len() && own.zip(&step.rows).all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::{BackendError, Buffer, Seeking};
    use engine::{KvTable, Wish};
    use std::any::Any;

    struct Nothing;

    impl Seeking for Nothing {
        fn data(&self) -> &dyn Any {
            self
        }

        fn found(self: Box<Self>) -> Result<Vec<Found>, BackendError> {
            Ok(Vec::new())
        }
    }

    /// A sequence of so many tokens, and where two groups hold it.
    struct Said {
        tokens: Vec<u32>,
        tables: [KvTable; 2],
        sampling: Sampling,
    }

    impl Said {
        fn new(length: usize) -> Self {
            let table =
                |from: u32| (0..length as u32 / 16 + 2).map(move |b| Some(KvBlock(from + b)));
            let tables = [table(0).collect(), table(1000).collect()];
            let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
            Self { tokens: vec![7; length], tables, sampling }
        }

        /// The last token is computed, and draws the next.
        fn step(&self) -> Step<'_> {
            let last = self.tokens.len() - 1..self.tokens.len();
            let row = Row {
                seq: SeqId(4),
                context: &self.tokens,
                positions: last.clone(),
                tables: &self.tables,
                samples: last,
                scores: 0..0,
                sampling: &self.sampling,
                prompt: 5,
                logprobs: None,
                alternatives: 0,
            };
            Step { rows: vec![row] }
        }

        /// The step after [`Self::step`], launched; the device draws token 9.
        fn ahead(&self) -> Ahead {
            let (step, logits) = (self.step(), Buffer::new(0, 0, ()));
            let next = next(&step, 1 << 20).unwrap();
            let row = &step.rows[0];
            let wished: Wish =
                wish(History::new(row.context, row.prompt), row.sampling, None).unwrap();
            let wishes = vec![wished.at(row.sampling, next.rows[0].positions.end)];
            let underway = Underway { seeking: Box::new(Nothing), wishes, logits };
            let mut ahead = Ahead::new(&next, underway);
            ahead.learn(&[Found { token: 9, ..Found::default() }]);
            ahead
        }
    }

    #[test]
    fn no_more_is_kept_and_lent_of_a_long_sequence_than_of_a_short_one() {
        let [short, long] = [30, 30_000].map(Said::new);
        for said in [&short, &long] {
            let ahead = said.ahead();
            let [row] = &ahead.rows[..] else { panic!("a row") };
            assert_eq!((row.position, row.token), (said.tokens.len(), Some(9)));
            assert_eq!(row.blocks.len(), 2);
            let step = said.step();
            let next = next(&step, 1 << 20).unwrap();
            assert!(std::ptr::eq(next.rows[0].context, &said.tokens[..]));
            assert!(std::ptr::eq(next.rows[0].tables, &said.tables[..]));
        }
    }

    #[test]
    fn the_next_step_is_known_by_its_rows_and_not_by_what_was_said_before() {
        let ahead = Said::new(30).ahead();
        let mut asked = Said::new(31);
        asked.tokens[30] = 9;
        assert!(ahead.is(&asked.step()));
        // What lies before is not looked at: it is what was computed of this sequence.
        asked.tokens[..30].fill(8);
        asked.tables[0][0] = Some(KvBlock(500));
        assert!(ahead.is(&asked.step()));

        let not = |change: &dyn Fn(&mut Said)| {
            let mut other = Said::new(31);
            other.tokens[30] = 9;
            change(&mut other);
            assert!(!ahead.is(&other.step()));
        };
        not(&|other| other.tokens[30] = 10);
        not(&|other| other.tokens.push(9));
        not(&|other| other.tables[1][1] = Some(KvBlock(7)));
        not(&|other| other.tables[1][1] = None);
        not(&|other| other.sampling.seed = 4);
        not(&|other| other.sampling.temperature = 0.5);
        not(&|other| other.sampling.repetition_penalty = 1.1);
        let mut step = asked.step();
        step.rows[0].seq = SeqId(5);
        assert!(!ahead.is(&step));
        step.rows.clear();
        assert!(!ahead.is(&step));
    }

    #[test]
    fn no_step_is_launched_where_there_is_no_block_or_where_draws_look_back() {
        let said = Said::new(30);
        assert!(next(&said.step(), 31).is_none(), "the context is full");
        let mut full = Said::new(32);
        full.tables[1].truncate(2);
        assert!(next(&full.step(), 1 << 20).is_none());
        let mut looks = Said::new(30);
        looks.sampling.presence_penalty = 0.1;
        assert!(next(&looks.step(), 1 << 20).is_none());
        let mut scored = said.step();
        scored.rows[0].scores = 29..30;
        assert!(next(&scored, 1 << 20).is_none());
    }
}
