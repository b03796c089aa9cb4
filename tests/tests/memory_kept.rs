//! What is said of memory is kept: a limit by the process, a prediction by the plan, and what there is by
//! whatever would take more.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tests::bench::folder;

/// A model of noise with a tokenizer: a table of so many rows, of f32.
fn model(folder: &Path, layers: usize, hidden: usize, vocab: usize) -> PathBuf {
    let model = folder.join("model");
    tests::write_noise_model(&model, layers, hidden, vocab);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let from = tests::root().join("tests/models/stories260k").join(name);
        if from.is_file() {
            fs::copy(from, model.join(name)).unwrap();
        }
    }
    model
}

/// A text that takes little to tokenize.
fn text(folder: &Path) -> PathBuf {
    let path = folder.join("text.txt");
    fs::write(&path, "Once upon a time there was a little girl. ".repeat(400)).unwrap();
    path
}

fn compile(folder: &Path, model: &Path, more: &[&str]) -> Output {
    let mut command = tests::optimize();
    command.args(["--quant", "int4", "--threads", "2", "--json", "-o", "out"]).arg(model);
    command.args(more).current_dir(folder).output().unwrap()
}

fn json(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn a_limit_is_kept_by_the_process() {
    let dir = folder();
    let (model, text) = (model(dir.path(), 2, 256, 512), text(dir.path()));
    let text = text.to_str().unwrap();
    let texts = ["--calibration", text, "--gate-text", text, "--samples", "64", "--seq-len", "256"];
    let plan = |memory: &[&str]| {
        let dry = [&texts[..], memory, &["--dry-run"]].concat();
        json(&compile(dir.path(), &model, &dry))["peak_memory"].as_u64().unwrap()
    };
    let free = plan(&[]);
    // Less than without a limit: activations have to go to disk.
    let limit = format!("{}", free / 10 * 9);
    let bounded = ["--memory", &limit[..]];
    let planned = plan(&bounded);
    let out = compile(dir.path(), &model, &[&texts[..], &bounded].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let taken = json(&out)["run"]["peak_memory"].as_u64().unwrap();
    assert!(planned < free && taken <= free / 10 * 9, "{free} {limit} {planned} {taken}");
}

#[test]
fn too_little_is_refused_alike_before_any_work() {
    let dir = folder();
    let model = model(dir.path(), 1, 256, 512);
    for more in [&[][..], &["--method", "rtn"], &["--no-gate"]] {
        let run = |extra: &[&str]| {
            let all = [more, &["--memory", "10MB"], extra].concat();
            let out = compile(dir.path(), &model, &all);
            (out.status.code(), String::from_utf8(out.stderr).unwrap())
        };
        let (refused, planned) = (run(&[]), run(&["--dry-run"]));
        assert_eq!(refused, planned);
        assert_eq!(refused.0, Some(2), "{}", refused.1);
        assert!(refused.1.contains("--memory 10.0 MB is too little: this takes "), "{}", refused.1);
        assert!(!dir.path().join("out.partial").exists());
    }
}

#[test]
fn a_served_model_is_in_memory_once() {
    let dir = folder();
    // A tied table of 82 MB and a layer of 12.
    let model = model(dir.path(), 1, 512, 40_000);
    let stored = fs::metadata(model.join("model.safetensors")).unwrap().len();
    let mut command = tests::optimize();
    command.arg("run").arg(&model).args(["once", "--max-tokens", "2", "--kv-memory", "1MB"]);
    let out = command.args(["--json", "--threads", "2"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    let memory = &json(&out)["memory"];
    let of = |key: &str| memory[key].as_u64().unwrap();
    // The program itself takes some 20 MB.
    let most = stored + stored / 20 * 3 + of("keys_and_values") + (20 << 20);
    assert!(of("peak") <= most, "{memory} of {stored}");
    // What was said beforehand is what it took.
    let ratio = of("total") as f64 / of("peak") as f64;
    assert!((0.9..1.15).contains(&ratio), "{memory}");
    assert!(said.contains(" of weights + ") && said.contains(" that are free"), "{said}");
}

/// Runs the program where it may take so many kB of addresses.
fn confined(kilobytes: u64, arguments: &[&str]) -> (Option<i32>, String) {
    let program = tests::optimize();
    let script = format!("ulimit -v {kilobytes}; exec \"$0\" \"$@\"");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).arg(program.get_program()).args(arguments);
    let out = shell.output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn what_does_not_fit_is_refused_with_both_sizes_before_weights_are_read() {
    let dir = folder();
    let model = model(dir.path(), 1, 512, 40_000);
    let model = model.to_str().unwrap();
    // The threads reserve addresses too: some 100 MB are left, or less.
    for more in [&[][..], &["--kv-memory", "1MB"]] {
        let run = [&["run", model, "once", "--threads", "1"], more].concat();
        let (code, said) = confined(130_000, &run);
        assert_eq!(code, Some(2), "{said}");
        let both = said.contains("this takes ") && said.contains("this process may take ");
        assert!(both, "{said}");
    }
    let (code, said) =
        confined(60_000, &["--quant", "int4", "--threads", "1", "--no-gate", "-o", "x", model]);
    assert!(matches!(code, Some(2 | 4)), "{said}");
    assert!(said.contains("this takes ") || said.contains("there is no memory for "), "{said}");
}

#[test]
fn running_out_is_a_failure_of_the_machine_with_both_sizes() {
    let dir = folder();
    // A layer that is streamed does not fit: nobody refuses that before.
    let model = model(dir.path(), 1, 1536, 512);
    let tokens = dir.path().join("tokens");
    fs::write(&tokens, "1 2 3 4 5 6 7 8").unwrap();
    let paths = [model.to_str().unwrap(), tokens.to_str().unwrap()];
    let eval = ["eval", paths[0], "--tokens", paths[1], "--threads", "1"];
    let (code, said) = confined(90_000, &eval);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("error: "), "{said}");
}

#[test]
fn a_model_says_what_it_will_take() {
    let dir = folder();
    let model = model(dir.path(), 1, 256, 512);
    let run = |more: &[&str]| {
        let mut command = tests::optimize();
        command.arg("inspect").arg(&model).args(more).output().unwrap()
    };
    let text = String::from_utf8(run(&[]).stdout).unwrap();
    assert!(text.contains("to run") && text.contains(" of work\n"), "{text}");
    let said = &json(&run(&["--json"]))["to_run"];
    let of = |key: &str| said[key].as_u64().unwrap();
    assert_eq!(of("total"), of("weights") + of("keys_and_values") + of("work"));
    // f32 panels of 32 rows, norms aside: what the file holds.
    let stored = fs::metadata(model.join("model.safetensors")).unwrap().len();
    assert!(of("weights").abs_diff(stored) < 16 << 10, "{said} {stored}");
}
