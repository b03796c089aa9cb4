//! Built-in recipes, and the passes that recipes name.

use compiler::{Pass, PassRecipe, Recipe, Refusal};

/// A pass by its name: what makes it from its settings.
type Make = fn(&toml::Table) -> Result<Box<dyn Pass>, Refusal>;

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

/// The built-in recipe of this name.
///
/// # Errors
/// If there is none.
pub fn builtin(name: &str) -> Result<Recipe, Refusal> {
    let found = RECIPES.iter().find(|(n, _)| *n == name);
    let Some((_, text)) = found else {
        let all: Vec<&str> = names().collect();
        let rule = format!("{name:?} is one of {}", all.join(", "));
        return Err(Refusal { what: "--quant".into(), rule });
    };
    Recipe::parse(text)
}

/// Makes a recipe's passes.
///
/// # Errors
/// Every pass that is unknown, or whose settings are.
pub fn passes(recipe: &Recipe) -> Result<Vec<Box<dyn Pass>>, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut passes = Vec::new();
    for pass in &recipe.passes {
        match make(pass) {
            Ok(pass) => passes.push(pass),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if refusals.is_empty() { Ok(passes) } else { Err(refusals) }
}

fn make(pass: &PassRecipe) -> Result<Box<dyn Pass>, Refusal> {
    let Some((_, make)) = PASSES.iter().find(|(name, _)| *name == pass.name) else {
        let all: Vec<&str> = PASSES.iter().map(|(name, _)| *name).collect();
        let rule = format!("{:?} is one of {}", pass.name, all.join(", "));
        return Err(Refusal { what: "pass".into(), rule });
    };
    make(&pass.settings)
}
