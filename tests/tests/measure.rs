//! `optimize bench` on the built binary: what it reports adds up, what it draws is whole, and what it
//! cannot measure is refused before a weight is read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bench::{Synthetic, SyntheticGrid};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tests::{root, run, write_noise_model};

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

/// The only model of the report that `bench` gives of small workloads with further arguments.
fn report(model: &str, more: &[&str]) -> Value {
    let small = ["--prompt", "20", "--output", "12", "--requests", "6", "--kv-memory", "64M"];
    let out = run(&[&["bench", model, "--json", "--quiet"], &small[..], more].concat());
    let remarks = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{more:?}: {remarks}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["machine"]["read_bytes_per_second"].as_f64().unwrap() > 0.0);
    report["models"][0].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

#[test]
fn a_workload_is_reported_with_the_parts_of_its_latencies() {
    let model = report(&stories(), &["--sweep", "1,3", "--concurrency", "2"]);
    let load = &model["workload"];
    assert_eq!((load["requests"].as_u64(), load["prompt_tokens"].as_u64()), (Some(6), Some(120)));
    assert_eq!(load["output_tokens"].as_u64(), Some(72));
    let mean = |part: &str| number(&load[part]["mean"]);
    let parts = mean("tokenize_ms") + mean("queue_ms") + mean("prefill_ms");
    assert!((parts - mean("ttft_ms")).abs() < 1e-6 && mean("tokenize_ms") > 0.0);
    let users = model["sweep"].as_array().unwrap().iter().map(|row| row["concurrency"].as_u64());
    assert_eq!(users.collect::<Vec<_>>(), [Some(1), Some(3)]);
    assert!(model["profile"].is_null() && model["speculation"].is_null());
}

#[test]
fn a_model_without_a_tokenizer_is_given_tokens() {
    let folder = tempfile::tempdir().unwrap();
    write_noise_model(folder.path(), 2, 64, 128);
    let model = report(folder.path().to_str().unwrap(), &["--batching", "static", "--batch", "3"]);
    assert!(model["workload"]["tokenize_ms"].is_null());
    assert_eq!(model["workload"]["output_tokens"].as_u64(), Some(72));
}

#[test]
fn a_profile_counts_each_kind_of_op_of_both_phases() {
    let model = report(&stories(), &["--profile"]);
    for (phase, steps) in [("prefill", 4), ("decode", 4 * 11)] {
        let profile = &model["profile"][phase];
        assert_eq!(profile["steps"].as_u64(), Some(steps), "{phase}");
        let ops = profile["ops"].as_array().unwrap();
        let mut kinds: Vec<&str> = ops.iter().map(|op| op["kind"].as_str().unwrap()).collect();
        kinds.sort_unstable();
        let all = ["activate", "add", "attend", "copy", "embed", "head", "linear", "mul", "norm"];
        assert_eq!(kinds, [&all[..], &["rope", "sampling"]].concat());
        let linear = ops.iter().find(|op| op["kind"] == "linear").unwrap();
        let tokens = if phase == "prefill" { 4.0 * 20.0 } else { 44.0 };
        assert_eq!(number(&linear["float_operations"]), linears() * tokens, "{phase}");
        let bound = linear["bound"].as_str().unwrap();
        assert!(["compute", "bandwidth", "cache"].contains(&bound), "{bound}");
        assert!(number(&linear["mfu"]) > 0.0 && number(&linear["mbu"]) > 0.0);
    }
}

/// Operations of the layers' linears of stories260k a token, from its sizes.
fn linears() -> f64 {
    let config = fs::read(Path::new(&stories()).join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let size = |key: &str| number(&config[key]);
    let (hidden, heads) = (size("hidden_size"), size("num_attention_heads"));
    let narrow = hidden / heads * size("num_key_value_heads");
    let layer = 2.0 * hidden * (hidden + narrow) + 3.0 * hidden * size("intermediate_size");
    2.0 * layer * size("num_hidden_layers")
}

#[test]
fn injected_acceptance_is_what_is_accepted_and_the_text_stays() {
    let model = report(&stories(), &["--synthetic-acceptance", "1"]);
    let speculation = &model["speculation"];
    assert_eq!(number(&speculation["acceptance"]), 1.0);
    assert_eq!(speculation["same_text"], true);
    for place in speculation["accepted_by_place"].as_array().unwrap() {
        assert_eq!(place[0], place[1], "a sure draft stands");
    }
    assert!(number(&speculation["alone"]["predicted_speedup"]) >= 1.0);
}

#[test]
fn a_drawing_is_one_whole_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.html");
    report(&stories(), &["--plot", path.to_str().unwrap(), "--sweep", "1,2"]);
    let page = fs::read_to_string(&path).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert_eq!(page.matches("<svg").count(), 5);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn replicas_answer_a_workload_together() {
    let (one, stories) = (report(&stories(), &["--device", "cpu"]), stories());
    assert_eq!(one["replicas"].to_string(), r#"[{"device":"cpu","requests":6}]"#);
    for more in [
        &["--concurrency", "3", "--sweep", "1,3"][..],
        &["--rate", "2000"],
        &["--rate", "2000", "--batching", "static", "--batch", "2", "--threads", "1"],
        &["--draft", &stories, "--threads", "4"],
    ] {
        let two = report(&stories, &[&["--device", "cpu", "--device", "cpu"], more].concat());
        for count in ["requests", "prompt_tokens", "output_tokens"] {
            assert_eq!(two["workload"][count], one["workload"][count], "{more:?}: {count}");
        }
        assert!(number(&two["workload"]["mfu"]) > 0.0 && number(&two["workload"]["mbu"]) > 0.0);
        let replicas = two["replicas"].as_array().unwrap();
        assert!(replicas.len() == 2 && replicas.iter().all(|replica| replica["device"] == "cpu"));
        let dealt: f64 = replicas.iter().map(|replica| number(&replica["requests"])).sum();
        assert_eq!(dealt, 6.0, "{more:?}");
        for row in two["sweep"].as_array().unwrap() {
            assert_eq!(row["output_tokens"].as_u64(), Some(72));
        }
    }
}

#[test]
fn replicas_are_refused_where_one_is_measured_or_asked() {
    let (stories, both) = (stories(), ["--device", "cpu", "--device", "cpu"]);
    for (arguments, rule) in [
        (&["bench", &stories, "--profile"][..], "--profile is of one replica"),
        (&["bench", &stories, "--kernels"], "--kernels is of one replica"),
        (&["bench", &stories, "--prefill", "chunked,whole"], "other than chunked is of one"),
        (&["bench", &stories, "--synthetic-acceptance", "1"], "acceptance is of one replica"),
        (&["bench", &stories, "--kv-memory", "1k"], "replica 1 of 2, on cpu, has failed"),
        (&["run", &stories, "x"], "--device is given more than once"),
        (&["chat", &stories], "--device is given more than once"),
        (&["eval", &stories], "--device is given more than once"),
        (&["--quant", "int4", &stories, "-o", "/nowhere/out"], "--device is given more than once"),
    ] {
        let out = run(&[arguments, &both].concat());
        let remarks = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {remarks}");
        assert!(out.stdout.is_empty() && remarks.contains(rule), "{arguments:?}: {remarks}");
    }
}

#[test]
fn every_synthetic_shape_is_a_model_that_is_read_without_a_word() {
    for name in Synthetic::names() {
        for grid in [SyntheticGrid::Bf16, SyntheticGrid::Int8, SyntheticGrid::Int4] {
            let noise = Synthetic::new(name, grid, 0).unwrap();
            let loaded = arch::load(noise.config(), noise.tensors()).unwrap();
            assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
            assert_eq!(loaded.model.tensors().len(), noise.tensors().len(), "{name}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let stories = stories();
    for (arguments, rule) in [
        (&["--synthetic", "gpt-5"][..], "qwen3-0.6b"),
        (&["--synthetic", "qwen3-0.6b", "--synthetic-grid", "int3"], "possible values"),
        (&[], "MODEL"),
        (&[&stories, "--synthetic-grid", "int8"], "--synthetic is not given"),
        (&[&stories, "--synthetic-acceptance", "1.5"], "from 0 to 1"),
        (&[&stories, "--batch", "4"], "--batching"),
        (&[&stories, "--batching", "static", "--batch-wait", "5ms"], "dynamic"),
        (&[&stories, "--sweep", "1,0"], "whole number"),
        (&[&stories, "--plot", "/nowhere/out.html"], "is no folder"),
    ] {
        let out = run(&[&["bench"], arguments].concat());
        let remarks = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {remarks}");
        assert!(out.stdout.is_empty() && remarks.contains(rule), "{arguments:?}: {remarks}");
    }
}
