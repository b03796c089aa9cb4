//! What the tests of this crate share: configurations and the tensors that fit them.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tensor::DType;

/// Stored tensors by name.
pub(crate) type Tensors = BTreeMap<String, (DType, Vec<usize>)>;

/// The published configuration `name` of the fixtures.
pub(crate) fn published(name: &str) -> Map<String, Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/configs");
    let text = std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Every configuration that is committed and of a supported family, by its name: the published ones, and
/// those of the fixtures of families.
pub(crate) fn committed() -> Vec<(String, Map<String, Value>)> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    let list = |folder: &str| {
        let entries = std::fs::read_dir(format!("{root}/{folder}")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let families = list("families").into_iter().map(|folder| folder.join("config.json"));
    let files = list("configs").into_iter().chain(families.filter(|file| file.exists()));
    let read = |file: std::path::PathBuf| {
        let config = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        (file.display().to_string(), config)
    };
    let supported = |(_, config): &(String, Map<String, Value>)| arch::check(config).is_ok();
    let all: Vec<_> = files.map(read).filter(supported).collect();
    assert!(all.len() > 30, "{} configurations", all.len());
    all
}

/// A small valid configuration of `family`, with `changes` laid over it. A change to the string
/// `"absent"` removes the key.
pub(crate) fn small(family: &str, changes: Value) -> Map<String, Value> {
    let base = json!({
        "model_type": family, "vocab_size": 31, "hidden_size": 24, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    let Value::Object(mut map) = base else { panic!("an object") };
    for (key, value) in changes.as_object().unwrap() {
        if value == "absent" {
            map.remove(key);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
    map
}

/// The tensors that transformers would store for `config`, all of `dtype`.
pub(crate) fn tensors(config: &Map<String, Value>, dtype: DType) -> Tensors {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).map(|v| v as usize);
    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let family = config["model_type"].as_str().unwrap();
    let hidden = size("hidden_size").unwrap();
    let ffn = size("intermediate_size").unwrap();
    let heads = size("num_attention_heads").unwrap();
    let kv = size("num_key_value_heads").unwrap_or(heads);
    let dim = size("head_dim").unwrap_or(hidden / heads);
    let mut all = Tensors::new();
    let mut put = |name: String, shape: &[usize]| all.insert(name, (dtype, shape.to_vec()));
    put("model.embed_tokens.weight".into(), &[size("vocab_size").unwrap(), hidden]);
    put("model.norm.weight".into(), &[hidden]);
    if !flag("tie_word_embeddings") {
        put("lm_head.weight".into(), &[size("vocab_size").unwrap(), hidden]);
    }
    let qkv_bias = family == "qwen2" || flag("attention_bias");
    let o_bias = family != "qwen2" && flag("attention_bias");
    for layer in 0..size("num_hidden_layers").unwrap() {
        let at = format!("model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("{at}.{norm}.weight"), &[hidden]);
        }
        if family == "qwen3" {
            put(format!("{at}.self_attn.q_norm.weight"), &[dim]);
            put(format!("{at}.self_attn.k_norm.weight"), &[dim]);
        }
        let experts = if family == "mixtral" { size("num_local_experts").unwrap_or(8) } else { 0 };
        if experts > 0 {
            put(format!("{at}.block_sparse_moe.gate.weight"), &[experts, hidden]);
        }
        for expert in 0..experts {
            let at = format!("{at}.block_sparse_moe.experts.{expert}");
            put(format!("{at}.w1.weight"), &[ffn, hidden]);
            put(format!("{at}.w2.weight"), &[hidden, ffn]);
            put(format!("{at}.w3.weight"), &[ffn, hidden]);
        }
        for (module, out, width, bias) in [
            ("self_attn.q_proj", heads * dim, hidden, qkv_bias),
            ("self_attn.k_proj", kv * dim, hidden, qkv_bias),
            ("self_attn.v_proj", kv * dim, hidden, qkv_bias),
            ("self_attn.o_proj", hidden, heads * dim, o_bias),
            ("mlp.gate_proj", ffn, hidden, flag("mlp_bias")),
            ("mlp.up_proj", ffn, hidden, flag("mlp_bias")),
            ("mlp.down_proj", hidden, ffn, flag("mlp_bias")),
        ] {
            if experts > 0 && module.starts_with("mlp") {
                continue;
            }
            put(format!("{at}.{module}.weight"), &[out, width]);
            if bias {
                put(format!("{at}.{module}.bias"), &[out]);
            }
        }
    }
    all
}
