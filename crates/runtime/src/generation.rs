//! How tokens are drawn: what a request says, else generation_config.json, else greedily.
//!
//! Every key of generation_config.json either acts as in transformers 5.23 (`generation/utils.py`,
//! `configuration_utils.py`), or changes no token here, or is named.

use crate::error::GenerationError;
use checkpoint::Checkpoint;
use engine::{Rules, Sampling};
use said::Said;
use serde_json::Value;
use text::Tokenizer;

mod said;

/// What a request says of how tokens are drawn, where it says so.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Tokens to generate; less than 0 for what the context has left.
    pub max_tokens: Option<i64>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// The probability of those that are drawn from.
    pub top_p: Option<f32>,
    /// How many are drawn from; 0 for all.
    pub top_k: Option<usize>,
    /// The least share of the most likely one's probability.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that occurred.
    pub repetition_penalty: Option<f32>,
    /// Which noise is drawn.
    pub seed: Option<u64>,
    /// Strings that end the text, beside those of the file.
    pub stop: Vec<String>,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

/// The options and what ends a text.
#[derive(Clone, Debug)]
pub struct Generation {
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens that end a text.
    pub stop: Vec<u32>,
    /// Strings that do.
    pub stops: Vec<String>,
    /// Keys of generation_config.json that would change the text in transformers, and do not here.
    pub unsupported: Vec<String>,
    /// Tokens to generate that the request asks for; less than 0 for what is left.
    asked: Option<i64>,
    /// Tokens that are generated at most, if the file says.
    max_new: Option<usize>,
    /// Tokens that a text has at most, its prompt included, if the file says.
    max_length: Option<usize>,
}

/// `top_k` of transformers where a configuration samples and says nothing.
const TOP_K: usize = 50;

impl Generation {
    /// `turn_end` is the token with which the tokenizer ends a turn, in a conversation.
    ///
    /// # Errors
    /// If a key of the model's files has no value that it can have.
    pub fn new(
        asked: &Overrides,
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        turn_end: Option<&str>,
    ) -> Result<Self, GenerationError> {
        let said = Said::new(checkpoint.generation_config());
        let unsupported = said.unsupported().into_iter().map(String::from).collect();
        let mut stops = asked.stop.clone();
        stops.extend(said.strings("stop_strings")?);
        let mut stop = said.tokens("eos_token_id")?;
        if let Some(ids) = checkpoint.config().get("eos_token_id") {
            stop.extend(said::ids("config.json", "eos_token_id", ids)?);
        }
        stop.extend(turn_end.and_then(|token| tokenizer.id(token)));
        let rules = rules(&said, &stop)?;
        // Special tokens are no text: where one is a stop string, its id stops.
        stop.extend(stops.iter().filter_map(|text| tokenizer.special(text)));
        stop.sort_unstable();
        stop.dedup();
        let (max_new, max_length) = (said.count("max_new_tokens")?, said.count("max_length")?);
        let sampling = Sampling { rules, ..sampling(asked, &said)? };
        // As in transformers, max_new_tokens goes before max_length.
        let max_length = max_length.filter(|_| max_new.is_none());
        let asked = asked.max_tokens;
        Ok(Self { sampling, stop, stops, unsupported, asked, max_new, max_length })
    }

    /// Tokens to generate at most, unless it is what is left.
    pub fn most(&self) -> Option<usize> {
        match self.asked {
            Some(most) => usize::try_from(most).ok(),
            None => self.max_new.or(self.max_length),
        }
    }

    /// Tokens to generate at most after a prompt of `prompt`, with `room` for all.
    pub fn max_tokens(&self, prompt: usize, room: usize) -> usize {
        let left = room.saturating_sub(prompt);
        if let Some(most) = self.asked {
            // What was asked for and does not fit is refused by the engine, and not cut.
            return if most < 0 { left } else { usize::try_from(most).unwrap_or(usize::MAX) };
        }
        // A prompt that is longer already than the file allows is continued all the same.
        let by_length = self.max_length.and_then(|all| all.checked_sub(prompt)).filter(|n| *n > 0);
        self.max_new.or(by_length).map_or(left, |most| most.min(left))
    }

    /// The options for a text of at most `max_tokens` after `prompt`.
    pub fn for_length(&self, prompt: usize, max_tokens: usize) -> Sampling {
        let mut sampling = self.sampling.clone();
        sampling.rules.max_length = prompt + max_tokens;
        sampling
    }
}

/// How tokens are drawn. Without `do_sample` the file's filters do not count; its penalties always do.
fn sampling(asked: &Overrides, said: &Said<'_>) -> Result<Sampling, GenerationError> {
    let samples = said.samples();
    let drawn = |key: &str| if samples { said.number(key) } else { Ok(None) };
    // -1 means off in vLLM's spelling, 0 in transformers'.
    let top_k =
        if samples { said.count("top_k")?.or(Some(said.absent("top_k", TOP_K))) } else { None };
    // Filters that the user asks for mean that something is to be drawn.
    let filtered = asked.top_k.is_some() || asked.top_p.is_some() || asked.min_p.is_some();
    let plain = if samples || filtered { 1.0 } else { 0.0 };
    // A share of nothing leaves the most likely token.
    let top_p = drawn("top_p")?.map(|p| if p == 0.0 { f32::MIN_POSITIVE } else { p });
    Ok(Sampling {
        temperature: asked.temperature.or(drawn("temperature")?).unwrap_or(plain),
        top_k: asked.top_k.or(top_k).unwrap_or(0),
        top_p: asked.top_p.or(top_p).unwrap_or(1.0),
        min_p: asked.min_p.or(drawn("min_p")?).unwrap_or(0.0),
        repetition_penalty: asked
            .repetition_penalty
            .or(said.number("repetition_penalty")?)
            .unwrap_or(1.0),
        logit_bias: asked.logit_bias.clone(),
        seed: asked.seed.unwrap_or(0),
        ..Sampling::default()
    })
}

fn rules(said: &Said<'_>, end: &[u32]) -> Result<Rules, GenerationError> {
    Ok(Rules {
        sequence_bias: said.biases("sequence_bias")?,
        no_repeat_ngram: said.count("no_repeat_ngram_size")?.unwrap_or(0),
        bad_words: said.sequences("bad_words_ids")?,
        end: end.to_vec(),
        min_length: said.count("min_length")?.unwrap_or(0),
        min_new_tokens: said.count("min_new_tokens")?.unwrap_or(0),
        forced_bos: said.tokens("forced_bos_token_id")?.first().copied(),
        forced_eos: said.tokens("forced_eos_token_id")?,
        max_length: 0,
        decay: said.decay("exponential_decay_length_penalty")?,
        suppress: said.tokens("suppress_tokens")?,
        begin_suppress: said.tokens("begin_suppress_tokens")?,
    })
}

fn wrong(file: &'static str, key: &str, rule: &'static str, found: &Value) -> GenerationError {
    let found = found.to_string().chars().take(80).collect();
    GenerationError { file, key: key.into(), rule, found }
}
