//! The configuration of a model of a GGUF file, as a Hugging Face folder would spell it.

use super::header::{Header, Value};
use serde_json::{Map, Value as Json, json};

/// The `config.json` that says what the keys of a file say.
///
/// # Errors
/// If the architecture is not read, or a key is missing or says what is not computed.
pub(crate) fn config(header: &Header) -> Result<Map<String, Json>, String> {
    let keys = Keys(header);
    let family = keys.text("general.architecture")?;
    if family != "llama" {
        return Err(format!("general.architecture is {family:?}: \"llama\" is read"));
    }
    let tensor = |name: &str| header.entries.iter().find(|entry| entry.name == name);
    let refused = ["rope_freqs.weight", "blk.0.ffn_gate_inp.weight"];
    if let Some(name) = refused.into_iter().find(|name| tensor(name).is_some()) {
        return Err(format!(
            "has {name:?}, which is not read yet: give the Hugging Face checkpoint"
        ));
    }
    if let Some(kind) = header.keys.get("llama.rope.scaling.type")
        && *kind != Value::Text("none".into())
    {
        return Err(format!("llama.rope.scaling.type is {kind:?}, which is not read yet"));
    }
    let count = |name: &str| keys.count(&format!("llama.{name}"));
    let or = |name: &str, other: u64| match header.keys.contains_key(&format!("llama.{name}")) {
        true => count(name),
        false => Ok(other),
    };
    let (hidden, heads) = (count("embedding_length")?, count("attention.head_count")?);
    let share = hidden.checked_div(heads).ok_or("llama.attention.head_count is 0")?;
    let dim = or("rope.dimension_count", or("attention.key_length", share)?)?;
    let table = tensor("token_embd.weight").ok_or("has no tensor \"token_embd.weight\"")?;
    if dim == 0 || dim % 2 == 1 || or("attention.key_length", dim)? != dim {
        return Err(format!("llama.rope.dimension_count is {dim}, not the even length of a key"));
    }
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": count("feed_forward_length")?,
        "num_hidden_layers": count("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": or("attention.head_count_kv", heads)?,
        "head_dim": dim,
        "max_position_embeddings": count("context_length")?,
        "rms_norm_eps": keys.float("llama.attention.layer_norm_rms_epsilon")?,
        "rope_theta": keys.float("llama.rope.freq_base").unwrap_or(10000.0),
        "vocab_size": table.shape.first(),
        "tie_word_embeddings": tensor("output.weight").is_none(),
        "attention_bias": tensor("blk.0.attn_q.bias").is_some(),
    });
    for (ours, theirs) in [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")] {
        if let Ok(id) = keys.count(&format!("tokenizer.ggml.{theirs}")) {
            config[ours] = json!(id);
        }
    }
    match config {
        Json::Object(config) => Ok(config),
        _ => Err("has no keys".into()),
    }
}

struct Keys<'a>(&'a Header);

impl Keys<'_> {
    fn get(&self, key: &str) -> Result<&Value, String> {
        self.0.keys.get(key).ok_or_else(|| format!("key {key:?} is missing"))
    }

    fn text(&self, key: &str) -> Result<&str, String> {
        match self.get(key)? {
            Value::Text(text) => Ok(text),
            other => Err(format!("key {key:?} is {other:?}, not a text")),
        }
    }

    fn count(&self, key: &str) -> Result<u64, String> {
        match self.get(key)? {
            &Value::Integer(n) if (0..1 << 40).contains(&n) => Ok(n as u64),
            other => Err(format!("key {key:?} is {other:?}, not a count")),
        }
    }

    fn float(&self, key: &str) -> Result<f64, String> {
        match self.get(key)? {
            &Value::Float(x) if x.is_finite() => Ok(x),
            other => Err(format!("key {key:?} is {other:?}, not a finite number")),
        }
    }
}
