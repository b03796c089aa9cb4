//! What the user asked for, as a file: every setting that decides the artifact's bytes.

use crate::refusal::Refusal;
use crate::setting::{Key, Wrong, check_keys, integer, line_at, one_of};
use crate::spelling::modern;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tensor::DType;

/// A recipe. `--quant` names one that is built in; `--recipe` reads one from a TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "toml::Table", rename_all = "kebab-case")]
pub struct Recipe {
    /// SHA-256 of the file that says what columns are worth, where one does in place of the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<String>,
    /// What observes the model.
    pub calibration: Calibration,
    /// What the result must keep.
    pub gate: Gate,
    /// What rewrites the model before it is quantized, in order.
    #[serde(rename = "pass", skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<PassRecipe>,
    /// What is written, from one set of statistics. The first leads: the samples go on through what
    /// it stores.
    #[serde(rename = "output")]
    pub outputs: Vec<OutputRecipe>,
}

/// What a recipe's table holds, in today's spelling.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Fields {
    #[serde(default)]
    imatrix: Option<String>,
    #[serde(default)]
    calibration: Calibration,
    #[serde(default)]
    gate: Gate,
    #[serde(default)]
    pass: Vec<PassRecipe>,
    #[serde(default)]
    output: Vec<OutputRecipe>,
}

/// An artifact that is to be written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OutputRecipe {
    /// What its folder is called, where there are several; its number if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How it lies in files; `pack-quantized` if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The element type of what is not quantized, and of scales.
    #[serde(default)]
    pub dtype: Dtype,
    /// The element type of the head, where no rule puts it on a grid.
    #[serde(default)]
    pub head: Dtype,
    /// The most bytes of data of a file, where there are to be several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_size: Option<u64>,
    /// Which weights go on which grid, and how: the first that is about a weight decides it.
    #[serde(default, rename = "rule")]
    pub rules: Vec<toml::Table>,
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
    /// float16.
    F16,
    /// float32.
    F32,
}

impl Dtype {
    /// The element type of what is stored as `stored` in the source.
    pub fn of(self, stored: DType) -> DType {
        self.asked().unwrap_or(stored)
    }

    /// The element type that is asked for, if one is.
    pub fn asked(self) -> Option<DType> {
        match self {
            Self::AsSource => None,
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
            Self::F32 => Some(DType::F32),
        }
    }
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
    fn of(table: toml::Table) -> Result<Self, Wrong> {
        let mut table = modern(table);
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
        let passes = table.get("pass").and_then(toml::Value::as_array);
        for (number, pass) in passes.into_iter().flatten().enumerate() {
            if !pass.get("name").is_some_and(toml::Value::is_str) {
                let at = ["pass".to_string(), number.to_string()];
                return Err(Wrong { at: at.into(), rule: "has no name, such as \"awq\"".into() });
            }
        }
        let outputs = table.get_mut("output").and_then(toml::Value::as_array_mut);
        for (number, output) in outputs.into_iter().flatten().enumerate() {
            let within = |wrong: Wrong| wrong.within(["output".into(), number.to_string()]);
            if let toml::Value::Table(output) = output {
                check_keys(output, OUTPUT).map_err(within)?;
                short_head(output);
            }
        }
        Self::try_from(table).map_err(|rule| Wrong { at: Vec::new(), rule })
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
        let nothing = |output: &OutputRecipe| {
            let as_source = output.dtype == Dtype::AsSource && output.format.is_none();
            output.rules.is_empty() && as_source
        };
        if self.passes.is_empty() && self.outputs.iter().all(nothing) {
            let rule =
                "has nothing to do: [[output]] with an [[output.rule]], or [[pass]] with a name";
            return Err(rule.into());
        }
        if self.outputs.is_empty() {
            return Err("has no output: [[output]], or none of that key".into());
        }
        let mut names = BTreeSet::new();
        for name in self.output_names() {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let taken = name == "report.json";
            if name.is_empty() || taken || name.starts_with('.') || !name.chars().all(plain) {
                return Err(format!("the name {name:?} of an output is no name of a folder"));
            }
            if !names.insert(name.clone()) {
                return Err(format!("two outputs are named {name:?}"));
            }
        }
        Ok(())
    }

    /// What the folders of the outputs are called, where there are several.
    pub fn output_names(&self) -> impl Iterator<Item = String> + '_ {
        let name = |(number, output): (usize, &OutputRecipe)| {
            output.name.clone().unwrap_or_else(|| (number + 1).to_string())
        };
        self.outputs.iter().enumerate().map(name)
    }

    /// The recipe as TOML, which [`Recipe::parse`] reads.
    pub fn to_toml(&self) -> String {
        // Keys are strings and there are no nulls, so there is nothing to fail.
        toml::to_string(self).unwrap_or_default()
    }
}

impl TryFrom<toml::Table> for Recipe {
    type Error = String;

    /// A recipe, in today's spelling or in that before it.
    fn try_from(table: toml::Table) -> Result<Self, String> {
        let fields: Fields = modern(table).try_into().map_err(|e: toml::de::Error| {
            // The place is of a table that has no text.
            e.message().to_string()
        })?;
        let Fields { imatrix, calibration, gate, pass: passes, output: outputs } = fields;
        Ok(Self { calibration, imatrix, gate, passes, outputs })
    }
}

/// A head of so many bits is a rule, written short.
fn short_head(output: &mut toml::Table) {
    let bits = match output.get("head").and_then(toml::Value::as_str) {
        Some("int8") => 8,
        Some("int4") => 4,
        _ => return,
    };
    output.remove("head");
    let rules = output.entry("rule").or_insert(toml::Value::Array(Vec::new()));
    if let toml::Value::Array(rules) = rules {
        rules.push(toml::Value::Table(head_rule(bits)));
    }
}

/// The rule that puts the head on a grid of so many bits, to the nearest code.
pub fn head_rule(bits: i64) -> toml::Table {
    let of = toml::Value::Array(vec!["head".into()]);
    let pairs = [("of", of), ("bits", bits.into()), ("solver", "rtn".into())];
    pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

const GATE_SHARE: &str = "max-ppl-increase";

const KEYS: &[Key] = &[
    Key::new("calibration", |v| is_table(v, "calibration")),
    Key::new("gate", |v| is_table(v, "gate")),
    Key::new("imatrix", |v| v.as_str().map(drop).ok_or("is a SHA-256, in quotes".into())),
    Key::new("pass", |v| are_tables(v, "[[pass]]")),
    Key::new("output", |v| are_tables(v, "[[output]]")),
];

const OUTPUT: &[Key] = &[
    Key::new("name", |v| v.as_str().map(drop).ok_or("is the name of a folder, in quotes".into())),
    Key::new("format", |v| v.as_str().map(drop).ok_or("is a format, in quotes".into())),
    Key::new("dtype", |v| one_of(v, &["as-source", "bf16", "f16", "f32"])),
    Key::new("head", |v| one_of(v, &["as-source", "bf16", "f16", "f32", "int8", "int4"])),
    Key::new("shard-size", |v| integer(v, 1, i64::MAX)),
    Key::new("rule", |v| are_tables(v, "[[output.rule]]")),
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

fn are_tables(value: &toml::Value, spelled: &str) -> Result<(), String> {
    match value {
        toml::Value::Array(all) if all.iter().all(toml::Value::is_table) => Ok(()),
        _ => Err(format!("is a list of tables, each with two brackets: {spelled}")),
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

    const RULE: &str = "[[output.rule]]\nbits = 4\n";

    const PASS: &str = "[[pass]]\nname = \"gptq\"\nbits = 4\n";

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_key() {
        for (before, said) in [
            ("dtype = \"f64\"\n", "line 1, dtype: \"f64\" is not \"as-source\", \"bf16\""),
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
        assert!(wrong("[[output]]\ndtype = 4\n").starts_with("line 2, output 1, dtype: is"));
        assert!(wrong("").contains("[[output.rule]]"));
        assert!(wrong("output = []\n[[pass]]\nname = \"awq\"\n").contains("has no output"));
        let named = |name: &str| wrong(&format!("[[output]]\nname = \"{name}\"\n{RULE}"));
        for name in ["", "..", "a/b", "report.json"] {
            assert!(named(name).contains("is no name of a folder"), "{name}");
        }
        let twice = format!("[[output]]\nname = \"2\"\n{RULE}[[output]]\n{RULE}");
        assert!(wrong(&twice).contains("two outputs are named \"2\""));
    }

    #[test]
    fn what_options_can_say_a_recipe_can_say_too() {
        let text = format!("head = \"int8\"\n[gate]\nmax-ppl-increase = \"2%\"\n{PASS}");
        let recipe = Recipe::parse(&text).unwrap();
        assert_eq!(recipe.gate.max_ppl_increase, Some(0.02));
        assert_eq!(recipe.outputs[0].rules[1], head_rule(8));
        assert_eq!(Recipe::parse(&recipe.to_toml()), Ok(recipe));
    }
}
