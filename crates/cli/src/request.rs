//! From options to a recipe: a built-in one or a file's, and what the options change in it.

use crate::args::{Compile, HeadGrid, Method, StoreDtype, Switch};
use crate::eval::read;
use crate::failure::Failure;
use compiler::{Dtype, PassRecipe, Recipe};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What was asked for.
pub(crate) struct Request {
    pub(crate) recipe: Recipe,
    /// What the output is named after.
    pub(crate) name: String,
}

impl Request {
    pub(crate) fn of(args: &Compile) -> Result<Self, Failure> {
        let (mut recipe, name) = match (&args.quant, &args.recipe) {
            (Some(name), _) => {
                let name = passes::meant(name)?;
                (passes::builtin(name)?, name.to_string())
            }
            (None, Some(file)) => {
                let recipe = Recipe::parse(&read(file)?);
                let recipe = recipe.map_err(|e| Failure::refused(format!("{file:?}: {e}")))?;
                let stem = file.file_stem().unwrap_or_default();
                (recipe, stem.to_string_lossy().into_owned())
            }
            (None, None) => return Err(nothing_to_do(&args.model)),
        };
        override_passes(args, &mut recipe)?;
        let calibration = &mut recipe.calibration;
        calibration.samples = args.samples.unwrap_or(calibration.samples);
        calibration.seq_len = args.seq_len.unwrap_or(calibration.seq_len);
        calibration.seed = args.seed.unwrap_or(calibration.seed);
        recipe.gate.max_ppl_increase = args.max_ppl_increase.or(recipe.gate.max_ppl_increase);
        recipe.gate.max_kl = args.max_kl.or(recipe.gate.max_kl);
        if let Some(StoreDtype::Bf16) = args.dtype {
            recipe.dtype = Dtype::Bf16;
        }
        recipe.check()?;
        Ok(Self { recipe, name })
    }

    /// Where the artifact goes.
    pub(crate) fn output(&self, args: &Compile) -> Result<PathBuf, Failure> {
        if let Some(path) = &args.output {
            return Ok(path.clone());
        }
        let given = Path::new(&args.model);
        // `.` and `..` have a name only once resolved.
        let resolved = given.canonicalize().unwrap_or_else(|_| given.to_path_buf());
        let last = given.file_name().or(resolved.file_name());
        let last = last.ok_or_else(|| {
            Failure::refused("the model's path has no last name")
                .with_hint("name the output: -o DIR")
        })?;
        Ok(PathBuf::from(format!("{}-{}", last.to_string_lossy(), self.name)))
    }
}

/// Changes the settings of the passes that quantize layers, and adds or removes `head`.
fn override_passes(args: &Compile, recipe: &mut Recipe) -> Result<(), Failure> {
    let mut changed = Table::new();
    if let Some(group) = &args.group_size {
        let value = group.parse().map_or(Value::String(group.clone()), Value::Integer);
        changed.insert("group".into(), value);
    }
    if args.sym || args.asym {
        changed.insert("symmetric".into(), Value::Boolean(!args.asym));
    }
    if let Some(order) = args.act_order {
        changed.insert("act-order".into(), Value::Boolean(order == Switch::On));
    }
    let layers = |p: &&mut PassRecipe| matches!(p.name.as_str(), "gptq" | "rtn");
    for pass in recipe.passes.iter_mut().filter(layers) {
        match args.method {
            Some(Method::Gptq) => pass.name = "gptq".into(),
            Some(Method::Rtn) => pass.name = "rtn".into(),
            None => {}
        }
        pass.settings.extend(changed.clone());
        if !args.ignore.is_empty() {
            let list = pass.settings.entry("ignore").or_insert(Value::Array(Vec::new()));
            let list = list.as_array_mut().ok_or_else(|| {
                Failure::refused(format!("recipe: ignore of pass {} is no list", pass.name))
            })?;
            list.extend(args.ignore.iter().cloned().map(Value::String));
        }
    }
    let bits = match args.head {
        None => return Ok(()),
        Some(HeadGrid::AsSource | HeadGrid::Bf16) => None,
        Some(HeadGrid::Int8) => Some(8),
        Some(HeadGrid::Int4) => Some(4),
    };
    recipe.passes.retain(|p| p.name != "head");
    recipe.head = if args.head == Some(HeadGrid::Bf16) { Dtype::Bf16 } else { recipe.head };
    recipe.passes.extend(bits.map(|bits| PassRecipe {
        name: "head".into(),
        settings: Table::from_iter([("bits".to_string(), Value::Integer(bits))]),
    }));
    Ok(())
}

/// `optimize MODEL` alone: says what could be done with it.
fn nothing_to_do(model: &str) -> Failure {
    let commands = ["--quant int4", "inspect", "eval"].map(|c| format!("  optimize {c} {model}"));
    Failure::refused(format!("nothing to do with {model:?}"))
        .with_hint(format!("what can be done with a model:\n{}", commands.join("\n")))
}
