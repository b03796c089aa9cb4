//! Speculation whose acceptance is chosen: the text is known from a run without it.

use crate::drive::Record;
use crate::noise::Noise;
use engine::{Ask, SeqId, Speculator};
use std::collections::HashMap;

/// Proposes the true continuation, each token of it wrong with a probability of its own draw.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Prompt to output.
    known: HashMap<Vec<u32>, Vec<u32>>,
    sequences: HashMap<SeqId, Option<Told>>,
    acceptance: f64,
    vocab: usize,
}

/// What is known of a sequence.
#[derive(Clone, Debug)]
struct Told {
    output: Vec<u32>,
    /// Of its prompt.
    key: u64,
}

impl Oracle {
    /// An oracle that is right with probability `acceptance`, of texts over `vocab` tokens.
    pub fn new(acceptance: f64, vocab: usize) -> Self {
        Self { known: HashMap::new(), sequences: HashMap::new(), acceptance, vocab }
    }

    /// Learns what follows a prompt. The same prompt is always followed by the same.
    pub fn learn(&mut self, record: &Record) {
        self.known.insert(record.prompt.clone(), record.output.clone());
    }

    /// The token at `position` of what is known, or another one.
    fn guess(&self, told: &Told, position: usize) -> Option<u32> {
        let token = *told.output.get(position)?;
        let right = Noise(told.key ^ position as u64).uniform() < self.acceptance;
        let other = (u64::from(token) + 1) % self.vocab.max(1) as u64;
        Some(if right { token } else { other as u32 })
    }

    fn look_up(&self, prompt: &[u32]) -> Option<Told> {
        let output = self.known.get(prompt)?.clone();
        let mix = |key: u64, &token: &u32| Noise(key ^ u64::from(token)).next();
        Some(Told { output, key: prompt.iter().fold(0, mix) })
    }
}

impl Speculator for Oracle {
    fn cost(&self, _: usize) -> f64 {
        0.0
    }

    fn propose(&mut self, asked: &[Ask<'_>], drafts: &mut [Vec<u32>]) {
        for (ask, draft) in asked.iter().zip(drafts) {
            if !self.sequences.contains_key(&ask.seq) {
                let told = self.look_up(&ask.tokens[..ask.prompt]);
                self.sequences.insert(ask.seq, told);
            }
            let Some(Some(told)) = self.sequences.get(&ask.seq) else { continue };
            let first = ask.tokens.len() - ask.prompt;
            let guesses = (first..first + ask.most).map_while(|at| self.guess(told, at));
            draft.extend(guesses);
        }
    }

    fn forget(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }
}

/// The first request whose output is not the same in both runs.
pub fn first_difference(one: &[Record], other: &[Record]) -> Option<usize> {
    let same = |(one, other): (&Record, &Record)| one.output == other.output;
    let first = one.iter().zip(other).position(|pair| !same(pair));
    first.or_else(|| (one.len() != other.len()).then_some(one.len().min(other.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Sampling, Stats};

    fn propose(oracle: &mut Oracle, seq: u64, tokens: &[u32], most: usize) -> Vec<u32> {
        let (sampling, mut drafts) = (Sampling::default(), [Vec::new()]);
        let seq = SeqId(seq);
        let ask = Ask { seq, tokens, prompt: 2, sampling: &sampling, salt: 0, most };
        oracle.propose(&[ask], &mut drafts);
        let [draft] = drafts;
        draft
    }

    #[test]
    fn a_sure_oracle_says_what_comes_and_one_that_knows_nothing_says_nothing() {
        let mut oracle = Oracle::new(1.0, 10);
        let record = |prompt| Record { prompt, output: vec![3, 4, 5, 6], ..Record::default() };
        oracle.learn(&record(vec![1, 2]));
        assert_eq!(propose(&mut oracle, 0, &[1, 2], 3), [3, 4, 5]);
        assert_eq!(propose(&mut oracle, 0, &[1, 2, 3, 4, 5], 3), [6]);
        assert!(propose(&mut oracle, 1, &[2, 2], 3).is_empty());
        oracle.forget(SeqId(1));
        oracle.learn(&record(vec![2, 2]));
        assert_eq!(propose(&mut oracle, 1, &[2, 2], 1), [3]);
        let mut never = Oracle { acceptance: 0.0, ..oracle };
        assert_eq!(propose(&mut never, 0, &[1, 2], 4), [4, 5, 6, 7]);
    }

    #[test]
    fn acceptance_is_what_was_asked_and_the_same_at_every_look() {
        let mut oracle = Oracle::new(0.8, 1000);
        let output: Vec<u32> = (0..10_000).map(|i| i % 1000).collect();
        let prompt = vec![1, 2];
        oracle.learn(&Record { prompt, output: output.clone(), ..Record::default() });
        let all = propose(&mut oracle, 0, &[1, 2], 10_000);
        let right = all.iter().zip(&output).filter(|(a, b)| a == b).count();
        assert!((right as f64 / 10_000.0 - 0.8).abs() < 0.015, "{right}");
        let later = [&[1, 2], &output[..500]].concat();
        assert_eq!(propose(&mut oracle, 0, &later, 100), all[500..600]);
    }

    #[test]
    fn counts_add_up_and_texts_are_compared() {
        let stats = |drafted| Stats { steps: 2, drafted, ..Stats::default() };
        let both: Stats = [stats(vec![(5, 3)]), stats(vec![(9, 4), (2, 1)])].into_iter().sum();
        assert_eq!((both.steps, both.drafted), (4, vec![(14, 7), (2, 1)]));

        let record = |output: &[u32]| Record { output: output.to_vec(), ..Record::default() };
        let (one, two) = (record(&[1, 2]), record(&[1, 3]));
        let twice = [one.clone(), one.clone()];
        assert_eq!(first_difference(&twice, &twice), None);
        assert_eq!(first_difference(&twice, &[one, two]), Some(1));
        assert_eq!(first_difference(&twice, &twice[..1]), Some(1));
    }
}
