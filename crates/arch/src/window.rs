//! Which layers attend through a sliding window, as the Qwen configurations say it.

use crate::config::{Fields, cap};
use crate::describe::windows;
use crate::error::Error;
use ir::ModelSpec;
use serde_json::{Map, Value};

/// The window of each of `layers` layers, from `use_sliding_window`, `sliding_window`,
/// `max_window_layers` and `layer_types`.
pub(crate) fn by_layer(config: &Fields, layers: usize) -> Result<Vec<Option<u32>>, Error> {
    let used = config.flag("use_sliding_window", false)?;
    let stated = if config.is_null("sliding_window") {
        None
    } else {
        Some(config.integer("sliding_window", usize::from(used), cap::CONTEXT)?.unwrap_or(4096))
    };
    let window = stated.filter(|_| used).and_then(|w| u32::try_from(w).ok());
    let first = config.integer("max_window_layers", 0, cap::CONTEXT)?.unwrap_or(28);
    match config.texts("layer_types")? {
        None => Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect()),
        Some(types) => {
            let count = format!("must list {layers} layers, as num_hidden_layers says");
            (types.len() == layers)
                .then_some(())
                .ok_or_else(|| config.breaks("layer_types", count))?;
            types.iter().map(|kind| by_type(config, kind, window)).collect()
        }
    }
}

/// The window of every layer of a Mistral or a Mixtral: `sliding_window`, `default` if absent, none if
/// null.
pub(crate) fn uniform(
    config: &Fields,
    layers: usize,
    default: Option<u32>,
) -> Result<Vec<Option<u32>>, Error> {
    let window = match config.nullable_size("sliding_window", cap::CONTEXT)? {
        None if config.is_null("sliding_window") => None,
        None => default,
        Some(stated) => u32::try_from(stated).ok(),
    };
    Ok(vec![window; layers])
}

/// What [`by_layer`] reads a model's windows from.
pub(crate) fn describe_by_layer(model: &ModelSpec, config: &mut Map<String, Value>) {
    let windows = windows(model);
    let first = windows.iter().position(Option::is_some);
    let window = first.and_then(|first| windows[first]);
    config.insert("use_sliding_window".into(), first.is_some().into());
    config.insert("sliding_window".into(), window.into());
    config.insert("max_window_layers".into(), first.unwrap_or(windows.len()).into());
    let kind = |w: &Option<u32>| if w.is_some() { "sliding_attention" } else { "full_attention" };
    let kinds: Value = windows.iter().map(kind).collect();
    config.insert("layer_types".into(), kinds);
}

/// What [`uniform`] reads a model's window from.
pub(crate) fn describe_uniform(model: &ModelSpec, config: &mut Map<String, Value>) {
    let window = windows(model).first().copied().flatten();
    config.insert("sliding_window".into(), window.into());
}

fn by_type(config: &Fields, kind: &str, window: Option<u32>) -> Result<Option<u32>, Error> {
    match (kind, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => Err(config.breaks(
            "layer_types",
            "names \"sliding_attention\", which needs use_sliding_window = true and a sliding_window",
        )),
        (other, _) => Err(config.breaks(
            "layer_types",
            format!(
                "names {}; supported are \"full_attention\" and \"sliding_attention\"",
                crate::config::quote(other)
            ),
        )),
    }
}
