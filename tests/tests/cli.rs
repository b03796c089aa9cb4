//! The command line's grammar and exit codes, on the built binary.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use tests::{optimize, root, run};

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

/// Runs the command; checks the exit code, that each stream holds what it should, and that a
/// failure prints nothing to standard output.
fn check(arguments: &[&str], code: i32, stdout: &[&str], stderr: &[&str]) {
    let out = run(arguments);
    let (text, remarks) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{arguments:?}: {remarks}");
    stdout.iter().for_each(|s| assert!(text.contains(s), "{arguments:?}: no {s:?} in {text}"));
    stderr
        .iter()
        .for_each(|s| assert!(remarks.contains(s), "{arguments:?}: no {s:?} in {remarks}"));
    assert!(code == 0 || text.is_empty(), "{arguments:?}: {text}");
}

#[test]
fn help_and_version_are_results() {
    check(&["--help"], 0, &["inspect", "eval", "Usage:"], &[]);
    check(&["eval", "--help"], 0, &["--baseline", "--stride"], &[]);
    check(&["--version"], 0, &["optimize"], &[]);
    check(&[], 2, &[], &["Usage:"]);
}

#[test]
fn a_model_alone_is_nothing_to_do() {
    check(&[&stories()], 2, &[], &["nothing to do", "optimize eval", "optimize inspect"]);
    check(&["./run"], 2, &[], &["nothing to do with \"./run\""]);
}

#[test]
fn a_folder_of_a_commands_name_is_pointed_out() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("eval")).unwrap();
    let out = optimize().arg("eval").current_dir(folder.path()).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("write ./eval"));
}

#[test]
fn refusals_name_what_is_wrong() {
    let stories = stories();
    check(&["inspect", "no/such"], 2, &[], &["no model at \"no/such\"", "nothing is downloaded"]);
    check(&["inspect", "Cargo.toml"], 2, &[], &["is a file", "config.json"]);
    check(&["eval", &stories, "--text", "/no/such"], 2, &[], &["/no/such", "caused by:"]);
    check(&["eval", &stories, "--window", "1"], 2, &[], &["window"]);
    check(&["eval", &stories, "--window", "8", "--stride", "9"], 2, &[], &["stride"]);
    check(&["eval", &stories, "--threads", "0"], 2, &[], &["--threads"]);
    check(&["eval", &stories, "--isa", "mmx"], 2, &[], &["mmx"]);
    let unknown = ["inspect", &stories, "--ignore-config-key", "nope"];
    check(&unknown, 2, &[], &["no key \"nope\""]);
}

#[test]
fn token_ids_are_checked_against_the_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ids");
    let stories = stories();
    let arguments = ["eval", &stories, "--tokens", file.to_str().unwrap()];
    fs::write(&file, "1 2 512").unwrap();
    check(&arguments, 2, &[], &["token 2 is 512", "512 rows"]);
    fs::write(&file, "1 2 three").unwrap();
    check(&arguments, 2, &[], &["token 2, \"three\""]);
    fs::write(&file, "[1]").unwrap();
    check(&arguments, 2, &[], &["2"]);
    fs::write(&file, "[1, 403, 407]").unwrap();
    check(&arguments, 0, &["perplexity"], &["tokens/s"]);
}

#[test]
fn inspect_describes_the_committed_model() {
    let stories = stories();
    let seen = ["llama, 5 layers, 260,032 parameters, 1.04 MB", "512 ids", "layer 0 to 4"];
    check(&["inspect", &stories], 0, &seen, &[]);
    check(&["inspect", &stories, "--blocks"], 0, &["%1 = norm %0", "heads=8/4x8"], &[]);
    let out = run(&["inspect", &stories, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["parameters"], 260_032);
    assert_eq!(report["blocks"].as_array().unwrap().len(), 7);
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let out = run(arguments);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.stderr.is_empty() || !arguments.contains(&"--quiet"));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn a_model_agrees_with_itself() {
    let stories = stories();
    let report = json(&["eval", &stories, "--baseline", &stories, "--max-tokens", "700", "--json"]);
    let baseline = &report["baseline"];
    assert_eq!(report["perplexity"], baseline["perplexity"]);
    assert_eq!(baseline["top1_agreement"], 1.0);
    assert!(baseline["kl_divergence"].as_f64().unwrap().abs() < 1e-6);
}

#[test]
fn logprobs_are_one_line_a_token_and_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.jsonl");
    let stories = stories();
    let path = file.to_str().unwrap();
    let report = json(&[
        "eval",
        &stories,
        "--max-tokens",
        "100",
        "--window",
        "40",
        "--logprobs",
        path,
        "--json",
        "--quiet",
    ]);
    let lines = read_lines(&file);
    assert_eq!(lines.len(), 100);
    let nulls: Vec<usize> = (0..100).filter(|&i| lines[i]["logprob"].is_null()).collect();
    assert_eq!(nulls, [0, 40, 80]);
    let sum: f64 = lines.iter().filter_map(|l| l["logprob"].as_f64()).sum();
    assert_eq!(report["scored"], 97);
    assert!((sum / -97.0 - report["mean_nll"].as_f64().unwrap()).abs() < 1e-12);
    assert!(lines.iter().enumerate().all(|(i, l)| l["position"] == i));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-written is left");
}

fn read_lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn threads_strides_and_instruction_sets_change_no_bit_they_should_not() {
    let stories = stories();
    let base = ["eval", &stories, "--max-tokens", "600", "--json", "--quiet"];
    let nll = |extra: &[&str]| json(&[&base[..], extra].concat())["mean_nll"].clone();
    let all = nll(&[]);
    assert_eq!(all, nll(&["--threads", "1"]));
    assert_eq!(all, nll(&["--threads", "3"]));
    assert_eq!(all, nll(&["--isa", "portable"]));
    assert_ne!(all, nll(&["--window", "128"]));
}

#[test]
fn tasks_are_scored_and_their_requests_written() {
    let folder = tempfile::tempdir().unwrap();
    let (task, file) = (folder.path().join("task.jsonl"), folder.path().join("out.jsonl"));
    fs::write(
        &task,
        r#"{"query": "Once upon a", "choices": ["time", "xylophone"], "gold": 0}
"#,
    )
    .unwrap();
    let (task, path) = (task.to_str().unwrap(), file.to_str().unwrap());
    let stories = stories();
    let report = json(&["eval", &stories, "--task", task, "--logprobs", path, "--json"]);
    assert_eq!(report["items"], 1);
    assert_eq!(report["acc"], 1.0);
    let lines = read_lines(&file);
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["logprob"].as_f64() > lines[1]["logprob"].as_f64());
    check(&["eval", &stories, "--task", &stories], 2, &[], &["caused by:"]);
}
