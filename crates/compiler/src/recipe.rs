//! What the user asked for, as a file: every setting that decides the artifact's bytes.

use crate::Refusal;
use crate::setting::{Key, Wrong, check_keys, integer, line_at, one_of};
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
    /// If it is not TOML, has an unknown key, or a value out of bounds: which, and on what line.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_at(text, span.start));
            let what = line.map_or("recipe".into(), |line| format!("line {line}"));
            Refusal { what, rule: format!("is not TOML: {}", error.message()) }
        })?;
        let recipe = Self::of(table).map_err(|wrong| wrong.in_text(text))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// A recipe from what its file holds.
    fn of(mut table: toml::Table) -> Result<Self, Wrong> {
        check_keys(&table, KEYS)?;
        for (name, keys) in [("calibration", CALIBRATION), ("gate", GATE)] {
            if let Some(toml::Value::Table(inner)) = table.get_mut(name) {
                check_keys(inner, keys).map_err(|wrong| wrong.within([name.to_string()]))?;
                for (key, value) in inner.iter_mut() {
                    if let (GATE_SHARE, Some(Ok(share))) = (key.as_str(), value.as_str().map(share))
                    {
                        *value = toml::Value::Float(share);
                    }
                }
            }
        }
        let nameless = Wrong { at: vec!["pass".into()], rule: "is [[pass]] with a name".into() };
        let passes = table.get("pass").and_then(toml::Value::as_array).ok_or(nameless)?;
        for (number, pass) in passes.iter().enumerate() {
            if !pass.get("name").is_some_and(toml::Value::is_str) {
                let at = ["pass".to_string(), number.to_string()];
                let rule = "has no name = \"gptq\", \"rtn\" or \"head\"".into();
                return Err(Wrong { at: at.into(), rule });
            }
        }
        // What the head is stored as is a dtype, or a pass that puts it on a grid.
        let bits = match table.get("head").and_then(toml::Value::as_str) {
            Some("int8") => Some(8),
            Some("int4") => Some(4),
            _ => None,
        };
        if bits.is_some() {
            table.remove("head");
        }
        let odd = |error: toml::de::Error| Wrong { at: Vec::new(), rule: error.message().into() };
        let mut recipe: Self = table.try_into().map_err(odd)?;
        recipe.passes.extend(bits.map(PassRecipe::head));
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
            [(GATE_SHARE, self.gate.max_ppl_increase), ("max-kl", self.gate.max_kl)]
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

    /// The recipe as TOML, which [`Recipe::parse`] reads.
    pub fn to_toml(&self) -> String {
        // Keys are strings and there are no nulls, so there is nothing to fail.
        toml::to_string(self).unwrap_or_default()
    }
}

impl PassRecipe {
    /// The pass that puts the head on a grid.
    pub fn head(bits: i64) -> Self {
        let settings = toml::Table::from_iter([("bits".to_string(), toml::Value::Integer(bits))]);
        Self { name: "head".into(), settings }
    }
}

const GATE_SHARE: &str = "max-ppl-increase";

const KEYS: &[Key] = &[
    Key::new("dtype", |v| one_of(v, &["as-source", "bf16"])),
    Key::new("head", |v| one_of(v, &["as-source", "bf16", "int8", "int4"])),
    Key::new("calibration", |v| is_table(v, "calibration")),
    Key::new("gate", |v| is_table(v, "gate")),
    Key::new("pass", |v| match v {
        toml::Value::Array(all) if all.iter().all(toml::Value::is_table) => Ok(()),
        _ => Err("is a list of tables, each with two brackets: [[pass]]".into()),
    }),
];

const CALIBRATION: &[Key] = &[
    Key::new("samples", |v| integer(v, 1, 1 << 28)),
    Key::new("seq-len", |v| integer(v, 2, 1 << 28)),
    Key::new("seed", |v| integer(v, 0, i64::MAX)),
];

const GATE: &[Key] = &[
    Key::new(GATE_SHARE, |v| match v {
        toml::Value::String(text) => share(text).map(drop),
        number => {
            let n = at_least_0(number).map_err(|_| SHARE.to_string())?;
            if n < 1.0 { Ok(()) } else { share(&n.to_string()).map(drop) }
        }
    }),
    Key::new("max-kl", |v| at_least_0(v).map(drop)),
];

fn is_table(value: &toml::Value, name: &str) -> Result<(), String> {
    match value.is_table() {
        true => Ok(()),
        false => Err(format!("is a table: [{name}], and its keys below")),
    }
}

fn at_least_0(value: &toml::Value) -> Result<f64, String> {
    let n = value.as_float().or(value.as_integer().map(|n| n as f64));
    n.filter(|n| n.is_finite() && *n >= 0.0).ok_or("is a number of at least 0".into())
}

const SHARE: &str = "is a number of at least 0, such as 0.02, or \"2%\"";

/// `2%` or `0.02` as a share. A number of 1 and more without a `%` was meant as one.
///
/// # Errors
/// What a share is.
pub fn share(text: &str) -> Result<f64, String> {
    let (digits, unit) = text.strip_suffix('%').map_or((text, 1.0), |digits| (digits, 0.01));
    match digits.trim().parse::<f64>() {
        Ok(n) if n >= 1.0 && unit == 1.0 => {
            Err(format!("{text} is {} %; write {text}% or a share below 1", n * 100.0))
        }
        Ok(n) if n.is_finite() && n >= 0.0 => Ok(n * unit),
        _ => Err(SHARE.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        Recipe::parse(text).unwrap_err().to_string()
    }

    const PASS: &str = "[[pass]]\nname = \"gptq\"\nbits = 4\n";

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_key() {
        for (before, said) in [
            ("dtype = \"f64\"\n", "line 1, dtype: \"f64\" is not \"as-source\" or \"bf16\""),
            ("\n\ncolour = 1\n", "line 3, colour: is unknown"),
            (
                "[calibration]\nsamples = \"many\"\n",
                "line 2, calibration, samples: is a whole number",
            ),
            ("[calibration]\nsamples = 0\n", "line 2, calibration, samples: 0 is not 1 to"),
            ("gate = 3\n", "line 1, gate: is a table: [gate]"),
            ("[gate]\nmax-ppl-increase = 2\n", "line 2, gate, max-ppl-increase: 2 is 200 %"),
            ("[gate]\nmax-ppl-increase = \"x\"\n", "line 2, gate, max-ppl-increase: is a number"),
            ("head = int8\n", "line 1: is not TOML"),
        ] {
            let found = wrong(&format!("{before}{PASS}"));
            assert!(found.starts_with(said), "{found}");
        }
        assert!(wrong("[pass]\nname = \"gptq\"\n").contains("two brackets"));
        assert!(wrong("[[pass]]\nbits = 4\n").starts_with("line 1, pass 1: has no name"));
        assert!(wrong("").contains("[[pass]]"));
    }

    #[test]
    fn what_options_can_say_a_recipe_can_say_too() {
        let text = format!("head = \"int8\"\n[gate]\nmax-ppl-increase = \"2%\"\n{PASS}");
        let recipe = Recipe::parse(&text).unwrap();
        assert_eq!(recipe.gate.max_ppl_increase, Some(0.02));
        assert_eq!(recipe.passes[1], PassRecipe::head(8));
        assert_eq!(Recipe::parse(&recipe.to_toml()), Ok(recipe));
    }
}
