//! Which keys of a configuration are honoured, and the refusal of those that are neither honoured
//! nor inert ([`crate::inert`]).

use crate::config::{Fields, quote, show};
use crate::error::Error;
use crate::families::Family;
use crate::inert;
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

/// Refuses every key that the family does not honour and that is not known to be inert.
pub(crate) fn audit(config: &Fields, family: &Family) -> Result<(), Error> {
    quantized(config)?;
    let known = |key: &str| [COMMON, family.keys].iter().any(|list| list.contains(&key));
    match config.keys().find(|(key, value)| !known(key) && !inert::is_inert(config, key, value)) {
        None => Ok(()),
        Some((key, value)) => Err(Error::UnknownKey {
            path: key.to_owned(),
            key: quote(key),
            value: show(value),
            reader: family.name.to_owned(),
        }),
    }
}

/// Refuses weights that are stored quantized in a way that is not read.
fn quantized(config: &Fields) -> Result<(), Error> {
    // mlx-lm writes both; its own layout is no safetensors layout that anyone else reads.
    for key in ["quantization_config", "quantization"] {
        let said = config.keys().find(|(name, value)| *name == key && !value.is_null());
        let Some((_, said)) = said else { continue };
        let method = match (said.get("quant_method"), key) {
            (Some(method), _) => show(method),
            (None, "quantization") => "MLX's, which is not named".to_owned(),
            (None, _) => "not named".to_owned(),
        };
        return Err(Error::Quantized { key, method });
    }
    Ok(())
}

/// Takes the key at `path` out of a configuration: a key of its own, or `object.key` for one inside
/// an object, at any depth. Whether there was one.
pub fn ignore(config: &mut Map<String, Value>, path: &str) -> bool {
    // A key may hold a dot itself.
    if config.shift_remove(path).is_some() {
        return true;
    }
    let dots = path.match_indices('.').map(|(at, _)| (&path[..at], &path[at + 1..]));
    dots.into_iter().any(|(outer, rest)| match config.get_mut(outer) {
        Some(Value::Object(inner)) => ignore(inner, rest),
        _ => false,
    })
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
