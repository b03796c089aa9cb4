//! Work is never lost: a run that is killed goes on and ends with the same bytes, what changed
//! under unfinished work is named, and a finished output is left alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;
use tests::bench::{Bench, files, folder, same};

/// Every point of a run that has a name, and how often it is reached with `LAYERS` layers.
const POINTS: [(&str, usize); 11] = [
    ("begun", 1),
    ("block-written", LAYERS + 2),
    ("block-flushed", LAYERS + 2),
    ("block-noted", LAYERS + 2),
    ("weights-finished", 1),
    ("files-finished", 1),
    ("measured", 1),
    ("work-kept", 1),
    ("report-written", 1),
    ("published", 1),
    ("cleared", 1),
];
const LAYERS: usize = 4;

/// At how many moments of its length a run is killed.
const MOMENTS: u32 = 100;

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_to_the_same_bytes() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 64);
    let expected = bench.make(&[]);
    bench.clean();
    let started = Instant::now();
    bench.make(&[]);
    let mut length = started.elapsed();
    bench.clean();
    let (mut killed, mut went_on, mut moment) = (0, 0, 0);
    while killed < MOMENTS {
        let mut child = bench.command(&[]).spawn().unwrap();
        std::thread::sleep(length * (moment % MOMENTS) / MOMENTS);
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            // The machine has become faster: what is spread is spread over less.
            length = length * 9 / 10;
        } else {
            killed += 1;
        }
        let journal = fs::read(bench.path("out.partial/journal")).unwrap_or_default();
        let blocks = journal.iter().filter(|b| **b == b'\n').count().saturating_sub(1);
        went_on += u32::from(blocks > 0);
        let when = format!("killed {moment} of {MOMENTS} into {length:?}, {blocks} blocks done");
        if bench.path("out").exists() {
            same(&expected, &files(&bench.path("out")), &when);
        }
        same(&expected, &bench.make(&[]), &when);
        assert!(bench.litter().is_empty(), "{when}: {:?}", bench.litter());
        bench.clean();
        moment += 1;
    }
    println!("{killed} runs were killed, {went_on} of them with finished blocks");
    assert!(went_on >= MOMENTS / 5, "only {went_on} of {killed} runs had finished a block");
}

#[test]
fn a_run_that_is_killed_at_any_point_goes_on_to_the_same_bytes() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 4);
    let old = bench.make(&["--method", "rtn", "--no-gate"]);
    fs::rename(bench.path("out"), bench.path("old")).unwrap();
    let expected = bench.make(&[]);
    bench.clean();
    for (point, times) in POINTS {
        for replaces in [false, true] {
            for n in 1..=times {
                let more: &[&str] = if replaces { &["--force"] } else { &[] };
                if replaces {
                    fs::create_dir(bench.path("out")).unwrap();
                    for (name, bytes) in &old {
                        fs::write(bench.path("out").join(name), bytes).unwrap();
                    }
                }
                let mut child = bench.stopped(&format!("{point}:{n}"), more);
                child.kill().unwrap();
                child.wait().unwrap();
                let when = format!("killed at {point} {n}, over an old output: {replaces}");
                let is_out = matches!(point, "published" | "cleared");
                if bench.path("out").exists() {
                    let now = files(&bench.path("out"));
                    same(if is_out { &expected } else { &old }, &now, &when);
                } else {
                    assert!(!is_out && !replaces, "{when}: nothing is there");
                }
                same(&expected, &bench.make(more), &when);
                assert_eq!(bench.litter(), ["old"], "{when}");
                bench.clean();
            }
        }
    }
}

/// What a pass made of the weights is read from the artifact, not from the source.
#[test]
fn a_run_with_a_pass_that_edits_is_killed_at_any_point_and_goes_on_to_the_same_bytes() {
    let recipe = "[[pass]]\nname = \"awq\"\ngroup = 32\n\n[[output]]\n[[output.rule]]\nbits = 4\n\
                  group = 32\n";
    by_recipe(recipe, &POINTS);
}

/// What a survey decided is read from the journal: nobody looks twice.
#[test]
fn a_run_with_a_survey_is_killed_at_any_point_and_goes_on_to_the_same_bytes() {
    let recipe = "[[output]]\n[[output.rule]]\nmost-sensitive = 0.3\nbits = 8\n\
                  [[output.rule]]\nbits = 4\n";
    by_recipe(recipe, &[("surveyed", 1), ("begun", 1), ("block-noted", 3), ("work-kept", 1)]);
}

/// Kills a run of a recipe at points, which says another thing than the default.
fn by_recipe(recipe: &str, points: &[(&str, usize)]) {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), LAYERS, 4);
    let plain = bench.make(&[]);
    bench.clean();
    fs::write(bench.path("model/own.toml"), recipe).unwrap();
    bench.options[..2].clone_from_slice(&["--recipe".to_string(), "model/own.toml".to_string()]);
    let expected = bench.make(&[]);
    let weights = "model.safetensors";
    assert_ne!(plain[weights], expected[weights], "the recipe changes what is written");
    bench.clean();
    for &(point, times) in points {
        for n in 1..=times {
            let mut child = bench.stopped(&format!("{point}:{n}"), &[]);
            child.kill().unwrap();
            child.wait().unwrap();
            let when = format!("killed at {point} {n}");
            same(&expected, &bench.make(&[]), &when);
            bench.clean();
        }
    }
}

#[test]
fn a_resumed_run_may_have_other_threads_memory_and_kernels() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 64);
    let expected = bench.make(&[]);
    for other in [&["--threads", "1"][..], &["--memory", "110M"], &["--isa", "portable"]] {
        bench.clean();
        let mut child = bench.stopped("block-noted:3", &[]);
        child.kill().unwrap();
        child.wait().unwrap();
        same(&expected, &bench.make(other), &format!("{other:?}"));
    }
}

#[test]
fn every_method_and_grid_goes_on_to_the_same_bytes() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 4);
    for more in [
        &["--asym", "--group-size", "32"][..],
        &["--method", "rtn", "--no-gate"],
        &["--head", "int8", "--dtype", "bf16", "--act-order", "off"],
        &["--group-size", "channel", "--no-gate", "--ignore", "*.1.mlp.*"],
    ] {
        let expected = bench.make(more);
        bench.clean();
        let mut child = bench.stopped("block-noted:4", more);
        child.kill().unwrap();
        child.wait().unwrap();
        same(&expected, &bench.make(more), &format!("{more:?}"));
        bench.clean();
    }
}

/// Stops a run in its middle and kills it.
fn unfinished(bench: &Bench) {
    let mut child = bench.stopped("block-noted:4", &[]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_changed_under_unfinished_work_is_named_and_fresh_discards_it() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 4);
    let expected = bench.make(&[]);
    bench.clean();
    unfinished(&bench);
    for (other, named) in [
        (&["--seed", "7"][..], "calibration.seed was 0 and is 7"),
        (&["--group-size", "32"], "group of rule 1 was 128 and is 32"),
        (&["--dtype", "bf16"], "dtype was \"as-source\" and is \"bf16\""),
        (&["--no-gate"], "held-out"),
    ] {
        let said = bench.fails(other, 2);
        assert!(said.contains(named), "no {named:?} in {said}");
        assert!(said.contains("--fresh"), "{said}");
    }
    let config = fs::read_to_string(bench.path("model/config.json")).unwrap();
    let other = config.replace("10000.0", "20000.0");
    fs::write(bench.path("model/config.json"), other).unwrap();
    assert!(
        bench.fails(&[], 2).contains("\"rope_theta\" of config.json was 10000.0 and is 20000.0")
    );
    fs::write(bench.path("model/config.json"), config).unwrap();
    fs::write(bench.path("model/LICENSE"), "mine").unwrap();
    assert!(bench.fails(&[], 2).contains("the file \"LICENSE\" is new"));
    fs::remove_file(bench.path("model/LICENSE")).unwrap();

    same(&expected, &bench.make(&[]), "after refusals");
    bench.clean();
    // Another gate is not another job.
    unfinished(&bench);
    let before = fs::read(bench.path("out.partial/journal")).unwrap();
    let mut child = bench.stopped("block-noted", &["--max-kl", "9"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let after = fs::read(bench.path("out.partial/journal")).unwrap();
    assert!(after.starts_with(&before) && after.len() > before.len(), "it went on");
    same(&expected, &bench.make(&[]), "after another gate");
    bench.clean();

    unfinished(&bench);
    let fresh = bench.make(&["--seed", "7", "--fresh"]);
    assert!(fresh["model.safetensors"] != expected["model.safetensors"]);
    assert!(bench.litter().is_empty());
}

#[test]
fn a_tensor_that_changed_under_unfinished_work_is_named() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 4);
    let path = bench.path("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let flipped = |tensor: &str| {
        let at = names[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        let mut bytes = bytes.clone();
        bytes[8 + header + at] ^= 1;
        bytes
    };
    for tensor in ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"] {
        unfinished(&bench);
        fs::write(&path, flipped(tensor)).unwrap();
        let said = bench.fails(&[], 2);
        assert!(said.contains(&format!("the contents of tensor {tensor:?}")), "{said}");
        fs::write(&path, &bytes).unwrap();
        let expected = bench.make(&[]);
        // Of a finished output too.
        fs::write(&path, flipped(tensor)).unwrap();
        let said = bench.fails(&[], 2);
        assert!(said.contains(&format!("the contents of tensor {tensor:?}")), "{said}");
        same(&expected, &files(&bench.path("out")), tensor);
        fs::write(&path, &bytes).unwrap();
        bench.clean();
    }
}

/// A weight that is not what a survey saw: what was decided of it may be wrong.
#[test]
fn a_tensor_that_changed_after_a_survey_is_named() {
    let dir = folder();
    let mut bench = Bench::new(dir.path(), LAYERS, 4);
    let recipe = "[[output]]\n[[output.rule]]\nmost-sensitive = 0.3\nbits = 8\n";
    fs::write(bench.path("model/own.toml"), recipe).unwrap();
    bench.options[..2].clone_from_slice(&["--recipe".to_string(), "model/own.toml".to_string()]);
    let mut child = bench.stopped("begun", &[]);
    child.kill().unwrap();
    child.wait().unwrap();
    let path = bench.path("model/model.safetensors");
    let original = fs::read(&path).unwrap();
    let mut bytes = original.clone();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let tensor = "model.layers.2.mlp.up_proj.weight";
    bytes[8 + header + names[tensor]["data_offsets"][0].as_u64().unwrap() as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    let said = bench.fails(&[], 2);
    assert!(said.contains(&format!("the contents of tensor {tensor:?}")), "{said}");
    // What another run finds is another decision, and so is what takes a finished one's place.
    assert!(bench.run(&["--fresh"]).status.success());
    fs::write(&path, original).unwrap();
    let said = bench.fails(&[], 2);
    assert!(said.contains(&format!("the contents of tensor {tensor:?}")), "{said}");
    assert!(bench.run(&["--force"]).status.success());
}

#[test]
fn unfinished_work_that_is_damaged_is_done_again() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 4);
    let expected = bench.make(&[]);
    let weights = bench.path("out.partial/artifact/model.safetensors");
    let length = expected["model.safetensors"].len();
    for at in (9..length).step_by(length / 16) {
        bench.clean();
        unfinished(&bench);
        let mut bytes = fs::read(&weights).unwrap();
        bytes[at] ^= 0x10;
        fs::write(&weights, bytes).unwrap();
        same(&expected, &bench.make(&[]), &format!("byte {at}"));
    }
    bench.clean();
    unfinished(&bench);
    fs::remove_file(&weights).unwrap();
    same(&expected, &bench.make(&[]), "no weights");
    bench.clean();
    unfinished(&bench);
    let journal = fs::read(bench.path("out.partial/journal")).unwrap();
    for length in (0..journal.len()).step_by(journal.len() / 12) {
        fs::write(bench.path("out.partial/journal"), &journal[..length]).unwrap();
        same(&expected, &bench.make(&[]), &format!("{length} bytes of a journal"));
        bench.clean();
        unfinished(&bench);
    }
}

#[test]
fn a_finished_output_is_left_alone() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 4);
    let expected = bench.make(&[]);
    let weights = bench.path("out/model.safetensors");
    let written = || fs::metadata(&weights).unwrap().modified().unwrap();
    let before = written();
    for more in [&[][..], &["--threads", "1", "--json"]] {
        let out = bench.run(more);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{said}");
        assert!(said.contains("up to date") || said.contains("\"up_to_date\": true"), "{said}");
        assert_eq!(written(), before, "{more:?}");
        assert!(bench.litter().is_empty());
    }
    // Anything else at the place is refused, and named.
    let said = bench.fails(&["--seed", "7"], 2);
    assert!(said.contains("calibration.seed was 0 and is 7"), "{said}");
    assert!(said.contains("--force"), "{said}");
    let said = bench.fails(&["--max-kl", "9"], 2);
    assert!(said.contains("gate.max-kl"), "{said}");
    assert!(bench.fails(&["--fresh"], 2).contains("--force"));
    same(&expected, &files(&bench.path("out")), "refused");
    assert!(bench.litter().is_empty());
    same(&expected, &bench.make(&["--force"]), "made again");
    assert!(written() != before);
    fs::write(bench.path("out/config.json"), "{}").unwrap();
    let said = bench.fails(&[], 2);
    assert!(said.contains("\"config.json\" is not what was written"), "{said}");
    same(&expected, &bench.make(&["--force"]), "repaired");
    // The model itself is never the output.
    let to = |out: &str| {
        let arguments = bench.options.iter().map(|o| if o == "out" { out } else { o });
        let mut command = tests::optimize();
        command.current_dir(dir.path()).args(arguments).args(["--force", "model"]);
        let ran = command.output().unwrap();
        assert_eq!(ran.status.code(), Some(2));
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    let before = files(&bench.path("model"));
    assert!(to("model").contains("is or holds the model"));
    assert!(to("../x/..").contains("has no name"));
    same(&before, &files(&bench.path("model")), "the model");
}

#[test]
fn a_second_run_on_one_output_refuses_at_once() {
    let dir = folder();
    let bench = Bench::new(dir.path(), LAYERS, 4);
    let mut first = bench.stopped("block-noted:2", &[]);
    for more in [&[][..], &["--force"], &["--fresh"]] {
        // The first one does not go on by itself: whoever waited for it would wait for good.
        let said = bench.fails(more, 2);
        assert!(said.contains("another run works on this output"), "{said}");
    }
    assert!(first.try_wait().unwrap().is_none(), "the first run was disturbed");
    first.kill().unwrap();
    first.wait().unwrap();
    bench.make(&[]);
}

#[test]
fn files_get_the_permissions_of_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let bench = Bench::new(dir.path(), 1, 4);
    for (umask, file, folder) in [("022", 0o644, 0o755), ("027", 0o640, 0o750)] {
        let command = bench.command(&[]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask} && exec \"$@\""), "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.current_dir(dir.path()).stdout(Stdio::null());
        assert!(shell.status().unwrap().success());
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(bench.path("out")), folder, "umask {umask}");
        assert_eq!(mode(bench.path("out.log.json")), file, "umask {umask}");
        for name in files(&bench.path("out")).keys() {
            assert_eq!(mode(bench.path("out").join(name)), file, "umask {umask}: {name}");
        }
        bench.clean();
    }
}
