//! Keys that change nothing, and the context that rotary scaling gives.

use crate::common::{small, tensors};
use serde_json::{Map, Value, json};
use tensor::DType;

fn load(family: &str, changes: Value) -> Result<arch::Loaded, arch::Error> {
    arch::load(&small(family, changes), &tensors(&small(family, json!({})), DType::F32))
}

/// transformers 5.23.0 keeps these as attributes that no forward reads: the logits are the same.
#[test]
fn keys_that_change_nothing_change_nothing() {
    let inert = [
        json!({"is_llama_config": true}),
        json!({"max_sequence_length": 2048, "model_max_length": 4096}),
        json!({"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}),
        json!({"tokenizer_model_max_length": 2048, "tokenizer_padding_side": "right"}),
        json!({"temperature": 0.7, "max_length": 4096, "cache_implementation": "static"}),
        json!({"rope_interleaved": false, "mlp_only_layers": [], "some_feature": null, "note": ""}),
        json!({"num_experts": 0, "logit_scale": 1.0, "embedding_multiplier": 1}),
        json!({"layer_norm_eps": 1e-5, "rms_norm_eps": 1e-5}),
        json!({"use_sliding_window": false, "sliding_window": 7, "max_window_layers": 28}),
        json!({"layer_types": ["full_attention", "full_attention"], "sliding_window": 1_000_000}),
        json!({"activation": "swiglu", "use_liger_kernel": true}),
    ];
    let plain = load("llama", json!({"rms_norm_eps": 1e-5})).unwrap();
    for changes in inert {
        let mut all = json!({"rms_norm_eps": 1e-5});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        assert_eq!(load("llama", all), Ok(plain.clone()), "{changes}");
    }
}

/// The same keys with values that would mean something are refused, with the path to ignore.
#[test]
fn what_would_change_something_is_refused_with_the_path_that_ignores_it() {
    for (changes, path) in [
        (json!({"num_experts": 8}), "num_experts"),
        (json!({"logit_scale": 0.5}), "logit_scale"),
        (json!({"layer_norm_eps": 1e-3}), "layer_norm_eps"),
        (json!({"use_sliding_window": true, "sliding_window": 7}), "use_sliding_window"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 2, "x.y": 1}}), "rope_scaling.x.y"),
    ] {
        let error = load("llama", changes.clone()).unwrap_err();
        let arch::Error::UnknownKey { path: found, .. } = error else { panic!("{error}") };
        assert_eq!(found, path);
        let mut config: Map<String, Value> = small("llama", changes);
        let before = config.clone();
        assert!(
            !arch::ignore(&mut config, "absent") && !arch::ignore(&mut config, "rope_scaling.z")
        );
        assert_eq!(config, before);
        assert!(arch::ignore(&mut config, path));
        // Another key may now be the first that is not known.
        let again = arch::check(&config).map_err(|e| e.to_string());
        assert!(!again.is_err_and(|e| e.contains(path.rsplit('.').next().unwrap())), "{path}");
    }
}

/// vLLM's `_get_and_verify_max_len`: yarn multiplies the original context whatever
/// `max_position_embeddings` says, linear scaling multiplies that, llama3 and default do not.
#[test]
fn scaling_extends_the_context_as_vllm_derives_it() {
    let rows = [
        (json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}), 256),
        (json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}), 64),
        (json!({"type": "yarn", "factor": 2.5, "original_max_position_embeddings": 33}), 82),
        (json!({"type": "yarn", "factor": 4.0}), 256),
        (json!({"type": "linear", "factor": 2.0}), 128),
        (json!({"rope_type": "default"}), 64),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
            64,
        ),
    ];
    for (scaling, context) in rows {
        let changes = json!({"max_position_embeddings": 64, "rope_scaling": scaling});
        let loaded = load("llama", changes).unwrap();
        assert_eq!(loaded.model.context, context, "{scaling}");
        let said = format!("the context is {context} tokens");
        let is_said = loaded.warnings.iter().any(|warning| warning.starts_with(&said));
        assert_eq!(is_said, context != 64, "{scaling}: {:?}", loaded.warnings);
    }
}

/// transformers 5.23.0 says "Unrecognized keys in `rope_parameters`" and goes on; vLLM multiplies.
#[test]
fn what_vllm_alone_reads_is_ignored_with_a_word() {
    let yarn = |more: Value| {
        let mut scaling =
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
        scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        load("llama", json!({"max_position_embeddings": 64, "rope_scaling": scaling})).unwrap()
    };
    let plain = yarn(json!({}));
    assert_eq!(yarn(json!({"finetuned": true, "attn_factor": 1.0})), plain);
    for key in ["attn_factor", "extrapolation_factor"] {
        let loaded = yarn(json!({key: 0.878}));
        assert_eq!(loaded.model, plain.model);
        assert!(loaded.warnings[0].contains(key) && loaded.warnings[0].contains("vLLM multiplies"));
    }
}

/// Names that a wrapper put something before are told from missing ones.
#[test]
fn a_foreign_prefix_is_named_with_what_to_do() {
    let config = small("llama", json!({}));
    for (prefix, said) in [
        ("base_model.model.", "merge_and_unload"),
        ("_orig_mod.", "torch.compile"),
        ("module.", "model.module.save_pretrained"),
        ("base_model.model._orig_mod.", "merge_and_unload"),
        ("their.", "rename the tensors without it"),
        ("model.", "rename the tensors without it"),
    ] {
        let stored = tensors(&config, DType::F32);
        let stored: std::collections::BTreeMap<_, _> =
            stored.into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)).collect();
        let error = arch::load(&config, &stored).unwrap_err().to_string();
        assert!(
            error.contains(&format!("begin with {prefix:?}")) && error.contains(said),
            "{error}"
        );
    }
}

/// A tensor that is lost under the right names is missing; adapters alone are told by their names.
#[test]
fn a_lost_tensor_is_no_foreign_prefix() {
    let config = small("llama", json!({}));
    let mut stored = tensors(&config, DType::F32);
    stored.insert("vision.embed_tokens.weight".into(), (DType::F32, vec![1]));
    stored.remove("model.norm.weight");
    let error = arch::load(&config, &stored).unwrap_err().to_string();
    assert!(error.contains("not stored: \"model.norm.weight\""), "{error}");
    let adapter = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".to_owned();
    let stored = std::collections::BTreeMap::from([(adapter, (DType::F32, vec![1, 1]))]);
    let error = arch::load(&config, &stored).unwrap_err().to_string();
    assert!(error.contains("begin with \"base_model.model.\""), "{error}");
}

/// What a configuration alone describes is what a checkpoint of it would be.
#[test]
fn an_imagined_model_is_the_one_that_loads() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        for tied in [false, true] {
            let config = small(family, json!({"tie_word_embeddings": tied}));
            let loaded = arch::load(&config, &tensors(&config, DType::BF16)).unwrap();
            assert_eq!(
                arch::imagine(&config, DType::BF16).unwrap().model,
                loaded.model,
                "{family}"
            );
        }
    }
}
