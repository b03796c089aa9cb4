//! Speculation: guesses at the tokens to come, which the target verifies in one step.

use crate::request::Sampling;
use crate::sequence::SeqId;
use std::ops::Range;

/// A sequence that could use a draft.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The sequence.
    pub seq: SeqId,
    /// Prompt and output so far.
    pub tokens: &'a [u32],
    /// Where the prompt ends.
    pub prompt: usize,
    /// How the target draws.
    pub sampling: &'a Sampling,
    /// Prefixes are shared only between sequences of the same salt.
    pub salt: u64,
    /// The most tokens that are of use.
    pub most: usize,
}

/// Guesses for many sequences at once. Whatever it says, the text stays the same: only tokens
/// that equal the target's own draws are kept.
pub trait Speculator {
    /// What a draft token costs for so many sequences at once, in the unit of the target's costs.
    fn cost(&self, rows: usize) -> f64;

    /// Writes up to `most` tokens for each of `asked` to the draft of the same place; all are empty.
    fn propose(&mut self, asked: &[Ask<'_>], drafts: &mut [Vec<u32>]);

    /// The sequence has ended.
    fn forget(&mut self, seq: SeqId) {
        let _ = seq;
    }
}

/// Guesses that a text repeats itself: what followed the last time its latest tokens occurred.
#[derive(Clone, Debug)]
pub struct NGram {
    /// How many tokens must agree; the most are tried first.
    pub sizes: Range<usize>,
    /// How far back is looked, in tokens.
    pub reach: usize,
}

impl Default for NGram {
    fn default() -> Self {
        Self { sizes: 2..5, reach: 8192 }
    }
}

impl Speculator for NGram {
    fn cost(&self, _: usize) -> f64 {
        0.0
    }

    fn propose(&mut self, asked: &[Ask<'_>], drafts: &mut [Vec<u32>]) {
        for (ask, draft) in asked.iter().zip(drafts) {
            let tokens = &ask.tokens[ask.tokens.len().saturating_sub(self.reach)..];
            let found = self.sizes.clone().rev().find_map(|size| follow(tokens, size, ask.most));
            draft.extend_from_slice(found.unwrap_or_default());
        }
    }
}

/// What followed the last earlier occurrence of the final `size` tokens.
fn follow(tokens: &[u32], size: usize, most: usize) -> Option<&[u32]> {
    let begin = tokens.len().checked_sub(size).filter(|&begin| size > 0 && begin > 0)?;
    let (pattern, earlier) = (&tokens[begin..], &tokens[..tokens.len() - 1]);
    let at = earlier.windows(size).rposition(|window| window == pattern)? + size;
    Some(&tokens[at..tokens.len().min(at + most)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_then_the_latest_repetition_is_followed() {
        let propose = |tokens: &[u32], most| {
            let sampling = Sampling::default();
            let ask = Ask { seq: SeqId(0), tokens, prompt: 1, sampling: &sampling, salt: 0, most };
            let mut drafts = [Vec::new()];
            NGram::default().propose(&[ask], &mut drafts);
            drafts[0].clone()
        };
        assert_eq!(propose(&[1, 2, 3, 4, 1, 2], 8), [3, 4, 1, 2]);
        assert_eq!(propose(&[1, 2, 3, 4, 1, 2], 1), [3]);
        assert_eq!(propose(&[1, 2, 8, 1, 2, 9, 1, 2], 1), [9]);
        assert_eq!(propose(&[5, 1, 2, 8, 1, 2, 9, 5, 1, 2], 1), [8]);
        assert_eq!(propose(&[7, 7, 7], 4), [7]);
        assert_eq!(propose(&[1, 2, 3], 4), []);
        assert_eq!(propose(&[1], 4), []);
    }
}
