//! Which keys of a configuration are honoured, which are inert, and the refusal of all others.
//!
//! The lists are literal so that a review can hold them against transformers (5.23.0).

use crate::config::{Fields, quote, show};
use crate::error::Error;
use crate::families::Family;
use serde_json::{Map, Value};

/// Keys that every family reads.
const COMMON: &[&str] = &[
    "architectures",
    "dtype",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "is_causal",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
];

/// Keys that do not reach the logits of a decoder's forward: identity, training, generation,
/// classification heads, and the loading machinery of transformers.
const INERT: &[&str] = &[
    // Identity and provenance.
    "_commit_hash",
    "_name_or_path",
    "auto_map",
    "custom_pipelines",
    "model_name",
    "name_or_path",
    "tokenizer_class",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    // Which kernels run and what a forward returns.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "chunk_size_feed_forward",
    "keys_to_ignore_at_inference",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pretraining_tp",
    "return_dict",
    "return_dict_in_generate",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "use_flash_attention_2",
    "use_return_dict",
    // Training.
    "attention_dropout",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "initializer_range",
    "neftune_noise_alpha",
    "resid_pdrop",
    "tf_legacy_loss",
    // Token ids that only the tokenizer and the sampler read.
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    // Generation.
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    // Heads other than the language model's.
    "classifier_dropout",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "prefix",
    "problem_type",
    "task_specific_params",
    // Encoder-decoder relics of the common base class.
    "cross_attention_hidden_size",
    "pruned_heads",
    "tie_encoder_decoder",
];

/// Refuses every key that the family does not honour and that is not known to be inert.
///
/// Null and false are inert by convention: they say that a feature is absent.
pub(crate) fn audit(config: &Map<String, Value>, family: &Family) -> Result<(), Error> {
    if let Some(quantization) = config.get("quantization_config").filter(|v| !v.is_null()) {
        let method = quantization.get("quant_method").map_or("not named".to_owned(), show);
        return Err(Error::Quantized { method });
    }
    let known = |key: &str| [COMMON, family.keys, INERT].iter().any(|list| list.contains(&key));
    let absent = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    match config.iter().find(|(key, value)| !known(key) && !absent(value)) {
        None => Ok(()),
        Some((key, value)) => {
            Err(Error::UnknownKey { key: quote(key), value: show(value), family: family.name })
        }
    }
}

/// A word if the checkpoint was saved from another class than the family's language model.
pub(crate) fn architecture_warning(
    config: &Fields,
    family: &Family,
) -> Result<Option<String>, Error> {
    let Some(classes) = config.texts("architectures")? else { return Ok(None) };
    let odd = !classes.is_empty() && !classes.contains(&family.class);
    Ok(odd.then(|| {
        let listed: Vec<String> = classes.iter().take(4).map(|class| quote(class)).collect();
        format!("config.json: architectures is {}, read as {}", listed.join(", "), family.class)
    }))
}
