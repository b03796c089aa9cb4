//! What the configuration of a folder says of its packed weights: compressed-tensors'.

use crate::bits::{integers, module};
use crate::error::Error;
use crate::folder_container::Weights;
use ir::{Grid, IntGrid, Span};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The version of compressed-tensors whose layout is written.
const VERSION: &str = "0.20.0";

/// The module of the projection to logits, as all readers call it.
const HEAD: &str = "lm_head";

/// What compressed-tensors calls weights that are streams of bits.
const PACKED: &str = "pack-quantized";

/// The class of an embedding.
const TABLE: &str = "Embedding";

/// The `quantization_config` of a `config.json`: what each packed weight's grid is.
///
/// `packed` names the weights (`P.weight`) with their grids. `dense` names those of linears that
/// are not packed, the head included, also where it is tied and not stored: a reader would
/// otherwise take it for packed.
///
/// # Errors
/// If there is no packed linear, or a name is not that of a weight.
pub fn quantization_config(packed: &[(&str, Grid)], dense: &[&str]) -> Result<Value, Error> {
    pack_quantized(&Weights { packed: packed.to_vec(), table: None, dense: dense.to_vec() })
}

/// The configuration of weights that are streams of bits.
pub(crate) fn pack_quantized(weights: &Weights<'_>) -> Result<Value, Error> {
    said(weights, PACKED)
}

/// The configuration of weights that are bytes.
pub(crate) fn int_quantized(weights: &Weights<'_>) -> Result<Value, Error> {
    said(weights, "int-quantized")
}

fn said(weights: &Weights<'_>, format: &str) -> Result<Value, Error> {
    // The dtype of the scales is that of the tensors: a configuration does not say it.
    let mut groups: Vec<(Arguments, BTreeSet<&str>)> = Vec::new();
    for &(tensor, grid) in &weights.packed {
        let (arguments, module) = (Arguments::of(tensor, grid)?, module(tensor)?);
        match groups.iter_mut().find(|group| group.0 == arguments) {
            Some(group) => drop(group.1.insert(module)),
            None => groups.push((arguments, BTreeSet::from([module]))),
        }
    }
    if groups.is_empty() {
        return Err(Error::Internal("no linear is packed".into()));
    }
    let ignore = weights.dense.iter().map(|t| module(t)).collect::<Result<BTreeSet<_>, _>>()?;
    let one = groups.len() == 1;
    if let Some((tensor, grid)) = weights.table
        && !(one && groups[0].0 == Arguments::of(tensor, grid)? && format == PACKED)
    {
        let rule = "is an embedding: readers take one on a grid only in compressed-tensors' packed form, \
                    beside linears that are all on the same grid (transformers, which decodes them)";
        return Err(Error::tensor(tensor, rule));
    }
    // A head is a module of another class in vLLM, which finds it by its name alone.
    // compressed-tensors 0.18 to 0.20.1 keep zero points packed where they load them unpacked, unless
    // they decode while they load; with more than one grid that way is broken in its turn.
    // An embedding on a grid is read that way alone, by 0.17.1 to 0.20.1.
    let asymmetric = groups.iter().any(|(group, _)| !group.symmetric);
    let decoded = one && (asymmetric || weights.table.is_some());
    let has_head = groups.iter().any(|(_, modules)| modules.contains(HEAD));
    let others = [(HEAD, has_head), (TABLE, weights.table.is_some())];
    let others = others.into_iter().filter_map(|(target, is_packed)| is_packed.then_some(target));
    let everywhere: Vec<&str> = ["Linear"].into_iter().chain(others).collect();
    let config_groups: serde_json::Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(i, (arguments, modules))| {
            let targets = if one { json!(everywhere) } else { json!(modules) };
            let group = json!({
                "targets": targets,
                "weights": arguments.json(),
                "input_activations": null,
                "output_activations": null,
                "format": format,
            });
            (format!("group_{i}"), group)
        })
        .collect();
    let mut config = json!({
        "quant_method": "compressed-tensors",
        "format": format,
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
    fn of(tensor: &str, grid: Grid) -> Result<Self, Error> {
        let IntGrid { bits, symmetric, span, .. } = integers(tensor, grid)?;
        Ok(Self { bits, symmetric, span })
    }

    /// As every version of the library knows them.
    fn json(&self) -> Value {
        let (strategy, group_size) = match self.span {
            Span::Channel => ("channel", Value::Null),
            Span::Group(size) | Span::Scattered(size) => ("group", size.into()),
        };
        let order = match self.span {
            Span::Scattered(_) => json!("group"),
            Span::Channel | Span::Group(_) => Value::Null,
        };
        json!({
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": strategy,
            "group_size": group_size,
            "block_structure": null,
            "dynamic": false,
            "actorder": order,
            "observer": "minmax",
            "observer_kwargs": {},
        })
    }
}
