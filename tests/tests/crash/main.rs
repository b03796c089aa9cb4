//! Power is lost after any call to the disk, and what was not flushed is dropped, or there in part:
//! the output is the old or the complete artifact, and the same job goes on to the same bytes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "how many crashes there were is worth knowing")]

mod recorder;

use backend_cpu::Cpu;
use checkpoint::Checkpoint;
use checkpoint::disk::{Disk, DiskFile, System};
use compiler::{Claim, Compiled, Decisions, Destination, Job, Plan, Text, Tokens, compile};
use recorder::{Crash, Recorder};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tests::bench::{Files, files, same};

/// One file, of blocks that small rows can be divided into.
const GGUF: &str = "[[output]]\nformat = \"gguf\"\n[[output.rule]]\ngrid = \"q4_1\"\n";

/// Compiles `root/model` to `root/out`, by a built-in recipe or `gguf`; to the file `root/out.gguf` by `file`.
fn run(root: &Path, quant: &str, disk: Arc<dyn Disk>) {
    let checkpoint = Checkpoint::open(&root.join("model")).unwrap();
    let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;
    let recipe = match quant {
        "gguf" | "file" => compiler::Recipe::parse(GGUF).unwrap(),
        name => passes::builtin(name).unwrap(),
    };
    let pipeline = passes::pipeline(&recipe).unwrap();
    let sequences = |n: u32, seed: u32| -> Vec<Vec<u32>> {
        (0..n).map(|s| (0..32).map(|i| (i * i * 7 + s * 13 + seed) % 40).collect()).collect()
    };
    let (samples, held_out) = (sequences(4, 1), sequences(2, 2));
    let tokens = Tokens { calibration: 4 * 32, held_out: 2 * 32, longest: 32 };
    let plan = Plan::new(&spec, &pipeline, tokens).unwrap();
    let job = Job {
        checkpoint: &checkpoint,
        model: calibration::Model { spec: &spec, source: &checkpoint },
        ignored_keys: &[],
        recipe: &recipe,
        pipeline: &pipeline,
        plan: &plan,
        backend: &Cpu::new(),
        samples: Text { from: "test", sequences: &samples },
        held_out: Text { from: "test", sequences: &held_out },
        activations: u64::MAX,
        decisions: &Decisions::default(),
        allow_zero: false,
        dump: None,
    };
    let file = quant == "file";
    let claim = Claim { force: true, file, disk, ..Claim::new(checkpoint.folder()) };
    let out = root.join(if file { "out.gguf" } else { "out" });
    let destination = Destination::claim(&out, claim).unwrap();
    match compile(&job, destination, &mut |_| {}).unwrap() {
        Compiled::Made(made) => made.publish("{}\n").unwrap(),
        Compiled::UpToDate(_) => {}
    }
}

/// What a run begins with: the model, the folder of its work, and an output where one is asked for.
fn begin(root: &Path, old: Option<&Files>) {
    tests::write_noise_model(&root.join("model"), 2, 32, 40);
    fs::create_dir(root.join("out.partial")).unwrap();
    fs::write(root.join("out.partial/lock"), "").unwrap();
    if let Some(old) = old {
        fs::create_dir(root.join("out")).unwrap();
        old.iter().for_each(|(name, bytes)| fs::write(root.join("out").join(name), bytes).unwrap());
    }
}

fn write(root: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in files {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), bytes).unwrap();
    }
}

/// Crashes after every call of a run, over an old output or over none.
fn crashes(quant: &str, old: bool) {
    let dir = tests::bench::folder();
    let at = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (first, second, root) = (at("first"), at("second"), at("root"));
    begin(&first, None);
    run(&first, "int8", Arc::new(System));
    let previous = files(&first.join("out"));
    begin(&second, None);
    run(&second, quant, Arc::new(System));
    let expected = files(&second.join("out"));
    begin(&root, old.then_some(&previous));
    let recorder = Recorder::new(&root);
    run(&root, quant, Arc::new(recorder.clone()));
    same(&expected, &files(&root.join("out")), "a recorded run");

    let (calls, mut lost, mut kept) = (recorder.calls(), 0, 0);
    for after in 0..=calls {
        for (entries_stay, torn) in [(false, 0), (true, 0), (false, 1), (true, 7 + after as u32)] {
            let crash = Crash { after, entries_stay, torn };
            let left = recorder.left(crash);
            let when = format!("{crash:?} of {calls}");
            let out = |(path, bytes): (&PathBuf, &Vec<u8>)| {
                let name = path.strip_prefix("out").ok()?.to_str()?;
                Some((name.to_string(), bytes.clone()))
            };
            let out: Files = left.iter().filter_map(out).collect();
            if out.contains_key("report.json") && out["report.json"] == expected["report.json"] {
                same(&expected, &out, &when);
                kept += 1;
            } else if old {
                same(&previous, &out, &when);
            } else {
                assert!(out.is_empty(), "{when}: {:?}", out.keys());
                lost += 1;
            }
            // A run after each crash in one of the four forms, in turn.
            if after % 4 == usize::from(entries_stay) * 2 + usize::from(torn > 0) {
                let root = at("again");
                write(&root, &left);
                run(&root, quant, Arc::new(System));
                same(&expected, &files(&root.join("out")), &when);
                let names: Vec<_> =
                    fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
                assert!(names.iter().all(|n| n != "out.partial"), "{when}: {names:?}");
                fs::remove_dir_all(&root).unwrap();
            }
        }
    }
    println!("{calls} calls, 4 crashes after each: {kept} left the new artifact, {lost} none");
    assert!(calls > 60 && kept > 0 && (old || lost > 0));
}

#[test]
fn a_crash_after_any_call_leaves_nothing_or_the_artifact() {
    crashes("int4", false);
}

#[test]
fn a_crash_after_any_call_leaves_the_old_or_the_new_artifact() {
    crashes("int4", true);
}

/// A container of one file, whose blocks are read back from it.
#[test]
fn a_crash_leaves_nothing_or_the_whole_gguf_file() {
    crashes("gguf", false);
}

/// An artifact that is one file, whose report is put beside it by a second call.
#[test]
fn a_crash_leaves_no_file_or_a_whole_one_and_the_next_run_its_report() {
    let dir = tests::bench::folder();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    tests::write_noise_model(&root.join("model"), 2, 32, 40);
    fs::create_dir(root.join("out.gguf.partial")).unwrap();
    fs::write(root.join("out.gguf.partial/lock"), "").unwrap();
    let recorder = Recorder::new(&root);
    run(&root, "file", Arc::new(recorder.clone()));
    let report = "out.gguf.report.json";
    let expected = ["out.gguf", report].map(|name| fs::read(root.join(name)).unwrap());
    let (mut alone, mut both) = (0, 0);
    for after in 0..=recorder.calls() {
        let left = recorder.left(Crash { after, entries_stay: after % 2 == 0, torn: 0 });
        let found = ["out.gguf", report].map(|name| left.get(Path::new(name)));
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.is_none_or(|found| found == expected), "after {after}");
        }
        alone += usize::from(found[0].is_some() && found[1].is_none());
        both += usize::from(found.iter().all(Option::is_some));
        let again = dir.path().join("again");
        write(&again, &left);
        run(&again, "file", Arc::new(System));
        let made = ["out.gguf", report].map(|name| fs::read(again.join(name)).unwrap());
        assert!(made == expected, "after {after}");
        assert!(!again.join("out.gguf.partial").exists(), "after {after}");
        fs::remove_dir_all(&again).unwrap();
    }
    assert!(alone > 0 && both > 0, "{alone} without its report, {both} with it");
}

/// A file system that cannot exchange names: the old artifact is set aside for a moment.
#[derive(Debug)]
struct Plain;

impl Disk for Plain {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        System.make_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        System.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        System.open(path)
    }

    fn edit(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        System.edit(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        System.rename(from, to)
    }

    fn exchange(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        System.remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        System.remove_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        System.sync_folder(path)
    }
}

#[test]
fn an_old_artifact_that_was_set_aside_is_put_back() {
    let dir = tests::bench::folder();
    let root = dir.path();
    begin(root, None);
    run(root, "int8", Arc::new(System));
    let old = files(&root.join("out"));
    run(root, "int4", Arc::new(Plain));
    let expected = files(&root.join("out"));
    assert!(!root.join("out.partial").exists());
    // As a process that was killed between the two renames leaves it.
    fs::create_dir(root.join("out.partial")).unwrap();
    fs::write(root.join("out.partial/lock"), "").unwrap();
    fs::remove_dir_all(root.join("out")).unwrap();
    write(
        &root.join("out.partial/replaced"),
        &old.iter().map(|(n, b)| (n.into(), b.clone())).collect(),
    );
    let error = Destination::claim(&root.join("out"), Claim::new(&root.join("model")));
    assert!(error.is_ok(), "the artifact that was put back is ours");
    drop(error);
    same(&old, &files(&root.join("out")), "put back");
    run(root, "int4", Arc::new(System));
    same(&expected, &files(&root.join("out")), "made again");
}
