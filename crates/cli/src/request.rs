//! From options to a recipe: a built-in one or a file's, and what the options change in it.

use crate::args::{Compile, HeadGrid, Method, Switch};
use crate::eval::read;
use crate::failure::Failure;
use crate::words;
use checkpoint::Format;
use compiler::{Dtype, OutputRecipe, Recipe, Refusal, head_rule};
use ir::ModelSpec;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The format that is one file.
pub(crate) const GGUF: &str = "gguf";

fn is_gguf(end: &OsStr) -> bool {
    end.eq_ignore_ascii_case(GGUF)
}

/// Where an artifact goes.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// Whether it is one file, and not a folder.
    pub(crate) file: bool,
}

/// What was asked for.
pub(crate) struct Request {
    /// Every setting, those included that nobody gave.
    pub(crate) recipe: Recipe,
    /// What the output is named after.
    pub(crate) name: String,
    /// Whether the recipe is a built-in one, whose samples are meant for large models.
    pub(crate) builtin: bool,
    /// Whether what is quantized already keeps its codes.
    pub(crate) keeps: bool,
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
        let artifact = path.is_dir() || (path.is_file() && path.extension().is_some_and(is_gguf));
        if artifact {
            let (report, _) = compiler::read_report(path)?;
            return Ok(Self { recipe: report.recipe, name: stem(), file: None });
        }
        if !path.exists() && passes::meant(given).is_ok() {
            return Self::builtin(given);
        }
        let text = read(path).map_err(|failure| {
            let builtin = "a recipe is a TOML file, int4, int8, q4_k_m or such, or an artifact's folder; \
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
        if !args.formats.is_empty() {
            named.name = in_formats(&args.formats, recipe, &named.name)?;
        }
        override_rules(args, recipe)?;
        let calibration = &mut recipe.calibration;
        calibration.samples = args.samples.unwrap_or(calibration.samples);
        calibration.seq_len = args.seq_len.unwrap_or(calibration.seq_len);
        calibration.seed = args.seed.unwrap_or(calibration.seed);
        recipe.gate.max_ppl_increase = args.max_ppl_increase.or(recipe.gate.max_ppl_increase);
        recipe.gate.max_kl = args.max_kl.or(recipe.gate.max_kl);
        if let Some(dtype) = args.dtype {
            recipe.outputs.iter_mut().for_each(|output| output.dtype = dtype.into());
        }
        if let Some(path) = &args.imatrix {
            recipe.imatrix = Some(checkpoint::hash_file(path)?.0);
        } else if let Some(hash) = &recipe.imatrix {
            let what = format!("the recipe is of an importance matrix with the SHA-256 {hash}");
            return Err(Failure::refused(what).with_hint("give it: --imatrix FILE"));
        }
        if args.shard_size.is_some() {
            recipe.outputs.iter_mut().for_each(|output| output.shard_size = args.shard_size);
        }
        recipe.check()?;
        let by_name = || passes::names().any(|name| name == named.name) && named.file.is_none();
        let builtin = args.quant.is_some() || by_name();
        Ok(Self { recipe: named.resolved()?, name: named.name, builtin, keeps: false })
    }

    /// A conversion by this recipe.
    pub(crate) fn converting(recipe: Recipe, name: String) -> Result<Self, Failure> {
        recipe.check()?;
        let named = Named { recipe, name, file: None };
        Ok(Self { recipe: named.resolved()?, name: named.name, builtin: false, keeps: true })
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

    /// Where the artifact goes. A GGUF file that is all there is needs no folder.
    pub(crate) fn output(&self, args: &Compile) -> Result<Place, Failure> {
        let one = match &self.recipe.outputs[..] {
            [only] => only.format.as_deref() == Some(GGUF) && only.shard_size.is_none(),
            _ => false,
        };
        let named = |path: &Path| path.extension().is_some_and(is_gguf);
        if let Some(path) = &args.output {
            let file = named(path);
            if file && !one {
                let what = format!("{path:?} is the name of one file, and the output is a folder");
                return Err(Failure::refused(what).with_hint("name a folder: -o DIR"));
            }
            return Ok(Place { path: path.clone(), file });
        }
        let given = Path::new(&args.model);
        // `.` and `..` have a name only once resolved.
        let resolved = given.canonicalize().unwrap_or_else(|_| given.to_path_buf());
        let last = given.file_name().or(resolved.file_name());
        let last = last.ok_or_else(|| {
            Failure::refused("the model's path has no last name")
                .with_hint("name the output: -o DIR")
        })?;
        let last = last.to_string_lossy();
        let last = last.strip_suffix(".gguf").unwrap_or(&last);
        let end = if one { ".gguf" } else { "" };
        Ok(Place { path: format!("{last}-{}{end}", self.name).into(), file: one })
    }
}

/// Makes an output for each format of a recipe that has one output; what the artifact is called then.
fn in_formats(formats: &[String], recipe: &mut Recipe, name: &str) -> Result<String, Failure> {
    let base = match &recipe.outputs[..] {
        [only] => only.clone(),
        _ => {
            let rule = "the recipe names formats of its own: leave --format out";
            return Err(Failure::refused(rule));
        }
    };
    let outputs = formats.iter().map(|asked| in_format(asked, &base, name));
    recipe.outputs = outputs.collect::<Result<_, _>>()?;
    let names: Vec<&str> = recipe.outputs.iter().filter_map(|o| o.name.as_deref()).collect();
    Ok(match (formats, &names[..]) {
        ([one], [mix]) if one.starts_with(GGUF) => (*mix).to_string(),
        ([_], [format]) if *format != checkpoint::FORMATS[0].name => format!("{name}-{format}"),
        _ => name.to_string(),
    })
}

/// The format of this name.
pub(crate) fn format(name: &str) -> Result<&'static Format, Failure> {
    let all = || checkpoint::FORMATS.iter().map(|format| format.name);
    Format::named(name).ok_or_else(|| {
        let (near, names) = (words::nearest(name, all(), 1), all().collect::<Vec<_>>().join(", "));
        Failure::refused(format!("--format: {name:?} is not written"))
            .with_hint(format!("formats are {names}; nearest is {}", near.join("")))
    })
}

/// The output of a format as an option spells it, `gptq` or `gguf:q4_k_m`.
fn in_format(asked: &str, base: &OutputRecipe, quant: &str) -> Result<OutputRecipe, Failure> {
    let (format, mix) = asked.split_once(':').map_or((asked, None), |(f, mix)| (f, Some(mix)));
    let known = self::format(format)?;
    if known.name != GGUF {
        if mix.is_some() {
            let what = format!("--format {asked}: only gguf has mixes");
            return Err(Failure::refused(what).with_hint(format!("write --format {format}")));
        }
        let name = Some(known.name.to_string());
        return Ok(OutputRecipe { name, format: Some(known.name.into()), ..base.clone() });
    }
    let own = match mix {
        None if passes::mixes().any(|mix| mix == quant) => Some(quant),
        None => nearest_mix(quant),
        Some(mix) => Some(mix),
    };
    let own = own.and_then(|name| passes::meant(name).ok());
    let own = own.filter(|name| passes::mixes().any(|mix| mix == *name));
    let Some(own) = own else {
        let what = format!("--format {asked}: it takes a mix of GGUF's types");
        let all: Vec<&str> = passes::mixes().collect();
        let hint = format!("write gguf:q4_k_m; mixes are {}", all.join(", "));
        return Err(Failure::refused(what).with_hint(hint));
    };
    let mixed = passes::builtin(own)?.outputs.into_iter().next();
    let absent = || Refusal { what: own.into(), rule: "has no output".into() };
    let mixed = mixed.ok_or_else(absent)?;
    Ok(OutputRecipe { name: Some(own.into()), dtype: base.dtype, ..mixed })
}

/// The mix that takes about as many bits as integers do.
fn nearest_mix(quant: &str) -> Option<&'static str> {
    Some(match quant {
        "int2" => "q2_k",
        "int3" => "q3_k_m",
        "int4" => "q4_k_m",
        "int5" => "q5_k_m",
        "int6" => "q6_k",
        "int8" => "q8_0",
        _ => return None,
    })
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
    if args.imatrix.is_some() {
        if args.method == Some(Method::Gptq) {
            let what =
                "--imatrix knows columns one by one, and GPTQ wants what they have in common";
            return Err(Failure::refused(what).with_hint("give a text: --calibration FILE"));
        }
        changed.insert("solver".into(), "rtn".into());
        changed.insert("scale".into(), "weighted".into());
    }
    for output in &mut recipe.outputs {
        for rule in output.rules.iter_mut().filter(|rule| is_of(rule, "layers")) {
            // What a mix decides is for other outputs.
            let decided =
                |key: &str| rule.contains_key("mix") && ["group", "symmetric"].contains(&key);
            let own: Vec<_> = changed.iter().filter(|(key, _)| !decided(key)).collect();
            let own: Table = own.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            rule.extend(own);
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
