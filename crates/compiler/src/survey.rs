//! Surveys: what must see every block before anything is decided, such as which weights are worth more
//! bits.
//!
//! A survey looks at the original, layer by layer, on the calibration samples. What it finds is a pure
//! function of model and samples; rules are made of it before the plan ([`Decisions`]), the journal
//! and the report keep it, and a run that goes on does not look again.

use crate::pass::{Held, PassCx, PassError, Stage};
use ir::{Block, ModelSpec, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Looks at a model before anything is planned. It keeps nothing between blocks.
pub trait Survey: Send + Sync {
    /// What reports call it.
    fn name(&self) -> &'static str;

    /// Its looks at the layers, in their order; none edits. Of an expert, the weights whose inputs a stage
    /// observes are in memory.
    fn stages(&self, model: &ModelSpec) -> Vec<Stage>;

    /// What a stage finds: numbers of weights, of which the greater matter more.
    ///
    /// # Errors
    /// If a weight holds what cannot be looked at, or the device fails.
    fn see(
        &self,
        stage: &Stage,
        block: &Block<Held>,
        cx: &PassCx<'_>,
    ) -> Result<Vec<(WeightId, f64)>, PassError>;
}

/// What surveys found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decisions {
    /// By survey and tensor: the greater, the more it matters.
    pub found: BTreeMap<String, BTreeMap<String, f64>>,
    /// SHA-256 of each tensor that was looked at.
    pub source: BTreeMap<String, String>,
}

impl Decisions {
    /// Whether nothing was surveyed.
    pub fn are_none(&self) -> bool {
        self.found.is_empty()
    }
}
