//! What a compilation does to the system around it: it opens no socket, starts no process, and writes
//! nowhere but beside its output.

#![expect(clippy::print_stdout, reason = "what is skipped says why")]

use std::fs;
use std::process::Command;
use tests::bench::{Bench, folder};

/// The system calls of a run, one a line; `None` if they cannot be traced here.
fn traced(bench: &Bench, calls: &str, more: &[&str]) -> Option<String> {
    let command = bench.command(more);
    let log = bench.path("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={calls}"), "-o"]).arg(&log);
    strace.arg(command.get_program()).args(command.get_args()).current_dir(bench.path(""));
    let Ok(out) = strace.output() else {
        println!("skipped: there is no strace here");
        return None;
    };
    let trace = fs::read_to_string(&log).unwrap_or_default();
    if !trace.contains("execve(") {
        println!("skipped: this system lets nobody trace a process");
        return None;
    }
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(trace)
}

#[test]
fn a_compilation_opens_no_socket_and_starts_no_process() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 2, 4);
    for more in [&[][..], &["--dry-run"], &["--force", "--fresh", "--resident", "0"]] {
        let Some(trace) = traced(&bench, "%network,%process", more) else { return };
        let lines = || trace.lines();
        let begun = lines().filter(|l| l.contains("execve(")).count();
        assert_eq!(begun, 1, "{more:?}: a program was started: {trace}");
        // A thread is a clone that shares its memory and belongs to the process.
        let is_process = |l: &&str| {
            let clones = l.contains("clone(") || l.contains("clone3(");
            l.contains("fork(") || (clones && !l.contains("CLONE_THREAD"))
        };
        assert_eq!(lines().find(is_process), None, "{more:?}");
        assert!(more.contains(&"--dry-run") || trace.contains("CLONE_THREAD"), "threads are seen");
        let network = ["socket(", "socketpair(", "connect(", "bind(", "listen(", "sendto("];
        let sends = |l: &&str| network.iter().any(|call| l.contains(call));
        assert_eq!(lines().find(sends), None, "{more:?}");
    }
}

#[test]
fn a_compilation_writes_nowhere_but_beside_its_output() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 2, 4);
    let Some(trace) =
        traced(&bench, "execve,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2", &[])
    else {
        return;
    };
    let mut opened = 0;
    for line in trace.lines() {
        let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "creat(", "mkdir", "rename"];
        if !writes.iter().any(|w| line.contains(w)) || line.contains("= -1") {
            continue;
        }
        opened += 1;
        for path in line.split('"').skip(1).step_by(2) {
            assert!(path.starts_with("out") || path == "/dev/null", "{line}");
        }
    }
    assert!(opened > 10, "the trace shows {opened} writes: {trace}");
}
