//! What a workload's requests ask: noise, each prompt its own but for what a trace says is shared.

use ::bench::{Asked, DriveError, SHARED_BLOCK, Workload};
use engine::Request;
use std::collections::BTreeMap;
use std::time::Instant;
use text::Tokenizer;

/// The prompts of a workload.
pub(crate) struct Prompts<'a> {
    vocab: usize,
    tokenizer: Option<&'a Tokenizer>,
    texts: Vec<String>,
    /// Of each request, what the blocks of its prompt are, from 0 on; see [`Workload::shared`].
    shared: Vec<Vec<usize>>,
}

impl<'a> Prompts<'a> {
    /// Prompts for `workload`; texts, if the model has a tokenizer.
    ///
    /// # Errors
    /// If noise has no text.
    pub(crate) fn new(
        workload: &Workload,
        vocab: usize,
        tokenizer: Option<&'a Tokenizer>,
    ) -> Result<Self, text::Error> {
        let mut numbers = BTreeMap::new();
        let mut number = |block: &u64| {
            let next = numbers.len();
            *numbers.entry(*block).or_insert(next)
        };
        let shared =
            workload.shared.iter().map(|blocks| blocks.iter().map(&mut number).collect()).collect();
        let mut prompts = Self { vocab, tokenizer, texts: Vec::new(), shared };
        if let Some(tokenizer) = tokenizer {
            for (index, request) in workload.requests.iter().enumerate() {
                prompts.texts.push(tokenizer.decode(&prompts.tokens(index, 0..request.prompt))?);
            }
        }
        Ok(prompts)
    }

    /// The tokens of a request's prompt at some positions.
    fn tokens(&self, index: usize, positions: std::ops::Range<usize>) -> Vec<u32> {
        let shared = self.shared.get(index).map_or(&[][..], Vec::as_slice);
        let token = |at: usize| match shared.get(at / SHARED_BLOCK) {
            // Far from the indices of requests.
            Some(&block) => noise(!block, at % SHARED_BLOCK, self.vocab),
            None => noise(index, at, self.vocab),
        };
        positions.map(token).collect()
    }

    /// The request of an index. Its text is encoded now, as a server would; its length is then made
    /// to be what the workload says.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub(crate) fn ask(
        &self,
        index: usize,
        prompt: usize,
        output: usize,
    ) -> Result<Asked, DriveError> {
        let begun = Instant::now();
        let mut tokens = match (self.tokenizer, self.texts.get(index)) {
            (Some(tokenizer), Some(text)) => {
                tokenizer.encode(text).map_err(|error| DriveError::Prompt(error.to_string()))?
            }
            _ => Vec::new(),
        };
        let tokenize = self.tokenizer.map(|_| begun.elapsed().as_secs_f64());
        // Encoding a decoded text does not give its tokens again: what is shared must be, to a token.
        let kept = if self.shares(index) { 0 } else { prompt };
        tokens.truncate(kept);
        tokens.extend(self.tokens(index, tokens.len()..prompt));
        Ok(Asked { request: Request::new(tokens, output), tokenize })
    }

    fn shares(&self, index: usize) -> bool {
        self.shared.get(index).is_some_and(|shared| !shared.is_empty())
    }
}

/// Some token at a position of a text.
fn noise(text: usize, at: usize, vocab: usize) -> u32 {
    let x = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (text as u64) << 40;
    ((x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) % vocab as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_tokenizer_prompts_are_tokens_that_differ() {
        let workload = Workload::closed(1, 2, 5, 3);
        let prompts = Prompts::new(&workload, 100, None).unwrap();
        let [one, two] = [0, 1].map(|index| prompts.ask(index, 5, 3).unwrap());
        assert_eq!((one.request.prompt.len(), one.request.max_tokens), (5, 3));
        assert_eq!(one.tokenize, None);
        assert!(one.request.prompt.iter().all(|&token| token < 100));
        assert_ne!(one.request.prompt, two.request.prompt);
        assert_eq!(prompts.ask(0, 5, 3).unwrap(), one);
    }

    #[test]
    fn blocks_of_one_number_are_the_same_tokens_and_no_others() {
        let mut workload = Workload::closed(1, 3, 1200, 3);
        workload.shared = vec![vec![0, 1, 2], vec![0, 1, 9], vec![]];
        let prompts = Prompts::new(&workload, 1 << 20, None).unwrap();
        let [one, two, own] = [0, 1, 2].map(|at| prompts.ask(at, 1200, 3).unwrap().request.prompt);
        assert_eq!(one[..1024], two[..1024]);
        let equal = |a: &[u32], b: &[u32]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(equal(&one[1024..], &two[1024..]) < 9 && equal(&one, &own) < 9);
        assert!(equal(&one[..512], &one[512..1024]) < 9);
    }
}
