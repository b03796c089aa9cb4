//! The quantizing passes: `rtn` and `gptq` on the linears of every layer, `head` on the projection
//! to logits.

use crate::fit::Range;
use crate::pattern::Pattern;
use crate::solve::{rounded, solved};
use compiler::{
    Key, Pass, PassCx, PassError, Refusal, Rewrite, Stage, Wrong, boolean, check_keys, integer,
    one_of,
};
use ir::{Block, BlockId, Grid, Op, Span, Spec, Value, WeightId};
use serde::{Deserialize, Serialize};
use tensor::DType;

/// Settings of `rtn` and `gptq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// 2 to 8.
    pub(crate) bits: u8,
    /// Whether there are no zero points.
    #[serde(default = "yes")]
    pub(crate) symmetric: bool,
    /// What shares a scale.
    #[serde(default)]
    pub(crate) group: Group,
    /// How a scale is chosen.
    #[serde(default)]
    pub(crate) scale: Scale,
    /// Whether columns are solved in order of falling activation. Groups stay where they are.
    #[serde(default = "yes")]
    pub(crate) act_order: bool,
    /// Whether each linear observes the block with the linears before it already rewritten.
    #[serde(default)]
    pub(crate) true_sequential: bool,
    /// Added to the diagonal of the Gram matrix, as a share of its mean.
    #[serde(default = "one_percent")]
    pub(crate) damping: f64,
    /// Modules that are left alone: patterns.
    #[serde(default)]
    pub(crate) ignore: Vec<String>,
}

/// Settings of `head`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HeadSettings {
    bits: u8,
    #[serde(default)]
    group: Group,
    #[serde(default)]
    scale: Scale,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Group {
    /// So many consecutive elements of a row: 128, 64 or 32. A width that it does not divide takes
    /// the largest of the smaller ones that does, else a scale a row.
    Size(usize),
    /// A row, spelled `channel`.
    Named(Channel),
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Channel {
    /// A row.
    Channel,
}

/// How a scale is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scale {
    /// No value is clipped.
    #[default]
    MinMax,
    /// The least squared error.
    Mse,
}

impl Default for Group {
    fn default() -> Self {
        Self::Size(128)
    }
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
            Scale::Mse => Self::MeanSquare,
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

const BITS: Key = Key::new("bits", |v| integer(v, 2, 8));

const GROUP: Key = Key::new("group", |v| match (v.as_integer(), v.as_str()) {
    (Some(32 | 64 | 128), _) | (_, Some("channel")) => Ok(()),
    _ => Err(format!("{v} is not 32, 64, 128 or \"channel\"")),
});

const SCALE: Key = Key::new("scale", |v| one_of(v, &["min-max", "mse"]));

/// The keys of `rtn` and `gptq`.
const KEYS: &[Key] = &[
    BITS,
    GROUP,
    SCALE,
    Key::new("symmetric", boolean),
    Key::new("act-order", boolean),
    Key::new("true-sequential", boolean),
    Key::new("damping", |v| match v.as_float().or(v.as_integer().map(|n| n as f64)) {
        Some(share) if (0.0..=1.0).contains(&share) => Ok(()),
        _ => Err(format!("{v} is not a number from 0 to 1")),
    }),
    Key::new("ignore", |v| match v.as_array() {
        Some(all) => all.iter().try_for_each(|one| match one.as_str() {
            Some(pattern) => Pattern::new(pattern).map(drop),
            None => Err(format!("{one} is not text")),
        }),
        None => Err("is a list of names or patterns, such as [\"*down_proj\"]".into()),
    }),
];

/// The keys of `head`.
const HEAD_KEYS: &[Key] = &[BITS, GROUP, SCALE];

/// The settings of a pass, held to their keys.
fn read<S: serde::de::DeserializeOwned>(table: &toml::Table, keys: &[Key]) -> Result<S, Wrong> {
    check_keys(table, keys)?;
    let settings = S::deserialize(table.clone());
    settings.map_err(|e| Wrong { at: Vec::new(), rule: e.message().to_string() })
}

/// Every setting of a pass, those included that were not given.
fn whole<S: serde::Serialize>(settings: &S) -> toml::Table {
    // Settings are bits, words and lists, so there is nothing to fail.
    toml::Table::try_from(settings).unwrap_or_default()
}

/// `rtn`: the nearest code of every weight. It needs no calibration.
struct Rtn(Settings);

/// `gptq`: codes whose error the weights after them make up for, on what the calibration showed.
struct Gptq(Settings);

/// `head`: the projection to logits, to the nearest code.
struct Head(HeadSettings);

/// A pass, and every setting of it.
pub(crate) type Made = (Box<dyn Pass>, toml::Table);

/// Makes `rtn`.
///
/// # Errors
/// If a setting is unknown or out of bounds.
pub(crate) fn rtn(table: &toml::Table) -> Result<Made, Wrong> {
    let settings: Settings = read(table, KEYS)?;
    let all = whole(&settings);
    Ok((Box::new(Rtn(settings)), all))
}

/// Makes `gptq`.
///
/// # Errors
/// If a setting is unknown or out of bounds.
pub(crate) fn gptq(table: &toml::Table) -> Result<Made, Wrong> {
    let settings: Settings = read(table, KEYS)?;
    let all = whole(&settings);
    Ok((Box::new(Gptq(settings)), all))
}

/// Makes `head`.
///
/// # Errors
/// If a setting is unknown or out of bounds.
pub(crate) fn head(table: &toml::Table) -> Result<Made, Wrong> {
    let settings: HeadSettings = read(table, HEAD_KEYS)?;
    let all = whole(&settings);
    Ok((Box::new(Head(settings)), all))
}

impl Settings {
    /// The grids of a layer's linears.
    fn plan(&self, block: &Block<Spec>) -> Vec<Option<Grid>> {
        let mut grids = vec![None; block.weights.len()];
        if !matches!(block.id, BlockId::Layer(_)) {
            return grids;
        }
        for (_, _, weight) in linears(block) {
            let spec = &block.weights[weight.0 as usize];
            let module = spec.tensor.strip_suffix(".weight").unwrap_or(&spec.tensor);
            let ignored = |p: &String| Pattern::new(p).is_ok_and(|p| p.matches(module));
            if self.ignore.iter().any(ignored) {
                continue;
            }
            grids[weight.0 as usize] = Some(grid(self.bits, self.symmetric, self.group, spec));
        }
        grids
    }

    fn solver(&self) -> crate::gptq::Settings {
        crate::gptq::Settings { act_order: self.act_order, damping: self.damping }
    }
}

fn grid(bits: u8, symmetric: bool, group: Group, spec: &Spec) -> Grid {
    let width = spec.shape.last().copied().unwrap_or(0);
    Grid::Int { bits, symmetric, span: group.span(width), scale: scale_dtype(spec.dtype) }
}

/// Scales are stored in the model's own dtype, as readers of the format expect.
fn scale_dtype(stored: DType) -> DType {
    match stored {
        DType::F16 | DType::BF16 => stored,
        _ => DType::F32,
    }
}

/// The block's linears: the op, its input, its weight.
fn linears<W>(block: &Block<W>) -> impl Iterator<Item = (usize, Value, WeightId)> + '_ {
    block.ops.iter().enumerate().filter_map(|(index, op)| match op {
        Op::Linear { input, weight, .. } => Some((index, *input, *weight)),
        _ => None,
    })
}

/// The linears of a stage that are to be rewritten: input, weight, grid.
fn asked<'a>(
    stage: &'a Stage,
    block: &'a Block,
    cx: &'a PassCx<'_>,
) -> impl Iterator<Item = (Value, WeightId, Grid)> + 'a {
    let chosen = linears(block).filter(|(op, ..)| stage.linears.contains(op));
    chosen.filter_map(|(_, input, id)| {
        Some((input, id, cx.grids.get(id.0 as usize).copied().flatten()?))
    })
}

/// Every weight of the stage to its nearest codes.
fn nearest(
    stage: &Stage,
    block: &Block,
    cx: &PassCx<'_>,
    range: Range,
) -> Result<Vec<Rewrite>, PassError> {
    let round = |(_, id, grid)| rounded(id, block, grid, range);
    asked(stage, block, cx).map(round).collect()
}

fn all(block: &Block<Spec>, observes: bool) -> Vec<Stage> {
    vec![Stage { linears: linears(block).map(|(op, ..)| op).collect(), observes }]
}

impl Pass for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn plan(&self, block: &Block<Spec>) -> Result<Vec<Option<Grid>>, Refusal> {
        Ok(self.0.plan(block))
    }

    fn stages(&self, block: &Block<Spec>) -> Vec<Stage> {
        match block.id {
            BlockId::Layer(_) => all(block, false),
            _ => Vec::new(),
        }
    }

    fn run(
        &self,
        stage: &Stage,
        block: &Block,
        cx: &PassCx<'_>,
    ) -> Result<Vec<Rewrite>, PassError> {
        nearest(stage, block, cx, self.0.scale.into())
    }
}

impl Pass for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn plan(&self, block: &Block<Spec>) -> Result<Vec<Option<Grid>>, Refusal> {
        Ok(self.0.plan(block))
    }

    fn stages(&self, block: &Block<Spec>) -> Vec<Stage> {
        if !matches!(block.id, BlockId::Layer(_)) {
            return Vec::new();
        }
        if !self.0.true_sequential {
            return all(block, true);
        }
        // Linears that read the same value are rewritten together.
        let mut stages: Vec<(Value, Stage)> = Vec::new();
        for (op, input, _) in linears(block) {
            match stages.last_mut().filter(|(value, _)| *value == input) {
                Some((_, stage)) => stage.linears.push(op),
                None => stages.push((input, Stage { linears: vec![op], observes: true })),
            }
        }
        stages.into_iter().map(|(_, stage)| stage).collect()
    }

    fn run(
        &self,
        stage: &Stage,
        block: &Block,
        cx: &PassCx<'_>,
    ) -> Result<Vec<Rewrite>, PassError> {
        let mut weights: Vec<(Value, WeightId, Grid)> = asked(stage, block, cx).collect();
        // Linears of one input share the factor of its Gram matrix.
        weights.sort_by_key(|(input, ..)| *input);
        let mut rewrites = Vec::new();
        for same in weights.chunk_by(|a, b| a.0 == b.0) {
            let gram = cx.gram(same[0].0);
            let weights: Vec<(WeightId, Grid)> = same.iter().map(|&(_, id, g)| (id, g)).collect();
            let (range, settings) = (self.0.scale.into(), self.0.solver());
            rewrites.extend(solved(cx.backend, block, &weights, gram, range, &settings)?);
        }
        rewrites.sort_by_key(|r: &Rewrite| r.weight);
        Ok(rewrites)
    }
}

impl Pass for Head {
    fn name(&self) -> &'static str {
        "head"
    }

    fn plan(&self, block: &Block<Spec>) -> Result<Vec<Option<Grid>>, Refusal> {
        let mut grids = vec![None; block.weights.len()];
        if block.id == BlockId::Head
            && let Some((.., weight)) = linears(block).last()
        {
            let spec = &block.weights[weight.0 as usize];
            grids[weight.0 as usize] = Some(grid(self.0.bits, true, self.0.group, spec));
        }
        Ok(grids)
    }

    fn stages(&self, block: &Block<Spec>) -> Vec<Stage> {
        match block.id {
            BlockId::Head => all(block, false),
            _ => Vec::new(),
        }
    }

    fn run(
        &self,
        stage: &Stage,
        block: &Block,
        cx: &PassCx<'_>,
    ) -> Result<Vec<Rewrite>, PassError> {
        nearest(stage, block, cx, self.0.scale.into())
    }
}
