//! `optimize recipe`: a recipe as TOML, every setting in it.

use crate::args::PrintRecipe;
use crate::failure::Failure;
use crate::output::print;
use crate::request::Named;
use serde_json::json;

/// The built-in recipes of integers, those that most want first.
const OFFERED: [&str; 7] = ["int4", "int8", "int2", "int3", "int5", "int6", "int7"];

pub(crate) fn run(args: &PrintRecipe) -> Result<(), Failure> {
    let Some(given) = &args.recipe else {
        if args.json {
            let all: Vec<&str> = OFFERED.into_iter().chain(passes::mixes()).collect();
            return print(&format!("{:#}", json!({ "recipes": all })));
        }
        let mut text = String::new();
        for name in OFFERED.into_iter().chain(passes::mixes()) {
            let whole = passes::text(name).unwrap_or_default();
            let first = whole.lines().next().unwrap_or_default();
            text += &format!("{name:<12}{}\n", first.trim_start_matches("# "));
        }
        return print(&format!("{text}\noptimize recipe int4 > my.toml begins one of your own\n"));
    };
    let named = Named::find(given)?;
    let recipe = named.resolved()?;
    if args.json {
        return print(&format!("{:#}", json!({ "name": named.name, "recipe": recipe })));
    }
    print(&format!(
        "# {}: every setting. Run it with: optimize --recipe FILE MODEL\n{}",
        named.name,
        recipe.to_toml()
    ))
}
