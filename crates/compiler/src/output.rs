//! The artifact's tensors and configuration: compressed-tensors `pack-quantized`.

use crate::CompileError;
use crate::pass::Refusal;
use crate::plan::{Choice, Plan, PlannedWeight};
use checkpoint::{Planned, pack_quantized};
use ir::{BlockId, Grid};
use serde_json::{Map, Value, json};

/// The name of an untied head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The tensors that the planned weights become, in order.
pub(crate) fn tensors<'a>(
    weights: impl Iterator<Item = &'a PlannedWeight>,
    refusals: &mut Vec<Refusal>,
) -> Vec<Planned> {
    let mut tensors = Vec::new();
    for weight in weights {
        match weight.choice {
            Choice::Shared => {}
            Choice::Dense(dtype) => {
                let shape = weight.spec.shape.clone();
                tensors.push(Planned { name: weight.name.clone(), dtype, shape });
            }
            Choice::Quantized { grid, .. } => match layout(weight, grid) {
                Ok(all) => tensors.extend(all),
                Err(rule) => refusals.push(Refusal { what: grid.to_string(), rule }),
            },
        }
    }
    tensors
}

fn layout(weight: &PlannedWeight, grid: Grid) -> Result<Vec<Planned>, String> {
    let shape: [usize; 2] = weight.spec.shape[..].try_into().map_err(|_| "is for matrices")?;
    pack_quantized::writable(grid.int().map_or(0, |grid| grid.bits)).map_err(|e| e.to_string())?;
    pack_quantized::layout(&weight.name, shape, grid).map_err(|e| e.to_string())
}

/// Whether a tensor may be the weight of a linear.
fn is_linear(tensor: &Planned) -> bool {
    tensor.shape.len() == 2 && tensor.name.ends_with(".weight")
}

/// The artifact's `config.json`.
pub(crate) fn config(
    source: &Map<String, Value>,
    plan: &Plan,
    dtype: Option<&str>,
) -> Result<Value, CompileError> {
    let mut config = source.clone();
    config.shift_remove("quantization_config");
    // Readers of an absent key do not agree, and a backbone's head is tied without one.
    config.insert("tie_word_embeddings".into(), json!(plan.tied));
    if let Some(dtype) = dtype {
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.into(), json!(dtype));
    }
    let (mut packed, mut dense) = (Vec::new(), Vec::new());
    for (block, weights) in &plan.blocks {
        for weight in weights.iter().filter(|w| w.spec.shape.len() == 2) {
            match weight.grid() {
                Some(grid) => packed.push((weight.name.as_str(), grid)),
                // An embedding is no linear: nobody asks whether it is ignored.
                None if *block == BlockId::Embedding => {}
                None => dense.push(weight.name.as_str()),
            }
        }
    }
    // Readers take every linear that is not ignored for a packed one.
    dense.extend(plan.carried.iter().filter(|t| is_linear(t)).map(|t| t.name.as_str()));
    if !packed.is_empty() {
        let quantization = pack_quantized::quantization_config(&packed, &dense)?;
        config.insert("quantization_config".into(), quantization);
    }
    Ok(Value::Object(config))
}
