//! Built-in recipes, and the passes that recipes name.

use crate::mix::{MIXES, Mix};
use crate::pattern::Pattern;
use crate::rule::Rule;
use crate::sensitivity::Sensitivity;
use compiler::{
    Decisions, Output, OutputRecipe, Pass, PassRecipe, Pipeline, Recipe, Refusal, Survey, Wrong,
};
use ir::ModelSpec;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A pass, and every setting of it.
type Made = (Box<dyn Pass>, toml::Table);

/// A pass by its name: what makes it from its settings.
type Make = fn(&toml::Table) -> Result<Made, Wrong>;

const PASSES: &[(&str, Make)] = &[("awq", crate::awq::make)];

const RECIPES: &[(&str, &str)] = &[
    ("int2", include_str!("../recipes/int2.toml")),
    ("int3", include_str!("../recipes/int3.toml")),
    ("int4", include_str!("../recipes/int4.toml")),
    ("int5", include_str!("../recipes/int5.toml")),
    ("int6", include_str!("../recipes/int6.toml")),
    ("int7", include_str!("../recipes/int7.toml")),
    ("int8", include_str!("../recipes/int8.toml")),
];

/// The recipe of a mix of GGUF, but for its name.
const MIXED: &str = include_str!("../recipes/gguf.toml");

/// The names of the built-in recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|(name, _)| *name).chain(mixes())
}

/// The names of the mixes of GGUF, as llama-quantize has them.
pub fn mixes() -> impl Iterator<Item = &'static str> {
    MIXES.iter().map(|mix| mix.name)
}

/// The name of the built-in recipe that a person means by `word`.
///
/// # Errors
/// If there is none: what the word stands for elsewhere, and what is nearest here.
pub fn meant(word: &str) -> Result<&'static str, Refusal> {
    let lower = word.to_ascii_lowercase();
    if let Some(mix) = Mix::named(lower.trim()) {
        return Ok(mix.name);
    }
    let bare = lower.trim().replace('-', "");
    let of_bits = |bits: &str| [format!("int{bits}"), format!("w{bits}a16"), bits.to_string()];
    for (name, _) in RECIPES {
        // Whatever width integers are asked for in.
        if name.strip_prefix("int").is_some_and(|bits| of_bits(bits).contains(&bare)) {
            return Ok(name);
        }
    }
    match bare.as_str() {
        "w4" | "4bit" | "i4" | "uint4" => Ok("int4"),
        "w8" | "8bit" | "i8" | "uint8" => Ok("int8"),
        _ => Err(Refusal { what: "--quant".into(), rule: elsewhere(word, &lower) }),
    }
}

/// What a name that is not built in stands for.
fn elsewhere(word: &str, lower: &str) -> String {
    let has = |part: &str| lower.contains(part);
    let gguf =
        ["q1", "q2", "q3", "q4", "q5", "q6", "q8", "iq", "tq"].iter().any(|q| lower.starts_with(q));
    let near = if has("8") && !has("w4") { "int8" } else { "int4" };
    let what = match () {
        () if gguf || has("gguf") => {
            let all: Vec<&str> = mixes().collect();
            format!("is no mix of GGUF that is written; those are {}", all.join(", "))
        }
        () if has("gptq") || has("rtn") => {
            let method = if has("rtn") { "rtn" } else { "gptq" };
            format!("is how codes are chosen: --quant int4 --method {method}")
        }
        () if has("awq") => {
            "is a pass that scales weights: a recipe with [[pass]] and name = \"awq\"".into()
        }
        () if has("nf4") || has("bnb") || has("bitsandbytes") => {
            "is of bitsandbytes, and not written yet".into()
        }
        () if has("fp8") || has("e4m3") || has("e5m2") => {
            "stands for 8-bit floats, which are not written yet".into()
        }
        () if has("fp4") => "stands for 4-bit floats, which are not written yet".into(),
        () if has("a8") || has("a4") || has("smooth") => {
            "quantizes activations too, which is not written yet".into()
        }
        () if has("bf16") || has("fp16") || has("f16") || has("f32") => {
            "is no grid; --dtype bf16 stores what is not quantized as bf16".into()
        }
        () => "is not known".into(),
    };
    format!("{word:?} {what}; write int4 or int8 ({near} is nearest)")
}

/// The built-in recipe of this name.
///
/// # Errors
/// If there is none.
pub fn builtin(name: &str) -> Result<Recipe, Refusal> {
    let name = if text(name).is_some() { name } else { meant(name)? };
    match text(name) {
        Some(text) => Recipe::parse(&text),
        None => Err(Refusal { what: name.into(), rule: "is absent".into() }),
    }
}

/// The TOML of a built-in recipe.
pub fn text(name: &str) -> Option<Cow<'static, str>> {
    let own = RECIPES.iter().find(|(n, _)| *n == name).map(|(_, text)| Cow::Borrowed(*text));
    let mixed = || MIXES.iter().find(|mix| mix.name == name);
    own.or_else(|| mixed().map(|mix| MIXED.replace("MIX", mix.name).into()))
}

/// What a recipe comes to: its surveys, its passes, and its outputs with their rules.
///
/// # Errors
/// Every pass or rule that is unknown, or whose settings are.
pub fn pipeline(recipe: &Recipe) -> Result<Pipeline, Vec<Wrong>> {
    Ok(of_parts(recipe, Parts::of(recipe)?))
}

/// The same, with rules made of what its surveys found in a model.
///
/// # Errors
/// As [`pipeline`].
pub fn decided(
    recipe: &Recipe,
    model: &ModelSpec,
    decisions: &Decisions,
) -> Result<Pipeline, Vec<Wrong>> {
    let mut parts = Parts::of(recipe)?;
    parts.rules.iter_mut().flatten().for_each(|rule| rule.decide(model, decisions));
    Ok(of_parts(recipe, parts))
}

fn of_parts(recipe: &Recipe, Parts { passes, rules }: Parts) -> Pipeline {
    let surveyed = rules.iter().flatten().any(Rule::waits);
    let surveys: &[fn() -> Box<dyn Survey>] =
        if surveyed { &[|| Box::new(Sensitivity)] } else { &[] };
    let passes = passes.into_iter().map(|(pass, _)| pass).collect();
    let outputs = recipe.outputs.iter().zip(recipe.output_names()).zip(rules);
    let output = |((output, name), rules): ((&OutputRecipe, String), Vec<Rule>)| Output {
        name,
        format: output.format.clone(),
        dtype: output.dtype,
        head: output.head,
        shard_size: output.shard_size,
        rules: rules.into_iter().map(|rule| Box::new(rule) as Box<dyn compiler::Rule>).collect(),
    };
    let surveys = surveys.iter().map(|make| make()).collect();
    Pipeline {
        surveys,
        passes,
        outputs: outputs.map(output).collect(),
        stored: BTreeMap::new(),
        importance: BTreeMap::new(),
    }
}

/// The recipe with every setting of every pass and rule, those included that it leaves to their
/// defaults: the record of what runs.
///
/// # Errors
/// As [`pipeline`].
pub fn resolved(recipe: &Recipe) -> Result<Recipe, Vec<Wrong>> {
    let Parts { passes, rules } = Parts::of(recipe)?;
    let passes = recipe.passes.iter().zip(passes).map(|(pass, (_, settings))| {
        let name = pass.name.clone();
        PassRecipe { name, settings }
    });
    let outputs = recipe.outputs.iter().zip(rules).map(|(output, rules)| {
        let rules = rules.iter().map(Rule::whole).collect();
        OutputRecipe { rules, ..output.clone() }
    });
    Ok(Recipe { passes: passes.collect(), outputs: outputs.collect(), ..recipe.clone() })
}

/// What a recipe's tables say.
struct Parts {
    passes: Vec<Made>,
    /// Of each output.
    rules: Vec<Vec<Rule>>,
}

impl Parts {
    fn of(recipe: &Recipe) -> Result<Self, Vec<Wrong>> {
        let mut wrongs = Vec::new();
        let mut parts = Self { passes: Vec::new(), rules: Vec::new() };
        for (number, pass) in recipe.passes.iter().enumerate() {
            match make(pass) {
                Ok(pass) => parts.passes.push(pass),
                Err(wrong) => wrongs.push(wrong.within(["pass".into(), number.to_string()])),
            }
        }
        for (output, recipe) in recipe.outputs.iter().enumerate() {
            let mut rules = Vec::new();
            for (number, table) in recipe.rules.iter().enumerate() {
                let at = ["output".into(), output.to_string(), "rule".into(), number.to_string()];
                match Rule::new(table) {
                    Ok(rule) => rules.push(rule),
                    Err(wrong) => wrongs.push(wrong.within(at)),
                }
            }
            parts.rules.push(rules);
        }
        if wrongs.is_empty() { Ok(parts) } else { Err(wrongs) }
    }
}

fn make(pass: &PassRecipe) -> Result<Made, Wrong> {
    let Some((_, make)) = PASSES.iter().find(|(name, _)| *name == pass.name) else {
        let all: Vec<&str> = PASSES.iter().map(|(name, _)| *name).collect();
        let rule = format!(
            "{:?} is no pass; they are {} (gptq and rtn are solvers of a rule)",
            pass.name,
            all.join(", ")
        );
        return Err(Wrong { at: vec!["name".into()], rule });
    };
    make(&pass.settings)
}

/// The modules of a model that hold a linear: what `ignore` may name.
pub fn modules(model: &ModelSpec) -> BTreeSet<&str> {
    let linears = model.blocks().flat_map(|block| {
        block.matrices().into_iter().filter_map(|matrix| block.weight(matrix.weight))
    });
    let name = |tensor: &'_ str| -> usize {
        tensor.strip_suffix(".weight").map_or(tensor.len(), str::len)
    };
    // A tied head has the embedding's tensor; readers call its module by its own name.
    linears.map(|spec| &spec.tensor[..name(&spec.tensor)]).chain(["lm_head"]).collect()
}

/// Each pattern of a recipe's `ignore` and `names` that names no module of a model.
pub fn unmatched<'r>(recipe: &'r Recipe, modules: &BTreeSet<&str>) -> Vec<&'r str> {
    let rules = recipe.outputs.iter().flat_map(|output| &output.rules);
    let lists = rules.flat_map(|rule| [rule.get("names"), rule.get("ignore")]).flatten();
    let patterns =
        lists.filter_map(toml::Value::as_array).flatten().filter_map(toml::Value::as_str);
    let names_none = |pattern: &&str| {
        Pattern::new(pattern).is_ok_and(|pattern| !modules.iter().any(|m| pattern.matches(m)))
    };
    patterns.filter(names_none).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_another_tool_is_understood_or_explained() {
        for (word, name) in [
            ("INT4", "int4"),
            ("Q4_K", "q4_k_m"),
            ("q8_0", "q8_0"),
            ("int3", "int3"),
            ("w6a16", "int6"),
            ("w4a16", "int4"),
            ("W8A16", "int8"),
            ("8", "int8"),
        ] {
            assert_eq!(meant(word), Ok(name));
        }
        for (word, said, near) in [
            ("q1_0", "no mix of GGUF", "int4"),
            ("iq2_xs", "no mix of GGUF", "int4"),
            ("awq", "scales", "int4"),
            ("fp8", "8-bit floats", "int8"),
            ("nvfp4", "4-bit floats", "int4"),
            ("gptq", "--method gptq", "int4"),
            ("w8a8", "activations", "int8"),
            ("colour", "not known", "int4"),
        ] {
            let rule = meant(word).unwrap_err().rule;
            assert!(rule.contains(said) && rule.contains("write int4 or int8"), "{rule}");
            assert!(rule.contains(&format!("{near} is nearest")), "{rule}");
        }
    }
}
