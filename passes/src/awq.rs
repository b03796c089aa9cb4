//! AWQ: input channels that are loud get finer codes, because what feeds them is made smaller and their
//! weights larger by the same factors (Lin et al. 2023, arXiv 2306.00978).
//!
//! The factors of a channel are its root mean square to a power; of 20 powers the one is taken whose
//! weights, rounded, change the outputs least on the calibration tokens. The paper takes the mean
//! magnitude; the root mean square is what the Gram matrix knows. Powers are tried on the grid that the
//! settings name, by nearest rounding, whatever the outputs' grids and solvers are.

use crate::fit::Range;
use crate::fold::{Fold, Source, folds};
use crate::quadratic::{forms, whole};
use crate::rtn::rtn;
use compiler::{
    Cost, Edit, Held, Key, Observe, Pass, PassCx, PassError, Refusal, Stage, Wrong, boolean,
    check_keys, integer,
};
use ir::{Block, BlockId, Grid, ModelSpec, Span, Weight, WeightId};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tensor::{DType, Tensor};

/// Powers that are tried, from 0 on, a twentieth apart.
const POWERS: usize = 20;

/// The least that a channel's root mean square counts as.
const LEAST: f64 = 1e-4;

/// Settings of the pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// Of the grid that powers are tried on.
    #[serde(default = "four")]
    bits: u8,
    /// Weights that share a scale there.
    #[serde(default = "hundred_twenty_eight")]
    group: usize,
    /// Whether there are no zero points there.
    #[serde(default = "yes")]
    symmetric: bool,
}

fn four() -> u8 {
    4
}

fn hundred_twenty_eight() -> usize {
    128
}

fn yes() -> bool {
    true
}

const KEYS: &[Key] = &[
    Key::new("bits", |v| integer(v, 2, 8)),
    Key::new("group", |v| integer(v, 8, 1 << 20)),
    Key::new("symmetric", boolean),
];

/// The pass.
pub struct Awq {
    settings: Settings,
}

/// Makes the pass from its settings; every setting of it, those included that were not given.
///
/// # Errors
/// If a setting is unknown or out of bounds.
pub(crate) fn make(table: &toml::Table) -> Result<(Box<dyn Pass>, toml::Table), Wrong> {
    let awq = Awq::new(table)?;
    // Settings are numbers and words, so there is nothing to fail.
    let all = toml::Table::try_from(awq.settings).unwrap_or_default();
    Ok((Box::new(awq), all))
}

impl Awq {
    /// The pass with the settings of a table: `bits`, `group` and `symmetric` of the grid that powers
    /// are tried on.
    ///
    /// # Errors
    /// If a setting is unknown or out of bounds.
    pub fn new(table: &toml::Table) -> Result<Self, Wrong> {
        check_keys(table, KEYS)?;
        let wrong = |e: toml::de::Error| Wrong { at: Vec::new(), rule: e.message().to_string() };
        Ok(Self { settings: table.clone().try_into().map_err(wrong)? })
    }

    fn grid(&self, width: usize) -> Grid {
        let Settings { bits, group, symmetric } = self.settings;
        let span = if width.is_multiple_of(group) { Span::Group(group) } else { Span::Channel };
        Grid::Int { bits, symmetric, span, scale: DType::F32 }
    }

    /// The factors of a fold: those that change the outputs of its weights least.
    fn factors(
        &self,
        fold: &Fold,
        block: &Block<Held>,
        cx: &PassCx<'_>,
    ) -> Result<Option<Vec<f32>>, PassError> {
        let seen = fold.targets.iter().find_map(|&id| Some((id, cx.statistics.gram(id)?)));
        let Some((first, lower)) = seen else { return Ok(None) };
        let width = weight(block, first)?.tensor.shape()[1];
        let gram = whole(lower, width, |x| x);
        let tokens = cx.statistics.tokens(first).unwrap_or(0).max(1) as f64;
        let squares: Vec<f64> = (0..width).map(|i| f64::from(gram[i * width + i])).collect();
        let sources = fold.sources(width);
        let mut loud = vec![(0.0, 0.0); fold.width];
        for (square, &source) in squares.iter().zip(&sources) {
            loud[source] = (loud[source].0 + square, loud[source].1 + 1.0);
        }
        let loud: Vec<f64> =
            loud.iter().map(|(sum, n)| (sum / (n * tokens)).sqrt().max(LEAST)).collect();
        let targets = fold.targets.iter().map(|&id| values(weight(block, id)?));
        let targets = targets.collect::<Result<Vec<_>, PassError>>()?;
        let mut best: Option<(f64, Vec<f32>)> = None;
        for step in 0..POWERS {
            let factors = normalized(&loud, step as f64 / POWERS as f64);
            let columns: Vec<f32> = sources.iter().map(|&source| factors[source]).collect();
            let mut loss = 0.0;
            for target in &targets {
                let error = self.error(target, &columns);
                loss += forms(cx.backend, &gram, width, error)?.iter().sum::<f64>();
            }
            if loss.is_finite() && best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, factors));
            }
        }
        Ok(best.map(|(_, factors)| factors))
    }

    /// What the codes of scaled weights, scaled back, lack of the weights.
    fn error(&self, weights: &[f32], columns: &[f32]) -> Vec<f32> {
        let width = columns.len();
        let mut scaled = weights.to_vec();
        let rows = scaled.par_chunks_mut(width);
        rows.for_each(|row| row.iter_mut().zip(columns).for_each(|(w, s)| *w *= s));
        let shape = [weights.len() / width, width];
        let codes = rtn(&scaled, shape, self.grid(width), Range::MinMax, None);
        let rows = scaled.par_chunks_mut(width).zip(weights.par_chunks(width)).enumerate();
        rows.for_each(|(row, (out, weights))| {
            codes.dequantize_row(row, out);
            let pairs = out.iter_mut().zip(weights).zip(columns);
            pairs.for_each(|((code, w), s)| *code = *code / s - w);
        });
        scaled
    }
}

impl Pass for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn plan(&self, model: &mut ModelSpec) -> Result<Vec<Stage>, Refusal> {
        let mut stages = Vec::new();
        for block in model.layers.iter().filter(|b| matches!(b.id, BlockId::Layer(_))) {
            for fold in folds(block) {
                let elements = |id: &WeightId| {
                    block.weights[id.0 as usize].shape.iter().product::<usize>() as u64
                };
                let width = block.weights[fold.targets[0].0 as usize].shape[1] as u64;
                let edited: u64 = fold.edits().iter().map(elements).sum();
                let weights: u64 = fold.targets.iter().map(elements).sum();
                stages.push(Stage {
                    block: block.id,
                    observes: fold.targets.iter().map(|id| Observe::Gram(*id)).collect(),
                    edits: fold.edits(),
                    cost: Cost {
                        // The whole matrix, its rows on the device, and four copies of a weight.
                        bytes: width * width * 8 + weights * 16 + edited * 4,
                        operations: 2.0 * POWERS as f64 * (weights * width) as f64,
                    },
                });
            }
        }
        match stages.is_empty() {
            true => {
                let rule = "finds nothing to fold in this model: no norm feeds linears alone";
                Err(Refusal { what: "awq".into(), rule: rule.into() })
            }
            false => Ok(stages),
        }
    }

    fn run(&self, stage: &Stage, block: &Block<Held>, cx: &PassCx<'_>) -> Result<Edit, PassError> {
        let fold = folds(&Held::specs(block)).into_iter().find(|fold| fold.edits() == stage.edits);
        let fold =
            fold.ok_or_else(|| PassError::Internal("awq: no fold is of the stage".into()))?;
        match self.factors(&fold, block, cx)? {
            Some(factors) => apply(&fold, block, &factors),
            // Without samples nothing is known to be loud.
            None => Ok(Edit::default()),
        }
    }
}

/// Root mean squares to a power, such that the largest and the smallest are as far from 1.
fn normalized(loud: &[f64], power: f64) -> Vec<f32> {
    let raised: Vec<f64> = loud.iter().map(|x| libm::pow(*x, power)).collect();
    let least = raised.iter().copied().fold(f64::INFINITY, f64::min);
    let most = raised.iter().copied().fold(0.0, f64::max);
    let middle = (least * most).sqrt();
    raised.iter().map(|x| (x / middle) as f32).collect()
}

/// The block's weights with the factors, one a channel of the source, moved from it to the targets.
///
/// # Errors
/// If a weight is not there, or holds no floats.
pub fn apply(fold: &Fold, block: &Block<Held>, factors: &[f32]) -> Result<Edit, PassError> {
    let mut edit = Edit::default();
    let mut put = |id: WeightId, values: Vec<f32>| {
        let shape = weight(block, id)?.tensor.shape().to_vec();
        let tensor = Tensor::from_f32(shape, &values);
        let tensor = tensor.ok_or_else(|| PassError::Internal("awq: a weight's size".into()))?;
        edit.weights.push((id, tensor));
        Ok::<_, PassError>(())
    };
    let shrunk = |id: WeightId, per: usize| -> Result<Vec<f32>, PassError> {
        let mut all = values(weight(block, id)?)?;
        all.par_chunks_mut(per)
            .zip(factors)
            .for_each(|(row, s)| row.iter_mut().for_each(|w| *w /= s));
        Ok(all)
    };
    match fold.source {
        Source::Norm(id) => put(id, shrunk(id, 1)?)?,
        Source::Rows { weight: id, bias } => {
            let width = weight(block, id)?.tensor.shape()[1];
            put(id, shrunk(id, width)?)?;
            if let Some(bias) = bias {
                put(bias, shrunk(bias, 1)?)?;
            }
        }
    }
    for &id in &fold.targets {
        let width = weight(block, id)?.tensor.shape()[1];
        let columns: Vec<f32> = fold.sources(width).iter().map(|&at| factors[at]).collect();
        let mut all = values(weight(block, id)?)?;
        all.par_chunks_mut(width)
            .for_each(|row| row.iter_mut().zip(&columns).for_each(|(w, s)| *w *= s));
        put(id, all)?;
    }
    Ok(edit)
}

fn weight(block: &Block<Held>, id: WeightId) -> Result<&Weight, PassError> {
    let missing = || PassError::Internal(format!("awq: weight {} is not there", id.0));
    block.weight(id).ok_or_else(missing)?.weight()
}

fn values(weight: &Weight) -> Result<Vec<f32>, PassError> {
    weight.tensor.to_f32().ok_or_else(|| PassError::Weight {
        tensor: weight.spec.tensor.clone(),
        rule: format!("dtype {} is F32, F16 or BF16", weight.tensor.dtype()),
    })
}
