//! What the configuration of a folder says of weights that are stored as `qweight`: GPTQ's, in the words
//! of AutoGPTQ and GPTQModel, and AWQ's, in those of AutoAWQ.

use crate::bits::{integers, module};
use crate::error::Error;
use crate::folder_container::Weights;
use crate::gptq::Version;
use ir::{Grid, IntGrid, Span};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The module of the projection to logits, as all readers call it.
const HEAD: &str = "lm_head";
/// Linears that vLLM runs as one, and looks for by the name of that.
const FUSED: [(&[&str], &str); 2] =
    [(&["q_proj", "k_proj", "v_proj"], "qkv_proj"), (&["gate_proj", "up_proj"], "gate_up_proj")];

/// How a weight is quantized, in the keys of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    bits: u8,
    /// -1 for a scale a row.
    group: i64,
    symmetric: bool,
    act_order: bool,
}

impl Settings {
    fn of(tensor: &str, grid: Grid) -> Result<Self, Error> {
        let IntGrid { bits, symmetric, span, .. } = integers(tensor, grid)?;
        let group = match span {
            Span::Channel => -1,
            Span::Group(size) | Span::Scattered(size) => i64::try_from(size).unwrap_or(-1),
        };
        Ok(Self { bits, group, symmetric, act_order: matches!(span, Span::Scattered(_)) })
    }

    fn json(self) -> Value {
        json!({
            "bits": self.bits,
            "group_size": self.group,
            "desc_act": self.act_order,
            "sym": self.symmetric,
        })
    }
}

/// The configuration of `gptq`.
pub(crate) fn gptq(weights: &Weights<'_>) -> Result<Value, Error> {
    of_gptq(weights, Version::One)
}

/// The configuration of `gptq_v2`.
pub(crate) fn gptq_v2(weights: &Weights<'_>) -> Result<Value, Error> {
    of_gptq(weights, Version::Two)
}

fn of_gptq(weights: &Weights<'_>, version: Version) -> Result<Value, Error> {
    refuse_table(weights, version.name())?;
    let modules = modules(weights)?;
    let all = most(&modules)?;
    let mut said = all.json();
    let dense = weights.dense.iter().map(|t| module(t)).collect::<Result<Vec<_>, _>>()?;
    let inside = dense.iter().any(|module| *module != HEAD);
    said["quant_method"] = json!("gptq");
    said["checkpoint_format"] = json!(version.name());
    said["pack_dtype"] = json!("int32");
    said["lm_head"] = json!(modules.contains_key(HEAD));
    let mut dynamic = Map::new();
    // The first that fits is taken, so those that are not packed come first.
    for module in dense.into_iter().filter(|module| *module != HEAD) {
        dynamic.insert(format!("-:{}", exactly(module)), json!({}));
    }
    for (name, settings) in fused(&modules).into_iter().filter(|(_, settings)| *settings != all) {
        dynamic.insert(format!("+:{}", exactly(&name)), settings.json());
    }
    if !dynamic.is_empty() {
        said["dynamic"] = Value::Object(dynamic);
    }
    if inside {
        // optimum looks at no patterns, only at this.
        let names: Vec<&str> = modules.keys().copied().filter(|name| *name != HEAD).collect();
        said["modules_in_block_to_quantize"] = json!([names]);
    }
    Ok(said)
}

/// The configuration of `awq`, which has one group size for all.
pub(crate) fn awq(weights: &Weights<'_>) -> Result<Value, Error> {
    refuse_table(weights, "awq")?;
    let modules = modules(weights)?;
    let all = most(&modules)?;
    let other = modules.iter().find(|(_, settings)| settings.group != all.group);
    if let Some((name, settings)) = other {
        let rule = format!(
            "is in groups of {}, others of {}: awq has one size for all (-1 is a row); leave it out by \
             ignore, or write gptq or compressed-tensors",
            settings.group, all.group
        );
        return Err(Error::tensor(&format!("{name}.weight"), rule));
    }
    let dense = weights.dense.iter().map(|t| module(t)).collect::<Result<Vec<_>, _>>()?;
    let mut said = json!({
        "quant_method": "awq",
        "bits": all.bits,
        "group_size": all.group,
        // Of symmetric weights each is stored too.
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": dense,
        "lm_head": modules.contains_key(HEAD),
    });
    // GPTQModel 7.7.0 looks here alone, and else makes up weights for what is dense.
    let dynamic: Map<String, Value> = dense
        .iter()
        .filter(|module| **module != HEAD)
        .map(|module| (format!("-:{}", exactly(module)), json!({})))
        .collect();
    if !dynamic.is_empty() {
        said["dynamic"] = Value::Object(dynamic);
    }
    Ok(said)
}

fn refuse_table(weights: &Weights<'_>, format: &str) -> Result<(), Error> {
    match weights.table {
        None => Ok(()),
        Some((tensor, _)) => {
            let rule = format!("is an embedding, which no reader of {format} takes on a grid");
            Err(Error::tensor(tensor, rule))
        }
    }
}

/// The packed modules and their settings.
fn modules<'a>(weights: &Weights<'a>) -> Result<BTreeMap<&'a str, Settings>, Error> {
    let each =
        |&(tensor, grid): &(&'a str, Grid)| Ok((module(tensor)?, Settings::of(tensor, grid)?));
    weights.packed.iter().map(each).collect()
}

/// The settings of most modules: what is said of all.
fn most(modules: &BTreeMap<&str, Settings>) -> Result<Settings, Error> {
    let count = |one: &Settings| modules.values().filter(|other| *other == one).count();
    let mut best: Option<(usize, Settings)> = None;
    for settings in modules.values() {
        let count = count(settings);
        if best.is_none_or(|(most, _)| count > most) {
            best = Some((count, *settings));
        }
    }
    let none = || Error::Internal("no weight is packed".into());
    best.map(|(_, settings)| settings).ok_or_else(none)
}

/// The modules, and those that readers fuse of several that are quantized alike.
fn fused(modules: &BTreeMap<&str, Settings>) -> BTreeMap<String, Settings> {
    let mut all: BTreeMap<String, Settings> =
        modules.iter().map(|(name, settings)| ((*name).to_owned(), *settings)).collect();
    for (parts, whole) in FUSED {
        for (name, settings) in modules {
            let Some(parent) = name.strip_suffix(parts[0]) else { continue };
            let of = |part: &&str| modules.get(format!("{parent}{part}").as_str());
            if parts.iter().all(|part| of(part) == Some(settings)) {
                all.insert(format!("{parent}{whole}"), *settings);
            }
        }
    }
    all
}

/// A regular expression of this name alone.
fn exactly(name: &str) -> String {
    format!("^{}$", regex::escape(name))
}
