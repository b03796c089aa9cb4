//! From options to a recipe: a built-in one or a file's, and what the options change in it.

use crate::args::{Compile, HeadGrid, Method, StoreDtype, Switch};
use crate::eval::read;
use crate::failure::Failure;
use crate::words;
use compiler::{Dtype, Recipe, head_rule};
use ir::ModelSpec;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What was asked for.
pub(crate) struct Request {
    /// Every setting, those included that nobody gave.
    pub(crate) recipe: Recipe,
    /// What the output is named after.
    pub(crate) name: String,
    /// Whether the recipe is a built-in one, whose samples are meant for large models.
    pub(crate) builtin: bool,
}

/// A recipe and where it is from.
pub(crate) struct Named {
    pub(crate) recipe: Recipe,
    pub(crate) name: String,
    /// A file, and its text.
    file: Option<(String, String)>,
}

impl Named {
    /// A built-in recipe, by what a person calls it.
    pub(crate) fn builtin(name: &str) -> Result<Self, Failure> {
        let name = passes::meant(name)?;
        Ok(Self { recipe: passes::builtin(name)?, name: name.to_string(), file: None })
    }

    /// A file, an artifact's folder, or a built-in recipe.
    pub(crate) fn find(given: &str) -> Result<Self, Failure> {
        let path = Path::new(given);
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let (report, _) = compiler::read_report(path)?;
            return Ok(Self { recipe: report.recipe, name: stem(), file: None });
        }
        if !path.exists() && passes::meant(given).is_ok() {
            return Self::builtin(given);
        }
        let text = read(path).map_err(|failure| {
            let builtin = "a recipe is a TOML file, int4, int8 or q4_k, or an artifact's folder; \
                           optimize recipe int4 > my.toml makes one";
            if path.exists() { failure } else { failure.with_hint(builtin) }
        })?;
        let recipe = Recipe::parse(&text).map_err(|e| in_file(given, &e))?;
        Ok(Self { recipe, name: stem(), file: Some((given.to_string(), text)) })
    }

    /// The recipe with every setting of its passes and rules.
    pub(crate) fn resolved(&self) -> Result<Recipe, Failure> {
        passes::resolved(&self.recipe).map_err(|all| {
            let refusals = all.into_iter().map(|wrong| match &self.file {
                Some((_, text)) => wrong.in_text(text),
                None => wrong.into(),
            });
            let lines: Vec<String> = refusals.map(|refusal| refusal.to_string()).collect();
            match &self.file {
                Some((file, _)) => in_file(file, &lines.join("\n")),
                None => Failure::refused(lines.join("\n")),
            }
        })
    }
}

fn in_file(file: &str, what: &impl std::fmt::Display) -> Failure {
    let failure = Failure::refused(format!("{file:?}: {what}"));
    failure
        .with_hint("docs/RECIPES.md says what a recipe may hold; optimize recipe int4 prints one")
}

impl Request {
    pub(crate) fn of(args: &Compile) -> Result<Self, Failure> {
        let mut named = match (&args.quant, &args.recipe) {
            (Some(name), _) => Named::builtin(name)?,
            (None, Some(given)) => Named::find(given)?,
            (None, None) => return Err(nothing_to_do(&args.model)),
        };
        // What is wrong in the file is said before options change it.
        named.resolved()?;
        let recipe = &mut named.recipe;
        override_rules(args, recipe)?;
        let calibration = &mut recipe.calibration;
        calibration.samples = args.samples.unwrap_or(calibration.samples);
        calibration.seq_len = args.seq_len.unwrap_or(calibration.seq_len);
        calibration.seed = args.seed.unwrap_or(calibration.seed);
        recipe.gate.max_ppl_increase = args.max_ppl_increase.or(recipe.gate.max_ppl_increase);
        recipe.gate.max_kl = args.max_kl.or(recipe.gate.max_kl);
        if let Some(StoreDtype::Bf16) = args.dtype {
            recipe.outputs.iter_mut().for_each(|output| output.dtype = Dtype::Bf16);
        }
        recipe.check()?;
        let builtin = passes::names().any(|name| name == named.name) && named.file.is_none();
        Ok(Self { recipe: named.resolved()?, name: named.name, builtin })
    }

    /// Refuses patterns of `ignore` that name nothing: what was to stay exact would not.
    pub(crate) fn check_ignored(&self, model: &ModelSpec) -> Result<(), Failure> {
        let modules = passes::modules(model);
        let Some(pattern) = passes::unmatched(&self.recipe, &modules).first().copied() else {
            return Ok(());
        };
        let near = words::nearest(pattern, modules.iter().copied(), 2);
        let names = near.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" and ");
        Err(Failure::refused(format!("ignore: {pattern:?} matches no module of the model"))
            .with_hint(format!(
                "nearest are {names}; a `*` stands for any characters, as in \"*down_proj\", \
                 and re: begins a regular expression"
            )))
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

/// Changes the settings of the rules that are about layers, and adds or removes those of the head.
fn override_rules(args: &Compile, recipe: &mut Recipe) -> Result<(), Failure> {
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
    let method = args.method.map(|method| match method {
        Method::Gptq => "gptq",
        Method::Rtn => "rtn",
    });
    changed.extend(method.map(|method| ("solver".to_string(), method.into())));
    for output in &mut recipe.outputs {
        for rule in output.rules.iter_mut().filter(|rule| is_of(rule, "layers")) {
            rule.extend(changed.clone());
            if !args.ignore.is_empty() {
                let list = rule.entry("ignore").or_insert(Value::Array(Vec::new()));
                let list = list
                    .as_array_mut()
                    .ok_or_else(|| Failure::refused("recipe: ignore of a rule is no list"))?;
                list.extend(args.ignore.iter().cloned().map(Value::String));
            }
        }
        let bits = match args.head {
            None => continue,
            Some(HeadGrid::AsSource | HeadGrid::Bf16) => None,
            Some(HeadGrid::Int8) => Some(8),
            Some(HeadGrid::Int4) => Some(4),
        };
        output.rules.retain(|rule| !is_of(rule, "head"));
        output.head = if args.head == Some(HeadGrid::Bf16) { Dtype::Bf16 } else { output.head };
        output.rules.extend(bits.map(head_rule));
    }
    Ok(())
}

/// Whether a rule is about a part of the model; about layers where it does not say.
fn is_of(rule: &Table, part: &str) -> bool {
    match rule.get("of").and_then(Value::as_array) {
        Some(of) => of.iter().any(|word| word.as_str() == Some(part)),
        None => part == "layers",
    }
}

/// `optimize MODEL` alone: says what could be done with it.
fn nothing_to_do(model: &str) -> Failure {
    let commands = ["--quant int4", "inspect", "eval"].map(|c| format!("  optimize {c} {model}"));
    Failure::refused(format!("nothing to do with {model:?}"))
        .with_hint(format!("what can be done with a model:\n{}", commands.join("\n")))
}
