//! What decides an artifact's bytes: the settings of a job, and the hashes of the tensors it reads.

use crate::CompileError;
use crate::hash::hex;
use crate::job::{Job, Text};
use crate::recipe::Recipe;
use crate::report::{Report, TokensReport};
use crate::table::hash_of;
use backend::Backend;
use ir::View;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// How many differences a message lists.
const LISTED: usize = 5;

/// Everything that decides the artifact's bytes but the source's tensors. The gate is not among it.
pub(crate) fn settings(job: &Job<'_>) -> Result<Value, CompileError> {
    let mut side_files = BTreeMap::new();
    for (name, bytes) in self::side_files(job)? {
        side_files.insert(name, hex(Sha256::new().chain_update(bytes)));
    }
    let mut tensors = Sha256::new();
    for tensor in job.plan.outputs.iter().flat_map(|output| &output.tensors) {
        let shown = format!("{:?} {} {:?}\n", tensor.name, tensor.dtype, tensor.shape);
        tensors.update(shown);
    }
    let [version, numerics, recipe, calibration] = asked(job.recipe, job.backend, &job.samples);
    let mut settings = json!({
        version.0: version.1,
        numerics.0: numerics.1,
        recipe.0: recipe.1,
        calibration.0: calibration.1,
        "held_out": tokens_report(&job.held_out),
        "config": job.checkpoint.config(),
        "ignored_keys": job.ignored_keys,
        "tensors": hex(tensors),
        "side_files": side_files,
    });
    if !job.decisions.are_none() {
        settings["decisions"] = json!(job.decisions);
    }
    Ok(settings)
}

/// What a folder of the model has beside its weights and its configuration.
pub(crate) fn side_files(job: &Job<'_>) -> Result<Vec<(String, Vec<u8>)>, CompileError> {
    let checkpoint = job.checkpoint;
    let mut all = Vec::new();
    for name in checkpoint.side_files() {
        let bytes = checkpoint.read_side_file(&name)?;
        all.push((name, bytes));
    }
    Ok(all)
}

/// What of the settings decides what is found on the samples, by their keys.
pub(crate) fn asked(
    recipe: &Recipe,
    backend: &dyn Backend,
    samples: &Text<'_>,
) -> [(&'static str, Value); 4] {
    [
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("numerics", json!(backend.numerics())),
        ("recipe", json!(without_gate(recipe))),
        ("calibration", json!(tokens_report(samples))),
    ]
}

/// Takes the gate out of what holds a recipe: it decides no byte of the artifact.
pub(crate) fn forget_gate(value: &mut Value) {
    if let Some(gate) = value.pointer_mut("/recipe/gate") {
        *gate = json!({});
    }
}

/// The hash of settings and source.
pub(crate) fn identity(settings: &Value, source: &BTreeMap<String, String>) -> String {
    hex(Sha256::new().chain_update(json!([settings, source]).to_string()))
}

/// SHA-256 of each weight that the model reads, wherever it lies, and of what is carried over.
pub(crate) fn source_hashes(job: &Job<'_>) -> Result<BTreeMap<String, String>, CompileError> {
    let read = job.model.spec.tensors().into_iter();
    let read = read.map(|s| Ok((s.tensor.clone(), hash_of(job, &s.at, &s.shape)?)));
    let carried = job.plan.carried().iter();
    let carried =
        carried.map(|t| Ok((t.name.clone(), hash_of(job, &View::whole(&*t.name), &t.shape)?)));
    read.chain(carried).collect()
}

/// What is said of a text in a report.
pub(crate) fn tokens_report(text: &Text<'_>) -> TokensReport {
    if text.sequences.is_empty() {
        return TokensReport::default();
    }
    TokensReport {
        from: text.from.into(),
        sequences: text.sequences.len(),
        tokens: text.sequences.iter().map(Vec::len).sum(),
        hash: calibration::samples::hash(text.sequences),
    }
}

/// How other settings differ from these; empty if they give the same bytes.
pub(crate) fn settings_changes(before: &Value, now: &Value) -> Vec<String> {
    let mut all = Vec::new();
    compare("", before, now, &mut all);
    // The order of a configuration's keys is that of the artifact's.
    let [before, now] = [before.to_string(), now.to_string()];
    if all.is_empty() && before != now {
        all.push("the order of keys in config.json".into());
    }
    all
}

/// How tensors differ from those that were read before.
pub(crate) fn source_changes(
    before: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> Vec<String> {
    let changed = now.iter().filter(|(name, hash)| before.get(*name) != Some(*hash));
    changed.map(|(name, _)| format!("the contents of tensor {name:?}")).collect()
}

/// How a job differs from the one that made an artifact, as far as its report says, without
/// reading a tensor.
pub(crate) fn report_changes(report: &Report, settings: &Value, recipe: &Recipe) -> Vec<String> {
    let now = |key: &str| settings.get(key).cloned().unwrap_or_default();
    let before = json!({
        "version": report.version,
        "numerics": report.numerics,
        "recipe": report.recipe,
        "calibration": report.calibration,
        "held_out": report.held_out,
    });
    let now = json!({
        "version": now("version"),
        "numerics": now("numerics"),
        "recipe": recipe,
        "calibration": now("calibration"),
        "held_out": now("held_out"),
    });
    let mut all = settings_changes(&before, &now);
    // What else is in the identity has no place of its own in a report.
    if all.is_empty() && identity(settings, &report.source) != report.identity {
        all.push("config.json, a key of it that is ignored, or a file beside the weights".into());
    }
    all
}

/// Some of many changes.
pub(crate) fn listed(changes: &[String]) -> String {
    let more = changes.len().saturating_sub(LISTED);
    let first = changes[..changes.len() - more].join("; ");
    if more > 0 { format!("{first}; and {more} more") } else { first }
}

fn without_gate(recipe: &Recipe) -> Recipe {
    Recipe { gate: Default::default(), ..recipe.clone() }
}

/// Notes each place at which two values differ.
fn compare(at: &str, before: &Value, now: &Value, all: &mut Vec<String>) {
    let inner = |key: &str| if at.is_empty() { key.into() } else { format!("{at}.{key}") };
    match (before, now) {
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned();
                let (old, new) = (value(old), value(new));
                compare(&inner(key), &old.unwrap_or_default(), &new.unwrap_or_default(), all);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&inner(&i.to_string()), old, new, all);
            }
        }
        _ if before == now => {}
        _ => all.push(said(at, before, now)),
    }
}

/// A difference in the words of the command line and of recipes.
fn said(at: &str, old: &Value, new: &Value) -> String {
    let parts: Vec<&str> = at.split('.').collect();
    let (before, now) = (short(old), short(new));
    match parts[..] {
        ["calibration" | "held_out", "hash" | "from" | "sequences" | "tokens"] => {
            let text = if parts[0] == "calibration" { "calibration" } else { "held-out" };
            match parts[1] {
                "hash" => format!("the {text} tokens are others"),
                "from" => format!("the {text} text was {before} and is {now}"),
                what => format!("the {text} {what} were {before} and are {now}"),
            }
        }
        ["side_files", ..] => {
            let what = match (old.is_null(), new.is_null()) {
                (true, _) => "is new",
                (_, true) => "is gone",
                _ => "has other contents",
            };
            format!("the file {:?} {what}", parts[1..].join("."))
        }
        ["config", ..] => {
            format!("{:?} of config.json was {before} and is {now}", parts[1..].join("."))
        }
        ["tensors"] => "the artifact's tensors are others".into(),
        ["numerics"] => format!("it was computed by {before}, and now it is {now}"),
        ["version"] => format!("it is of version {before}, and this one is {now}"),
        ["recipe", "pass"] => "the passes are others, or more, or fewer".into(),
        ["recipe", "output"] => "the outputs are others, or more, or fewer".into(),
        ["recipe", "output", _, "rule"] => "the rules are others, or more, or fewer".into(),
        ["recipe", "output", _, "rule", number, ref setting @ ..] => {
            format!("{} of rule {} was {before} and is {now}", setting.join("."), counted(number))
        }
        ["recipe", "output", "0", ref setting @ ..] => {
            format!("{} was {before} and is {now}", setting.join("."))
        }
        ["recipe", "pass", number, ref setting @ ..] => {
            format!("{} of pass {} was {before} and is {now}", setting.join("."), counted(number))
        }
        ["recipe", ref setting @ ..] => {
            format!("{} was {before} and is {now}", setting.join("."))
        }
        _ => format!("{at} was {before} and is {now}"),
    }
}

/// The number of one of a list: people count from one.
fn counted(number: &str) -> String {
    number.parse::<usize>().map_or(number.to_string(), |n| (n + 1).to_string())
}

/// A value that fits a line.
fn short(value: &Value) -> String {
    match value {
        Value::Null => "not given".into(),
        Value::String(text) if text.len() == 64 => format!("{}...", text.get(..8).unwrap_or("")),
        Value::Array(all) if all.len() > 8 => format!("a list of {}", all.len()),
        Value::Object(all) if all.len() > 4 => format!("{} keys", all.len()),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named_where_they_are() {
        let before = json!({ "a": { "b": [1, 2], "c": "x" }, "d": 1, "e": null });
        let now = json!({ "a": { "b": [1, 3], "c": "x" }, "d": 1, "f": true });
        let said = settings_changes(&before, &now);
        assert_eq!(said, ["a.b.1 was 2 and is 3", "f was not given and is true"]);
        assert!(settings_changes(&before, &before).is_empty());
        let swapped = json!({ "d": 1, "a": { "b": [1, 2], "c": "x" }, "e": null });
        assert_eq!(settings_changes(&before, &swapped), ["the order of keys in config.json"]);
        let rule =
            |group: Value| json!({ "recipe": { "output": [{ "rule": [{ "group": group }] }] } });
        let said = settings_changes(&rule(Value::Null), &rule(json!("channel")));
        assert_eq!(said, ["group of rule 1 was not given and is \"channel\""]);
        let hash = |h: &str| json!({ "calibration": { "hash": h.repeat(64) } });
        assert_eq!(settings_changes(&hash("a"), &hash("b")), ["the calibration tokens are others"]);
        let many: Vec<String> = (0..7).map(|n| n.to_string()).collect();
        assert_eq!(listed(&many), "0; 1; 2; 3; 4; and 2 more");
    }
}
