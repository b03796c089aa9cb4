//! What a `config.json` says of packed weights: the `quantization_config` of compressed-tensors.
//!
//! Only integer weights in the formats `pack-quantized` and `int-quantized` are read. Whatever else the
//! key may say (activations, a quantized cache, other formats, transforms) is refused by its name, as
//! is any key that is not known: it may change what the weights mean.

use crate::json::{kind, shown};
use ir::Span;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// What is read, where something else is found.
const READ: &str = "only \"pack-quantized\" and \"int-quantized\" weights are read";
/// The first version whose words hold codes across their ends, in widths that do not divide them.
const DENSE_SINCE: [u64; 2] = [0, 17];

/// The groups of a configuration.
#[derive(Debug)]
pub(crate) struct Groups {
    pub(crate) groups: Vec<Group>,
    /// Modules that are not packed, and patterns.
    pub(crate) ignore: BTreeSet<String>,
}

/// A group of weights that are packed alike.
#[derive(Debug)]
pub(crate) struct Group {
    /// Names of modules, names of their classes, and patterns that begin with `re:`.
    pub(crate) targets: BTreeSet<String>,
    pub(crate) bits: u8,
    pub(crate) symmetric: bool,
    pub(crate) span: Span,
    /// Whether the columns of a group lie apart.
    pub(crate) act_order: bool,
    pub(crate) form: Form,
}

/// How codes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As streams of bits, `pack-quantized`.
    Packed,
    /// As bytes, `int-quantized`.
    Bytes,
}

impl Form {
    /// The form of this name.
    fn named(name: &Value) -> Option<Self> {
        match name.as_str()? {
            "pack-quantized" => Some(Self::Packed),
            "int-quantized" => Some(Self::Bytes),
            _ => None,
        }
    }
}

impl Group {
    /// Whether the other says the same of weights.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        let said = |of: &Self| (of.bits, of.symmetric, of.span, of.act_order, of.form);
        said(self) == said(other)
    }
}

/// Whether a configuration is one of compressed-tensors, to be read or refused here.
pub(crate) fn is_ours(config: &Value) -> bool {
    config.get("quant_method").and_then(Value::as_str) == Some("compressed-tensors")
}

/// Reads the groups. The error is a rule that names the key.
pub(crate) fn parse(config: &Value) -> Result<Groups, String> {
    let config = object(config, "quantization_config")?;
    let format = config.get("format").unwrap_or(&Value::Null);
    if Form::named(format).is_none() && format.as_str() != Some("mixed-precision") {
        return unsupported("format", format, READ);
    }
    let mut groups = None;
    let mut ignore = BTreeSet::new();
    for (key, value) in config {
        match key.as_str() {
            "config_groups" => groups = Some(object(value, key)?),
            "ignore" if value.is_null() => {}
            "ignore" => ignore = strings(value, key)?,
            "quantization_status" => match value.as_str() {
                Some("compressed" | "frozen") => {}
                _ if value.is_null() => {}
                _ => return unsupported(key, value, "the weights are not compressed"),
            },
            "kv_cache_scheme" | "sparsity_config" | "transform_config" | "moe_sparsity_config" => {
                let none = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if !none && value.get("format").and_then(Value::as_str) != Some("dense") {
                    return unsupported(key, value, "it must be null or empty");
                }
            }
            // Of the format, or of no effect on what a weight is.
            "quant_method" | "format" | "version" | "global_compression_ratio" => {}
            "run_compressed" | "dequantize" | "use_optimized_inference" => {}
            _ => return unsupported(key, value, "the key is not known"),
        }
    }
    let groups = groups.ok_or("config_groups is missing")?;
    if groups.is_empty() {
        return Err("config_groups is empty".into());
    }
    let in_format = |name: &str, group: &Value| {
        self::group(group, format).map_err(|e| format!("config_groups.{:?}: {e}", shown(name)))
    };
    let groups: Vec<Group> =
        groups.iter().map(|(name, group)| in_format(name, group)).collect::<Result<_, _>>()?;
    let odd = |g: &&Group| g.form == Form::Packed && !matches!(g.bits, 2 | 4 | 8);
    if let Some(group) = groups.iter().find(odd) {
        check_version(config.get("version"), group.bits)?;
    }
    Ok(Groups { groups, ignore })
}

/// Reads a group of a configuration whose own format is `format`.
fn group(group: &Value, format: &Value) -> Result<Group, String> {
    if !group.is_object() {
        return Err(format!("found {}: presets by name are not supported", kind(group)));
    }
    let group = object(group, "the group")?;
    let (mut weights, mut targets) = (None, BTreeSet::new());
    let mut own = format;
    for (key, value) in group {
        match key.as_str() {
            "targets" => targets = strings(value, key)?,
            "weights" => weights = Some(value),
            "format" if value.is_null() => {}
            "format" => own = value,
            "input_activations" | "output_activations" => {
                if !value.is_null() {
                    return unsupported(key, value, "only weights may be quantized");
                }
            }
            _ => return unsupported(key, value, "the key is not known"),
        }
    }
    let Some(form) = Form::named(own) else { return unsupported("format", own, READ) };
    let weights = object(weights.unwrap_or(&Value::Null), "weights")?;
    let group = arguments(weights, targets, form).map_err(|e| format!("weights: {e}"))?;
    if group.targets.is_empty() { Err("targets is missing or empty".into()) } else { Ok(group) }
}

/// Reads how the weights of a group are quantized.
fn arguments(
    weights: &Map<String, Value>,
    targets: BTreeSet<String>,
    form: Form,
) -> Result<Group, String> {
    let mut act_order = false;
    for (key, value) in weights {
        let supported = match key.as_str() {
            "type" => value.as_str() == Some("int"),
            "dynamic" => value.is_null() || value == &Value::Bool(false),
            "block_structure" => value.is_null(),
            "actorder" => {
                act_order = matches!(value.as_str(), Some("group" | "dynamic"));
                // Static order is undone before the weights are stored.
                let known = value.as_str().is_some_and(|s| matches!(s, "weight" | "static"));
                act_order || known || value.is_null() || value == &Value::Bool(false)
            }
            "zp_dtype" => value.is_null() || value.as_str() == Some("torch.int8"),
            // Read below, or said by the tensors themselves, or of no effect on stored weights.
            "num_bits" | "symmetric" | "strategy" | "group_size" => true,
            "scale_dtype" | "observer" | "observer_kwargs" => true,
            _ => return unsupported(key, value, "the key is not known"),
        };
        if !supported {
            return unsupported(key, value, "only static integer weights are read");
        }
    }
    let get = |key: &str| weights.get(key).unwrap_or(&Value::Null);
    if get("type").is_null() {
        return Err("type is missing".into());
    }
    let bits = get("num_bits").as_u64().filter(|n| (2..=8).contains(n));
    let Some(bits) = bits.and_then(|n| u8::try_from(n).ok()) else {
        return unsupported("num_bits", get("num_bits"), "2 to 8 bits are read");
    };
    let Some(symmetric) = get("symmetric").as_bool() else {
        return unsupported("symmetric", get("symmetric"), "it must be true or false");
    };
    let size = get("group_size");
    let positive = size.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let no_size = size.is_null() || size.as_i64() == Some(-1);
    let span = match (get("strategy").as_str(), positive) {
        (Some("group"), Some(n)) => Span::Group(n),
        (None, Some(n)) if get("strategy").is_null() => Span::Group(n),
        (Some("channel"), None) if no_size => Span::Channel,
        (None, None) if get("strategy").is_null() && size.as_i64() == Some(-1) => Span::Channel,
        (Some("group" | "channel"), _) => {
            return unsupported("group_size", size, "it does not fit the strategy");
        }
        _ => {
            let rule = "only \"group\" and \"channel\" are read";
            return unsupported("strategy", get("strategy"), rule);
        }
    };
    Ok(Group { targets, bits, symmetric, span, act_order, form })
}

/// Earlier versions stored widths that do not divide a word in another way.
fn check_version(version: Option<&Value>, bits: u8) -> Result<(), String> {
    let text = version.and_then(Value::as_str).unwrap_or_default();
    let mut numbers = text.split('.').map(|n| n.parse::<u64>().ok());
    let found = [numbers.next().flatten(), numbers.next().flatten()];
    match found {
        [Some(major), Some(minor)] if [major, minor] >= DENSE_SINCE => Ok(()),
        _ => Err(format!(
            "version is {:?}: weights of {bits} bits are read from version 0.17 on only, which \
             stores them in another way than those before it",
            shown(text)
        )),
    }
}

pub(crate) fn object<'a>(value: &'a Value, key: &str) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("{key} is an object, found {}", kind(value)))
}

pub(crate) fn strings(value: &Value, key: &str) -> Result<BTreeSet<String>, String> {
    let broken = || format!("{key} is an array of strings, found {}", kind(value));
    let items = value.as_array().ok_or_else(broken)?;
    items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(broken)).collect()
}

pub(crate) fn unsupported<T>(key: &str, value: &Value, rule: &str) -> Result<T, String> {
    // The value is JSON, whose strings may hold any character: it is escaped once more.
    let value = value.to_string();
    Err(format!("{:?} = {:?} is not supported: {rule}", shown(key), shown(&value)))
}
