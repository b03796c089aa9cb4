//! What is asked of the engine, and why it may be refused.

use crate::pool::GroupKind;
use crate::rules::Rules;

/// How tokens are drawn.
///
/// In order: bias, repetition, presence and frequency penalties, rules, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// So many of the most likely tokens are left; 0 for all.
    pub top_k: usize,
    /// The most likely tokens that together have this probability are left; 1 for all.
    pub top_p: f32,
    /// Tokens with less than this share of the most likely one's probability are cut; 0 for none.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of every token so far; 1 for none.
    pub repetition_penalty: f32,
    /// Taken from the logits of every token generated so far.
    pub presence_penalty: f32,
    /// Taken from the logits once for each time the token was generated.
    pub frequency_penalty: f32,
    /// Added to logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// What must and must not come.
    pub rules: Rules,
    /// The same seed draws the same noise.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            rules: Rules::default(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether every number is within its bounds.
    ///
    /// # Errors
    /// The name of the first that is not, and its rule.
    pub fn check(&self, vocab: usize) -> Result<(), Refused> {
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "at least 0"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above 0",
            ),
            ("presence_penalty", self.presence_penalty, true, "finite"),
            ("frequency_penalty", self.frequency_penalty, true, "finite"),
        ];
        for (name, value, holds, rule) in rules {
            if !holds || !value.is_finite() {
                return Err(Refused::Sampling { name, value, rule });
            }
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocab {
                return Err(Refused::Token { what: "logit_bias", token, vocab });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                let rule = "finite or -inf";
                return Err(Refused::Sampling { name: "logit_bias", value: bias, rule });
            }
        }
        for &(_, bias) in &self.rules.sequence_bias {
            if bias.is_nan() || bias == f32::INFINITY {
                let rule = "finite or -inf";
                return Err(Refused::Sampling { name: "sequence_bias", value: bias, rule });
            }
        }
        if let Some((_, factor)) = self.rules.decay
            && !(factor.is_finite() && factor > 0.0)
        {
            let name = "exponential_decay_length_penalty";
            return Err(Refused::Sampling { name, value: factor, rule: "above 0" });
        }
        Ok(())
    }
}

/// One sequence to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt's token ids; at least one.
    pub prompt: Vec<u32>,
    /// How many tokens are generated at most.
    pub max_tokens: usize,
    /// Tokens that end the sequence; the one that did is the last of the output.
    pub stop: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The most likely tokens reported with each generated one; `None` for no log-probabilities.
    pub logprobs: Option<usize>,
    /// As `logprobs`, for the prompt: these positions are computed even where they are cached.
    pub prompt_logprobs: Option<usize>,
    /// Prefixes are shared only between requests of the same salt.
    pub salt: u64,
}

impl Request {
    /// A greedy continuation of `prompt` by at most `max_tokens` tokens.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            stop: Vec::new(),
            sampling: Sampling::default(),
            logprobs: None,
            prompt_logprobs: None,
            salt: 0,
        }
    }
}

/// Why a request is not taken in. The engine goes on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    Empty,
    /// The prompt leaves no room for a token.
    #[error("the prompt has {prompt} tokens, the model's context only {context}")]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the model's context.
        context: usize,
    },
    /// A token that the model does not have.
    #[error("{what}: token {token} is outside the vocabulary of {vocab}")]
    Token {
        /// Where it stands.
        what: &'static str,
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocab: usize,
    },
    /// Even alone the request would not fit.
    #[error(
        "the request needs {needed} blocks of 16 tokens in a {kind} cache, the whole pool has {all}"
    )]
    Pool {
        /// Blocks of the whole request.
        needed: usize,
        /// Blocks of the pool.
        all: usize,
        /// Which cache group.
        kind: GroupKind,
    },
    /// A sampling option out of its bounds.
    #[error("{name} = {value} must be {rule}")]
    Sampling {
        /// The option.
        name: &'static str,
        /// What was asked.
        value: f32,
        /// What must hold.
        rule: &'static str,
    },
}
