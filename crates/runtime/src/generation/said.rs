//! What generation_config.json says, key by key.

use super::wrong;
use crate::error::GenerationError;
use serde_json::{Map, Value};

const FILE: &str = "generation_config.json";

/// Keys that act here.
const KNOWN: &[&str] = &[
    "bad_words_ids",
    "begin_suppress_tokens",
    "do_sample",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
];

/// Keys that change no token of one greedy or drawn text of a decoder: how transformers caches,
/// compiles, returns or speeds up; what only an encoder or beams have; where the file comes from.
/// Values that are no numbers (`remove_invalid_values`) are errors here in any case.
const INERT: &[&str] = &[
    "_from_model_config",
    "_name_or_path",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "chat_format",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
];

/// The file's keys.
pub(super) struct Said<'a>(Option<&'a Map<String, Value>>);

impl<'a> Said<'a> {
    pub(super) fn new(file: Option<&'a Map<String, Value>>) -> Self {
        Self(file)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.and_then(|file| file.get(key)).filter(|value| !value.is_null())
    }

    pub(super) fn samples(&self) -> bool {
        self.get("do_sample") == Some(&Value::Bool(true))
    }

    /// `value` where the file has no such key, else 0: the key was there and meant off.
    pub(super) fn absent(&self, key: &str, value: usize) -> usize {
        if self.get(key).is_none() { value } else { 0 }
    }

    /// Keys that would change the text in transformers, and do not here.
    pub(super) fn unsupported(&self) -> Vec<&'a str> {
        let all = self.0.into_iter().flatten();
        let acts = all.filter(|(key, value)| {
            let known = KNOWN.contains(&key.as_str()) || INERT.contains(&key.as_str());
            !known && !self.is_off(key, value)
        });
        acts.map(|(key, _)| key.as_str()).collect()
    }

    /// Whether a key that is not supported has a value that changes nothing.
    fn is_off(&self, key: &str, value: &Value) -> bool {
        let number = value.as_f64();
        let none = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            _ => false,
        };
        let only_draws = matches!(key, "typical_p" | "epsilon_cutoff" | "eta_cutoff" | "top_h");
        none || match key {
            "guidance_scale" | "num_beams" | "num_beam_groups" | "num_return_sequences" => {
                number == Some(1.0)
            }
            "typical_p" => number.is_some_and(|p| p >= 1.0) || !self.samples(),
            _ => number == Some(0.0) || only_draws && !self.samples(),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f32>, GenerationError> {
        let number = |value: &Value| {
            let number = value.as_f64().map(|x| x as f32);
            number.ok_or_else(|| wrong(FILE, key, "a number", value))
        };
        self.get(key).map(number).transpose()
    }

    /// A count; 0 and less mean that there is no such rule.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, GenerationError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.fract() == 0.0);
        let number = number.ok_or_else(|| wrong(FILE, key, "a whole number", value))?;
        Ok((number > 0.0).then_some(number as usize))
    }

    /// One id, or a list of them; -1 is none.
    pub(super) fn tokens(&self, key: &str) -> Result<Vec<u32>, GenerationError> {
        self.get(key).map_or(Ok(Vec::new()), |value| ids(FILE, key, value))
    }

    /// Lists of ids.
    pub(super) fn sequences(&self, key: &str) -> Result<Vec<Vec<u32>>, GenerationError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let all = value.as_array().ok_or_else(|| wrong(FILE, key, "a list of lists", value))?;
        all.iter().map(|one| ids(FILE, key, one)).collect()
    }

    /// Lists of ids, each with what is added: `[[[5, 6], -2.0]]`.
    pub(super) fn biases(&self, key: &str) -> Result<Vec<(Vec<u32>, f32)>, GenerationError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let rule = "a list of pairs of ids and a number";
        let pair = |one: &Value| match one.as_array().map(Vec::as_slice) {
            Some([tokens, bias]) => {
                let bias = bias.as_f64().ok_or_else(|| wrong(FILE, key, rule, one))?;
                Ok((ids(FILE, key, tokens)?, bias as f32))
            }
            _ => Err(wrong(FILE, key, rule, one)),
        };
        let all = value.as_array().ok_or_else(|| wrong(FILE, key, rule, value))?;
        all.iter().map(pair).collect()
    }

    /// From where on, and the factor: `[20, 1.05]`.
    pub(super) fn decay(&self, key: &str) -> Result<Option<(usize, f32)>, GenerationError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let pair = match value.as_array().map(Vec::as_slice) {
            Some([start, factor]) => start.as_u64().zip(factor.as_f64()),
            _ => None,
        };
        let (start, factor) =
            pair.ok_or_else(|| wrong(FILE, key, "a count and a factor", value))?;
        Ok(Some((usize::try_from(start).unwrap_or(usize::MAX), factor as f32)))
    }

    /// One string, or a list of them.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, GenerationError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let string = |one: &Value| {
            let text = one.as_str().map(String::from);
            text.ok_or_else(|| wrong(FILE, key, "a string or a list of them", value))
        };
        match value {
            Value::Array(all) => all.iter().map(string).collect(),
            one => Ok(vec![string(one)?]),
        }
    }
}

/// One id, or a list of them; null and -1 are none.
pub(super) fn ids(
    file: &'static str,
    key: &str,
    value: &Value,
) -> Result<Vec<u32>, GenerationError> {
    let id = |value: &Value| match value.as_i64() {
        Some(-1) => Ok(None),
        Some(id) if u32::try_from(id).is_ok() => Ok(u32::try_from(id).ok()),
        _ => Err(wrong(file, key, "a token id or a list of them", value)),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(all) => all.iter().filter_map(|one| id(one).transpose()).collect(),
        one => Ok(id(one)?.into_iter().collect()),
    }
}
