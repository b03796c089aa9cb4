//! The supported families and why others are refused.

mod llama;
mod mistral;
mod mixtral;
mod qwen2;
mod qwen3;

use crate::config::{Fields, cap, quote};
use crate::decoder::Plan;
use crate::error::Error;
use crate::rope::Positions;
use ir::{Heads, ModelSpec};
use serde_json::{Map, Value};

/// A family: how its configurations are spelled and read.
pub(crate) struct Family {
    /// `model_type`.
    pub(crate) name: &'static str,
    /// The class of its language model in transformers.
    pub(crate) class: &'static str,
    /// The keys it reads beyond the common ones.
    pub(crate) keys: &'static [&'static str],
    /// From the configuration to the decoder it describes.
    pub(crate) read: fn(&Fields) -> Result<Plan, Error>,
    /// Back again: what its keys say of a model, beyond what the common ones do.
    pub(crate) describe: fn(&ModelSpec, &mut Map<String, Value>),
}

/// Every supported family. A family is added by its file and a line here.
pub(crate) const FAMILIES: &[Family] =
    &[llama::FAMILY, mistral::FAMILY, mixtral::FAMILY, qwen2::FAMILY, qwen3::FAMILY];

/// Families that people will try, and what a dense decoder lacks for them.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("baichuan", "fused projections and ALiBi"),
    ("bloom", "ALiBi and layer norms"),
    ("chatglm", "fused projections and partial rotary embeddings"),
    ("cohere", "layer norms and a parallel feed-forward"),
    ("cohere2", "layer norms and a parallel feed-forward"),
    ("dbrx", "a mixture of experts"),
    ("deepseek_v2", "multi-head latent attention and a mixture of experts"),
    ("deepseek_v3", "multi-head latent attention and a mixture of experts"),
    ("deepseek_v32", "sparse latent attention and a mixture of experts"),
    ("deepseek_v4", "sparse attention and a mixture of experts"),
    ("exaone4", "another order of norms and layers without rotation"),
    ("falcon", "fused projections and layer norms"),
    ("gemma", "another norm and embedding scale"),
    ("gemma2", "another norm, embedding scale and soft caps"),
    ("gemma3", "another norm and embedding scale, and a vision tower"),
    ("gemma3_text", "another norm and embedding scale"),
    ("gemma4", "another norm and embedding scale, and towers for images and sound"),
    ("glm4", "another order of norms and partial rotary embeddings"),
    ("glm4_moe", "a mixture of experts"),
    ("glm_moe_dsa", "sparse latent attention and a mixture of experts"),
    ("gpt2", "learned positions and layer norms"),
    ("gpt_bigcode", "learned positions and layer norms"),
    ("gpt_neox", "partial rotary embeddings and layer norms"),
    ("gpt_oss", "a mixture of experts and attention sinks"),
    ("gptj", "partial rotary embeddings and layer norms"),
    ("granite", "multipliers of embeddings, residuals and logits"),
    ("granitemoe", "a mixture of experts"),
    ("granitemoehybrid", "state-space layers"),
    ("internlm2", "fused projections"),
    ("jamba", "state-space layers and a mixture of experts"),
    ("kimi_k2", "multi-head latent attention and a mixture of experts"),
    ("kimi_k25", "multi-head latent attention, a mixture of experts and a vision tower"),
    ("llama4", "a mixture of experts and a vision tower"),
    ("llama4_text", "a mixture of experts"),
    ("mamba", "state-space layers"),
    ("mamba2", "state-space layers"),
    ("minicpm", "multipliers of embeddings and residuals"),
    ("minimax_m2", "a mixture of experts"),
    ("ministral3", "another rotary scaling"),
    ("mistral3", "a vision tower"),
    ("mllama", "cross attention and a vision tower"),
    ("mpt", "ALiBi and layer norms"),
    ("nemotron", "another norm and activation"),
    ("nemotron_h", "state-space layers and a mixture of experts"),
    ("olmo", "norms without weights"),
    ("olmo2", "another order of norms"),
    ("olmo3", "another order of norms"),
    ("olmoe", "a mixture of experts"),
    ("opt", "learned positions and layer norms"),
    ("phi", "partial rotary embeddings and layer norms"),
    ("phi3", "fused projections and partial rotary embeddings"),
    ("phimoe", "a mixture of experts"),
    ("qwen2_5_vl", "a vision tower"),
    ("qwen2_moe", "a mixture of experts"),
    ("qwen2_vl", "a vision tower"),
    ("qwen3_5", "linear attention and a vision tower"),
    ("qwen3_5_moe", "linear attention, a mixture of experts and a vision tower"),
    ("qwen3_5_text", "linear attention"),
    ("qwen3_moe", "a mixture of experts"),
    ("qwen3_next", "linear attention and a mixture of experts"),
    ("qwen3_vl", "a vision tower"),
    ("qwen3_vl_moe", "a mixture of experts and a vision tower"),
    ("rwkv", "no attention at all"),
    ("seed_oss", "another layout of biases"),
    ("smollm3", "layers without rotation"),
    ("stablelm", "partial rotary embeddings and layer norms"),
    ("starcoder2", "layer norms and an ungated feed-forward"),
    ("step3p7", "a mixture of experts and a vision tower"),
];

/// The family that a configuration names.
pub(crate) fn select(config: &Map<String, Value>) -> Result<&'static Family, Error> {
    let fields = Fields::root(config);
    let supported = FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
    let name = fields.text("model_type")?;
    let known = UNSUPPORTED.iter().find(|row| Some(row.0) == name).map(|row| row.1);
    if known.is_none() && config.get("text_config").is_some_and(|nested| !nested.is_null()) {
        return Err(Error::Nested { model_type: quote(name.unwrap_or("")) });
    }
    let Some(name) = name else { return Err(Error::NoModelType { supported }) };
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| Error::Family {
        model_type: quote(name),
        why: known.unwrap_or("an unknown family"),
        supported,
    })
}

/// What a family assumes when a key is absent, from its configuration class in transformers.
pub(crate) struct Defaults {
    /// `max_position_embeddings`.
    pub(crate) context: usize,
    /// `num_key_value_heads` when absent; as many as query heads if `None`.
    pub(crate) kv_heads: Option<usize>,
    /// `head_dim` when absent; `hidden_size / num_attention_heads` if `None`.
    pub(crate) head_dim: Option<usize>,
    /// `rms_norm_eps`.
    pub(crate) eps: f64,
    /// `rope_theta`.
    pub(crate) theta: f64,
}

impl Defaults {
    /// What most families assume.
    pub(crate) const COMMON: Self =
        Self { context: 2048, kv_heads: None, head_dim: None, eps: 1e-6, theta: 10_000.0 };
}

/// The parts that all families read alike. Biases, q/k norms and windows are the family's.
pub(crate) fn common(config: &Fields, defaults: &Defaults) -> Result<Plan, Error> {
    activation(config)?;
    causal(config)?;
    let hidden = config.size("hidden_size", cap::HIDDEN)?;
    let layers = config.size("num_hidden_layers", cap::LAYERS)?;
    let context =
        config.integer("max_position_embeddings", 1, cap::CONTEXT)?.unwrap_or(defaults.context);
    let heads = heads(config, hidden, defaults)?;
    let theta = defaults.theta;
    let positions = crate::rope::read(config, heads.dim, context, theta)?;
    let Positions { rope, rotary, context, warnings } = positions;
    Ok(Plan {
        hidden,
        vocab: config.size("vocab_size", cap::VOCAB)?,
        ffn: config.size("intermediate_size", cap::FFN)?,
        context,
        heads,
        eps: epsilon(config, defaults.eps)?,
        rope,
        rotary,
        tied: config.flag("tie_word_embeddings", false)?,
        windows: vec![None; layers],
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        mixture: None,
        warnings,
    })
}

fn heads(config: &Fields, hidden: usize, defaults: &Defaults) -> Result<Heads, Error> {
    const KV: &str = "num_key_value_heads";
    let query = config.size("num_attention_heads", cap::HEADS)?;
    let kv = match config.nullable_size(KV, cap::HEADS)? {
        Some(kv) => kv,
        None if config.is_null(KV) => query,
        None => defaults.kv_heads.unwrap_or(query),
    };
    if kv > query || !query.is_multiple_of(kv) {
        let rule = format!("{kv} heads must divide num_attention_heads = {query}");
        return Err(config.breaks(KV, rule));
    }
    let stated = match defaults.head_dim {
        Some(dim) => config.integer("head_dim", 1, cap::HEADS)?.or(Some(dim)),
        None => config.nullable_size("head_dim", cap::HEADS)?,
    };
    let divided = hidden.is_multiple_of(query).then_some(hidden / query);
    let dim = stated.or(divided).ok_or_else(|| {
        let rule = format!("must divide hidden_size = {hidden} where head_dim is not given");
        config.breaks("num_attention_heads", rule)
    })?;
    // Rotation pairs the halves of a head.
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(config
            .breaks("head_dim", format!("a head of size {dim} cannot be rotated: must be even")));
    }
    let width = query.checked_mul(dim).filter(|&width| width <= cap::ATTENTION);
    width.map(|_| Heads { query, kv, dim }).ok_or_else(|| {
        let rule = format!("{query} heads of size {dim} are wider than {}", cap::ATTENTION);
        config.breaks("num_attention_heads", rule)
    })
}

fn epsilon(config: &Fields, default: f64) -> Result<f32, Error> {
    let eps = config.number("rms_norm_eps")?.unwrap_or(default);
    let fits = eps > 0.0 && eps <= 1.0 && eps as f32 > 0.0;
    fits.then_some(eps as f32)
        .ok_or_else(|| config.breaks("rms_norm_eps", "must be above 0 and at most 1"))
}

/// `swish` is transformers' other name of the same function.
fn activation(config: &Fields) -> Result<(), Error> {
    let name = if config.has("hidden_act") { config.text("hidden_act")? } else { Some("silu") };
    let known = matches!(name, Some("silu" | "swish"));
    known.then_some(()).ok_or_else(|| config.breaks("hidden_act", "only \"silu\" is supported"))
}

/// Anything falsy turns every family into a bidirectional encoder in transformers.
fn causal(config: &Fields) -> Result<(), Error> {
    let causal = !config.is_null("is_causal") && config.flag("is_causal", true)?;
    causal
        .then_some(())
        .ok_or_else(|| config.breaks("is_causal", "only causal attention is supported"))
}
