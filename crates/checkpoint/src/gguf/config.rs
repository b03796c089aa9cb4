//! The configuration of a model of a GGUF file, as a Hugging Face folder would spell it.

use super::architecture::{Architecture, EXPERTS_MAX};
use super::header::{Entry, Header, Value};
use super::{rope, special};
use serde_json::{Map, Value as Json, json};

/// Keys of an architecture that are read here, in [`rope`], or say nothing that is computed.
const KNOWN: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
];

/// The `config.json` that says what the keys of a file say, with what each frequency is divided by where it
/// has such a tensor.
///
/// # Errors
/// If the architecture is not read, or a key is missing or says what is not computed.
pub(crate) fn config(
    header: &Header,
    architecture: &Architecture,
    factors: Option<&[f32]>,
) -> Result<Map<String, Json>, String> {
    let keys = Keys::new(header, architecture.name);
    let tensor = |name: &str| header.entries.iter().find(|entry| entry.name == name);
    let table = tensor("token_embd.weight").ok_or("has no tensor \"token_embd.weight\"")?;
    let (heads, dim) = heads(&keys)?;
    let base = if keys.has("rope.freq_base") { keys.float("rope.freq_base")? } else { 10000.0 };
    if base <= 1.0 {
        return Err(format!("{} is {base}, which is not above 1", keys.full("rope.freq_base")));
    }
    let scaling = rope::scaling(&keys, base, dim as usize, factors)?;
    let context = keys.count("context_length")?;
    unread(&keys, context)?;
    let mut config = json!({
        "hidden_act": "silu",
        "hidden_size": keys.count("embedding_length")?,
        "intermediate_size": keys.same("feed_forward_length")?,
        "num_hidden_layers": keys.count("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": match keys.has("attention.head_count_kv") {
            true => keys.same("attention.head_count_kv")?,
            false => heads,
        },
        "head_dim": dim,
        "max_position_embeddings": context,
        "rms_norm_eps": keys.float("attention.layer_norm_rms_epsilon")?,
        "rope_theta": base,
        "rope_scaling": scaling,
        "vocab_size": table.shape.first(),
        "tie_word_embeddings": tensor("output.weight").is_none(),
    });
    let object = config.as_object_mut().ok_or("has no keys")?;
    object.extend(family(&keys, architecture, &tensor)?);
    object.extend(special::ids(header)?);
    // Their family knows them, or refuses them by name.
    object.extend(keys.unknown());
    Ok(std::mem::take(object))
}

/// The heads, and how long each is.
fn heads(keys: &Keys<'_>) -> Result<(u64, u64), String> {
    let (hidden, heads) = (keys.count("embedding_length")?, keys.same("attention.head_count")?);
    let share = hidden
        .checked_div(heads)
        .ok_or_else(|| format!("{} is 0: there is no head", keys.full("attention.head_count")))?;
    let length = |key: &str, other: u64| if keys.has(key) { keys.count(key) } else { Ok(other) };
    let dim = length("attention.key_length", share)?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        let said = length(key, dim)?;
        if said != dim {
            return Err(format!(
                "{} is {said}, and a key has {dim} elements: heads of one length, rotated whole, are read",
                keys.full(key)
            ));
        }
    }
    match dim > 0 && dim.is_multiple_of(2) && dim < 1 << 20 {
        true => Ok((heads, dim)),
        false => Err(format!("has heads of {dim} elements, which cannot be rotated in pairs")),
    }
}

/// Holds what llama.cpp does not read of these architectures against what it would change.
fn unread(keys: &Keys<'_>, context: u64) -> Result<(), String> {
    const WINDOW: &str = "attention.sliding_window";
    if keys.has(WINDOW) {
        let window = keys.count(WINDOW)?;
        if window > 0 && window < context {
            return Err(format!(
                "{} is {window}, which llama.cpp does not read of this architecture: it is not known whether \
                 it is meant; give the Hugging Face checkpoint",
                keys.full(WINDOW)
            ));
        }
    }
    match keys.get("attention.causal") {
        Ok(Value::Bool(false)) => Err(format!(
            "{} is false: only causal attention is supported",
            keys.full("attention.causal")
        )),
        _ => Ok(()),
    }
}

/// What only some families have.
fn family<'a>(
    keys: &Keys<'_>,
    architecture: &Architecture,
    tensor: &dyn Fn(&str) -> Option<&'a Entry>,
) -> Result<Map<String, Json>, String> {
    let has = |name: &str| tensor(name).is_some();
    let experts = if keys.has("expert_count") { keys.count("expert_count")? } else { 0 };
    if experts > EXPERTS_MAX as u64 {
        let key = keys.full("expert_count");
        return Err(format!("{key} is {experts}: at most {EXPERTS_MAX} are read, as in llama.cpp"));
    }
    let said = match (architecture.name, experts) {
        ("llama", 0) => json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": has("blk.0.attn_q.bias"),
            "mlp_bias": has("blk.0.ffn_down.bias"),
        }),
        ("llama", _) => {
            let ffn = keys.same("feed_forward_length")?;
            const OWN: &str = "expert_feed_forward_length";
            if keys.has(OWN) && keys.count(OWN)? != ffn {
                return Err(format!(
                    "{} is not {}",
                    keys.full(OWN),
                    keys.full("feed_forward_length")
                ));
            }
            json!({
                "architectures": ["MixtralForCausalLM"],
                "model_type": "mixtral",
                "num_local_experts": experts,
                "num_experts_per_tok": keys.same("expert_used_count")?,
                "sliding_window": null,
            })
        }
        (name, 0) => json!({
            "architectures": [if name == "qwen2" { "Qwen2ForCausalLM" } else { "Qwen3ForCausalLM" }],
            "model_type": name,
            "use_sliding_window": false,
            "sliding_window": null,
        }),
        (name, _) => return Err(format!("has experts, which {name:?} is not read with")),
    };
    let mut said = said;
    if architecture.name == "qwen3" {
        said["attention_bias"] = json!(has("blk.0.attn_q.bias"));
    }
    Ok(said.as_object().cloned().unwrap_or_default())
}

/// The keys of a file, those of its architecture by their ends.
pub(crate) struct Keys<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(header: &'a Header, architecture: &'a str) -> Self {
        Self { header, architecture }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.header.keys.contains_key(&self.full(key))
    }

    fn get(&self, key: &str) -> Result<&'a Value, String> {
        let key = self.full(key);
        self.header.keys.get(&key).ok_or_else(|| format!("key {key:?} is missing"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<&'a str, String> {
        match self.get(key)? {
            Value::Text(text) => Ok(text),
            other => Err(self.wrong(key, other, "a text")),
        }
    }

    pub(crate) fn count(&self, key: &str) -> Result<u64, String> {
        match self.get(key)? {
            &Value::Integer(n) if (0..1 << 40).contains(&n) => Ok(n as u64),
            other => Err(self.wrong(key, other, "a count")),
        }
    }

    /// A count that may be given for each layer, but is the same for all.
    fn same(&self, key: &str) -> Result<u64, String> {
        match self.get(key)? {
            Value::Integers(all) => match all.split_first() {
                Some((&n, rest)) if (0..1 << 40).contains(&n) && rest.iter().all(|m| *m == n) => {
                    Ok(n as u64)
                }
                _ => Err(format!("key {:?} is not the same in all layers", self.full(key))),
            },
            _ => self.count(key),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<f64, String> {
        match self.get(key)? {
            &Value::Float(x) if x.is_finite() => Ok(x),
            other => Err(self.wrong(key, other, "a finite number")),
        }
    }

    fn wrong(&self, key: &str, found: &Value, rule: &str) -> String {
        format!("key {:?} is {}, not {rule}", self.full(key), found.shown())
    }

    /// The keys of the architecture that are not known here.
    fn unknown(&self) -> impl Iterator<Item = (String, Json)> {
        let prefix = self.full("");
        let is_unknown =
            move |key: &str| key.strip_prefix(&prefix).is_some_and(|key| !KNOWN.contains(&key));
        let unknown = self.header.keys.iter().filter(move |(key, _)| is_unknown(key));
        unknown.map(|(key, value)| (key.clone(), value.json()))
    }
}
