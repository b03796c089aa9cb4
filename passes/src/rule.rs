//! Rules of an output: which weights, on which integer grid, by which solver.

use crate::fit::Range;
use crate::mix::{MIXES, Mix, fitting};
use crate::pattern::Pattern;
use crate::sensitivity::most;
use crate::solve::{Gptq, Kept, Rtn};
use compiler::{
    Asked, Decisions, Keep, Key, Refusal, Solver, Target, Wrong, boolean, check_keys, integer,
    one_of,
};
use ir::{Block, BlockId, BlockKind, Grid, ModelSpec, Projection, Role, Span, Spec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tensor::DType;

/// Settings of a rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// Which parts of the model.
    #[serde(default = "layers")]
    of: Vec<Part>,
    /// Modules that it is about: patterns; all if there are none.
    #[serde(default)]
    names: Vec<String>,
    /// Modules that it is not about: patterns.
    #[serde(default)]
    ignore: Vec<String>,
    /// Only so large a share of the elements that it would be about: those of the weights that lose the most by
    /// 4 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    most_sensitive: Option<f64>,
    /// Whether weights keep the codes that the source has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<KeepCodes>,
    /// 2 to 8: a grid of integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits: Option<u8>,
    /// A grid by its name, in place of bits, symmetry and groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grid: Option<String>,
    /// A mix of GGUF's types by its name, in place of a grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mix: Option<String>,
    /// Whether there are no zero points.
    #[serde(default = "yes")]
    symmetric: bool,
    /// What shares a scale.
    #[serde(default)]
    group: Group,
    /// How a scale is chosen. Where nothing is said: `min-max`; of grids with names `weighted` if there are
    /// statistics, else `extreme` where they are integers and `mse` where they are not.
    #[serde(default)]
    scale: Option<Scale>,
    /// How codes are chosen.
    #[serde(default)]
    solver: Method,
    /// Whether columns are solved in order of falling activation. Groups stay where they are.
    #[serde(default = "yes")]
    act_order: bool,
    /// Whether each linear observes the block with the linears before it already rewritten.
    #[serde(default)]
    true_sequential: bool,
    /// Added to the diagonal of the Gram matrix, as a share of its mean.
    #[serde(default = "one_percent")]
    damping: f64,
}

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// The linears of every layer.
    Layers,
    /// The projection to logits.
    Head,
    /// The table of embeddings.
    Embedding,
}

/// How codes of the source are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeepCodes {
    /// With every value as it is, or not at all.
    Exactly,
    /// So if that can be; else the values are rounded.
    OrRounded,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Method {
    /// Codes whose error the weights after them make up for, on what the calibration showed.
    #[default]
    Gptq,
    /// The nearest code. It needs no calibration.
    Rtn,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Group {
    /// So many consecutive elements of a row: 128, 64 or 32. A width that it does not divide takes
    /// the largest of the smaller ones that does, else a scale a row.
    Size(usize),
    /// A row, spelled `channel`.
    Named(Channel),
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Channel {
    /// A row.
    Channel,
}

/// How a scale is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Scale {
    /// No value is clipped.
    MinMax,
    /// The value furthest from zero is a code, as ggml makes its simple blocks; of others the least squared error.
    Extreme,
    /// The least squared error.
    Mse,
    /// The least squared error, each times the mean square of what the weight is multiplied by.
    Weighted,
}

impl Default for Group {
    fn default() -> Self {
        Self::Size(128)
    }
}

fn layers() -> Vec<Part> {
    vec![Part::Layers]
}

fn yes() -> bool {
    true
}

fn one_percent() -> f64 {
    0.01
}

impl From<Scale> for Range {
    fn from(scale: Scale) -> Self {
        match scale {
            Scale::MinMax => Self::MinMax,
            Scale::Extreme => Self::Extreme,
            Scale::Mse => Self::MeanSquare,
            Scale::Weighted => Self::Weighted,
        }
    }
}

impl Group {
    /// What shares a scale in rows of `width`.
    fn span(self, width: usize) -> Span {
        let Self::Size(size) = self else { return Span::Channel };
        let fits = |&n: &usize| n <= size && width.is_multiple_of(n);
        [size, 64, 32].into_iter().find(fits).map_or(Span::Channel, Span::Group)
    }
}

fn group(value: &toml::Value) -> Result<(), String> {
    match (value.as_integer(), value.as_str()) {
        (Some(32 | 64 | 128), _) | (_, Some("channel")) => Ok(()),
        _ => Err(format!("{value} is not 32, 64, 128 or \"channel\"")),
    }
}

/// A grid that GGUF has as integers: in groups of 32 with a scale of `F16`.
const fn legacy(bits: u8) -> Grid {
    Grid::Int { bits, symmetric: true, span: Span::Group(32), scale: DType::F16 }
}

/// The grids that have names: those of GGUF, as llama.cpp spells them.
const NAMED: [(&str, Grid); 14] = [
    ("q4_0", legacy(4)),
    ("q5_0", legacy(5)),
    ("q8_0", legacy(8)),
    ("q4_1", Grid::Block(BlockKind::Q4_1)),
    ("q5_1", Grid::Block(BlockKind::Q5_1)),
    ("q2_k", Grid::Block(BlockKind::Q2K)),
    ("q3_k", Grid::Block(BlockKind::Q3K)),
    ("q4_k", Grid::Block(BlockKind::Q4K)),
    ("q5_k", Grid::Block(BlockKind::Q5K)),
    ("q6_k", Grid::Block(BlockKind::Q6K)),
    ("iq4_nl", Grid::Block(BlockKind::Iq4Nl)),
    ("iq4_xs", Grid::Block(BlockKind::Iq4Xs)),
    ("mxfp4", Grid::Block(BlockKind::Mxfp4)),
    ("nvfp4", Grid::Block(BlockKind::Nvfp4)),
];

/// The grid of this name.
pub(crate) fn named(name: &str) -> Option<Grid> {
    NAMED.iter().find(|(known, _)| *known == name).map(|(_, grid)| *grid)
}

/// The name of a grid, if it has one.
pub fn grid_name(grid: Grid) -> Option<&'static str> {
    NAMED.iter().find(|(_, known)| *known == grid).map(|(name, _)| *name)
}

/// What a named grid, or a mix, decides by itself.
const DECIDED: [&str; 3] = ["bits", "symmetric", "group"];

/// How codes are chosen.
const CHOOSING: [&str; 5] = ["scale", "solver", "act-order", "true-sequential", "damping"];

/// The keys of a rule.
const KEYS: &[Key] = &[
    Key::new("of", |v| match v.as_array() {
        Some(all) => all.iter().try_for_each(|v| one_of(v, &["layers", "head", "embedding"])),
        None => Err("is a list of \"layers\", \"head\" or \"embedding\"".into()),
    }),
    Key::new("names", patterns),
    Key::new("ignore", patterns),
    Key::new("most-sensitive", |v| match v.as_float() {
        Some(share) if share > 0.0 && share < 1.0 => Ok(()),
        _ => Err(format!("{v} is not a share between 0 and 1, such as 0.1")),
    }),
    Key::new("keep", |v| one_of(v, &["exactly", "or-rounded"])),
    Key::new("bits", |v| integer(v, 2, 8)),
    Key::new("group", group),
    Key::new("grid", |v| one_of(v, &NAMED.map(|(name, _)| name))),
    Key::new("mix", |v| one_of(v, &MIXES.iter().map(|mix| mix.name).collect::<Vec<_>>())),
    Key::new("scale", |v| one_of(v, &["min-max", "extreme", "mse", "weighted"])),
    Key::new("symmetric", boolean),
    Key::new("solver", |v| one_of(v, &["gptq", "rtn"])),
    Key::new("act-order", boolean),
    Key::new("true-sequential", boolean),
    Key::new("damping", |v| match v.as_float().or(v.as_integer().map(|n| n as f64)) {
        Some(share) if (0.0..=1.0).contains(&share) => Ok(()),
        _ => Err(format!("{v} is not a number from 0 to 1")),
    }),
];

fn patterns(value: &toml::Value) -> Result<(), String> {
    match value.as_array() {
        Some(all) => all.iter().try_for_each(|one| match one.as_str() {
            Some(pattern) => Pattern::new(pattern).map(drop),
            None => Err(format!("{one} is not text")),
        }),
        None => Err("is a list of names or patterns, such as [\"*down_proj\"]".into()),
    }
}

/// A rule of an output.
pub(crate) struct Rule {
    settings: Settings,
    /// The grid that it names.
    grid: Option<Grid>,
    /// The mix that it names.
    mix: Option<&'static Mix>,
    names: Vec<Pattern>,
    ignore: Vec<Pattern>,
    solver: Box<dyn Solver>,
    /// The tensors that it is about of those that it could be, once a survey has found them.
    only: Option<BTreeSet<String>>,
}

impl Rule {
    /// A rule from its table.
    ///
    /// # Errors
    /// If a setting is unknown or out of bounds.
    pub(crate) fn new(table: &toml::Table) -> Result<Self, Wrong> {
        check_keys(table, KEYS)?;
        let wrong = |at: &[&str], rule: String| Wrong {
            at: at.iter().map(ToString::to_string).collect(),
            rule,
        };
        let mut settings: Settings = table
            .clone()
            .try_into()
            .map_err(|e: toml::de::Error| wrong(&[], e.message().to_string()))?;
        let (grid, mix) = (
            settings.grid.as_deref().and_then(named),
            settings.mix.as_deref().and_then(Mix::named),
        );
        let keeps = settings.keep.is_some();
        let decides = grid.is_some() || mix.is_some() || keeps;
        if let Some(key) = DECIDED.into_iter().find(|key| decides && table.contains_key(*key)) {
            return Err(wrong(&[key], "is decided by the grid that the rule names".into()));
        }
        if [grid.is_some(), mix.is_some(), keeps].into_iter().filter(|named| *named).count() > 1 {
            return Err(wrong(&[], "has two of grid, mix and keep: give one of them".into()));
        }
        if !decides && settings.bits.is_none() {
            return Err(wrong(&[], "has no bits, such as 4, and no grid, such as \"q4_k\"".into()));
        }
        let base = grid.or_else(|| mix.and_then(Mix::grid));
        let usual = match (base, settings.solver) {
            (Some(_), Method::Gptq) => Scale::Weighted,
            (Some(Grid::Int { .. }), Method::Rtn) => Scale::Extreme,
            (Some(Grid::Block(_)), Method::Rtn) => Scale::Mse,
            _ => Scale::MinMax,
        };
        let range = settings.scale.insert(settings.scale.unwrap_or(usual));
        let range = (*range).into();
        if settings.most_sensitive.is_some() && settings.of != [Part::Layers] {
            let rule = "looks at the layers alone: leave of out, or give [\"layers\"]";
            return Err(wrong(&["most-sensitive"], rule.into()));
        }
        if !settings.symmetric && settings.of.contains(&Part::Head) {
            let rule = "is true of a head: no reader is proven to load zero points of one";
            return Err(wrong(&["symmetric"], rule.into()));
        }
        let compiled = |key: &str, all: &[String]| -> Result<Vec<Pattern>, Wrong> {
            all.iter().map(|p| Pattern::new(p).map_err(|rule| wrong(&[key], rule))).collect()
        };
        let (names, ignore) =
            (compiled("names", &settings.names)?, compiled("ignore", &settings.ignore)?);
        let solver: Box<dyn Solver> = match settings.solver {
            _ if keeps => Box::new(Kept {
                keep: match settings.keep {
                    Some(KeepCodes::OrRounded) => Keep::OrRounded,
                    _ => Keep::Exactly,
                },
            }),
            Method::Rtn => Box::new(Rtn { range }),
            Method::Gptq => Box::new(Gptq {
                range,
                sequential: settings.true_sequential,
                settings: crate::gptq::Settings {
                    act_order: settings.act_order,
                    damping: settings.damping,
                },
            }),
        };
        Ok(Self { settings, grid, mix, names, ignore, solver, only: None })
    }

    /// Every setting of it, those included that were not given.
    pub(crate) fn whole(&self) -> toml::Table {
        // Settings are bits, words and lists, so there is nothing to fail.
        let mut whole = toml::Table::try_from(&self.settings).unwrap_or_default();
        if self.grid.is_some() || self.mix.is_some() || self.settings.keep.is_some() {
            DECIDED.iter().for_each(|key| drop(whole.remove(*key)));
        }
        if self.settings.keep.is_some() {
            // Nothing is chosen of what is kept.
            CHOOSING.iter().for_each(|key| drop(whole.remove(*key)));
        }
        whole
    }

    /// Whether it waits for a survey.
    pub(crate) fn waits(&self) -> bool {
        self.settings.most_sensitive.is_some()
    }

    /// Is about what a survey found, from now on.
    pub(crate) fn decide(&mut self, model: &ModelSpec, decisions: &Decisions) {
        if let Some(share) = self.settings.most_sensitive {
            let may = |block: &Block<Spec>, spec: &Spec| self.is_about(block, spec);
            self.only = Some(most(model, decisions, share, may));
        }
    }

    /// Whether it is about a weight.
    fn is_about(&self, block: &Block<Spec>, spec: &Spec) -> bool {
        let part = match block.id {
            BlockId::Embedding => Part::Embedding,
            BlockId::Layer(_) => Part::Layers,
            BlockId::Head => Part::Head,
        };
        let module = spec.tensor.strip_suffix(".weight").unwrap_or(&spec.tensor);
        let any = |all: &[Pattern]| all.iter().any(|p| p.matches(module));
        let named = self.names.is_empty() || any(&self.names);
        // A router's few rows decide where tokens go: it is on a grid only if it is named.
        let router = spec.role == Role::Matrix(Projection::Router) && self.names.is_empty();
        self.settings.of.contains(&part)
            && named
            && !router
            && !any(&self.ignore)
            && self.only.as_ref().is_none_or(|only| only.contains(&spec.tensor))
    }
}

impl compiler::Rule for Rule {
    fn target(&self, asked: &Asked<'_>) -> Result<Option<Target>, Refusal> {
        let spec = asked.spec().filter(|spec| self.is_about(asked.block, spec));
        let Some(spec) = spec else { return Ok(None) };
        let width = spec.shape.last().copied().unwrap_or(0);
        if self.settings.keep.is_some() {
            let kept = Target { kept: compiler::Kept::AsStored, instead_of: None };
            return Ok(asked.stored.map(|_| kept));
        }
        if let Some(mix) = self.mix {
            return Ok(mix.target(asked.model, asked.block, spec, self.solver.observes()));
        }
        Ok(match (self.grid, &self.settings) {
            (Some(grid), _) => Some(fitting(grid, width)),
            (None, &Settings { bits: Some(bits), symmetric, group, .. }) => {
                let scale = asked.scales.unwrap_or_else(|| scale_dtype(spec.dtype));
                Some(Target::on(Grid::Int { bits, symmetric, span: group.span(width), scale }))
            }
            // `new` refused this.
            (None, _) => None,
        })
    }

    fn solver(&self) -> &dyn Solver {
        &*self.solver
    }
}

/// Scales are stored in the model's own dtype, as readers of the format expect.
fn scale_dtype(stored: DType) -> DType {
    match stored {
        DType::F16 | DType::BF16 => stored,
        _ => DType::F32,
    }
}
