//! What llama.cpp wants to know of a model that is to be stored.

use super::architecture::{Architecture, EXPERTS_MAX, LAYERS_MAX};
use super::header::Value;
use super::types::{self, Held};
use super::{rope, special, tokenizer};
use crate::container::{Described, Placed, Stored};
use ir::{Block, Heads, ModelSpec, Op, Projection, Role, Scaling, Spec};
use std::collections::BTreeMap;

/// The numbers of `llama_ftype`, by the type of ggml that most matrices of layers are of.
const FILE_TYPES: &[(&str, i64)] = &[
    ("F32", 0),
    ("F16", 1),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q8_0", 7),
    ("Q5_0", 8),
    ("Q5_1", 9),
    ("Q2_K", 10),
    ("Q3_K", 12),
    ("Q4_K", 15),
    ("Q5_K", 17),
    ("Q6_K", 18),
    ("IQ2_XXS", 19),
    ("IQ2_XS", 20),
    ("IQ3_XXS", 23),
    ("IQ1_S", 24),
    ("IQ4_NL", 25),
    ("IQ3_S", 26),
    ("IQ2_S", 28),
    ("IQ4_XS", 30),
    ("IQ1_M", 31),
    ("BF16", 32),
    ("TQ1_0", 36),
    ("TQ2_0", 37),
    ("MXFP4", 38),
    ("NVFP4", 39),
];

/// A model in llama.cpp's words.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) architecture: &'static Architecture,
    /// The length of a head.
    pub(crate) head: usize,
    /// Experts of a layer; 0 if there are none.
    pub(crate) experts: usize,
    /// What the head of a file says.
    pub(crate) keys: Vec<(String, Value)>,
    /// What each frequency is divided by, if it is a tensor.
    pub(crate) factors: Option<Vec<f32>>,
}

/// What llama.cpp wants to know of a model.
///
/// # Errors
/// If it computes another model, or none.
pub(crate) fn said(model: &Described<'_>, weights: &[Placed]) -> Result<Said, String> {
    let spec = model.model;
    let architecture = Architecture::of_family(spec.family).ok_or_else(|| {
        let families = Architecture::all_families();
        format!("the family is {:?}, and those that are written are {families}", spec.family)
    })?;
    let sizes = Sizes::of(spec, architecture)?;
    let scaling = rope::written(architecture, &spec.rotary, sizes.heads.dim)?;
    let mut keys = general(model, architecture, weights);
    let mut own =
        |key: &str, value: Value| keys.push((format!("{}.{key}", architecture.name), value));
    let count = |n: usize| Value::Integer(n as i64);
    own("block_count", count(spec.layers.len()));
    // What linear scaling adds is not in the key: readers multiply.
    own(
        "context_length",
        count(match &spec.rotary.scaling {
            Scaling::Linear(linear) => linear.original,
            _ => spec.context,
        }),
    );
    own("embedding_length", count(spec.hidden));
    own("feed_forward_length", count(sizes.ffn));
    own("attention.head_count", count(sizes.heads.query));
    own("attention.head_count_kv", count(sizes.heads.kv));
    own("attention.key_length", count(sizes.heads.dim));
    own("attention.value_length", count(sizes.heads.dim));
    own("attention.layer_norm_rms_epsilon", Value::Float(f64::from(sizes.eps)));
    own("rope.dimension_count", count(sizes.heads.dim));
    own("rope.freq_base", Value::Float(spec.rotary.base));
    for (key, value) in scaling.keys {
        own(&format!("rope.scaling.{key}"), value);
    }
    own("vocab_size", count(spec.vocab));
    if let Some([top, experts]) = sizes.given {
        own("expert_count", count(experts));
        own("expert_used_count", count(top));
    }
    keys.extend(texts(model)?);
    let experts = sizes.given.map_or(0, |[_, experts]| experts);
    Ok(Said { architecture, head: sizes.heads.dim, experts, keys, factors: scaling.factors })
}

/// What the programs of a decoder say of it.
struct Sizes {
    heads: Heads,
    ffn: usize,
    eps: f32,
    /// Experts that a token is given to, and how many there are.
    given: Option<[usize; 2]>,
}

impl Sizes {
    fn of(spec: &ModelSpec, architecture: &Architecture) -> Result<Self, String> {
        let name = architecture.name;
        let first = spec.layers.first().ok_or("it has no layer")?;
        let (heads, _) = first.attention().ok_or("its first layer attends to nothing")?;
        let eps = first.ops.iter().find_map(|op| match op {
            Op::Norm { eps, .. } => Some(*eps),
            _ => None,
        });
        let gate = |spec: &&Spec| {
            matches!(spec.role, Role::Matrix(Projection::Gate) | Role::Expert(_, Projection::Gate))
        };
        let ffn = first.weights.iter().find(gate).and_then(|spec| spec.shape.first().copied());
        let given = first.ops.iter().find_map(|op| first.given(op));
        if spec.layers.len() > LAYERS_MAX || given.is_some_and(|[_, all]| all > EXPERTS_MAX) {
            return Err(format!(
                "llama.cpp has at most {LAYERS_MAX} layers of {EXPERTS_MAX} experts"
            ));
        }
        if architecture.square && heads.query * heads.dim != spec.hidden {
            return Err(format!(
                "its {} heads of {} are not as wide as its hidden state, {}, as llama.cpp's {name:?} wants them",
                heads.query, heads.dim, spec.hidden
            ));
        }
        for (index, layer) in spec.layers.iter().enumerate() {
            alike(layer, first)
                .map_err(|what| format!("layer {index} has other {what} than layer 0"))?;
            // No row sees as far back as the window ends.
            let window = layer.attention().and_then(|(_, window)| window);
            let window = window.filter(|&window| (window as usize) < spec.context);
            if let Some(window) = window {
                return Err(format!(
                    "layer {index} attends through a window of {window} tokens, and llama.cpp's {name:?} reads \
                     no window: it would compute another model beyond {window} tokens. For a file that is right \
                     up to there, set max_position_embeddings to {window} in config.json"
                ));
            }
        }
        let missing = || "its first layer is no decoder's".to_owned();
        Ok(Self { heads, ffn: ffn.ok_or_else(missing)?, eps: eps.ok_or_else(missing)?, given })
    }
}

/// Holds a layer against the first: the keys say one size for all.
fn alike(layer: &Block<Spec>, first: &Block<Spec>) -> Result<(), &'static str> {
    if layer.attention().map(|(heads, _)| heads) != first.attention().map(|(heads, _)| heads) {
        return Err("heads");
    }
    let shapes = |block: &Block<Spec>| {
        block.weights.iter().map(|w| (w.role, w.shape.clone())).collect::<Vec<_>>()
    };
    if shapes(layer) == shapes(first) { Ok(()) } else { Err("weights") }
}

/// What is said of any model.
fn general(
    model: &Described<'_>,
    architecture: &Architecture,
    weights: &[Placed],
) -> Vec<(String, Value)> {
    let text = |said: &str| Value::Text(said.to_owned());
    let mut keys = vec![("general.architecture".to_owned(), text(architecture.name))];
    let mut own = |key: &str, value: Value| keys.push((format!("general.{key}"), value));
    own("type", text("model"));
    let called = model.config.get("_name_or_path").and_then(serde_json::Value::as_str);
    let called = called.and_then(|path| path.rsplit(['/', '\\']).find(|part| !part.is_empty()));
    if let Some(name) = model.name.or(called).filter(|name| *name != "." && *name != "..") {
        own("name", text(name));
        own("basename", text(base(name)));
    }
    own("size_label", Value::Text(size_label(model.model, weights)));
    own("file_type", Value::Integer(file_type(weights)));
    own("quantization_version", Value::Integer(2));
    keys
}

/// A name up to where it says a size.
fn base(name: &str) -> &str {
    let is_size = |part: &str| {
        let number = part.trim_end_matches(['b', 'B', 'm', 'M', 'k', 'K', 't', 'T']);
        number.len() + 1 == part.len() && number.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut at = 0;
    for part in name.split('-') {
        if at > 0 && is_size(part) {
            return &name[..at - 1];
        }
        at += part.len() + 1;
    }
    name
}

/// How many parameters there are, in two digits: `8B`, or `8x7B` of experts as large as the rest and one.
fn size_label(spec: &ModelSpec, weights: &[Placed]) -> String {
    let size = |weight: &&Placed| weight.shape.iter().map(|&n| n as u64).product::<u64>();
    let stored = || weights.iter().filter(|w| w.stored != Stored::Elsewhere);
    let given =
        spec.layers.first().and_then(|first| first.ops.iter().find_map(|op| first.given(op)));
    let is_expert = |weight: &&Placed| weight.name.contains(".experts.");
    let of_experts: u64 = stored().filter(is_expert).map(|w| size(&w)).sum();
    let all: u64 = stored().map(|w| size(&w)).sum();
    let experts = given.map_or(0, |[_, experts]| experts as u64);
    let one = match experts {
        0 => all,
        _ => all - of_experts + of_experts / experts,
    };
    let (unit, letter) = [(1e12, "T"), (1e9, "B"), (1e6, "M")]
        .into_iter()
        .find(|(unit, _)| one as f64 > *unit)
        .unwrap_or((1e3, "K"));
    let scaled = one as f64 / unit;
    let digits = format!("{scaled:.0}");
    let fraction = 2usize.saturating_sub(digits.trim_start_matches('0').len());
    let one = format!("{scaled:.fraction$}{letter}");
    if experts == 0 { one } else { format!("{experts}x{one}") }
}

/// `llama_ftype` of the type that most elements of layers are of; of those with several mixes, `M`.
fn file_type(weights: &[Placed]) -> i64 {
    let mut elements: BTreeMap<&str, u128> = BTreeMap::new();
    let layers =
        weights.iter().filter(|w| w.name.starts_with("model.layers.") && w.shape.len() == 2);
    for weight in layers {
        let name = held(weight.stored).and_then(types::name);
        let size = weight.shape.iter().map(|&n| n as u128).product::<u128>();
        *elements.entry(name.unwrap_or("F32")).or_default() += size;
    }
    let most = elements.into_iter().max_by_key(|(_, elements)| *elements).map(|(name, _)| name);
    let found = FILE_TYPES.iter().find(|(name, _)| Some(*name) == most);
    found.map_or(0, |(_, number)| *number)
}

/// What the rows of a weight hold; `None` if it is not stored.
pub(crate) fn held(stored: Stored) -> Option<Held> {
    match stored {
        Stored::On(grid) => Some(Held::On(grid)),
        Stored::Dense(dtype) => Some(Held::Dense(dtype)),
        Stored::Elsewhere => None,
    }
}

/// The tokenizer, and what goes with it.
fn texts(model: &Described<'_>) -> Result<Vec<(String, Value)>, String> {
    let none = || vec![("tokenizer.ggml.model".to_owned(), Value::Text("no_vocab".into()))];
    let Some(texts) = model.texts else { return Ok(none()) };
    let Some(file) = &texts.tokenizer else { return Ok(none()) };
    let said = tokenizer::keys(file, model.model.vocab);
    let mut keys = said.map_err(|rule| format!("tokenizer.json: {rule}"))?;
    let tokens = keys.iter().find_map(|(key, value)| match value {
        Value::Texts(tokens) if key == "tokenizer.ggml.tokens" => Some(tokens.as_slice()),
        _ => None,
    });
    let beside = special::keys(texts, model.config, tokens.unwrap_or_default());
    for (key, value) in beside {
        if !keys.iter().any(|(known, _)| *known == key) {
            keys.push((key, value));
        }
    }
    Ok(keys)
}
