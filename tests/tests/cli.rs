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
    check(&["eval", &stories, "--text", "Cargo.lock/x"], 2, &[], &["Cargo.lock/x"]);
    check(&["eval", &stories, "--text", "src"], 2, &[], &["\"src\"", "caused by:"]);
    check(&["eval", &stories, "--max-tokens", "1"], 2, &[], &["built-in", "at least 2"]);
    check(&["eval", &stories, "--baseline", "no/such"], 2, &[], &["no model at \"no/such\""]);
    check(&["eval", &stories, "--threads", "0"], 2, &[], &["--threads"]);
    check(&["eval", &stories, "--isa", "mmx"], 2, &[], &["mmx"]);
    let unknown = ["inspect", &stories, "--ignore-config-key", "nope"];
    check(&unknown, 2, &[], &["no key \"nope\""]);
}

#[test]
fn what_would_be_ignored_or_fail_late_is_refused_at_once() {
    let stories = stories();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let refused = |extra: &[&str], rule: &str| {
        check(&[&["eval", &stories], extra].concat(), 2, &[], &[rule]);
    };
    refused(&["--logprobs", &path("no/such")], "is no folder");
    refused(&["--logprobs", &path("")], "it is a folder");
    refused(&["--protocol", "llama.cpp", "--stride", "8"], "--stride has no meaning");
    let task = path("task.jsonl");
    fs::write(&task, r#"{"query": "a", "choices": ["b", "c"], "gold": 0}"#).unwrap();
    refused(&["--task", &task, "--window", "8"], "a task has items");
    refused(&["--task", &task, "--protocol", "llama.cpp"], "a task has items");
    let text = path("text");
    for (bytes, rule) in
        [(&b""[..], "the evaluation needs at least 2"), (b"a\xff", "is not UTF-8 at byte 1")]
    {
        fs::write(&text, bytes).unwrap();
        refused(&["--text", &text], rule);
        refused(&["--tokens", &text], rule);
    }
    for (line, rule) in [
        ("", "the task has no line"),
        ("{", "line 1 of the task: is no item"),
        (r#"{"query": "a", "choices": ["b"], "gold": 0}"#, "has 1 choices"),
        (r#"{"query": "a", "choices": ["b", "c"], "gold": 2}"#, "gold is 2"),
    ] {
        fs::write(&task, line).unwrap();
        refused(&["--task", &task], rule);
        refused(&["--task", &task], &task);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is written");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let stories = stories();
    for arguments in [&["inspect", &stories, "--json"][..], &["eval", &stories, "--help"]] {
        let mut child = optimize()
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_the_machines_failure() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = optimize().args(["inspect", &stories()]).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(4));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("cannot write to standard output"), "{said}");
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
