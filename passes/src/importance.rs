//! What each column of a weight's input is worth: its mean square on the calibration samples, as llama.cpp's
//! importance matrices have it.

use crate::sensitivity::looks;
use compiler::{Held, PassCx, PassError, Stage, Survey};
use ir::{Block, ModelSpec, WeightId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The columns of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// The sum of squares of each.
    pub squares: Vec<f32>,
    /// How many tokens it is of.
    pub tokens: usize,
}

/// Looks at the inputs of all linears of a model's layers. What it finds is taken once it has seen all; its clones
/// find the same.
#[derive(Clone, Debug, Default)]
pub struct Importance {
    found: Arc<Mutex<BTreeMap<String, Columns>>>,
}

impl Importance {
    /// What was found, by the tensor of the weight.
    pub fn take(&self) -> BTreeMap<String, Columns> {
        std::mem::take(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Survey for Importance {
    fn name(&self) -> &'static str {
        "importance"
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
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for what in &stage.observes {
            let id = what.weight();
            let (Some(gram), Some(tokens)) = (cx.statistics.gram(id), cx.statistics.tokens(id))
            else {
                continue;
            };
            let spec = block.weights.get(id.0 as usize).map(Held::spec);
            let spec = spec.ok_or_else(|| PassError::Internal(format!("no weight {}", id.0)))?;
            let width = spec.shape.last().copied().unwrap_or(0);
            let squares = (0..width).map(|i| gram[i * width + i]).collect();
            found.insert(spec.tensor.clone(), Columns { squares, tokens });
        }
        Ok(Vec::new())
    }
}
