//! A dry run refuses what the run would, outputs lie where they can, and what lies there is kept.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;
use tests::bench::Bench;
use tests::{optimize, root};

const RTN: [&str; 5] = ["--quant", "int4", "--method", "rtn", "--no-gate"];

fn stories() -> String {
    root().join("tests/models/stories260k").display().to_string()
}

fn run(at: &TempDir, arguments: &[&str]) -> Output {
    optimize().args(arguments).arg(stories()).current_dir(at.path()).output().unwrap()
}

fn rtn(at: &TempDir, more: &[&str]) -> Output {
    run(at, &[&RTN[..], more].concat())
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Both the dry run and the run are refused, in the same words.
fn both_refuse(at: &TempDir, more: &[&str], rule: &str) {
    for dry in [&["--dry-run"][..], &[]] {
        let out = rtn(at, &[more, dry].concat());
        assert_eq!(out.status.code(), Some(2), "{more:?}: {}", said(&out));
        assert!(said(&out).contains(rule), "no {rule:?} in {}", said(&out));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut all: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn parents_are_made_and_an_empty_folder_is_used() {
    let at = tempfile::tempdir().unwrap();
    assert!(rtn(&at, &["-o", "a/b/c", "--dry-run"]).status.success());
    assert!(names(at.path()).is_empty(), "a dry run leaves nothing");
    assert!(rtn(&at, &["-o", "a/b/c"]).status.success());
    assert_eq!(names(&at.path().join("a/b")), ["c", "c.log.json"]);
    fs::create_dir(at.path().join("empty")).unwrap();
    assert!(rtn(&at, &["-o", "empty"]).status.success());
    assert!(at.path().join("empty/model.safetensors").is_file());
    // A link to a folder is a name of it.
    fs::create_dir(at.path().join("real")).unwrap();
    symlink("real", at.path().join("link")).unwrap();
    assert!(rtn(&at, &["-o", "link"]).status.success());
    assert!(at.path().join("real/model.safetensors").is_file());
    assert!(at.path().join("link").is_symlink());
}

#[test]
fn what_cannot_be_published_to_is_refused_before_the_work() {
    let at = tempfile::tempdir().unwrap();
    fs::write(at.path().join("file"), "mine").unwrap();
    symlink("nowhere", at.path().join("dangling")).unwrap();
    both_refuse(&at, &["-o", "file/x"], "is no folder");
    both_refuse(&at, &["-o", "file/x/y"], "is no folder");
    both_refuse(&at, &["-o", "dangling"], "leads nowhere");
    both_refuse(&at, &["-o", "file"], "exists");
    fs::create_dir(at.path().join("mine")).unwrap();
    fs::write(at.path().join("mine/thesis"), "years").unwrap();
    both_refuse(&at, &["-o", "mine", "--force"], "no model folder");
    assert!(rtn(&at, &["-o", "out"]).status.success());
    both_refuse(&at, &["-o", "out", "--group-size", "32"], "group of rule 1 was 128 and is 32");
    both_refuse(&at, &["-o", "out", "--fresh"], "built again");
    both_refuse(&at, &["-o", "out2", "--ignore", "*donw_proj"], "down_proj");
    let no_tokenizer = at.path().join("model");
    tests::write_noise_model(&no_tokenizer, 1, 64, 100);
    for dry in [&["--dry-run"][..], &[]] {
        let words = ["--quant", "int4", "-o", "out3", "model"];
        let out = optimize().args(words).args(dry).current_dir(at.path()).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{}", said(&out));
        assert!(said(&out).contains("tokenizer"), "{}", said(&out));
    }
    assert_eq!(names(at.path()), ["dangling", "file", "mine", "model", "out", "out.log.json"]);
    assert_eq!(fs::read_to_string(at.path().join("mine/thesis")).unwrap(), "years");
}

#[test]
fn unfinished_work_of_another_job_stops_a_dry_run_too() {
    let at = tempfile::tempdir().unwrap();
    let bench = Bench::new(at.path(), 2, 2);
    let mut child = bench.stopped("block-noted:2", &[]);
    child.kill().unwrap();
    child.wait().unwrap();
    let other = &["--group-size", "32"][..];
    for dry in [&["--dry-run"][..], &[]] {
        let said = bench.fails(&[other, dry].concat(), 2);
        assert!(said.contains("unfinished work of another job"), "{said}");
    }
    assert!(bench.run(&["--dry-run"]).status.success());
    assert!(bench.path("out.partial/journal").is_file(), "what was finished stays");
}

#[test]
fn a_signal_is_answered_by_where_the_same_command_goes_on() {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    let at = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(at.path(), 2, 2);
    bench.options.retain(|option| option != "--quiet");
    let mut command = bench.command(&["--stop-at", "block-noted:2"]);
    let mut child = command.spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut said = String::new();
    while !said.contains("stopped at") {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(2), "the shell sees what ended it: {said}");
    assert!(said.contains("the same command goes on from block 2 of 4"), "{said}");
    let out = bench.run(&[]);
    assert!(out.status.success(), "{}", self::said(&out));
    let said = self::said(&out);
    assert!(said.contains("an earlier run goes on from block 3 of 4"), "{said}");
}

#[test]
fn a_link_in_the_way_of_unfinished_work_is_not_followed() {
    let at = tempfile::tempdir().unwrap();
    let elsewhere = at.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("thesis"), "years").unwrap();
    symlink(&elsewhere, at.path().join("out.partial")).unwrap();
    both_refuse(&at, &["-o", "out"], "is a link");
    fs::remove_file(at.path().join("out.partial")).unwrap();
    fs::create_dir(at.path().join("out.partial")).unwrap();
    fs::write(at.path().join("out.partial/lock"), "").unwrap();
    symlink(&elsewhere, at.path().join("out.partial/artifact")).unwrap();
    both_refuse(&at, &["-o", "out", "--fresh"], "is a link");
    assert_eq!(names(&elsewhere), ["thesis"]);
}

#[test]
fn a_report_that_was_edited_is_found_out() {
    let at = tempfile::tempdir().unwrap();
    assert!(rtn(&at, &["-o", "out"]).status.success());
    let path = at.path().join("out/report.json");
    let text = fs::read_to_string(&path).unwrap();
    let verify = |text: &str| {
        fs::write(&path, text).unwrap();
        let out = tests::run(&["verify", at.path().join("out").to_str().unwrap()]);
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    assert_eq!(verify(&text).0, Some(0));
    let report: Value = serde_json::from_str(&text).unwrap();
    let error = report["weights"][0]["relative_error"].to_string();
    let (code, said) = verify(&text.replace(&error, "0.0"));
    assert!(code == Some(2) && said.contains("report.json"), "{said}");
    let seal = report["seal"].as_str().unwrap();
    let (code, said) = verify(&text.replace(seal, ""));
    assert!(code == Some(2) && said.contains("report.json"), "{said}");
    fs::rename(&path, at.path().join("report")).unwrap();
    symlink(at.path().join("report"), &path).unwrap();
    let out = tests::run(&["verify", at.path().join("out").to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "{}", self::said(&out));
    assert!(self::said(&out).contains("a link"), "{}", self::said(&out));
}

#[test]
fn what_was_asked_for_and_does_not_fit_is_said() {
    let at = tempfile::tempdir().unwrap();
    let out = rtn(&at, &["-o", "out", "--group-size", "128", "--dry-run"]);
    assert!(said(&out).contains("--group-size 128 does not divide rows of 172"), "{}", said(&out));
    let out = run(&at, &["--quant", "int4", "--seq-len", "100000", "--dry-run"]);
    assert!(said(&out).contains("--seq-len 100000 is more than"), "{}", said(&out));
    let out = rtn(&at, &["-o", "out", "--dry-run"]);
    assert_eq!(said(&out), "", "what nobody asked for is not a remark");
}

#[test]
fn plan_and_result_fit_eighty_columns() {
    let at = tempfile::tempdir().unwrap();
    let text = root().join("tests/fixtures/stories.txt").display().to_string();
    let arguments = ["--quant", "int4", "--max-ppl-increase", "200%", "--gate-text", &text];
    for dry in [&["--dry-run"][..], &[]] {
        let out = run(&at, &[&arguments[..], dry].concat());
        let text = String::from_utf8(out.stdout.clone()).unwrap();
        assert!(out.status.success(), "{}", said(&out));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\x1b'), "colours are for people: {text}");
        assert_eq!(text.contains("perplexity rises by 200 % at most"), !dry.is_empty(), "{text}");
    }
}

#[test]
fn progress_is_an_object_a_line_for_a_program() {
    let at = tempfile::tempdir().unwrap();
    let out = rtn(&at, &["-o", "out", "--progress", "json", "--quiet"]);
    assert!(out.status.success(), "{}", said(&out));
    let objects: Vec<Value> =
        said(&out).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = objects.iter().map(|o| o["progress"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "block").count(), 7, "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "weight").count(), 35, "{kinds:?}");
    assert!(objects.iter().all(|o| o["total"] == 7 && o["seconds"].is_f64()), "{objects:?}");
}
