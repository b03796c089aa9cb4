//! Built-in recipes, and the passes that recipes name.

use crate::pattern::Pattern;
use crate::quantize::Made;
use compiler::{Pass, PassRecipe, Recipe, Refusal, Wrong};
use ir::{ModelSpec, Op};
use std::collections::BTreeSet;

/// A pass by its name: what makes it from its settings.
type Make = fn(&toml::Table) -> Result<Made, Wrong>;

const PASSES: &[(&str, Make)] = &[
    ("rtn", crate::quantize::rtn),
    ("gptq", crate::quantize::gptq),
    ("head", crate::quantize::head),
];

const RECIPES: &[(&str, &str)] = &[
    ("int2", include_str!("../recipes/int2.toml")),
    ("int3", include_str!("../recipes/int3.toml")),
    ("int4", include_str!("../recipes/int4.toml")),
    ("int5", include_str!("../recipes/int5.toml")),
    ("int6", include_str!("../recipes/int6.toml")),
    ("int7", include_str!("../recipes/int7.toml")),
    ("int8", include_str!("../recipes/int8.toml")),
];

/// The names of the built-in recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|(name, _)| *name)
}

/// The name of the built-in recipe that a person means by `word`.
///
/// # Errors
/// If there is none: what the word stands for elsewhere, and what is nearest here.
pub fn meant(word: &str) -> Result<&'static str, Refusal> {
    let lower = word.to_ascii_lowercase();
    match lower.trim().replace('-', "").as_str() {
        "int4" | "w4a16" | "w4" | "4" | "4bit" | "i4" | "uint4" => Ok("int4"),
        "int8" | "w8a16" | "w8" | "8" | "8bit" | "i8" | "uint8" => Ok("int8"),
        _ => Err(Refusal { what: "--quant".into(), rule: elsewhere(word, &lower) }),
    }
}

/// What a name that is not built in stands for.
fn elsewhere(word: &str, lower: &str) -> String {
    let has = |part: &str| lower.contains(part);
    let gguf =
        ["q2", "q3", "q4", "q5", "q6", "q8", "iq", "tq"].iter().any(|q| lower.starts_with(q));
    let bits = ["int2", "int3", "int5", "int6", "int7"].contains(&lower)
        || ["2", "3", "5", "6", "7"].contains(&lower)
        || ["w2a", "w3a", "w5a", "w6a", "w7a"].iter().any(|w| lower.starts_with(w));
    let near = if has("8") && !has("w4") { "int8" } else { "int4" };
    let what = match () {
        () if gguf || has("gguf") => "is a type of GGUF, which is not written yet".to_string(),
        () if bits => "is not written yet: no reader of the format is proven for it".into(),
        () if has("gptq") || has("rtn") => {
            let method = if has("rtn") { "rtn" } else { "gptq" };
            format!("is how codes are chosen: --quant int4 --method {method}")
        }
        () if has("awq") => "is a way to choose scales that is not built yet".into(),
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
    let name = if RECIPES.iter().any(|(n, _)| *n == name) { name } else { meant(name)? };
    text(name)
        .map_or_else(|| Err(Refusal { what: name.into(), rule: "is absent".into() }), Recipe::parse)
}

/// The TOML of a built-in recipe.
pub fn text(name: &str) -> Option<&'static str> {
    RECIPES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Makes a recipe's passes.
///
/// # Errors
/// Every pass that is unknown, or whose settings are.
pub fn passes(recipe: &Recipe) -> Result<Vec<Box<dyn Pass>>, Vec<Wrong>> {
    Ok(made(recipe)?.into_iter().map(|(pass, _)| pass).collect())
}

/// The recipe with every setting of every pass, those included that it leaves to their defaults: the
/// record of what runs.
///
/// # Errors
/// As [`passes`].
pub fn resolved(recipe: &Recipe) -> Result<Recipe, Vec<Wrong>> {
    let made = made(recipe)?;
    let passes = recipe.passes.iter().zip(made).map(|(pass, (_, settings))| {
        let name = pass.name.clone();
        PassRecipe { name, settings }
    });
    Ok(Recipe { passes: passes.collect(), ..recipe.clone() })
}

fn made(recipe: &Recipe) -> Result<Vec<Made>, Vec<Wrong>> {
    let mut refusals = Vec::new();
    let mut passes = Vec::new();
    for (number, pass) in recipe.passes.iter().enumerate() {
        match make(pass) {
            Ok(pass) => passes.push(pass),
            Err(wrong) => refusals.push(wrong.within(["pass".into(), number.to_string()])),
        }
    }
    if refusals.is_empty() { Ok(passes) } else { Err(refusals) }
}

fn make(pass: &PassRecipe) -> Result<Made, Wrong> {
    let Some((_, make)) = PASSES.iter().find(|(name, _)| *name == pass.name) else {
        let all: Vec<&str> = PASSES.iter().map(|(name, _)| *name).collect();
        let rule = format!("{:?} is no pass; they are {}", pass.name, all.join(", "));
        return Err(Wrong { at: vec!["name".into()], rule });
    };
    make(&pass.settings)
}

/// The modules of a model that hold a linear: what `ignore` may name.
pub fn modules(model: &ModelSpec) -> BTreeSet<&str> {
    let blocks = model.blocks();
    let linears = blocks.flat_map(|block| {
        block.ops.iter().filter_map(|op| match op {
            Op::Linear { weight, .. } => block.weights.get(weight.0 as usize),
            _ => None,
        })
    });
    let name = |tensor: &'_ str| -> usize {
        tensor.strip_suffix(".weight").map_or(tensor.len(), str::len)
    };
    // A tied head has the embedding's tensor; readers call its module by its own name.
    linears.map(|spec| &spec.tensor[..name(&spec.tensor)]).chain(["lm_head"]).collect()
}

/// Each pattern of a recipe's `ignore` that names no module of a model.
pub fn unmatched<'r>(recipe: &'r Recipe, modules: &BTreeSet<&str>) -> Vec<&'r str> {
    let lists = recipe.passes.iter().filter_map(|pass| pass.settings.get("ignore"));
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
        for (word, name) in [("INT4", "int4"), ("w4a16", "int4"), ("W8A16", "int8"), ("8", "int8")]
        {
            assert_eq!(meant(word), Ok(name));
        }
        for (word, said, near) in [
            ("q4_k_m", "GGUF", "int4"),
            ("Q8_0", "GGUF", "int8"),
            ("awq", "scales", "int4"),
            ("fp8", "8-bit floats", "int8"),
            ("nvfp4", "4-bit floats", "int4"),
            ("gptq", "--method gptq", "int4"),
            ("int3", "not written yet", "int4"),
            ("w8a8", "activations", "int8"),
            ("colour", "not known", "int4"),
        ] {
            let rule = meant(word).unwrap_err().rule;
            assert!(rule.contains(said) && rule.contains("write int4 or int8"), "{rule}");
            assert!(rule.contains(&format!("{near} is nearest")), "{rule}");
        }
    }
}
