//! Weights that are stored as `qweight`: what a configuration of GPTQ or AWQ says of them.
//!
//! AutoGPTQ, GPTQModel, optimum, AutoAWQ and llm-awq wrote such configurations over the years, in
//! `config.json` or beside it. What decides what a weight is is read, or refused by its key; so is a
//! key that is not known.

use crate::awq::Awq;
use crate::bits::WORD;
use crate::checkpoint::TensorInfo;
use crate::codec::Codec;
use crate::error::Error;
use crate::gptq::{self, Version};
use crate::json::shown;
use crate::packed::{PackedWeight, Stored};
use crate::quantization::{object, strings, unsupported};
use crate::scheme::Scheme;
use ir::{Grid, Span};
use regex::{Regex, RegexBuilder};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a regular expression may take once it is compiled, in bytes.
const REGEX_BYTES: usize = 1 << 20;
/// How many patterns a configuration may have: each is tried on each module.
const PATTERNS: usize = 4096;

/// Keys that say how a model was made, or how it is to be run, and not what its weights are.
const INERT: &[&str] = &[
    "act_group_aware",
    "autoround_version",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "disable_exllama",
    "exllama_config",
    "fuse_max_seq_len",
    "iters",
    "lm_head",
    "lr",
    "max_input_length",
    "meta",
    "minmax_lr",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "mse",
    "nsamples",
    "offload_to_disk",
    "offload_to_disk_path",
    "pack_impl",
    "pad_token_id",
    "parallel_packing",
    "quantizer",
    "seqlen",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
];

/// What a configuration says.
#[derive(Debug)]
pub(crate) struct Said {
    codec: Kind,
    all: Settings,
    /// What is said of some modules: the first pattern that a name begins with. `None` if they are dense.
    some: Vec<(Regex, Option<Settings>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gptq(Version),
    Awq,
}

/// How the weights of modules are quantized.
#[derive(Clone, Copy, Debug)]
struct Settings {
    bits: u8,
    span: Span,
    symmetric: bool,
    act_order: bool,
}

/// Those of them that an object says.
#[derive(Clone, Copy, Debug, Default)]
struct Partial {
    bits: Option<u8>,
    span: Option<Span>,
    symmetric: Option<bool>,
    act_order: Option<bool>,
}

impl Partial {
    /// Takes a key in; `false` if it is none of these.
    fn set(&mut self, key: &str, value: &Value) -> Result<bool, String> {
        let flag = || match value.as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => unsupported(key, value, "it must be true or false"),
        };
        match key {
            "bits" | "w_bit" | "wbits" => {
                let bits = value.as_u64().and_then(|bits| u8::try_from(bits).ok());
                self.bits = bits.filter(|bits| matches!(bits, 2 | 3 | 4 | 8));
                if self.bits.is_none() {
                    return unsupported(key, value, "2, 3, 4 and 8 bits are read");
                }
            }
            "group_size" | "q_group_size" => {
                let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
                self.span = match size.filter(|&size| size > 0) {
                    Some(size) => Some(Span::Group(size)),
                    None if value.as_i64() == Some(-1) => Some(Span::Channel),
                    None => return unsupported(key, value, "it is -1, or more than 0"),
                };
            }
            "sym" => self.symmetric = flag()?,
            "zero_point" => self.symmetric = flag()?.map(|has_zeros| !has_zeros),
            "desc_act" if value.is_null() => {}
            "desc_act" => self.act_order = flag()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The settings that it says, the rest of them from `all`.
    fn over(self, all: Settings) -> Settings {
        Settings {
            bits: self.bits.unwrap_or(all.bits),
            span: self.span.unwrap_or(all.span),
            symmetric: self.symmetric.unwrap_or(all.symmetric),
            act_order: self.act_order.unwrap_or(all.act_order),
        }
    }
}

/// The method that a configuration names, if it is one that is read, or refused, here.
pub(crate) fn method(config: &Value) -> Option<&str> {
    let said = ["quant_method", "method"].iter().find_map(|key| config.get(key)?.as_str());
    said.filter(|said| matches!(*said, "gptq" | "awq"))
}

/// Reads a configuration of `method`. The error is a rule that names the key.
pub(crate) fn parse(config: &Value, method: &str) -> Result<Said, String> {
    let config = object(config, "quantization_config")?;
    let is_awq = method == "awq";
    let known: &[&str] = if is_awq { &["gemm"] } else { &["gptq", "gptq_v2"] };
    let (mut all, mut form, mut dynamic) = (Partial::default(), None, None);
    for (key, value) in config {
        if all.set(key, value)? {
            continue;
        }
        let lower = value.as_str().map(str::to_lowercase);
        match (key.as_str(), lower.as_deref()) {
            ("backend", Some("llm-awq")) => {
                return unsupported(key, value, "only what AutoAWQ calls \"gemm\" is read");
            }
            ("quant_method" | "method", Some(named)) if named == method => {}
            ("checkpoint_format" | "format" | "version", Some(named)) => {
                let Some(named) = known.iter().find(|known| **known == named) else {
                    return unsupported(key, value, &format!("{} is read", known.join(" or ")));
                };
                if *form.get_or_insert(named) != named {
                    return unsupported(key, value, "another key says another format");
                }
            }
            ("pack_dtype", Some("int32")) => {}
            ("is_marlin_format" | "do_fuse", _) if value.as_bool() == Some(false) => {}
            ("modules_to_not_convert", _) if !value.is_null() => drop(strings(value, key)?),
            ("dynamic", _) if !value.is_null() => dynamic = Some(value),
            // Nulls say nothing, and the last three would change what a weight is.
            ("dynamic" | "modules_to_not_convert" | "pack_dtype" | "modules_to_fuse", None) => {}
            ("checkpoint_format" | "format" | "version", None) if value.is_null() => {}
            ("adapter" | "rotation" | "activation", _) if value.is_null() => {}
            (key, _) if INERT.contains(&key) => {}
            _ => return unsupported(key, value, "the key is not known, or not with this value"),
        }
    }
    let missing = |key: &str| format!("{key} is missing");
    let all = Settings {
        bits: all.bits.ok_or_else(|| missing("bits"))?,
        span: all.span.ok_or_else(|| missing("group_size"))?,
        symmetric: all
            .symmetric
            .ok_or_else(|| missing(if is_awq { "zero_point" } else { "sym" }))?,
        act_order: all.act_order.unwrap_or(false),
    };
    let some = dynamic.map_or(Ok(Vec::new()), |dynamic| patterns(dynamic, all))?;
    let codec = match (is_awq, form) {
        (true, _) => Kind::Awq,
        (false, Some(&"gptq_v2")) => Kind::Gptq(Version::Two),
        (false, _) => Kind::Gptq(Version::One),
    };
    let said = Said { codec, all, some };
    let mut every = said.some.iter().filter_map(|(_, settings)| *settings).chain([said.all]);
    let other = every.find(|settings| is_awq && (settings.bits != 4 || settings.act_order));
    drop(every);
    match other {
        Some(Settings { bits, .. }) => {
            Err(format!("bits is {bits}, or desc_act true: AWQ is read with 4 bits in order"))
        }
        None => Ok(said),
    }
}

/// What `dynamic` says, of each pattern in order.
fn patterns(dynamic: &Value, all: Settings) -> Result<Vec<(Regex, Option<Settings>)>, String> {
    let dynamic = object(dynamic, "dynamic")?;
    if dynamic.len() > PATTERNS {
        return Err(format!("dynamic has more than {PATTERNS} patterns"));
    }
    let read = |pattern: &str, settings: &Value| {
        let (excludes, regex) = match pattern.strip_prefix("-:") {
            Some(regex) => (true, regex),
            None => (false, pattern.strip_prefix("+:").unwrap_or(pattern)),
        };
        let built = RegexBuilder::new(&format!("^(?:{regex})")).size_limit(REGEX_BYTES).build();
        let rule = |_| "is no regular expression that is understood here (without look-around)";
        let regex = built.map_err(rule)?;
        if excludes {
            return Ok((regex, None));
        }
        let mut some = Partial::default();
        for (key, value) in object(settings, "it")? {
            // How it was made, as above.
            if !some.set(key, value)? && !INERT.contains(&key.as_str()) {
                return unsupported(key, value, "the key is not known");
            }
        }
        Ok((regex, Some(some.over(all))))
    };
    let named = |pattern: &String, rule: String| format!("dynamic.{:?}: {rule}", shown(pattern));
    let each = |(pattern, settings): (&String, &Value)| {
        read(pattern, settings).map_err(|rule| named(pattern, rule))
    };
    dynamic.iter().map(each).collect()
}

impl Scheme for Said {
    fn marker(&self) -> &'static str {
        "qweight"
    }

    fn module<'a>(&self, tensor: &'a TensorInfo) -> Option<&'a str> {
        tensor.name.strip_suffix(".qweight")
    }

    fn weight(&self, stored: &Stored<'_>, module: &str) -> Result<PackedWeight, Error> {
        let name = format!("{module}.weight");
        let broken = |rule: String| Error::tensor(&name, rule);
        let found = self.some.iter().find(|(pattern, _)| pattern.is_match(module));
        let Some(settings) = found.map_or(Some(self.all), |(_, settings)| *settings) else {
            return Err(broken("is packed, but dynamic of quantization_config excludes it".into()));
        };
        let names = gptq::Names::of(&name)?;
        if stored.named(&name).is_some() {
            return Err(broken(format!("is stored, and {:?} too", names.codes)));
        }
        let codes = stored.needed(&name, &names.codes)?;
        let scales = stored.needed(&name, &names.scales)?;
        stored.needed(&name, &names.zeros)?;
        let Settings { bits, span, symmetric, act_order } = settings;
        // The layouts are held against what is stored below: only the two sizes are taken from it.
        let width = |rows: usize| match self.codec {
            Kind::Awq => Some(rows),
            Kind::Gptq(_) => Some(rows.checked_mul(WORD)? / usize::from(bits)),
        };
        let sizes = (codes.shape.first(), scales.shape.get(1));
        let shape = match sizes {
            (Some(&rows), Some(&out)) => width(rows).map(|width| [out, width]),
            _ => None,
        };
        let shape = shape.ok_or_else(|| {
            let (codes, scales) = (&codes.shape, &scales.shape);
            broken(format!("its codes are {codes:?} and its scales {scales:?}: no matrix has such"))
        })?;
        let grid = |span| Grid::Int { bits, symmetric, span, scale: scales.dtype };
        let (codec, optional): (&'static dyn Codec, _) = match self.codec {
            Kind::Awq => (&Awq, None),
            Kind::Gptq(version) => (version.codec(), Some(&*names.order).filter(|_| !act_order)),
        };
        let weight = PackedWeight { codec, grid: grid(span), shape, by_columns: true };
        stored.check_parts(&name, &weight, optional)?;
        if self.codec == Kind::Awq {
            return Ok(weight);
        }
        let ordered = stored.span(&names.order, shape[1], span)?;
        if ordered != span && !act_order {
            let rule = "puts columns into groups where they do not lie, but desc_act is false: some \
                        readers look at it then and some do not";
            return Err(Error::tensor(&names.order, rule));
        }
        Ok(PackedWeight { grid: grid(ordered), ..weight })
    }

    fn check_dense(
        &self,
        stored: &Stored<'_>,
        weights: &BTreeMap<String, PackedWeight>,
    ) -> Result<(), Error> {
        stored.check_companions(&["qzeros", "g_idx"], self.marker(), weights)
    }
}
