//! What a workload's requests ask: noise, each prompt its own.

use ::bench::{Asked, DriveError, Workload};
use engine::Request;
use std::time::Instant;
use text::Tokenizer;

/// The prompts of a workload.
pub(crate) struct Prompts<'a> {
    vocab: usize,
    tokenizer: Option<&'a Tokenizer>,
    texts: Vec<String>,
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
        let mut texts = Vec::new();
        if let Some(tokenizer) = tokenizer {
            for (index, request) in workload.requests.iter().enumerate() {
                texts.push(tokenizer.decode(&noise(index, 0..request.prompt, vocab))?);
            }
        }
        Ok(Self { vocab, tokenizer, texts })
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
        tokens.truncate(prompt);
        tokens.extend(noise(index, tokens.len()..prompt, self.vocab));
        Ok(Asked { request: Request::new(tokens, output), tokenize })
    }
}

/// Some token of each position.
fn noise(index: usize, positions: std::ops::Range<usize>, vocab: usize) -> Vec<u32> {
    let token = |at: usize| {
        let x = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64) << 40;
        (x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) % vocab as u64
    };
    positions.map(|at| token(at) as u32).collect()
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
}
