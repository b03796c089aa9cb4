//! An executor that writes down what its steps were and what they took.

use crate::clock::Clock;
use crate::profile::{Phase, Profiled};
use engine::{CostTable, ExecError, Executor, Limits, Outputs, Step};

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Sequences.
    pub rows: usize,
    /// Sequences that had a draft verified.
    pub verified: usize,
    /// Positions computed.
    pub positions: usize,
    /// Tokens that it gave, drafts that stood included.
    pub tokens: usize,
    /// Tokens that it gave the sequences that had a draft.
    pub stood: usize,
    /// Decode, unless a part of a prompt was computed.
    pub phase: Phase,
    /// How long it took.
    pub seconds: f64,
}

/// An executor over another.
pub struct Watched<'a> {
    executor: &'a mut dyn Executor,
    clock: &'a dyn Clock,
    profile: Option<&'a Profiled<'a>>,
    /// Its steps so far.
    pub paces: Vec<Pace>,
}

impl<'a> Watched<'a> {
    /// Watches `executor`; `profile`, the backend it runs on, is told of each step.
    pub fn new(
        executor: &'a mut dyn Executor,
        clock: &'a dyn Clock,
        profile: Option<&'a Profiled<'a>>,
    ) -> Self {
        Self { executor, clock, profile, paces: Vec::new() }
    }
}

impl Executor for Watched<'_> {
    fn limits(&self) -> Limits {
        self.executor.limits()
    }

    fn run(&mut self, step: &Step<'_>, out: &mut Outputs) -> Result<(), ExecError> {
        let decodes = step.rows.iter().all(|row| row.positions.start >= row.prompt);
        let phase = if decodes { Phase::Decode } else { Phase::Prefill };
        self.profile.into_iter().for_each(|profile| profile.begin(phase));
        let before = self.clock.now();
        let ran = self.executor.run(step, out);
        let seconds = self.clock.now() - before;
        self.profile.into_iter().for_each(|profile| profile.end(seconds));
        ran?;
        let mut pace = Pace {
            rows: step.rows.len(),
            verified: 0,
            positions: 0,
            tokens: 0,
            stood: 0,
            phase,
            seconds,
        };
        for (row, output) in step.rows.iter().zip(&out.rows) {
            let drawn = row.samples.clone().zip(&output.sampled);
            let stood = drawn.take_while(|(position, sampled)| {
                let next = row.context.get(position + 1);
                sampled.as_ref().is_ok_and(|sampled| next == Some(&sampled.token))
            });
            // The first that differs from the draft, or comes after it, is a token too.
            let tokens = (stood.count() + 1).min(row.samples.len());
            let drafted = row.samples.len() > 1;
            pace.positions += row.positions.len();
            pace.tokens += tokens;
            pace.verified += usize::from(drafted);
            pace.stood += if drafted { tokens } else { 0 };
        }
        self.paces.push(pace);
        Ok(())
    }
}

/// What steps of decoding came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Decoding {
    /// Tokens.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
    /// Drafts verified.
    pub verified: usize,
    /// Tokens that the verifications gave, the model's own included.
    pub stood: usize,
    /// What a table of costs says of these steps.
    pub cost: f64,
    /// What it says of as many tokens by steps of one position a sequence.
    pub plain: f64,
}

impl Decoding {
    /// Of the steps of `paces` that only decode.
    pub fn new(paces: &[Pace], costs: &CostTable) -> Self {
        let mut sum = Self::default();
        for pace in paces.iter().filter(|pace| pace.phase == Phase::Decode) {
            sum.tokens += pace.tokens;
            sum.seconds += pace.seconds;
            sum.verified += pace.verified;
            sum.stood += pace.stood;
            sum.cost += costs.cost(pace.positions);
            sum.plain += costs.cost(pace.rows) * pace.tokens as f64 / pace.rows as f64;
        }
        sum
    }

    /// Tokens a second; NaN of nothing.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// Tokens a verification, the model's own included; NaN of none.
    pub fn length(&self) -> f64 {
        self.stood as f64 / self.verified as f64
    }

    /// How many times as fast as plain decoding the table predicts it; NaN of nothing.
    pub fn predicted(&self) -> f64 {
        self.plain / self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_predicts_what_the_depths_that_were_used_gain() {
        let pace = Pace {
            rows: 2,
            verified: 2,
            positions: 8,
            tokens: 6,
            stood: 6,
            phase: Phase::Decode,
            seconds: 0.5,
        };
        let plain = Pace { verified: 0, positions: 2, tokens: 2, stood: 0, ..pace };
        let prompt = Pace { phase: Phase::Prefill, ..pace };
        let costs = CostTable::new(vec![(1, 1.0), (2, 2.0), (8, 3.0)]);
        let sum = Decoding::new(&[pace, plain, prompt], &costs);
        assert_eq!((sum.tokens, sum.seconds, sum.length()), (8, 1.0, 3.0));
        // Six tokens by three steps of cost 2 became one of cost 3; the other step stays.
        assert_eq!((sum.plain, sum.cost), (8.0, 5.0));
        assert_eq!((sum.rate(), sum.predicted()), (8.0, 1.6));
        assert!(Decoding::default().predicted().is_nan());
    }
}
