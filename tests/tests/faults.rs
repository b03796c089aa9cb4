//! A disk that fails: at every call, the run ends with exit code 4 and says where, what is there
//! stays whole, and the same command goes on once the disk works again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "how many calls there were is worth knowing")]

use std::fs;
use std::process::Command;
use tests::bench::{Bench, Files, files, folder, same};

/// Lets each call fail in turn, until a run has fewer calls.
fn every_call(kind: &str, replaces: bool, more: &[&str]) {
    let dir = folder();
    let bench = Bench::new(dir.path(), 1, 2);
    let old = bench.make(&["--method", "rtn", "--no-gate"]);
    bench.clean();
    let expected = bench.make(more);
    bench.clean();
    let model = files(&bench.path("model"));
    let force: &[&str] = if replaces { &["--force"] } else { &[] };
    let mut calls = 0;
    for n in 1.. {
        if replaces {
            put(&bench, &old);
        }
        let fault = format!("{kind}:{n}");
        let failed = bench.run(&[more, force, &["--fail-at", &fault]].concat());
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        if failed.status.success() {
            break;
        }
        calls = n;
        assert_eq!(failed.status.code(), Some(4), "{fault}: {said}");
        let named = ["\"out", "\".\"", "tensor \"model."];
        let names = named.iter().any(|name| said.contains(name));
        assert!(names, "{fault} names no path: {said}");
        assert!(!said.contains("panicked"), "{fault}: {said}");
        if kind == "full" {
            let figures = said.contains("bytes") && said.contains("are free");
            assert!(figures, "{fault} does not say what is needed and free: {said}");
        }
        if bench.path("out").exists() {
            let now = files(&bench.path("out"));
            if now["report.json"] == expected["report.json"] {
                same(&expected, &now, &fault);
            } else {
                same(&old, &now, &fault);
            }
        } else {
            assert!(!replaces, "{fault}: the old output is gone");
        }
        same(&model, &files(&bench.path("model")), &fault);
        same(&expected, &bench.make(&[more, force].concat()), &fault);
        assert!(bench.litter().is_empty(), "{fault}: {:?}", bench.litter());
        bench.clean();
    }
    println!("{kind}, {more:?}, over an old output {replaces}: {calls} calls");
    assert!(calls >= 12, "only {calls} calls go through the file layer");
}

fn put(bench: &Bench, old: &Files) {
    fs::create_dir(bench.path("out")).unwrap();
    for (name, bytes) in old {
        fs::write(bench.path("out").join(name), bytes).unwrap();
    }
}

#[test]
fn an_error_at_any_call_loses_nothing() {
    every_call("io", false, &["--resident", "0"]);
}

#[test]
fn an_error_at_any_call_loses_nothing_of_an_old_output() {
    every_call("io", true, &["--no-gate"]);
}

#[test]
fn an_error_at_any_read_of_the_model_loses_nothing() {
    every_call("read", false, &[]);
}

#[test]
fn a_disk_that_is_full_from_any_call_on_loses_nothing() {
    every_call("full", false, &["--resident", "0", "--no-gate"]);
}

#[test]
fn a_disk_that_is_full_from_any_call_on_loses_nothing_of_an_old_output() {
    every_call("full", true, &["--no-gate"]);
}

/// The system's own answer, on a file system of a few pages.
#[test]
fn a_file_system_that_is_too_small_is_said_to_be() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 4, 4);
    let expected = bench.make(&[]);
    bench.clean();
    fs::create_dir(bench.path("small")).unwrap();
    let command = bench.command(&[]);
    let arguments = command.get_args().map(|a| if a == "out" { "small/out".as_ref() } else { a });
    let arguments: Vec<_> = arguments.map(|a| a.to_os_string()).collect();
    let program = command.get_program();
    // The larger ones have room for the plan, but not for all that is written beside.
    let bytes: usize = expected.values().map(Vec::len).sum();
    let script = |pages: usize| {
        format!(
            "mount -t tmpfs -o size={} tmpfs small && \"$@\"; code=$?; ls small >&2; \
             mount -o remount,size=64m small && \"$@\" && cp -r small/out out; \
             echo $code $?",
            pages * 4096
        )
    };
    let mut refused = 0;
    for pages in [1, bytes / 8192, bytes / 4096 - 1, bytes / 4096 + 1, bytes / 4096 + 4] {
        let mut shell = Command::new("unshare");
        shell.args(["-rm", "sh", "-c", &script(pages), "sh"]).arg(program).args(&arguments);
        let ran = shell.current_dir(dir.path()).output();
        let Some(ran) = ran.ok().filter(|r| r.status.success()) else {
            println!("skipped: this system lets nobody mount a file system of his own");
            return;
        };
        let (codes, said) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        let codes = codes.lines().last().unwrap();
        assert!(["4 0", "0 0"].contains(&codes), "{pages} pages: {codes}: {said}");
        if codes == "4 0" {
            refused += 1;
            assert!(said.contains("small/out") && said.contains("are free"), "{said}");
        }
        same(&expected, &files(&bench.path("out")), &format!("{pages} pages"));
        bench.clean();
    }
    assert!(refused >= 3, "only {refused} were too small");
}

/// The headers, the configuration, the tokenizer: what is read before and beside the tensors.
#[test]
fn a_file_of_the_model_that_cannot_be_read_is_the_machines_failure() {
    let dir = folder();
    let (out, log) = (dir.path().join("out"), dir.path().join("trace"));
    let model = tests::root().join("tests/models/stories260k");
    let optimize = tests::optimize();
    let arguments = ["--quant", "int4", "--samples", "4", "--quiet", "-o"];
    let mut injected = 0;
    for file in fs::read_dir(&model).unwrap().map(|entry| entry.unwrap().path()) {
        for call in 1..=3 {
            let fault = format!("inject=read,pread64:error=EIO:when={call}");
            let mut strace = Command::new("strace");
            strace.args(["-f", "-qq", "-e", "trace=read,pread64", "-e", &fault, "-P"]).arg(&file);
            strace.arg("-o").arg(&log).arg(optimize.get_program());
            let Ok(ran) = strace.args(arguments).arg(&out).arg(&model).output() else {
                println!("skipped: there is no strace here");
                return;
            };
            if !fs::read_to_string(&log).unwrap_or_default().contains("INJECTED") {
                println!("skipped: call {call} on {file:?} was not reached, or nobody may trace");
                continue;
            }
            injected += 1;
            let said = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(4), "call {call} on {file:?}: {said}");
            assert!(said.contains(file.to_str().unwrap()), "{said}");
            assert!(said.contains("Input/output error"), "{said}");
            assert!(!out.exists(), "call {call} on {file:?}");
        }
    }
    println!("{injected} reads failed");
    let mut again = tests::optimize();
    assert!(again.args(arguments).arg(&out).arg(&model).status().unwrap().success());
}
