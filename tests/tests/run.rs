//! `optimize run` on the built binary: the same text however it is computed, options that do what
//! they say, and one clear error for everything that cannot be run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use tests::{optimize, root, run, write_noise_model};

const PROMPT: &str = "Once upon a time, there was a little";

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

/// The text and the ids that `run` gives with further arguments.
fn text(more: &[&str]) -> (String, Vec<u64>) {
    let stories = stories();
    let out = run(&[&["run", &stories, PROMPT, "--json", "--quiet"], more].concat());
    let remarks = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{more:?}: {remarks}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let ids = report["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
    (report["text"].as_str().unwrap().into(), ids.collect())
}

fn refused(arguments: &[&str], rules: &[&str]) {
    let out = run(arguments);
    let remarks = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{arguments:?}: {remarks}");
    assert!(out.stdout.is_empty());
    for rule in rules {
        assert!(remarks.contains(rule), "{arguments:?}: no {rule:?} in {remarks}");
    }
}

#[test]
fn the_text_is_the_same_however_it_is_computed() {
    let (plain, ids) = text(&["--max-tokens", "120"]);
    assert_eq!(ids.len(), 120);
    assert!(plain.starts_with(" girl named"), "{plain}");
    let stories = stories();
    for more in [
        &["--threads", "1"][..],
        &["--threads", "3", "--kv-memory", "4M"],
        &["--speculate", "ngram"],
        &["--draft", &stories],
        &["--isa", "portable"],
        &["--exact"],
    ] {
        let more = [&["--max-tokens", "120"], more].concat();
        assert_eq!(text(&more), (plain.clone(), ids.clone()), "{more:?}");
    }
    let sampled = ["--max-tokens", "60", "--temperature", "1", "--top-p", "0.9", "--seed", "5"];
    let once = text(&sampled);
    assert_ne!(once.0, plain[..once.0.len().min(plain.len())]);
    assert_eq!(text(&[&sampled[..], &["--draft", &stories]].concat()), once);
    assert_ne!(text(&[&sampled[..6], &["--seed", "6"]].concat()), once);
}

#[test]
fn options_do_what_they_say() {
    let (plain, ids) = text(&["--max-tokens", "60"]);
    let at = plain.find(". ").unwrap();
    assert_eq!(text(&["--max-tokens", "60", "--stop", ". "]).0, plain[..at]);
    assert_eq!(text(&["--max-tokens", "60", "--top-k", "1"]).1, ids);
    assert_eq!(text(&["--max-tokens", "7"]).1, ids[..7]);
    let ban = format!("{}=-inf", ids[0]);
    let (_, banned) = text(&["--max-tokens", "60", "--logit-bias", &ban]);
    assert!(!banned.contains(&ids[0]));
    let (_, fresh) = text(&["--max-tokens", "60", "--repetition-penalty", "1.5"]);
    assert_ne!(fresh, ids);
}

#[test]
fn text_streams_and_a_prompt_may_be_piped() {
    let stories = stories();
    let out = run(&["run", &stories, PROMPT, "--max-tokens", "30"]);
    let (want, _) = text(&["--max-tokens", "30"]);
    assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{want}\n"));
    let remarks = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(remarks.contains("of keys and values") && remarks.contains("tokens/s"), "{remarks}");
    let mut child = optimize()
        .args(["run", &stories, "-", "--max-tokens", "30", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(PROMPT.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{want}\n"));
}

#[test]
fn what_cannot_be_run_is_one_clear_error() {
    let stories = stories();
    let folder = tempfile::tempdir().unwrap();
    let noise = folder.path().join("noise").display().to_string();
    write_noise_model(Path::new(&noise), 2, 16, 300);
    let long = "long ".repeat(600);
    refused(&["run", &stories, &long], &["the prompt has", "context only 512"]);
    refused(&["run", &noise, "x"], &["has no tokenizer.json"]);
    refused(&["run", &stories, "x", "--kv-memory", "1k"], &["keys and values of 32 tokens"]);
    let more = ["--kv-memory", "200k", "--max-tokens", "400"];
    refused(
        &[&["run", &stories, "x"], &more[..]].concat(),
        &["the request needs", "whole pool has"],
    );
    refused(&["run", &stories, "x", "--draft", &noise], &["300 tokens", "one of 512"]);
    refused(&["run", &stories, "x", "--speculate", "draft"], &["--draft MODEL"]);
    refused(&["run", &stories, "x", "--logit-bias", "600=1"], &["token 600", "vocabulary of 512"]);
    refused(&["run", &stories, "x", "--temperature=-1"], &["temperature = -1"]);
    refused(&["run", &stories, "x", "--top-p", "0"], &["top_p = 0"]);
    refused(&["chat", &stories], &["no chat template", "use run"]);
}

#[test]
fn broken_weights_and_configurations_are_told() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"] {
        fs::copy(Path::new(&stories()).join(name), folder.path().join(name)).unwrap();
    }
    let model = folder.path().display().to_string();
    let generation = folder.path().join("generation_config.json");
    fs::write(&generation, r#"{"do_sample": true, "temperature": "hot"}"#).unwrap();
    refused(&["run", &model, "x"], &["generation_config.json: temperature", "not a number"]);
    fs::write(&generation, r#"{"eos_token_id": [2, -7]}"#).unwrap();
    refused(&["run", &model, "x"], &["eos_token_id is -7"]);
    fs::write(&generation, r#"{"do_sample": true, "temperature": 0.9, "top_k": 20}"#).unwrap();
    let out = run(&["run", &model, PROMPT, "--max-tokens", "5", "--quiet"]);
    assert_eq!(out.status.code(), Some(0));
    // The last bytes are those of a weight.
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 256..].copy_from_slice(&f32::NAN.to_le_bytes().repeat(64));
    fs::write(&weights, bytes).unwrap();
    refused(&["run", &model, "x"], &["logits are not numbers"]);
}

#[test]
fn a_conversation_goes_on_from_its_turns() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(Path::new(&stories()).join(name), folder.path().join(name)).unwrap();
    }
    let template = "{{ '<s>' }}{% for m in messages %}{{ m.content }}{% endfor %}";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = folder.path().display().to_string();
    let mut child = optimize()
        .args(["chat", &model, "--max-tokens", "20", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let turns = format!("{PROMPT}\n\n Then\n");
    child.stdin.take().unwrap().write_all(turns.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0));
    let said = String::from_utf8(out.stdout).unwrap();
    let (first, _) = text(&["--max-tokens", "20"]);
    let second = said.strip_prefix(&format!("{first}\n")).unwrap();
    // The second answer continues everything that was said before it.
    let all = run(&[
        "run",
        &stories(),
        &format!("{PROMPT}{first} Then"),
        "--max-tokens",
        "20",
        "--quiet",
    ]);
    assert_eq!(second, String::from_utf8(all.stdout).unwrap());
}

#[test]
fn artifacts_run_the_same_on_every_instruction_set() {
    let folder = tempfile::tempdir().unwrap();
    for (quant, alike) in [("int8", 20), ("int4", 3)] {
        let artifact = folder.path().join(quant).display().to_string();
        let made = run(&[
            "--quant",
            quant,
            "--method",
            "rtn",
            "--group-size",
            "32",
            "--no-gate",
            "--quiet",
            "-o",
            &artifact,
            &stories(),
        ]);
        assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
        let said = |more: &[&str]| {
            let run_it = ["run", &artifact, PROMPT, "--max-tokens", "40", "--quiet"];
            let out = run(&[&run_it, more].concat());
            assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        let fast = said(&[]);
        for isa in ["portable", "avx2", "avx512", "avx512-vnni"] {
            let out = run(&["run", &artifact, "x", "--max-tokens", "1", "--isa", isa]);
            if out.status.code() == Some(0) {
                assert_eq!(said(&["--isa", isa, "--threads", "1"]), fast, "{quant}, {isa}");
            }
        }
        // Rounding activations changes little: the text begins as the exact one does.
        let exact = said(&["--exact"]);
        let same = exact.bytes().zip(fast.bytes()).take_while(|(a, b)| a == b).count();
        assert!(same >= alike, "{quant}: {exact} {fast}");
    }
}
