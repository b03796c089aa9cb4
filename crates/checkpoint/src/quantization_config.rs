//! What the configuration of a folder says of its packed weights: compressed-tensors'.

use crate::error::Error;
use crate::pack_quantized::{integers, module, writable};
use ir::{Grid, IntGrid, Span};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The version of compressed-tensors whose layout is written.
const VERSION: &str = "0.20.0";

/// The module of the projection to logits, as all readers call it.
const HEAD: &str = "lm_head";

/// The `quantization_config` of a `config.json`: what each packed weight's grid is.
///
/// `packed` names the weights (`P.weight`) with their grids. `dense` names those of linears that
/// are not packed, the head included, also where it is tied and not stored: a reader would
/// otherwise take it for packed.
///
/// # Errors
/// If there is no packed weight, a width is not [`writable`], or a name is not that of a weight.
pub fn quantization_config(packed: &[(&str, Grid)], dense: &[&str]) -> Result<Value, Error> {
    // The dtype of the scales is that of the tensors: a configuration does not say it.
    let mut groups: Vec<(Arguments, BTreeSet<&str>)> = Vec::new();
    for &(tensor, grid) in packed {
        let IntGrid { bits, symmetric, span, .. } = integers(tensor, grid)?;
        writable(bits)?;
        let (arguments, module) = (Arguments { bits, symmetric, span }, module(tensor)?);
        match groups.iter_mut().find(|group| group.0 == arguments) {
            Some(group) => drop(group.1.insert(module)),
            None => groups.push((arguments, BTreeSet::from([module]))),
        }
    }
    if groups.is_empty() {
        return Err(Error::Internal("no weight is packed".into()));
    }
    let ignore = dense.iter().map(|t| module(t)).collect::<Result<BTreeSet<_>, _>>()?;
    let one = groups.len() == 1;
    // A head is a module of another class in vLLM, which finds it by its name alone.
    // compressed-tensors 0.18 to 0.20.1 keep zero points packed where they load them unpacked, unless
    // they decode while they load; with more than one grid that way is broken in its turn.
    let decoded = one && groups.iter().any(|(arguments, _)| !arguments.symmetric);
    let everywhere = match groups.iter().any(|(_, modules)| modules.contains(HEAD)) {
        true => json!(["Linear", HEAD]),
        false => json!(["Linear"]),
    };
    let config_groups: serde_json::Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(i, (arguments, modules))| {
            let targets = if one { everywhere.clone() } else { json!(modules) };
            let group = json!({
                "targets": targets,
                "weights": arguments.json(),
                "input_activations": null,
                "output_activations": null,
                "format": "pack-quantized",
            });
            (format!("group_{i}"), group)
        })
        .collect();
    let mut config = json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    });
    if decoded {
        config["dequantize"] = json!(true);
    }
    Ok(config)
}

/// What a configuration says of a group of weights.
#[derive(PartialEq)]
struct Arguments {
    bits: u8,
    symmetric: bool,
    span: Span,
}

impl Arguments {
    /// As every version of the library knows them.
    fn json(&self) -> Value {
        let (strategy, group_size) = match self.span {
            Span::Channel => ("channel", Value::Null),
            Span::Group(size) | Span::Scattered(size) => ("group", size.into()),
        };
        json!({
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": strategy,
            "group_size": group_size,
            "block_structure": null,
            "dynamic": false,
            "actorder": null,
            "observer": "minmax",
            "observer_kwargs": {},
        })
    }
}
