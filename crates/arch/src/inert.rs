//! The audited list of keys that change no logit of a decoder, and where that is known from.
//!
//! transformers keeps every key of a `config.json` as an attribute, whether or not anything reads
//! it. So a key is inert if no model class of ours reads it in a forward; the lists say who does.
//! They were held against transformers 5.23.0 (`modeling_{llama,mistral,qwen2,qwen3}.py`,
//! `configuration_utils.py`, `generation/configuration_utils.py`) and vLLM's `config/model.py`.

use crate::config::Fields;
use serde_json::Value;

/// Keys that are inert whatever they say, by kind: who writes them and who reads them, and the keys.
const KINDS: &[(&str, &[&str])] = &[
    (
        "identity: written by save_pretrained and by tools that rename or merge; transformers reads \
              them to find files and classes, nobody in a forward",
        &[
            "_commit_hash",
            "_name_or_path",
            "auto_map",
            "base_model",
            "base_model_name_or_path",
            "custom_pipelines",
            "library_name",
            "license",
            "model_name",
            "name_or_path",
            "tokenizer_class",
            "tokenizer_name",
            "torchscript",
            "transformers_version",
            "transformers_weights",
            "trust_remote_code",
        ],
    ),
    (
        "provenance: a tool's mark on what it wrote. is_llama_config is nanotron's (every SmolLM; no class \
              of transformers names it), unsloth_* are Unsloth's, mergekit and axolotl leave theirs, \
              transformers.js_config is read by the JavaScript library alone",
        &[
            "axolotl_version",
            "is_llama_config",
            "mergekit_version",
            "mlx_version",
            "nanotron_version",
            "trl_version",
            "transformers.js_config",
            "unsloth_fixed",
            "unsloth_version",
        ],
    ),
    (
        "the tokenizer's: lengths, sides and spellings that training scripts leave (Llama 1, Vicuna, LLaVA, \
              Baichuan). transformers reads none of them in a model; vLLM takes the smallest of the lengths as \
              its default limit, we take max_position_embeddings",
        &[
            "add_bos_token",
            "add_eos_token",
            "bos_token",
            "eos_token",
            "max_seq_len",
            "max_seq_length",
            "max_sequence_length",
            "model_max_length",
            "pad_token",
            "padding_side",
            "seq_len",
            "seq_length",
            "tokenizer_model_max_length",
            "tokenizer_padding_side",
            "truncation_side",
            "unk_token",
        ],
    ),
    (
        "which kernels run and what a forward returns: the same function by other means",
        &[
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
            "_experts_implementation",
            "_experts_implementation_internal",
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
            "tensor_parallel_degree",
            "tp_size",
            "use_bfloat16",
            "use_cache",
            "use_flash_attention",
            "use_flash_attention_2",
            "use_flash_attn",
            "use_fused_cross_entropy",
            "use_fused_rms_norm",
            "use_fused_swiglu",
            "use_kernels",
            "use_liger_kernel",
            "use_return_dict",
            "use_sdpa",
        ],
    ),
    (
        "training: dropout is off in evaluation, initial weights are overwritten, the rest configures losses, \
              optimizers and adapters that are merged by now",
        &[
            "attention_dropout",
            "attn_dropout",
            "attn_pdrop",
            "embd_pdrop",
            "embedding_dropout",
            "freeze_backbone",
            "gradient_checkpointing",
            "hidden_dropout",
            "hidden_dropout_prob",
            "initializer_factor",
            "initializer_range",
            "learning_rate",
            "lora_alpha",
            "lora_dropout",
            "lora_r",
            "lora_rank",
            "mlp_dropout",
            "neftune_noise_alpha",
            "resid_pdrop",
            "residual_dropout",
            "tf_legacy_loss",
            "use_reentrant_checkpointing",
        ],
    ),
    (
        "token ids that only the tokenizer and the sampler read",
        &[
            "bos_token_id",
            "decoder_start_token_id",
            "eos_token_id",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "pad_token_id",
            "sep_token_id",
            "unk_token_id",
        ],
    ),
    (
        "generation: GenerationConfig's defaults, which older versions saved here; a forward reads none",
        &[
            "assistant_confidence_threshold",
            "assistant_early_exit",
            "assistant_lookbehind",
            "bad_words_ids",
            "begin_suppress_tokens",
            "cache_config",
            "cache_implementation",
            "constraints",
            "disable_compile",
            "diversity_penalty",
            "do_sample",
            "dola_layers",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "encoder_repetition_penalty",
            "epsilon_cutoff",
            "eta_cutoff",
            "exponential_decay_length_penalty",
            "force_words_ids",
            "forced_decoder_ids",
            "guidance_scale",
            "is_assistant",
            "length_penalty",
            "low_memory",
            "max_length",
            "max_matching_ngram_size",
            "max_new_tokens",
            "max_time",
            "min_length",
            "min_new_tokens",
            "min_p",
            "no_repeat_ngram_size",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_logits",
            "penalty_alpha",
            "prefill_chunk_size",
            "prompt_lookup_num_tokens",
            "remove_invalid_values",
            "renormalize_logits",
            "repetition_penalty",
            "sequence_bias",
            "stop_strings",
            "suppress_tokens",
            "target_lookbehind",
            "temperature",
            "token_healing",
            "top_h",
            "top_k",
            "top_p",
            "typical_p",
            "watermarking_config",
        ],
    ),
    (
        "heads other than the language model's: labels and losses of classifiers",
        &[
            "classifier_dropout",
            "finetuning_task",
            "id2label",
            "label2id",
            "num_labels",
            "prefix",
            "problem_type",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "task_specific_params",
        ],
    ),
    (
        "relics of the common base class of encoders and decoders; these families read none. is_decoder says \
              what they are",
        &["cross_attention_hidden_size", "is_decoder", "pruned_heads", "tie_encoder_decoder"],
    ),
];

/// Keys that change nothing if they are 1: factors of forks (Granite, MiniCPM, Cohere, GLM) and partial rotation,
/// and the width of a tensor-parallel checkpoint.
const ONE: &[&str] = &[
    "embd_scale",
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "residual_multiplier",
    "rope_pct",
    "rope_percent",
    "rope_ratio",
    "rotary_pct",
    "rotary_percent",
    "scale_emb",
];

/// Keys that change nothing if they are 0: what there are none of.
const ZERO: &[&str] = &[
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts",
    "num_experts_per_tok",
    "num_kv_shared_layers",
    "num_local_experts",
    "num_mtp_layers",
    "num_nextn_predict_layers",
    "router_aux_loss_coef",
];

/// Other spellings, which no class of ours reads, of what another key says: they must say the same.
const SPELLINGS: &[(&str, &str)] = &[
    ("activation_function", "hidden_act"),
    ("d_model", "hidden_size"),
    ("dim", "hidden_size"),
    ("hidden_dim", "intermediate_size"),
    ("layer_norm_eps", "rms_norm_eps"),
    ("layer_norm_epsilon", "rms_norm_eps"),
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("n_heads", "num_attention_heads"),
    ("n_inner", "intermediate_size"),
    ("n_kv_heads", "num_key_value_heads"),
    ("n_layer", "num_hidden_layers"),
    ("n_layers", "num_hidden_layers"),
    ("n_positions", "max_position_embeddings"),
    ("norm_eps", "rms_norm_eps"),
    ("num_heads", "num_attention_heads"),
    ("num_kv_heads", "num_key_value_heads"),
    ("num_layers", "num_hidden_layers"),
];

/// Whether the key `key` with this value changes no logit of a model that does not read it.
pub(crate) fn is_inert(config: &Fields, key: &str, value: &Value) -> bool {
    says_nothing(value)
        || KINDS.iter().any(|(_, keys)| keys.contains(&key))
        || ONE.contains(&key) && value.as_f64() == Some(1.0)
        || ZERO.contains(&key) && value.as_f64() == Some(0.0)
        || SPELLINGS.iter().any(|(other, said)| *other == key && same(config, said, value))
        || is_off(config, key, value)
}

/// Null, false and what is empty say that a feature is absent.
pub(crate) fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn same(config: &Fields, key: &str, value: &Value) -> bool {
    let said = config.keys().find(|(name, _)| *name == key).map(|(_, said)| said);
    said.is_some_and(|said| said == value || said.is_number() && said.as_f64() == value.as_f64())
}

/// Keys that are switched off by another key, or by their own value: windows in families that
/// have none, layers of which all attend to everything, a gate that is the one there is (Falcon 3).
fn is_off(config: &Fields, key: &str, value: &Value) -> bool {
    let number =
        |key: &str| config.keys().find(|(name, _)| *name == key).and_then(|(_, v)| v.as_u64());
    match key {
        "sliding_window" | "max_window_layers" => {
            let is_unused =
                config.keys().any(|(name, v)| name == "use_sliding_window" && *v == false);
            let context = number("max_position_embeddings");
            let narrows = number("sliding_window").is_some_and(|w| context.is_none_or(|n| w < n));
            is_unused || !narrows
        }
        "layer_types" => {
            value.as_array().is_some_and(|types| types.iter().all(|t| t == "full_attention"))
        }
        "activation" => matches!(value.as_str(), Some("swiglu" | "silu" | "swish")),
        "position_embedding_type" => matches!(value.as_str(), Some("rope" | "rotary")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_kind_says_why_and_no_key_is_listed_twice() {
        let mut seen = HashSet::new();
        for (why, keys) in KINDS {
            assert!(why.len() > 30, "{why}");
            for key in *keys {
                assert!(seen.insert(*key), "{key} is listed twice");
            }
        }
        let others = [ONE, ZERO].concat().into_iter().chain(SPELLINGS.iter().map(|row| row.0));
        for key in others {
            assert!(seen.insert(key), "{key} is listed twice");
        }
    }
}
