//! What an output's format makes of the plan.

use crate::CompileError;
use crate::plan::{Choice, PlannedOutput, PlannedWeight};
use crate::refusal::Refusal;
use checkpoint::{Checkpoint, Described, FORMATS, Format, Layout, Placed, Planned, Stored, Use};
use ir::{BlockId, ModelSpec, Verified};

/// The name of an untied head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The format of this name; the first of all where there is none.
pub(crate) fn format(name: Option<&str>) -> Result<&'static Format, Refusal> {
    let Some(name) = name else { return Ok(&FORMATS[0]) };
    Format::named(name).ok_or_else(|| {
        let all: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        let rule = format!("{name:?} is not written; formats are {}", all.join(", "));
        Refusal { what: "format".into(), rule }
    })
}

/// The tensors that the planned weights of a block become, in order. Nothing is laid out of a block that
/// was not verified.
pub(crate) fn tensors(
    block: &Verified<'_>,
    format: &Format,
    weights: &[PlannedWeight],
    refusals: &mut Vec<Refusal>,
) -> Vec<Planned> {
    let mut tensors = Vec::new();
    for weight in weights {
        match format.parts(&placed(weight, used(block.block.id))) {
            Ok(parts) => tensors.extend(parts),
            Err(error) => {
                let what = weight.grid().map_or(weight.name.clone(), |grid| grid.to_string());
                refusals.push(Refusal { what, rule: error.to_string() });
            }
        }
    }
    tensors
}

/// Where everything of an output goes, which is made of this checkpoint and computes `model`.
pub(crate) fn layout(
    source: &Checkpoint,
    model: &ModelSpec,
    planned: &PlannedOutput,
) -> Result<Layout, CompileError> {
    let dtype = planned.dtype.asked();
    let texts = match planned.format.container.has_side_files() {
        true => None,
        false => Some(source.texts()?),
    };
    let (mut config, tied) = (source.config().clone(), planned.tied);
    config.extend(planned.config.clone());
    let model = Described {
        config: &config,
        model,
        tied,
        dtype,
        texts: texts.as_ref(),
        name: None,
        shard_bytes: planned.shard_size,
    };
    let mut weights = Vec::new();
    for (block, own) in &planned.blocks {
        weights.extend(own.iter().map(|weight| placed(weight, used(*block))));
    }
    weights.extend(planned.carried.iter().map(|tensor| Placed {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        stored: Stored::Dense(tensor.dtype),
        used: Use::Unread,
    }));
    Ok(planned.format.container.layout(planned.format, &model, &weights)?)
}

fn used(block: BlockId) -> Use {
    if block == BlockId::Embedding { Use::Embedding } else { Use::Model }
}

fn placed(weight: &PlannedWeight, used: Use) -> Placed {
    let stored = match weight.choice {
        Choice::Shared => Stored::Elsewhere,
        Choice::Dense(dtype) => Stored::Dense(dtype),
        Choice::Quantized { grid, .. } => Stored::On(grid),
    };
    Placed { name: weight.name.clone(), shape: weight.spec.shape.clone(), stored, used }
}
