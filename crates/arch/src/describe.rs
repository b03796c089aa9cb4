//! Configurations from programs: the inverse of [`crate::load`], for models that a pass has changed.
//!
//! What is read of a program is where it first says it; that the whole says nothing else is held by
//! making the programs of what was written, and comparing.

use crate::error::Error;
use crate::families::{FAMILIES, Family};
use ir::{
    Block, Heads, Linear, Llama3, ModelSpec, Op, Projection, Role, Rotary, Scaling, Spec, Yarn,
};
use serde_json::{Map, Value, json};
use tensor::DType;

/// The keys of a `config.json` that say what a model computes: `model_type`, the class, and all that its
/// family reads. Rotary scaling is spelled as every version of transformers reads it (`rope_theta` and
/// `rope_scaling`). What no program depends on, such as a dtype or the ids of tokens, is not among them.
///
/// Where weights are stored, what their tensors are called and which number a layer has is not looked at: a
/// model without its second layer describes itself as one that has a layer less.
///
/// # Errors
/// If no configuration of the family says it, such as layers of different widths.
pub fn describe(model: &ModelSpec) -> Result<Map<String, Value>, Error> {
    let unknown = |what: &str| Error::Undescribed { family: model.family, what: what.into() };
    let family = FAMILIES.iter().find(|family| family.name == model.family);
    let family = family.ok_or_else(|| unknown("there is no such family"))?;
    let mut config = Map::new();
    common(family, model, &mut config).ok_or_else(|| unknown("it is no decoder that attends"))?;
    (family.describe)(model, &mut config);
    match difference(model, &config) {
        None => Ok(config),
        Some(what) => Err(Error::Undescribed { family: model.family, what }),
    }
}

/// What every family says.
fn common(family: &Family, model: &ModelSpec, config: &mut Map<String, Value>) -> Option<()> {
    let first = model.layers.first()?;
    let Heads { query, kv, dim } = first.attention()?.0;
    let eps = first.ops.iter().find_map(|op| match op {
        Op::Norm { eps, .. } => Some(*eps),
        _ => None,
    });
    let gate = |spec: &&Spec| {
        matches!(spec.role, Role::Matrix(Projection::Gate) | Role::Expert(_, Projection::Gate))
    };
    let ffn = first.weights.iter().find(gate)?.shape.first()?;
    let Rotary { base, scaling } = &model.rotary;
    let context = match scaling {
        Scaling::Linear(Linear { original, .. }) => *original,
        _ => model.context,
    };
    let mut set = |key: &str, value: Value| config.insert(key.into(), value);
    set("architectures", json!([family.class]));
    set("model_type", json!(family.name));
    set("hidden_size", json!(model.hidden));
    set("intermediate_size", json!(ffn));
    set("num_hidden_layers", json!(model.layers.len()));
    set("num_attention_heads", json!(query));
    set("num_key_value_heads", json!(kv));
    set("head_dim", json!(dim));
    set("vocab_size", json!(model.vocab));
    set("max_position_embeddings", json!(context));
    set("hidden_act", json!("silu"));
    set("rms_norm_eps", shortest(eps?));
    set("tie_word_embeddings", json!(model.tied));
    set("rope_theta", whole(*base));
    set("rope_scaling", scaled(scaling));
    Some(())
}

/// The number that reads as this one, with the fewest digits.
fn shortest(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// A number, without a point if it has no fraction.
fn whole(x: f64) -> Value {
    let integer = x as u64;
    if integer as f64 == x { integer.into() } else { x.into() }
}

/// How a scaling is spelled.
pub(crate) fn scaled(scaling: &Scaling) -> Value {
    match scaling {
        Scaling::Default => Value::Null,
        Scaling::Linear(Linear { factor, .. }) => json!({"rope_type": "linear", "factor": factor}),
        Scaling::Llama3(Llama3 { factor, original, low, high }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": whole(*original),
        }),
        Scaling::Yarn(yarn) => {
            let Yarn { factor, original, beta_fast, beta_slow, truncate, .. } = yarn;
            let mut said = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": whole(*original),
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "truncate": truncate,
            });
            for (key, value) in [
                ("attention_factor", yarn.attention_factor),
                ("mscale", yarn.mscale),
                ("mscale_all_dim", yarn.mscale_all_dim),
            ] {
                // Transformers takes an absent one for its default, and so for null.
                if let Some(value) = value {
                    said[key] = value.into();
                }
            }
            said
        }
    }
}

/// Whether the first layer adds a bias to what it projects to.
pub(crate) fn is_biased(model: &ModelSpec, of: Projection) -> bool {
    let first = model.layers.first();
    first.is_some_and(|layer| layer.weights.iter().any(|spec| spec.role == Role::Bias(of)))
}

/// The sliding window of each layer.
pub(crate) fn windows(model: &ModelSpec) -> Vec<Option<u32>> {
    model.layers.iter().map(|layer| layer.attention().and_then(|(_, window)| window)).collect()
}

/// How many experts a row of the first layer is given to, and of how many.
pub(crate) fn given(model: &ModelSpec) -> Option<[usize; 2]> {
    let first = model.layers.first()?;
    first.ops.iter().find_map(|op| first.given(op))
}

/// What a configuration does not say of a model, if there is something.
fn difference(model: &ModelSpec, config: &Map<String, Value>) -> Option<String> {
    let said = match crate::imagine(config, DType::F32) {
        Ok(said) => said.model,
        Err(error) => return Some(error.to_string()),
    };
    let sizes = |model: &ModelSpec| [model.hidden, model.vocab, model.context, model.layers.len()];
    if sizes(model) != sizes(&said) || model.tied != said.tied {
        return Some("its sizes are not those of its blocks".into());
    }
    if model.rotary != said.rotary {
        return Some(format!("its frequencies are of {:?}", model.rotary));
    }
    let mut pairs = model.blocks().zip(said.blocks());
    pairs.find_map(|(block, said)| Some(format!("{}: {}", block.id, differs(block, said)?)))
}

/// What is different in a block, weights compared by role and shape.
fn differs(block: &Block<Spec>, said: &Block<Spec>) -> Option<String> {
    let mut weights = block.weights.iter().zip(&said.weights);
    let other = weights.find(|(a, b)| (a.role, &a.shape) != (b.role, &b.shape));
    if let Some((a, b)) = other {
        let [a, b] = [a, b].map(|spec| format!("{} {:?}", spec.role, spec.shape));
        return Some(format!("a weight is {a}, where its keys say {b}"));
    }
    let mut ops = block.ops.iter().zip(&said.ops).enumerate();
    if let Some((i, (op, _))) = ops.find(|(_, (a, b))| !a.is_alike(b)) {
        return Some(format!("op {} ({}) is another than its keys say", i + 1, op.name()));
    }
    let counts = |block: &Block<Spec>| [block.weights.len(), block.ops.len()];
    let same = counts(block) == counts(said);
    (!same).then(|| "it has more or fewer ops and weights than its keys say".into())
}
