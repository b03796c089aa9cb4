//! Which weights lose the most by few bits: a survey of all layers, by which a rule gives more bits to
//! the weights that need them (`most-sensitive`).

use crate::fit::Range;
use crate::quadratic::{forms, whole};
use crate::rtn::rtn;
use crate::solve::matrix;
use backend::Backend;
use compiler::{Cost, Decisions, Held, Observe, PassCx, PassError, Stage, Survey};
use ir::{Block, Grid, Input, Matrix, ModelSpec, Span, Spec, WeightId};
use std::collections::{BTreeMap, BTreeSet};
use tensor::DType;

/// As reports and recipes call it.
pub(crate) const NAME: &str = "sensitivity";

/// The grid whose loss is measured: a weight that suffers from it is worth more bits.
const GRID: Grid =
    Grid::Int { bits: 4, symmetric: true, span: Span::Group(128), scale: DType::F32 };

/// For each weight: the squared error of its outputs on the samples, over their square, where it is rounded to
/// the nearest of 4 bits in groups of 128.
pub(crate) struct Sensitivity;

impl Survey for Sensitivity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn stages(&self, model: &ModelSpec) -> Vec<Stage> {
        looks(model)
    }

    fn see(
        &self,
        stage: &Stage,
        block: &Block<Held>,
        cx: &PassCx<'_>,
    ) -> Result<Vec<(WeightId, f64)>, PassError> {
        let mut found = Vec::new();
        // Weights that read one input share its matrix.
        let mut known: Option<(*const f32, Vec<f32>)> = None;
        for what in &stage.observes {
            let id = what.weight();
            let held = block.weights.get(id.0 as usize);
            let held = held.ok_or_else(|| PassError::Internal(format!("no weight {}", id.0)))?;
            let (values, shape) = matrix(held.weight()?)?;
            let Some(lower) = cx.statistics.gram(id) else { continue };
            if known.as_ref().is_none_or(|(of, _)| *of != lower.as_ptr()) {
                known = Some((lower.as_ptr(), whole(lower, shape[1], |x| x)));
            }
            let Some((_, gram)) = &known else { continue };
            let mut errors = rtn(&values, shape, GRID, Range::MinMax, None).dequantize();
            errors.iter_mut().zip(&*values).for_each(|(error, value)| *error -= value);
            let of = |x: Vec<f32>| energy(cx.backend, gram, shape[1], x);
            let (loss, all) = (of(errors)?, of(values.into_owned())?);
            found.push((id, if all > 0.0 { loss / all } else { 0.0 }));
        }
        Ok(found)
    }
}

/// A look at the inputs of all linears of each layer.
pub(crate) fn looks(model: &ModelSpec) -> Vec<Stage> {
    let mut stages = Vec::new();
    for block in &model.layers {
        let matrices = block.matrices();
        // Of experts, one and its statistics at a time.
        for same in matrices.chunk_by(|a, b| expert(a) == expert(b)) {
            let weights = || same.iter().map(|matrix| matrix.weight);
            let size = |id: WeightId| match block.weights[id.0 as usize].shape[..] {
                [rows, width] => [rows as u64, width as u64],
                _ => [0, 0],
            };
            let most = weights().map(size).fold([0, 0], |[n, square], [rows, width]| {
                [n.max(rows * width), square.max(width * width)]
            });
            let operations = weights().map(size).map(|[rows, width]| 4 * rows * width * width);
            stages.push(Stage {
                block: block.id,
                observes: weights().map(Observe::Gram).collect(),
                edits: Vec::new(),
                cost: Cost {
                    // The whole matrix and its rows on the device; values, codes and errors of a weight.
                    bytes: most[1] * 8 + most[0] * 17,
                    operations: operations.sum::<u64>() as f64,
                },
            });
        }
    }
    stages
}

/// The square of outputs.
fn energy(
    backend: &dyn Backend,
    gram: &[f32],
    width: usize,
    x: Vec<f32>,
) -> Result<f64, PassError> {
    Ok(forms(backend, gram, width, x)?.iter().sum())
}

/// Which expert a matrix is of, if it is of one.
fn expert(matrix: &Matrix) -> Option<usize> {
    match matrix.input {
        Input::All(_) => None,
        Input::Given { expert, .. } | Input::Gated { expert, .. } => Some(expert),
    }
}

/// What runtimes fuse, and want on one grid: of a layer the weights that read one value; of all experts those
/// that come first, and those that come last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fused {
    Reading(u32),
    Into,
    OutOf,
}

/// The tensors of the most sensitive weights of which `may` says that they may be among them: of as many
/// elements as `share` of theirs, or fewer. Weights that runtimes fuse are in together, as sensitive as the
/// most sensitive of them.
pub(crate) fn most(
    model: &ModelSpec,
    decisions: &Decisions,
    share: f64,
    may: impl Fn(&Block<Spec>, &Spec) -> bool,
) -> BTreeSet<String> {
    let none = BTreeMap::new();
    let values = decisions.found.get(NAME).unwrap_or(&none);
    let mut groups: BTreeMap<(usize, Fused), (f64, usize, Vec<&str>)> = BTreeMap::new();
    for (layer, block) in model.layers.iter().enumerate() {
        for matrix in block.matrices() {
            let Some(spec) = block.weight(matrix.weight).filter(|spec| may(block, spec)) else {
                continue;
            };
            let fused = match matrix.input {
                Input::All(value) => Fused::Reading(value.0),
                Input::Given { .. } => Fused::Into,
                Input::Gated { .. } => Fused::OutOf,
            };
            let group = groups.entry((layer, fused)).or_default();
            group.0 = values.get(&spec.tensor).copied().unwrap_or(0.0).max(group.0);
            group.1 += spec.shape.iter().product::<usize>();
            group.2.push(&spec.tensor);
        }
    }
    let all: usize = groups.values().map(|(_, elements, _)| elements).sum();
    let mut left = (all as f64 * share) as usize;
    let mut groups: Vec<_> = groups.into_values().collect();
    // Stable, so that ties go to the earlier layer.
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut most = BTreeSet::new();
    for (_, elements, names) in groups {
        match left.checked_sub(elements) {
            Some(rest) => left = rest,
            None => break,
        }
        most.extend(names.into_iter().map(str::to_string));
    }
    most
}
