//! Rotary parameters of a configuration, in both spellings: `rope_theta` with `rope_scaling`, and
//! `rope_parameters`, which holds everything.

use crate::config::{Fields, cap, quote, show};
use crate::describe::scaled;
use crate::error::Error;
use crate::frequencies::{Frequencies, frequencies};
use crate::inert;
use ir::{Linear, Llama3, Rope, Rotary, Scaling, Yarn};
use serde_json::Value;
use std::sync::Arc;

/// What a configuration says of positions.
pub(crate) struct Positions {
    /// The frequencies.
    pub(crate) rope: Arc<Rope>,
    /// What they are made of.
    pub(crate) rotary: Rotary,
    /// The tokens that the model takes, what its scaling adds included.
    pub(crate) context: usize,
    /// What is legal but worth a word.
    pub(crate) warnings: Vec<String>,
}

/// The frequencies of heads of size `head_dim` in a model whose `max_position_embeddings` is
/// `context`; the base is `default` when no key gives it.
///
/// # Errors
/// If a value breaks a rule, a scaling is not supported, or the two spellings disagree.
pub(crate) fn read(
    config: &Fields,
    head_dim: usize,
    context: usize,
    default: f64,
) -> Result<Positions, Error> {
    whole_head(config)?;
    let old = config.object("rope_scaling")?;
    let new = config.object("rope_parameters")?;
    let base = base(config, [old, new])?.unwrap_or(default);
    let scaling = match (old, new) {
        (None, None) => Scaling::Default,
        (Some(one), None) | (None, Some(one)) => scaling(config, &one, context)?,
        (Some(old), Some(new)) => {
            let [a, b] = [scaling(config, &old, context)?, scaling(config, &new, context)?];
            if a != b {
                return Err(Error::Contradiction {
                    what: "the rotary scaling",
                    a_key: "rope_scaling".into(),
                    a: scaled(&a).to_string(),
                    b_key: "rope_parameters".into(),
                    b: scaled(&b).to_string(),
                });
            }
            a
        }
    };
    let rotary = Rotary { base, scaling };
    let rope = finite(config, frequencies(&rotary, head_dim))?;
    let mut warnings = Vec::new();
    for object in [old, new].into_iter().flatten() {
        warnings.extend(followed(&object));
    }
    let (extended, by) = extended(&rotary.scaling, context);
    if extended != context {
        warnings.push(format!(
            "the context is {extended} tokens, {by}; config.json says max_position_embeddings = {context}"
        ));
    }
    Ok(Positions { rope, rotary, context: extended, warnings })
}

/// The context of a scaled model, and how it comes about, as vLLM derives its `max_model_len`: yarn
/// multiplies the original context, whatever `max_position_embeddings` says, linear scaling
/// multiplies that, and llama3's is extended already. transformers has no limit.
fn extended(scaling: &Scaling, context: usize) -> (usize, String) {
    // Both factors are capped far below what a float holds; the cap bounds the product.
    let times = |tokens: f64, factor: f64| ((tokens * factor) as usize).clamp(1, cap::CONTEXT);
    match scaling {
        Scaling::Yarn(Yarn { factor, original, .. }) => {
            (times(*original, *factor), format!("as yarn extends {original} by {factor}"))
        }
        Scaling::Linear(Linear { factor, .. }) => {
            let by = format!("as linear scaling extends {context} by {factor}");
            (times(context as f64, *factor), by)
        }
        Scaling::Default | Scaling::Llama3(_) => (context, String::new()),
    }
}

/// What readers differ about, and who is followed.
fn followed(object: &Fields) -> Option<String> {
    let key = FOLLOWED.iter().find(|key| {
        object.keys().any(|(name, v)| name == **key && v.as_f64().is_some_and(|v| v != 1.0))
    })?;
    Some(format!(
        "{} is ignored, as transformers ignores it; vLLM multiplies by it and gives other logits",
        object.path(key)
    ))
}

/// The base, if any key gives it: inside one of the objects, or beside them. Where several say it, they must agree.
fn base(config: &Fields, objects: [Option<Fields>; 2]) -> Result<Option<f64>, Error> {
    let names = ["rope_scaling", "rope_parameters"];
    let mut said: Option<(&str, f64)> = theta(config)?.map(|theta| ("rope_theta", theta));
    for (name, object) in names.into_iter().zip(objects) {
        let Some(object) = object else { continue };
        let Some(inner) = theta(&object)? else { continue };
        said = match said {
            None => Some((name, inner)),
            Some((key, outer)) => {
                Some((key, agree("the rotary base", [key, name], [outer, inner])?))
            }
        };
    }
    Ok(said.map(|(_, theta)| theta))
}

fn theta(fields: &Fields) -> Result<Option<f64>, Error> {
    let theta = fields.number("rope_theta")?;
    // Yarn divides by the logarithm of the base, and a base below one turns the order around.
    let fits = theta.is_none_or(|theta| theta > 1.0 && theta <= 1e30);
    fits.then_some(theta)
        .ok_or_else(|| fields.breaks("rope_theta", "must be above 1 and at most 1e30"))
}

/// Only whole heads are rotated, wherever the factor is spelled.
fn whole_head(fields: &Fields) -> Result<(), Error> {
    let factor = fields.nullable_number("partial_rotary_factor")?;
    let whole = factor.is_none_or(|factor| factor == 1.0);
    whole.then_some(()).ok_or_else(|| {
        fields.breaks("partial_rotary_factor", "only 1 is supported: heads are rotated whole")
    })
}

fn scaling(config: &Fields, object: &Fields, context: usize) -> Result<Scaling, Error> {
    whole_head(object)?;
    let kind = match (object.text("rope_type")?, object.text("type")?) {
        (Some(a), Some(b)) => agree("the rotary type", ["rope_type", "type"], [a, b])?,
        (Some(kind), None) | (None, Some(kind)) => kind,
        (None, None) => "default",
    };
    let own: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL],
        "yarn" => &[
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            ORIGINAL,
            FOLLOWED[0],
            FOLLOWED[1],
        ],
        other => return Err(unsupported(object, other)),
    };
    only(object, kind, own)?;
    match kind {
        "linear" => {
            let factor = positive(object, "factor")?;
            Ok(Scaling::Linear(Linear { factor, original: context }))
        }
        "llama3" => llama3(config, object, context).map(Scaling::Llama3),
        "yarn" => yarn(config, object, context).map(Scaling::Yarn),
        _ => Ok(Scaling::Default),
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// Keys of yarn that vLLM reads (`YaRNScalingRotaryEmbedding`) and transformers does not.
const FOLLOWED: [&str; 2] = ["attn_factor", "extrapolation_factor"];

fn llama3(config: &Fields, object: &Fields, context: usize) -> Result<Llama3, Error> {
    let found = Llama3 {
        factor: positive(object, "factor")?,
        low: positive(object, "low_freq_factor")?,
        high: positive(object, "high_freq_factor")?,
        original: original(config, object, context)?,
    };
    let rule = "must be above low_freq_factor";
    (found.high > found.low).then_some(found).ok_or_else(|| object.breaks("high_freq_factor", rule))
}

fn yarn(config: &Fields, object: &Fields, context: usize) -> Result<Yarn, Error> {
    let original = original(config, object, context)?;
    // A null factor means the ratio of the contexts; an absent one is an error in transformers.
    let factor = if object.is_null("factor") {
        context as f64 / original
    } else {
        positive(object, "factor")?
    };
    let found = Yarn {
        factor,
        original,
        attention_factor: scale(object, "attention_factor")?,
        mscale: scale(object, "mscale")?,
        mscale_all_dim: scale(object, "mscale_all_dim")?,
        beta_fast: scale(object, "beta_fast")?.filter(|&beta| beta != 0.0).unwrap_or(32.0),
        beta_slow: scale(object, "beta_slow")?.filter(|&beta| beta != 0.0).unwrap_or(1.0),
        // Null is falsy in Python: it does not mean the default.
        truncate: !object.is_null("truncate") && object.flag("truncate", true)?,
    };
    let ordered = found.beta_fast >= found.beta_slow;
    ordered.then_some(found).ok_or_else(|| object.breaks("beta_fast", "must be at least beta_slow"))
}

/// The context before scaling: beside the object, inside it, or the model's context.
fn original(config: &Fields, object: &Fields, context: usize) -> Result<f64, Error> {
    let outer = config.integer(ORIGINAL, 1, cap::CONTEXT)?;
    let inner = object.integer(ORIGINAL, 1, cap::CONTEXT)?;
    let found = match (outer, inner) {
        (Some(a), Some(b)) => {
            let inside = object.path(ORIGINAL);
            agree("the original context", [ORIGINAL, inside.trim_matches('"')], [a, b])?
        }
        (one, other) => one.or(other).unwrap_or(context),
    };
    Ok(found as f64)
}

fn positive(object: &Fields, key: &str) -> Result<f64, Error> {
    let value = object.number(key)?.ok_or_else(|| Error::MissingKey { key: object.path(key) })?;
    let fits = (1e-6..=1e6).contains(&value);
    fits.then_some(value).ok_or_else(|| object.breaks(key, "must be from 1e-6 to 1e6"))
}

fn scale(object: &Fields, key: &str) -> Result<Option<f64>, Error> {
    let value = object.nullable_number(key)?;
    let fits = value.is_none_or(|value| (0.0..=1e6).contains(&value));
    fits.then_some(value).ok_or_else(|| object.breaks(key, "must be from 0 to 1e6"))
}

/// Refuses the keys of `object` that a scaling of type `kind` does not read and that may mean
/// something.
///
/// `finetuned` is Yarn-Mistral's and Yarn-Llama's note on training, which neither transformers nor
/// vLLM reads; an original context says nothing where no scaling starts from it, nor a factor of 1.
fn only(object: &Fields, kind: &str, own: &[&str]) -> Result<(), Error> {
    const READ: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    const INERT: [&str; 2] = ["finetuned", ORIGINAL];
    let known = |key: &str| READ.contains(&key) || INERT.contains(&key) || own.contains(&key);
    let absent = |key: &str, value: &Value| {
        inert::says_nothing(value) || key == "factor" && value.as_f64() == Some(1.0)
    };
    match object.keys().find(|(key, value)| !known(key) && !absent(key, value)) {
        None => Ok(()),
        Some((key, value)) => Err(Error::UnknownKey {
            path: object.path(key).trim_matches('"').to_owned(),
            key: object.path(key),
            value: show(value),
            reader: format!("rope_type {kind:?}"),
        }),
    }
}

fn unsupported(object: &Fields, kind: &str) -> Error {
    let key = if object.has("rope_type") { "rope_type" } else { "type" };
    Error::Value {
        key: object.path(key),
        value: quote(kind),
        rule: "is not supported; supported are default, linear, llama3, yarn".to_owned(),
    }
}

fn agree<T: PartialEq + std::fmt::Debug>(
    what: &'static str,
    keys: [&str; 2],
    [a, b]: [T; 2],
) -> Result<T, Error> {
    if a == b {
        return Ok(a);
    }
    let [a_key, b_key] = keys.map(str::to_owned);
    Err(Error::Contradiction { what, a_key, a: format!("{a:?}"), b_key, b: format!("{b:?}") })
}

fn finite(config: &Fields, found: Frequencies) -> Result<Arc<Rope>, Error> {
    let magnitude = found.magnitude as f32;
    let all = found.inv_freq.iter().all(|x| x.is_finite()) && magnitude.is_finite();
    let key = if config.has("rope_parameters") { "rope_parameters" } else { "rope_scaling" };
    all.then(|| Arc::new(Rope { inv_freq: found.inv_freq, magnitude }))
        .ok_or_else(|| config.breaks(key, "gives frequencies that are not finite"))
}
