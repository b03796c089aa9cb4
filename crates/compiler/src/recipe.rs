//! What the user asked for, as a file: every setting that decides the artifact's bytes.

use crate::Refusal;
use serde::{Deserialize, Serialize};

/// A recipe. `--quant` names one that is built in; `--recipe` reads one from a TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// The element type of what is not quantized, and of scales.
    #[serde(default)]
    pub dtype: Dtype,
    /// The element type of the head, where no pass puts it on a grid.
    #[serde(default)]
    pub head: Dtype,
    /// What observes the model.
    #[serde(default)]
    pub calibration: Calibration,
    /// What the result must keep.
    #[serde(default)]
    pub gate: Gate,
    /// The passes, in order. A weight belongs to the first that plans a grid for it.
    #[serde(rename = "pass")]
    pub passes: Vec<PassRecipe>,
}

/// The element type of dense tensors and of scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// That of each stored tensor.
    #[default]
    AsSource,
    /// bfloat16.
    Bf16,
}

/// The calibration samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Calibration {
    /// How many.
    pub samples: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// Decides which windows of the text are drawn.
    pub seed: u64,
}

/// Limits that the result must keep on the held-out stream, or it is not published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Gate {
    /// The largest increase of perplexity, as a share: 0.02 is 2 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ppl_increase: Option<f64>,
    /// The largest mean KL divergence from the original, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_kl: Option<f64>,
}

/// A pass and its settings, which the pass itself reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassRecipe {
    /// Which pass.
    pub name: String,
    /// Its settings.
    #[serde(flatten)]
    pub settings: toml::Table,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { samples: 128, seq_len: 512, seed: 0 }
    }
}

impl Recipe {
    /// Reads a recipe from TOML.
    ///
    /// # Errors
    /// If it is not TOML, has an unknown key, or a value out of bounds.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let refusal = |rule: String| Refusal { what: "recipe".into(), rule };
        let recipe: Self = toml::from_str(text).map_err(|e| refusal(e.message().to_string()))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Holds the settings to their bounds.
    ///
    /// # Errors
    /// The first that is out of bounds.
    pub fn check(&self) -> Result<(), Refusal> {
        self.bounds().map_err(|rule| Refusal { what: "recipe".into(), rule })
    }

    fn bounds(&self) -> Result<(), String> {
        let Calibration { samples, seq_len, .. } = self.calibration;
        if samples == 0 || seq_len < 2 || samples.checked_mul(seq_len).is_none_or(|n| n > 1 << 28) {
            return Err(format!(
                "calibration of {samples} samples of {seq_len} tokens; it takes at least 1 of 2, \
                 and at most 2^28 tokens together"
            ));
        }
        for (name, limit) in
            [("max-ppl-increase", self.gate.max_ppl_increase), ("max-kl", self.gate.max_kl)]
        {
            if limit.is_some_and(|l| !l.is_finite() || l < 0.0) {
                return Err(format!("{name} is a number of at least 0"));
            }
        }
        if self.passes.is_empty() {
            return Err("has no pass: [[pass]] with a name".into());
        }
        Ok(())
    }
}
