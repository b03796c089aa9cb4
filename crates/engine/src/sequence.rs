//! One request on its way.

use crate::depth::Depth;
use crate::pool::Held;
use crate::request::Request;

/// A sequence's name; later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// A sequence: what is known of it, and how much of that is computed.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) request: Request,
    /// Prompt and output.
    pub(crate) tokens: Vec<u32>,
    /// So many of the tokens are in the cache.
    pub(crate) computed: usize,
    /// What it has of the cache; nothing while it waits.
    pub(crate) held: Option<Held>,
    /// Whether any step had it.
    pub(crate) started: bool,
    /// Prompt positions whose scores were reported.
    pub(crate) scored: usize,
    /// Tokens of a prefix that was cached when it was last taken in.
    pub(crate) cached: usize,
    pub(crate) depth: Depth,
    /// Guesses of the tokens to come, for one step.
    pub(crate) drafts: Vec<u32>,
    /// Positions to be computed in this step.
    pub(crate) scheduled: usize,
    /// Whether that step is computed elsewhere, and has not come back.
    pub(crate) flying: bool,
    /// Whether it is to end when that step comes back.
    pub(crate) aborted: bool,
}

impl Sequence {
    pub(crate) fn new(id: SeqId, request: Request) -> Self {
        Self {
            id,
            tokens: request.prompt.clone(),
            request,
            computed: 0,
            held: None,
            started: false,
            scored: 0,
            cached: 0,
            depth: Depth::default(),
            drafts: Vec::new(),
            scheduled: 0,
            flying: false,
            aborted: false,
        }
    }

    /// Tokens that are known and not computed.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether it only waits for its next token.
    pub(crate) fn is_decoding(&self) -> bool {
        self.remaining() == 1 && self.tokens.len() > self.request.prompt.len()
    }

    /// Tokens it may still generate.
    pub(crate) fn left(&self) -> usize {
        self.request.max_tokens - (self.tokens.len() - self.request.prompt.len())
    }

    /// Tokens of which a cached prefix may be taken: the last one is computed for its logits, and
    /// so is what is to be scored.
    pub(crate) fn cacheable(&self) -> usize {
        let last = self.tokens.len() - 1;
        match self.request.prompt_logprobs {
            Some(_) if self.scored + 1 < self.request.prompt.len() => last.min(self.scored),
            _ => last,
        }
    }

    /// The prompt positions that are to be scored and lie in `computed..end`.
    pub(crate) fn to_score(&self, end: usize) -> std::ops::Range<usize> {
        let last = (self.request.prompt.len() - 1).min(end);
        match self.request.prompt_logprobs {
            Some(_) => {
                let first = self.scored.max(self.computed);
                first..last.max(first)
            }
            None => self.computed..self.computed,
        }
    }
}
