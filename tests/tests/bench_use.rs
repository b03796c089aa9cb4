//! `optimize bench` as people use it: traces of two forms, checked before anything is
//! measured; tables that a terminal holds; a page with all that was asked for and nothing else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use tests::{root, run};

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

/// `bench` of a small model.
fn bench(more: &[&str]) -> Output {
    let stories = stories();
    run(&[&["bench", &stories, "--kv-memory", "64M", "--prompt", "20", "--output", "4"], more]
        .concat())
}

fn remarks(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The first model of the report.
fn report(more: &[&str]) -> Value {
    let out = bench(&[&["--json", "--quiet"], more].concat());
    assert_eq!(out.status.code(), Some(0), "{more:?}: {}", remarks(&out));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    report["models"][0].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
    2023-11-16 18:15:46.6805900,100,4\n\
    2023-11-16 18:15:46.7000000,510,3\n\
    2023-11-16 18:15:46.7100000,40,5\n\
    2023-11-16 18:15:46.7200000,9000,700\n";

#[test]
fn a_trace_that_does_not_fit_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let trace = write(folder.path(), "azure.csv", AZURE);
    let out = bench(&["--trace", &trace]);
    let said = remarks(&out);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("line 3: 510 + 3 tokens exceed the context of"), "{said}");
    assert!(said.contains("512 tokens\nhint: 2 of the 4 requests do not fit; --clip"), "{said}");
    assert!(!said.contains("measuring"), "{said}");
    // What is not replayed need not fit.
    let model = report(&["--trace", &trace, "--requests", "1"]);
    assert_eq!(number(&model["workload"]["prompt_tokens"]), 100.0);
}

#[test]
fn a_clipped_trace_is_run_and_says_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let trace = write(folder.path(), "azure.csv", AZURE);
    let out = bench(&["--trace", &trace, "--clip", "--json"]);
    let said = remarks(&out);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("2 of 4 requests are cut to 512 tokens"), "{said}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let load = &report["models"][0]["workload"];
    assert_eq!(number(&load["prompt_tokens"]), 100.0 + 509.0 + 40.0 + 1.0);
    assert_eq!(number(&load["output_tokens"]), 4.0 + 3.0 + 5.0 + 511.0);
    assert_eq!(report["workload"], "all 4 requests of azure.csv, 2 of them cut to the context");
}

#[test]
fn prompts_of_a_mooncake_trace_share_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let line = |at: usize, tokens: usize, block: usize| {
        format!(
            r#"{{"timestamp": {at}, "input_length": {tokens}, "output_length": 2, "hash_ids": [{block}]}}"#
        )
    };
    // One at a time: far apart, and the others begin when the one before has ended.
    let lines = [line(0, 500, 7), line(400, 490, 7), line(800, 480, 8)].join("\n");
    let trace = write(folder.path(), "mooncake.jsonl", &lines);
    let model = report(&["--trace", &trace]);
    assert_eq!(number(&model["workload"]["prompt_tokens"]), 1470.0);
    // Whole blocks of 16 of the second prompt: 30 of them, and none of the third.
    let hits = number(&model["engine"]["prefix_hit_rate"]) * 1470.0;
    assert!((hits - 480.0).abs() < 1e-6, "{hits}");
    let trace = write(folder.path(), "wrong.jsonl", &lines.replacen("[7]", "[7, 8]", 1));
    let out = bench(&["--trace", &trace]);
    assert_eq!(out.status.code(), Some(2));
    assert!(
        remarks(&out)
            .contains("line 1: hash_ids of 2 blocks of 512 tokens, where input_length 500 has 1")
    );
}

#[test]
fn a_request_that_does_not_fit_is_refused_and_what_nobody_asked_for_fits() {
    let stories = stories();
    let out = run(&["bench", &stories, "--prompt", "500", "--output", "100"]);
    let said = remarks(&out);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("500 + 100 tokens exceed the context of"), "{said}");
    assert!(!said.contains("measuring"), "{said}");
    for count in ["0", "18446744073709551615"] {
        for option in ["--requests", "--concurrency", "--prompt", "--output"] {
            let out = run(&["bench", &stories, option, count]);
            assert_eq!(out.status.code(), Some(2), "{option} {count}: {}", remarks(&out));
        }
    }
    // Keys and values are for what is asked, not for whole contexts.
    let out = run(&[
        "bench",
        &stories,
        "--requests",
        "2",
        "--concurrency",
        "2",
        "--prompt",
        "8",
        "--output",
        "8",
    ]);
    assert!(remarks(&out).contains("(160 tokens, "), "{}", remarks(&out));
    let out = run(&["bench", &stories, "--json", "--requests", "2", "--kv-memory", "64M"]);
    assert_eq!(out.status.code(), Some(0), "{}", remarks(&out));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(number(&report["models"][0]["prefill"]["tokens"]), 384.0);
}

#[test]
fn tables_fit_a_terminal_and_end_in_what_a_baseline_comes_to() {
    let stories = stories();
    let more = ["--baseline", &stories, "--profile", "--sweep", "1", "--requests", "2"];
    let out = bench(&more);
    assert_eq!(out.status.code(), Some(0), "{}", remarks(&out));
    let text = String::from_utf8(out.stdout).unwrap();
    let last = text.lines().last().unwrap();
    // A model's name may be of any length.
    let table = text.lines().filter(|line| !line.starts_with(&stories) && *line != last);
    for line in table {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(last.starts_with("decode ") && last.ends_with(", size 1.0 x"), "{last}");
    assert!(last.contains(" against ") && last.contains("; prefill "), "{last}");
    // Whatever is above what memory gives is said to come from a cache, in tables and in JSON.
    let percents = text.split("  ").filter_map(|word| word.trim().strip_suffix(" %"));
    assert!(percents.filter_map(|n| n.parse::<f64>().ok()).all(|n| n <= 100.0), "{text}");
    let model = report(&["--profile", "--requests", "2"]);
    let ops = ["prefill", "decode"].map(|phase| model["profile"][phase]["ops"].as_array().unwrap());
    for op in ops.into_iter().flatten().chain([&model["prefill"], &model["decode"]]) {
        let above = number(&op["mbu"]) > 1.0;
        assert_eq!(op["from_cache"].as_bool(), Some(above), "{op}");
        assert!(!above || op["bound"] == "cache" || op["bound"] == "compute", "{op}");
        assert!(above || op["bound"] != "cache", "{op}");
    }
}

#[test]
fn a_page_draws_every_prefill_and_says_how_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a page.html").display().to_string();
    let more = ["--prefill", "chunked,split,whole", "--requests", "3", "--plot", &path];
    let model = report(&more);
    assert_eq!(model["prefills"].as_array().unwrap().len(), 3);
    assert!(model["sweep"].as_array().unwrap().is_empty(), "nobody asked for one");
    let page = fs::read_to_string(&path).unwrap();
    for how in ["chunked", "split", "whole"] {
        assert!(page.contains(&format!("stories260k, prefill {how} <span>")), "{how}");
    }
    // Three curves in each of three figures of latencies, no throughput, one roofline.
    assert_eq!(page.matches("class=\"line m").count(), 9);
    assert_eq!((page.matches("<svg").count(), page.contains("Throughput")), (4, false));
    let version = format!(" by optimize {}</dd>", env!("CARGO_PKG_VERSION"));
    assert!(page.contains(" UTC") && page.contains(&version), "{version}");
    assert!(page.contains("<dt>processor</dt>") && page.contains("3 requests, 8 at once"));
    assert!(page.contains("--plot &#39;") && page.contains("a page.html&#39;</code>"));
}

#[test]
fn a_trace_that_is_shorter_than_what_is_asked_is_not_said_to_be_longer() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..3).map(|i| format!("2023-11-16 18:15:4{i}.0000000,9,2\n")).collect();
    let text = format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{lines}");
    let trace = write(folder.path(), "short.csv", &text);
    let said = |more: &[&str]| {
        let all = [&["--trace", &trace, "--stretch", "0.01"], more].concat();
        let out = bench(&all);
        String::from_utf8(out.stdout).unwrap()
    };
    let text = said(&[]);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("workload all 3 requests of short.csv, 0.01 times as slowly"), "{text}");
    assert!(said(&["--requests", "2"]).contains("the first 2 of the 3 requests of short.csv"));
}
