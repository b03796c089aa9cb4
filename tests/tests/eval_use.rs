//! `optimize eval` as people compare models with it: standard errors, changes that say against what they
//! are, tasks beside a baseline, standard input, and names of tasks that are no files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tests::{optimize, root, run, write_noise_model};

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

/// An int4 artifact of the small model.
fn artifact(folder: &Path) -> String {
    let out = folder.join("int4").display().to_string();
    let quick = ["--method", "rtn", "--no-gate", "--quiet", "--group-size", "32"];
    let made = run(&[&["--quant", "int4", &stories(), "-o", &out], &quick[..]].concat());
    assert!(made.status.success(), "{}", remarks(&made));
    out
}

fn remarks(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn report(arguments: &[&str]) -> Value {
    let out = run(&[arguments, &["--json", "--quiet"]].concat());
    assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", remarks(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

/// The mean of values and its standard error, the plain way.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    (mean, (squares / (n - 1.0)).sqrt() / n.sqrt())
}

fn close(found: &Value, expected: f64, what: &str) {
    let found = number(found);
    assert!(
        (found - expected).abs() <= 1e-9 * expected.abs().max(1e-3),
        "{what}: {found} {expected}"
    );
}

#[test]
fn errors_are_those_of_the_tokens_and_changes_are_paired() {
    let folder = tempfile::tempdir().unwrap();
    let (artifact, stories) = (artifact(folder.path()), stories());
    let logprobs = |model: &str, path: &str| -> (Value, Vec<f64>) {
        let file = folder.path().join("logprobs").display().to_string();
        let baseline = ["--baseline", &stories];
        let more = if path == "served" { &[][..] } else { &baseline };
        let arguments = ["eval", model, "--max-tokens", "300", "--path", path, "--logprobs", &file];
        let report = report(&[&arguments[..], more].concat());
        let lines = fs::read_to_string(&file).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["logprob"].as_f64();
        (report, lines.lines().filter_map(line).map(|logprob| -logprob).collect())
    };
    let (both, ours) = logprobs(&artifact, "both");
    let (_, theirs) = logprobs(&stories, "exact");
    let (_, served) = logprobs(&artifact, "served");
    let (nll, error) = mean(&ours);
    close(&both["mean_nll"], nll, "mean");
    close(&both["mean_nll_stderr"], error, "its error");
    close(&both["perplexity"], nll.exp(), "perplexity");
    close(&both["perplexity_stderr"], error * nll.exp(), "its error");
    // Less than the errors of either, since both models find the same tokens hard.
    let against = |one: &[f64], other: &[f64]| {
        let pairs: Vec<f64> = one.iter().zip(other).map(|(one, other)| one - other).collect();
        let (above, error) = mean(&pairs);
        (above.exp() - 1.0, error * above.exp())
    };
    for (report, (increase, error)) in [
        (&both["baseline"], against(&ours, &theirs)),
        (&both["served"], against(&served, &ours)),
        (&both["served"]["against_baseline"], against(&served, &theirs)),
    ] {
        close(&report["perplexity_increase"], increase, "increase");
        close(&report["perplexity_increase_stderr"], error, "its error");
        assert!(error < 0.5 * number(&both["mean_nll_stderr"]), "{error}");
    }
    for part in ["baseline", "served"] {
        assert!(number(&both[part]["kl_divergence_stderr"]) > 0.0);
        let agreement = number(&both[part]["top1_agreement"]);
        let error = (agreement * (1.0 - agreement) / (ours.len() as f64 - 1.0)).sqrt();
        close(&both[part]["top1_agreement_stderr"], error, "agreement");
    }
}

#[test]
fn each_change_says_against_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (artifact, stories) = (artifact(folder.path()), stories());
    let out = run(&["eval", &artifact, "--baseline", &stories, "--max-tokens", "200", "--quiet"]);
    let text = String::from_utf8(out.stdout).unwrap();
    let labels = ["against baseline", "served against exact", "served against baseline"];
    for label in labels {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{label} ")));
        let lines: Vec<&str> = lines.collect();
        assert!(lines.len() == 1 && lines[0].contains(" % +- "), "{label}: {text}");
        assert!(lines[0].chars().count() <= 80, "{}", lines[0]);
    }
    assert_eq!(text.matches("change").count(), 1, "{text}");
}

fn write_task(folder: &Path, name: &str) -> PathBuf {
    let items = ["sun", "dog", "cake", "tree", "moon", "girl", "boat", "king"];
    let lines = items.iter().enumerate().map(|(i, word)| {
        let query = format!("Question: Lily saw a big {word}. What did she see?");
        let choices = [word, items[(i + 3) % 8], "was very happy"];
        json!({ "query": query, "choices": choices, "gold": i % 3 }).to_string() + "\n"
    });
    let path = folder.join(name);
    fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

#[test]
fn a_task_beside_a_baseline_gives_paired_differences() {
    let folder = tempfile::tempdir().unwrap();
    let task = write_task(folder.path(), "task.jsonl").display().to_string();
    let stories = stories();
    let noise = folder.path().join("noise");
    write_noise_model(&noise, 1, 64, 512);
    fs::copy(Path::new(&stories).join("tokenizer.json"), noise.join("tokenizer.json")).unwrap();
    let noise = noise.display().to_string();
    // Which items each model gets right, from its own log-probabilities.
    let right = |model: &str| -> (Value, Vec<f64>) {
        let file = folder.path().join("answers").display().to_string();
        let report = report(&["eval", model, "--task", &task, "--logprobs", &file]);
        let lines = fs::read_to_string(&file).unwrap();
        let logprob = |line: &str| number(&serde_json::from_str::<Value>(line).unwrap()["logprob"]);
        let all: Vec<f64> = lines.lines().map(logprob).collect();
        let best =
            |own: &[f64]| (0..3).fold(0, |best, i| if own[i] > own[best] { i } else { best });
        let items = all.chunks(3).enumerate();
        (report, items.map(|(i, own)| f64::from(u8::from(best(own) == i % 3))).collect())
    };
    let ((alone, ours), (other, theirs)) = (right(&stories), right(&noise));
    let both = report(&["eval", &stories, "--task", &task, "--baseline", &noise]);
    for key in ["items", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr"] {
        assert_eq!(both[key], alone[key], "{key}");
        assert_eq!(both["baseline"][key], other[key], "{key}");
    }
    let pairs: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours - theirs).collect();
    let (difference, error) = mean(&pairs);
    close(&both["difference"]["acc"], difference, "difference");
    close(&both["difference"]["acc_stderr"], error, "its error");
    assert!(pairs.iter().any(|pair| *pair != 0.0), "the models differ");
    let out = run(&["eval", &stories, "--task", &task, "--baseline", &noise, "--quiet"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("\nbaseline ") && text.contains("\n  difference "), "{text}");
}

#[test]
fn several_models_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (artifact, stories) = (artifact(folder.path()), stories());
    let copy = folder.path().join("copy of it");
    fs::create_dir(&copy).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(&stories).join(file), copy.join(file)).unwrap();
    }
    let copy = copy.display().to_string();
    let task = write_task(folder.path(), "task.jsonl").display().to_string();
    let page = folder.path().join("page.html");
    let some = ["--max-tokens", "300", "--task", &task];
    let all = report(&[&["compare", &stories, &copy, &artifact][..], &some].concat());
    assert_eq!(all["reference"], *stories);
    let models = all["models"].as_array().unwrap();
    assert_eq!(models.len(), 3);
    // The same figures as eval's, of each by itself.
    let eval = |more: &[&str]| report(&[&["eval", &artifact, "--path", "exact"], more].concat());
    let text = eval(&["--baseline", &stories, "--max-tokens", "300"]);
    let tasks = eval(&["--baseline", &stories, "--task", &task]);
    for key in ["mean_nll", "mean_nll_stderr", "perplexity", "perplexity_stderr"] {
        assert_eq!(models[2][key], text[key], "{key}");
        assert_eq!(models[0][key], text["baseline"][key], "{key}");
        assert_eq!(models[1][key], models[0][key], "{key}");
    }
    for (key, value) in models[2]["against_reference"].as_object().unwrap() {
        assert_eq!(*value, text["baseline"][key], "{key}");
    }
    assert_eq!(models[2]["tasks"][0]["acc"], tasks["acc"]);
    assert_eq!(models[2]["tasks"][0]["difference"], tasks["difference"]);
    let copied = &models[1]["against_reference"];
    assert_eq!((number(&copied["kl_divergence"]), number(&copied["top1_agreement"])), (0.0, 1.0));
    assert!(models[0]["against_reference"].is_null() && models[0]["speed"].is_null());
    let bytes = fs::metadata(Path::new(&artifact).join("model.safetensors")).unwrap().len();
    assert_eq!(models[2]["bytes"].as_u64(), Some(bytes));
    // The same as a table and as a page; another may be what all are held against.
    let plot = ["--plot", page.to_str().unwrap(), "--baseline", &copy, "--speed", "--quiet"];
    let out = run(&[&["compare", &artifact, &stories], &some[..], &plot].concat());
    assert_eq!(out.status.code(), Some(0), "{}", remarks(&out));
    let text = String::from_utf8(out.stdout).unwrap();
    let rows =
        |name: &str| text.lines().filter(|line| line.starts_with(&format!("{name} "))).count();
    assert!(rows("copy of it") == rows("int4") && rows("int4") == rows("stories260k"), "{text}");
    assert!(text.contains(" task acc_norm") && text.contains("decode, tokens/s"), "{text}");
    let table = text.lines().filter(|line| !line.contains('/') || line.contains("tokens/s"));
    assert!(table.clone().all(|line| line.chars().count() <= 80), "{text}");
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("</i>int4</td>") && page.matches("<svg").count() == 2);
}

#[test]
fn what_cannot_be_compared_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let noise = folder.path().join("noise");
    write_noise_model(&noise, 1, 64, 100);
    let (noise, stories) = (noise.display().to_string(), stories());
    for (arguments, rule) in [
        (&["compare", &stories][..], "nothing to be compared with"),
        (&["compare"], "MODEL"),
        (&["compare", &stories, &noise], "they cannot be compared"),
        (&["compare", &stories, &stories, "--task", "no-task"], "is no file"),
        (&["compare", &stories, &stories, "--plot", "/nowhere/page.html"], "is no folder"),
        (&["compare", &stories, "no/model"], "no model at"),
    ] {
        let out = run(arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {}", remarks(&out));
        assert!(remarks(&out).contains(rule), "{arguments:?}: {}", remarks(&out));
        assert!(!remarks(&out).contains("tokens/s"), "{}", remarks(&out));
    }
}

/// Runs with something on standard input.
fn fed(arguments: &[&str], input: &str) -> Output {
    let mut command: Command = optimize();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_text_comes_by_standard_input_too() {
    let folder = tempfile::tempdir().unwrap();
    let (stories, text) = (stories(), "Once upon a time there was a little girl named Lily.");
    let file = folder.path().join("text.txt");
    fs::write(&file, text).unwrap();
    let arguments = ["eval", &stories, "--json", "--quiet", "--text"];
    let piped = fed(&[&arguments[..], &["-"]].concat(), text);
    assert_eq!(piped.status.code(), Some(0), "{}", remarks(&piped));
    let mut piped: Value = serde_json::from_slice(&piped.stdout).unwrap();
    assert_eq!(piped["text"], "standard input");
    let read = report(&["eval", &stories, "--text", file.to_str().unwrap()]);
    piped["text"] = read["text"].clone();
    assert_eq!(piped, read);
}

#[test]
fn a_task_that_is_named_is_told_what_a_task_is_and_what_is_near() {
    let folder = tempfile::tempdir().unwrap();
    write_task(folder.path(), "arc_easy_head.jsonl");
    let mut command = optimize();
    command.current_dir(folder.path()).args(["eval", &stories(), "--task", "ARC-Easy"]);
    let out = command.output().unwrap();
    let said = remarks(&out);
    assert_eq!(out.status.code(), Some(2), "{said}");
    for part in [
        "\"ARC-Easy\" is no file",
        "did you mean \"arc_easy_head.jsonl\"?",
        "\"choices\"",
        "ai2_arc",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let out = run(&["eval", &stories(), "--task", "/no/such/thing"]);
    assert!(remarks(&out).contains("is no file") && !remarks(&out).contains("did you mean"));
}
