//! What is refused, and in which words: one row a bad key or value.

use crate::common::{small, tensors};
use serde_json::json;
use tensor::DType;

/// Family, changes to a small configuration as JSON, and the message after `config.json: `.
const VALUES: &[(&str, &str, &str)] = &[
    // HF-11: heads.
    (
        "llama",
        r#"{"num_attention_heads": 0}"#,
        "key \"num_attention_heads\" = 0: must be an integer from 1 to 65536",
    ),
    (
        "llama",
        r#"{"num_key_value_heads": 0}"#,
        "key \"num_key_value_heads\" = 0: must be an integer from 1 to 65536",
    ),
    (
        "llama",
        r#"{"num_key_value_heads": 8}"#,
        "key \"num_key_value_heads\" = 8: 8 heads must divide num_attention_heads = 4",
    ),
    (
        "llama",
        r#"{"num_key_value_heads": 3}"#,
        "key \"num_key_value_heads\" = 3: 3 heads must divide num_attention_heads = 4",
    ),
    (
        "mistral",
        r#"{"num_key_value_heads": "absent"}"#,
        "key \"num_key_value_heads\" = absent: 8 heads must divide num_attention_heads = 4",
    ),
    (
        "llama",
        r#"{"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": null}"#,
        "key \"num_attention_heads\" = 5: must divide hidden_size = 24 where head_dim is not given",
    ),
    ("llama", r#"{"head_dim": 0}"#, "key \"head_dim\" = 0: must be an integer from 1 to 65536"),
    (
        "llama",
        r#"{"head_dim": 5}"#,
        "key \"head_dim\" = 5: a head of size 5 cannot be rotated: must be even",
    ),
    (
        "qwen3",
        r#"{"head_dim": null}"#,
        "key \"head_dim\" = null: must be an integer from 1 to 65536",
    ),
    // Experts.
    (
        "mixtral",
        r#"{"num_local_experts": 0}"#,
        "key \"num_local_experts\" = 0: must be an integer from 1 to 1024",
    ),
    (
        "mixtral",
        r#"{"num_local_experts": 4, "num_experts_per_tok": 5}"#,
        "key \"num_experts_per_tok\" = 5: must be an integer from 1 to 4",
    ),
    (
        "mixtral",
        r#"{"num_local_experts": 1}"#,
        "key \"num_experts_per_tok\" = absent: 2 when absent, is more than num_local_experts = 1",
    ),
    (
        "mixtral",
        r#"{"num_local_experts": 1024, "num_hidden_layers": 129}"#,
        "key \"num_local_experts\" = 1024: 129 layers may have at most 131072 experts in all",
    ),
    // HF-12: sizes that no model has.
    (
        "llama",
        r#"{"num_attention_heads": 65536, "head_dim": 65536}"#,
        "key \"num_attention_heads\" = 65536: 65536 heads of size 65536 are wider than 16777216",
    ),
    (
        "llama",
        r#"{"num_attention_heads": 2147483648}"#,
        "key \"num_attention_heads\" = 2147483648: must be an integer from 1 to 65536",
    ),
    (
        "llama",
        r#"{"hidden_size": 1099511627776}"#,
        "key \"hidden_size\" = 1099511627776: must be an integer from 1 to 1048576",
    ),
    (
        "llama",
        r#"{"num_hidden_layers": 1000000000}"#,
        "key \"num_hidden_layers\" = 1000000000: must be an integer from 1 to 4096",
    ),
    (
        "llama",
        r#"{"vocab_size": 9223372036854775808}"#,
        "key \"vocab_size\" = 9223372036854775808: must be an integer from 1 to 16777216",
    ),
    (
        "llama",
        r#"{"intermediate_size": 4294967296}"#,
        "key \"intermediate_size\" = 4294967296: must be an integer from 1 to 16777216",
    ),
    (
        "llama",
        r#"{"max_position_embeddings": 1152921504606846976}"#,
        "key \"max_position_embeddings\" = 1152921504606846976: must be an integer from 1 to 2147483648",
    ),
    (
        "mistral",
        r#"{"sliding_window": 0}"#,
        "key \"sliding_window\" = 0: must be an integer from 1 to 2147483648",
    ),
    (
        "mistral",
        r#"{"sliding_window": 4294967296}"#,
        "key \"sliding_window\" = 4294967296: must be an integer from 1 to 2147483648",
    ),
    // Required keys.
    ("llama", r#"{"hidden_size": "absent"}"#, "key \"hidden_size\" is missing"),
    ("llama", r#"{"vocab_size": "absent"}"#, "key \"vocab_size\" is missing"),
    // Numbers and flags.
    ("llama", r#"{"rms_norm_eps": 0}"#, "key \"rms_norm_eps\" = 0: must be above 0 and at most 1"),
    (
        "llama",
        r#"{"rms_norm_eps": -1e-5}"#,
        "key \"rms_norm_eps\" = -0.00001: must be above 0 and at most 1",
    ),
    (
        "llama",
        r#"{"rms_norm_eps": "1e-5"}"#,
        "key \"rms_norm_eps\" = \"1e-5\": must be a finite number",
    ),
    (
        "llama",
        r#"{"tie_word_embeddings": 1}"#,
        "key \"tie_word_embeddings\" = 1: must be true or false",
    ),
    (
        "llama",
        r#"{"tie_word_embeddings": null}"#,
        "key \"tie_word_embeddings\" = null: must be true or false",
    ),
    (
        "llama",
        r#"{"attention_bias": "true"}"#,
        "key \"attention_bias\" = \"true\": must be true or false",
    ),
    // Parts of a model that are not built.
    (
        "llama",
        r#"{"hidden_act": "gelu"}"#,
        "key \"hidden_act\" = \"gelu\": only \"silu\" is supported",
    ),
    ("llama", r#"{"hidden_act": null}"#, "key \"hidden_act\" = null: only \"silu\" is supported"),
    (
        "llama",
        r#"{"is_causal": false}"#,
        "key \"is_causal\" = false: only causal attention is supported",
    ),
    (
        "llama",
        r#"{"is_causal": null}"#,
        "key \"is_causal\" = null: only causal attention is supported",
    ),
    (
        "llama",
        r#"{"partial_rotary_factor": 0.5}"#,
        "key \"partial_rotary_factor\" = 0.5: only 1 is supported: heads are rotated whole",
    ),
    // Keys of other families, and keys nobody knows.
    (
        "llama",
        r#"{"sliding_window": 7}"#,
        "key \"sliding_window\" = 7 is not supported for llama, and may change the result",
    ),
    (
        "mistral",
        r#"{"attention_bias": true}"#,
        "key \"attention_bias\" = true is not supported for mistral, and may change the result",
    ),
    (
        "mistral",
        r#"{"layer_types": ["sliding_attention"]}"#,
        "key \"layer_types\" = a list of 1 is not supported for mistral, and may change the result",
    ),
    (
        "qwen2",
        r#"{"mlp_bias": true}"#,
        "key \"mlp_bias\" = true is not supported for qwen2, and may change the result",
    ),
    (
        "qwen3",
        r#"{"final_logit_softcapping": 30.0}"#,
        "key \"final_logit_softcapping\" = 30.0 is not supported for qwen3, and may change the result",
    ),
    (
        "llama",
        r#"{"per_layer_config": {"0": {}}}"#,
        "key \"per_layer_config\" = an object of 1 keys is not supported for llama, and may change the result",
    ),
    (
        "llama",
        r#"{"logit\u202e_scale\u001b": 0}"#,
        "key \"logit\\u{202e}_scale\\u{1b}\" = 0 is not supported for llama, and may change the result",
    ),
    // Windows.
    (
        "qwen2",
        r#"{"layer_types": ["sliding_attention"]}"#,
        "key \"layer_types\" = a list of 1: must list 2 layers, as num_hidden_layers says",
    ),
    (
        "qwen2",
        r#"{"layer_types": ["full_attention", "sliding_attention"]}"#,
        "key \"layer_types\" = a list of 2: names \"sliding_attention\", which needs use_sliding_window = true and a sliding_window",
    ),
    (
        "qwen3",
        r#"{"layer_types": ["full_attention", "linear_attention"]}"#,
        "key \"layer_types\" = a list of 2: names \"linear_attention\"; supported are \"full_attention\" and \"sliding_attention\"",
    ),
    (
        "qwen3",
        r#"{"layer_types": [1, 2]}"#,
        "key \"layer_types\" = a list of 2: must be a list of strings",
    ),
    (
        "qwen3",
        r#"{"use_sliding_window": true, "sliding_window": 0}"#,
        "key \"sliding_window\" = 0: must be an integer from 1 to 2147483648",
    ),
    // Quantized weights.
    (
        "llama",
        r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#,
        "\"quantization_config\" says that the weights are quantized (quant_method \"gptq\"), which is not supported; use the unquantized checkpoint",
    ),
    (
        "llama",
        r#"{"quantization_config": {}}"#,
        "\"quantization_config\" says that the weights are quantized (quant_method not named), which is not supported; use the unquantized checkpoint",
    ),
    // Families.
    (
        "llama",
        r#"{"model_type": "gemma9"}"#,
        "model_type \"gemma9\" (an unknown family) is not supported; supported families are llama, mistral, mixtral, qwen2, qwen3",
    ),
    (
        "llama",
        r#"{"model_type": "absent"}"#,
        "no key \"model_type\"; supported families are llama, mistral, mixtral, qwen2, qwen3",
    ),
    (
        "llama",
        r#"{"model_type": "gemma3", "text_config": {"hidden_size": 8}}"#,
        "model_type \"gemma3\" (another norm and embedding scale, and a vision tower) is not supported; \
         supported families are llama, mistral, mixtral, qwen2, qwen3",
    ),
    (
        "llama",
        r#"{"quantization": {"bits": 4}}"#,
        "\"quantization\" says that the weights are quantized \
        (quant_method MLX's, which is not named), which is not supported; use the unquantized checkpoint",
    ),
    ("llama", r#"{"model_type": 3}"#, "key \"model_type\" = 3: must be a string"),
    (
        "llama",
        r#"{"model_type": "new_vl", "text_config": {"hidden_size": 8}}"#,
        "model_type \"new_vl\" nests its decoder in \"text_config\", which is not supported",
    ),
];

/// The same for rotary parameters of a Llama.
const ROTARY: &[(&str, &str)] = &[
    (r#"{"rope_theta": 0}"#, "key \"rope_theta\" = 0: must be above 1 and at most 1e30"),
    (r#"{"rope_theta": -1.0}"#, "key \"rope_theta\" = -1.0: must be above 1 and at most 1e30"),
    (r#"{"rope_theta": null}"#, "key \"rope_theta\" = null: must be a finite number"),
    (r#"{"rope_scaling": 8}"#, "key \"rope_scaling\" = 8: must be an object"),
    (
        r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#,
        "key \"rope_scaling.type\" = \"dynamic\": is not supported; supported are default, linear, llama3, yarn",
    ),
    (
        r#"{"rope_scaling": {"type": "su", "factor": 2.0}}"#,
        "key \"rope_scaling.type\" = \"su\": is not supported; supported are default, linear, llama3, yarn",
    ),
    (
        r#"{"rope_parameters": {"rope_type": "longrope"}}"#,
        "key \"rope_parameters.rope_type\" = \"longrope\": is not supported; supported are default, linear, llama3, yarn",
    ),
    (
        r#"{"rope_parameters": {"rope_type": "proportional"}}"#,
        "key \"rope_parameters.rope_type\" = \"proportional\": is not supported; supported are default, linear, llama3, yarn",
    ),
    (r#"{"rope_scaling": {"type": "linear"}}"#, "key \"rope_scaling.factor\" is missing"),
    (
        r#"{"rope_scaling": {"type": "linear", "factor": 0}}"#,
        "key \"rope_scaling.factor\" = 0: must be from 1e-6 to 1e6",
    ),
    (
        r#"{"rope_scaling": {"type": "linear", "factor": null}}"#,
        "key \"rope_scaling.factor\" = null: must be a finite number",
    ),
    (
        r#"{"rope_scaling": {"type": "linear", "factor": 2, "low_freq_factor": 1}}"#,
        "key \"rope_scaling.low_freq_factor\" = 1 is not supported for rope_type \"linear\", and may change the result",
    ),
    (
        r#"{"rope_scaling": {"factor": 2}}"#,
        "key \"rope_scaling.factor\" = 2 is not supported for rope_type \"default\", and may change the result",
    ),
    (
        r#"{"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}}"#,
        "key \"rope_scaling.high_freq_factor\" = 4: must be above low_freq_factor",
    ),
    (
        r#"{"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}}"#,
        "key \"rope_scaling.beta_fast\" = 1: must be at least beta_slow",
    ),
    (r#"{"rope_scaling": {"rope_type": "yarn"}}"#, "key \"rope_scaling.factor\" is missing"),
    (
        r#"{"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": 0}}"#,
        "key \"rope_scaling.truncate\" = 0: must be true or false",
    ),
    (
        r#"{"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": null}}"#,
        "key \"rope_scaling.original_max_position_embeddings\" = null: must be an integer from 1 to 2147483648",
    ),
    (
        r#"{"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}"#,
        "key \"rope_parameters.partial_rotary_factor\" = 0.25: only 1 is supported: heads are rotated whole",
    ),
    (
        r#"{"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}"#,
        "key \"rope_parameters.full_attention\" = an object of 1 keys is not supported for rope_type \"default\", and may change the result",
    ),
    // Two spellings that disagree.
    (
        r#"{"rope_theta": 10000, "rope_parameters": {"rope_theta": 500000.0}}"#,
        "the rotary base is 10000.0 by rope_theta but 500000.0 by rope_parameters; remove one of them",
    ),
    (
        r#"{"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}"#,
        "the rotary type is \"yarn\" by rope_type but \"linear\" by type; remove one of them",
    ),
    (
        r#"{"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}"#,
        "the rotary scaling is {\"rope_type\":\"linear\",\"factor\":2.0} by rope_scaling but null by rope_parameters; \
         remove one of them",
    ),
    (
        r#"{"original_max_position_embeddings": 32, "rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 16}}"#,
        "the original context is 32 by original_max_position_embeddings but 16 by rope_scaling.original_max_position_embeddings; remove one of them",
    ),
];

/// The message that a small configuration with `changes` is refused with.
fn refusal(family: &str, changes: &str) -> String {
    let good = small(family, json!({}));
    let stored = tensors(&good, DType::F32);
    match arch::load(&small(family, serde_json::from_str(changes).unwrap()), &stored) {
        Ok(_) => panic!("{family} {changes} was not refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_small_configurations_themselves_load() {
    for family in arch::families() {
        let config = small(family, json!({}));
        let loaded = arch::load(&config, &tensors(&config, DType::F32)).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
    }
}

#[test]
fn each_bad_value_is_refused_by_name() {
    for (family, changes, expected) in VALUES {
        assert_eq!(refusal(family, changes), format!("config.json: {expected}"));
    }
}

#[test]
fn each_bad_rotary_parameter_is_refused_by_name() {
    for (changes, expected) in ROTARY {
        assert_eq!(refusal("llama", changes), format!("config.json: {expected}"));
    }
}

/// HF-13: every integer field refuses every other type, by name.
#[test]
fn integers_are_integers() {
    let nullable = ["num_key_value_heads", "head_dim"];
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "num_key_value_heads",
        "head_dim",
    ] {
        for bad in
            [json!(-1), json!(2.5), json!(4.0), json!("4"), json!(null), json!(true), json!([4])]
        {
            if bad.is_null() && nullable.contains(&key) {
                continue;
            }
            let message = refusal("llama", &json!({key: bad}).to_string());
            let expected = format!("config.json: key \"{key}\" = ");
            assert!(message.starts_with(&expected), "{message}");
            assert!(message.contains(": must be an integer from 1 to "), "{message}");
        }
    }
}

/// A key that says that a feature is absent says nothing; so do keys known to be inert.
#[test]
fn inert_keys_pass() {
    let inert = json!({
        "no_such_feature": null, "use_no_such_feature": false, "pretraining_tp": 4,
        "attention_dropout": 0.1, "eos_token_id": [1, 2], "auto_map": {"AutoModel": "x.Y"},
        "temperature": 0.6, "sliding_window": null, "quantization_config": null,
        "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "hidden_act": "swish",
        "is_causal": true, "partial_rotary_factor": 1.0,
    });
    let (config, plain) = (small("llama", inert), small("llama", json!({})));
    let stored = tensors(&plain, DType::F32);
    assert_eq!(arch::load(&config, &stored).unwrap(), arch::load(&plain, &stored).unwrap());
}
