//! Every key of the JSON that measurements print stands in `docs/MEASUREMENTS.md`.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use tests::{root, run};

/// The keys of an object and of all within it.
fn keys(value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            all.extend(object.keys().cloned());
            object.values().for_each(|value| keys(value, all));
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, all)),
        _ => {}
    }
}

#[test]
fn every_key_is_documented() {
    let page = fs::read_to_string(root().join("docs/MEASUREMENTS.md")).unwrap();
    let stories = root().join("tests/models/stories260k").display().to_string();
    let task = root().join("tests/fixtures/tasks/choice.jsonl").display().to_string();
    let words = root().join("tests/fixtures/tasks/last_word.jsonl").display().to_string();
    let few = ["--max-tokens", "60", "--baseline", &stories];
    let small = ["--prompt", "8", "--output", "3", "--requests", "2", "--kv-memory", "16M"];
    let more = ["--sweep", "1", "--profile", "--synthetic-acceptance", "1", "--baseline", &stories];
    let mut seen = BTreeSet::new();
    for arguments in [
        [&["eval", &stories, "--path", "both"], &few[..]].concat(),
        [&["eval", &stories, "--protocol", "llama.cpp", "--window", "20"], &few[..]].concat(),
        [&["eval", &stories, "--task", &task, "--path", "both"], &few[..]].concat(),
        [&["eval", &stories, "--task", &words], &few[..]].concat(),
        [&["compare", &stories, "--task", &task, "--speed"], &few[..]].concat(),
        [&["bench", &stories], &small[..], &more].concat(),
        vec!["doctor"],
    ] {
        let out = run(&[&arguments[..], &["--json", "--quiet"]].concat());
        let remarks = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {remarks}");
        keys(&serde_json::from_slice(&out.stdout).unwrap(), &mut seen);
    }
    assert!(seen.len() > 100, "{}", seen.len());
    // The standard error of a figure is told of once, for all.
    let missing = seen.iter().map(|key| key.trim_end_matches("_stderr"));
    let missing = missing.filter(|key| !page.contains(&format!("`{key}`")));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&str>::new());
}
