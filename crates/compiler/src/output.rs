//! The artifact: its format, and what that makes of the plan.

use crate::CompileError;
use crate::drive::Job;
use crate::pass::Refusal;
use crate::plan::{Choice, PlannedWeight};
use crate::recipe::Dtype;
use checkpoint::{Described, FORMATS, Format, Layout, Placed, Planned, Role, Stored};
use ir::BlockId;
use tensor::DType;

/// The name of an untied head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The format that is written.
fn format() -> &'static Format {
    &FORMATS[0]
}

/// The tensors that the planned weights become, in order.
pub(crate) fn tensors<'a>(
    weights: impl Iterator<Item = &'a PlannedWeight>,
    refusals: &mut Vec<Refusal>,
) -> Vec<Planned> {
    let mut tensors = Vec::new();
    for weight in weights {
        match format().parts(&placed(weight, Role::Model)) {
            Ok(parts) => tensors.extend(parts),
            Err(error) => {
                let what = weight.grid().map_or(weight.name.clone(), |grid| grid.to_string());
                refusals.push(Refusal { what, rule: error.to_string() });
            }
        }
    }
    tensors
}

/// Where everything of the artifact goes.
pub(crate) fn layout(job: &Job<'_>) -> Result<Layout, CompileError> {
    let dtype = match job.recipe.dtype {
        Dtype::AsSource => None,
        Dtype::Bf16 => Some(DType::BF16),
    };
    let model = Described { config: job.checkpoint.config(), tied: job.plan.tied, dtype };
    let mut weights = Vec::new();
    for (block, planned) in &job.plan.blocks {
        let role = if *block == BlockId::Embedding { Role::Embedding } else { Role::Model };
        weights.extend(planned.iter().map(|weight| placed(weight, role)));
    }
    weights.extend(job.plan.carried.iter().map(|tensor| Placed {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        stored: Stored::Dense(tensor.dtype),
        role: Role::Unread,
    }));
    Ok(format().container.layout(format(), &model, &weights)?)
}

fn placed(weight: &PlannedWeight, role: Role) -> Placed {
    let stored = match weight.choice {
        Choice::Shared => Stored::Elsewhere,
        Choice::Dense(dtype) => Stored::Dense(dtype),
        Choice::Quantized { grid, .. } => Stored::On(grid),
    };
    Placed { name: weight.name.clone(), shape: weight.spec.shape.clone(), stored, role }
}
