//! `optimize recipe`: a recipe as TOML, every setting in it.

use crate::args::PrintRecipe;
use crate::failure::Failure;
use crate::output::print;
use crate::request::Named;
use serde_json::json;

/// The built-in recipes whose artifacts readers are proven to load.
const OFFERED: [&str; 3] = ["int4", "int8", "q4_k"];

pub(crate) fn run(args: &PrintRecipe) -> Result<(), Failure> {
    let Some(given) = &args.recipe else {
        if args.json {
            return print(&format!("{:#}", json!({ "recipes": OFFERED })));
        }
        let mut text = String::new();
        for name in OFFERED {
            let first = passes::text(name).and_then(|text| text.lines().next()).unwrap_or_default();
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
