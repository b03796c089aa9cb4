//! The main job on the built binary: what it writes, that it is the same on every run, what it
//! refuses, and that nothing half-made is visible.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;
use tests::{optimize, root};

/// Quick settings: what is tested does not depend on how much is calibrated.
const QUICK: [&str; 4] = ["--samples", "4", "--seq-len", "64"];

fn stories() -> PathBuf {
    root().join("tests/models/stories260k")
}

/// A folder to work in, and the command in it.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, model: &Path, arguments: &[&str]) -> Output {
        optimize().args(arguments).arg(model).current_dir(self.0.path()).output().unwrap()
    }

    /// Runs the main job and returns what it prints.
    fn make(&self, model: &Path, arguments: &[&str]) -> Value {
        let arguments = [arguments, &QUICK, &["--json"]].concat();
        let out = self.run(model, &arguments);
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    fn refuses(&self, model: &Path, arguments: &[&str], code: i32, said: &str) {
        let out = self.run(model, arguments);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: no {said:?} in {text}");
        assert!(out.stdout.is_empty(), "{arguments:?}");
    }
}

/// Every file of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    let read =
        |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap());
    entries.map(read).collect()
}

/// The result's perplexity over the original's.
fn quality(folder: &Path) -> f64 {
    let report: Value =
        serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap();
    1.0 + report["quality"]["perplexity_increase"].as_f64().unwrap()
}

#[test]
fn the_default_output_is_an_artifact_that_verifies() {
    let bench = Bench::new();
    let result = bench.make(&stories(), &["--quant", "int4"]);
    assert_eq!(result["output"], "stories260k-int4");
    let report = &result["report"];
    let stored: Value =
        serde_json::from_slice(&fs::read(bench.path("stories260k-int4/report.json")).unwrap())
            .unwrap();
    assert_eq!(*report, stored);
    assert_eq!(report["weights"].as_array().unwrap().len(), 35);
    let grids: Vec<&str> =
        report["weights"].as_array().unwrap().iter().map(|w| w["grid"].as_str().unwrap()).collect();
    // 128 divides neither 64 nor 172; 64 divides the one, and nothing the other.
    assert_eq!(grids.iter().filter(|g| g.contains("groups of 64")).count(), 30);
    assert_eq!(grids.iter().filter(|g| g.contains("per channel")).count(), 5);
    let quality = &report["quality"];
    // Windows of 512, whatever the calibration.
    assert_eq!(quality["scored"], 4096 - 8);
    assert!(quality["perplexity_increase"].as_f64().unwrap() < 0.25, "{quality}");
    assert!(report["sizes"]["artifact"].as_u64() < report["sizes"]["source"].as_u64());
    assert!(bench.path("stories260k-int4.log.json").is_file());
    assert!(!bench.path("stories260k-int4.partial").exists());

    // What eval measures of the artifact is what the report says.
    let out = tests::run(&[
        "eval",
        bench.path("stories260k-int4").to_str().unwrap(),
        "--window",
        "512",
        "--max-tokens",
        "4096",
        "--json",
    ]);
    let eval: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(eval["perplexity"], quality["perplexity"]);

    let folder = bench.path("stories260k-int4");
    let verify = || tests::run(&["verify", folder.to_str().unwrap()]);
    assert!(verify().status.success());
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    fs::write(folder.join("new"), "").unwrap();
    let out = verify();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{said}");
    for expected in ["\"tokenizer.json\" is missing", "\"model.safetensors\""] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(!said.contains("\"new\""), "what was added is no difference: {said}");
}

#[test]
fn every_run_gives_the_same_bytes() {
    let bench = Bench::new();
    let mut first = None;
    let variants: [&[&str]; 5] = [
        &["--threads", "1"],
        &["--threads", "2"],
        &["--threads", "8"],
        &["--threads", "2", "--memory", "140M"],
        &["--isa", "portable"],
    ];
    for (i, variant) in variants.into_iter().enumerate() {
        let out = format!("out{i}");
        let settings: [&[&str]; 2] = [&["--quant", "int4", "-o", &out], variant];
        bench.make(&stories(), &settings.concat());
        let files = files(&bench.path(&out));
        let first = first.get_or_insert_with(|| files.clone());
        assert_eq!(first.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>());
        for (name, bytes) in &files {
            assert!(first[name] == *bytes, "{variant:?}: {name} differs");
        }
    }
}

#[test]
fn methods_and_grids_differ_as_they_should() {
    let bench = Bench::new();
    let perplexity = |name: &str, arguments: &[&str]| {
        let arguments = [arguments, &["-o", name]].concat();
        bench.make(&stories(), &arguments);
        quality(&bench.path(name))
    };
    let many = ["--samples", "32", "--seq-len", "256"];
    let original = perplexity("int8", &["--quant", "int8"]);
    let gptq = {
        let out = bench.run(&stories(), &[&["--quant", "int4", "-o", "gptq"], &many[..]].concat());
        assert!(out.status.success());
        quality(&bench.path("gptq"))
    };
    let rtn = perplexity("rtn", &["--quant", "int4", "--method", "rtn"]);
    assert!(original < gptq && gptq < rtn, "int8 {original}, gptq {gptq}, rtn {rtn}");
    let asymmetric =
        perplexity("asym", &["--quant", "int4", "--method", "rtn", "--asym", "--group-size", "32"]);
    assert!(asymmetric < rtn, "asym groups of 32 {asymmetric}, rtn {rtn}");
    let in_order = perplexity("order", &["--quant", "int4", "--act-order", "off"]);
    assert!(in_order < rtn * 1.05, "without act-order {in_order}, rtn {rtn}");
    let head = perplexity("head", &["--quant", "int8", "--head", "int8"]);
    assert!((head / original - 1.0).abs() < 0.05, "with an int8 head {head}, without {original}");
    let config: Value =
        serde_json::from_slice(&fs::read(bench.path("head/config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    let dense = perplexity("bf16", &["--quant", "int8", "--dtype", "bf16"]);
    assert!((dense / original - 1.0).abs() < 0.02, "as bf16 {dense}, {original}");
}

#[test]
fn recipes_are_the_general_form() {
    let bench = Bench::new();
    let recipe = "[calibration]\nseed = 3\n[[pass]]\nname = \"gptq\"\nbits = 4\ngroup = 32\n\
                  true-sequential = true\nscale = \"mse\"\nignore = [\"*.0.mlp.*\"]\n";
    fs::write(bench.path("mine.toml"), recipe).unwrap();
    let result = bench.make(&stories(), &["--recipe", "mine.toml"]);
    assert_eq!(result["output"], "stories260k-mine");
    assert_eq!(result["report"]["weights"].as_array().unwrap().len(), 32);
    assert_eq!(result["report"]["recipe"]["calibration"]["seed"], 3);
    for (text, rule) in [
        ("", "has nothing to do: [[output]]"),
        ("pass = []", "has nothing to do"),
        ("[[pass]]\nname = \"magic\"", "\"magic\" is no pass; they are awq"),
        ("[[pass]]\nname = \"rtn\"\nbits = 9", "9 is not 2 to 8"),
        ("[[pass]]\nname = \"rtn\"\nbits = 4\nwidth = 1", "width: is unknown"),
        ("[[pass]]\nname = \"rtn\"\nbits = 4\ngroup = 48", "48 is not 32, 64, 128"),
        ("turbo = true\n[[pass]]\nname = \"rtn\"\nbits = 4", "turbo: is unknown"),
        ("[calibration]\nsamples = 0\n[[pass]]\nname = \"rtn\"\nbits = 4", "0 is not 1 to"),
        ("[gate]\nmax-kl = -1.0\n[[pass]]\nname = \"rtn\"\nbits = 4", "max-kl: is a number"),
        ("[[output]]\nformat = \"awq\"\n[[output.rule]]\nbits = 3", "awq holds 4"),
    ] {
        fs::write(bench.path("bad.toml"), text).unwrap();
        bench.refuses(&stories(), &["--recipe", "bad.toml"], 2, rule);
        assert!(!bench.path("stories260k-bad.partial").exists(), "{text}");
    }
}

#[test]
fn several_outputs_are_written_from_one_calibration() {
    let bench = Bench::new();
    let rule =
        |bits: u8, solver: &str| format!("[[output.rule]]\nbits = {bits}\nsolver = \"{solver}\"\n");
    let alone = |name: &str, text: &str| {
        fs::write(bench.path("one.toml"), format!("[[output]]\n{text}")).unwrap();
        bench.make(&stories(), &["--recipe", "one.toml", "-o", name]);
    };
    let (int4, int8) = (rule(4, "gptq"), rule(8, "rtn"));
    alone("int4", &int4);
    alone("int8", &int8);
    let both = format!("[[output]]\nname = \"four\"\n{int4}[[output]]\nname = \"eight\"\n{int8}");
    fs::write(bench.path("both.toml"), both).unwrap();
    let result = bench.make(&stories(), &["--recipe", "both.toml", "-o", "both"]);
    let report = &result["report"];
    let same = |one: &str, of: &str| {
        let (mut one, mut of) = (files(&bench.path(one)), files(&bench.path(of)));
        let own = of.remove("report.json").unwrap();
        one.remove("report.json");
        assert_eq!(one, of);
        serde_json::from_slice::<Value>(&own).unwrap()
    };
    // What does not lead is the same too, since its codes need no statistics.
    let four = same("int4", "both/four");
    let eight = same("int8", "both/eight");
    assert_eq!(report["outputs"]["four"], four);
    assert_eq!(report["outputs"]["eight"], eight);
    assert_eq!(report["quality"], four["quality"]);
    let perplexity = |report: &Value| report["quality"]["perplexity"].as_f64().unwrap();
    let alone: Value =
        serde_json::from_slice(&fs::read(bench.path("int8/report.json")).unwrap()).unwrap();
    let (ours, expected) = (perplexity(&eight), perplexity(&alone));
    assert!((ours / expected - 1.0).abs() < 1e-6, "{ours} {expected}");
    // The whole is verified, and so is each output alone; it is not done again.
    for folder in ["both", "both/four", "both/eight"] {
        let out = optimize().args(["verify", folder]).current_dir(bench.0.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let again = bench.make(&stories(), &["--recipe", "both.toml", "-o", "both"]);
    assert_eq!(again["up_to_date"], true);
    let weights = bench.path("both/eight/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let out = optimize().args(["verify", "both"]).current_dir(bench.0.path()).output().unwrap();
    let said =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("eight/model.safetensors"), "{said}");
}

#[test]
fn one_calibration_is_written_as_a_folder_and_as_a_gguf_file() {
    let bench = Bench::new();
    tests::write_noise_model(&bench.path("noise"), 1, 256, 300);
    let ids: Vec<String> = (0..1500).map(|i| (i * i % 293).to_string()).collect();
    fs::write(bench.path("ids.jsonl"), format!("[{}]\n", ids.join(","))).unwrap();
    let rules = "[[output]]\nname = \"hf\"\n[[output.rule]]\nbits = 4\n\
                 [[output]]\nname = \"llama\"\nformat = \"gguf\"\n\
                 [[output.rule]]\ngrid = \"q4_k\"\n\
                 [[output.rule]]\nof = [\"embedding\"]\ngrid = \"q8_0\"\nsolver = \"rtn\"\n";
    fs::write(bench.path("both.toml"), rules).unwrap();
    let with = ["--recipe", "both.toml", "--calibration", "ids.jsonl", "--no-gate"];
    let result = bench.make(&bench.path("noise"), &[&with[..], &["-o", "out"]].concat());
    let report = &result["report"];
    assert_eq!(report["outputs"]["llama"]["weights"][1]["grid"], "Q4_K");
    let artifact = files(&bench.path("out/llama"));
    let names: Vec<&str> = artifact.keys().map(String::as_str).collect();
    assert_eq!(names, ["model.gguf", "report.json"]);
    // The folder, and the file in it, open as a model; the recipe that the report states is whole.
    fs::write(bench.path("held"), ids[..64].join(" ")).unwrap();
    let eval = |model: &str| -> Value {
        let out = bench.run(&bench.path(model), &["eval", "--tokens", "held", "--json"]);
        assert!(out.status.success(), "{model}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let [folder, file, original] =
        ["out/llama", "out/llama/model.gguf", "noise"].map(|m| eval(m)["perplexity"].as_f64());
    assert_eq!(folder, file);
    assert!((folder.unwrap() / original.unwrap() - 1.0).abs() < 0.02, "{folder:?} {original:?}");
    let rule = &report["recipe"]["output"][1]["rule"][0];
    assert_eq!((&rule["scale"], &rule["bits"]), (&json!("weighted"), &Value::Null), "{rule}");
    // What GGUF has no place for is said before any work.
    for (rules, refusal) in [
        ("[[output]]\nformat = \"gguf\"\n[[output.rule]]\nbits = 4\n", "GGUF has no blocks of"),
        ("[[output.rule]]\ngrid = \"q4_k\"\n", "Q4_K"),
        ("[[output.rule]]\ngrid = \"q4_k\"\nbits = 4\n", "is decided by the grid"),
        ("[[output.rule]]\nsolver = \"rtn\"\n", "has no bits"),
        (
            "[[output]]\nformat = \"onnx\"\n[[output.rule]]\nbits = 4\n",
            "formats are compressed-tensors",
        ),
    ] {
        let rules = if rules.starts_with("[[output]]") {
            rules.into()
        } else {
            format!("[[output]]\n{rules}")
        };
        fs::write(bench.path("odd.toml"), rules).unwrap();
        bench.refuses(&bench.path("noise"), &["--recipe", "odd.toml", "--dry-run"], 2, refusal);
    }
}

#[test]
fn rows_that_are_no_whole_blocks_fall_back_and_the_plan_says_what_that_costs() {
    let bench = Bench::new();
    let out = bench.run(&stories(), &["--quant", "q6_k", "--method", "rtn", "--dry-run", "--json"]);
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    let said: Vec<&str> =
        plan["fallbacks"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    // Rows of 64 take blocks of 32, rows of 172 none: as llama.cpp, by tests/fixtures/gguf/mixes.txt.
    assert!(
        said.iter().any(|one| one.contains("rows of 64") && one.contains("F16 scales")),
        "{said:?}"
    );
    assert!(said.iter().any(|one| one.contains("rows of 172") && one.contains(": F16 in place")));
    assert!(said.iter().all(|one| one.ends_with(" more")), "{said:?}");
}

#[test]
fn one_gguf_file_lies_alone_with_its_report_beside_it() {
    let bench = Bench::new();
    let with = ["--quant", "q8_0", "--method", "rtn", "--no-gate"];
    bench.make(&stories(), &[&with[..], &["-o", "small.gguf"]].concat());
    let mut names: Vec<String> = fs::read_dir(bench.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("small"))
        .collect();
    names.sort();
    assert_eq!(names, ["small.gguf", "small.gguf.log.json", "small.gguf.report.json"]);
    let verify = |file: &str| {
        optimize().args(["verify", file]).current_dir(bench.0.path()).output().unwrap()
    };
    assert!(verify("small.gguf").status.success());
    let again = bench.make(&stories(), &[&with[..], &["-o", "small.gguf"]].concat());
    assert_eq!(again["up_to_date"], true);
    // A changed file is told, and stays; a file that is no model's is never replaced.
    let mut bytes = fs::read(bench.path("small.gguf")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(bench.path("small.gguf"), &bytes).unwrap();
    assert!(!verify("small.gguf").status.success());
    let onto = |name: &'static str| [&with[..], &["-o", name]].concat();
    bench.refuses(&stories(), &onto("small.gguf"), 2, "is not up to date");
    fs::write(bench.path("mine.gguf"), "notes").unwrap();
    bench.refuses(&stories(), &onto("mine.gguf"), 2, "exists");
    bench.refuses(
        &stories(),
        &[&onto("mine.gguf")[..], &["--force"]].concat(),
        2,
        "no model's file",
    );
    assert_eq!(fs::read(bench.path("mine.gguf")).unwrap(), b"notes");
    bench.make(&stories(), &[&onto("small.gguf")[..], &["--force"]].concat());
    assert!(verify("small.gguf").status.success());
    // What has several files is a folder.
    let several = [&onto("a.gguf")[..], &["--format", "pack-quantized,gguf:q8_0"]].concat();
    bench.refuses(&stories(), &several, 2, "the output is a folder");
}

#[test]
fn blocks_are_written_as_text_before_and_after_each_pass() {
    let bench = Bench::new();
    let recipe = "[[pass]]\nname = \"awq\"\n[[output]]\n[[output.rule]]\nbits = 4\n";
    fs::write(bench.path("awq.toml"), recipe).unwrap();
    bench.make(&stories(), &["--recipe", "awq.toml", "--dump-ir", "ir"]);
    let folders: Vec<_> = fs::read_dir(bench.path("ir")).unwrap().collect();
    assert_eq!(folders.len(), 5, "a folder for each layer");
    let text = |name: &str| fs::read_to_string(bench.path("ir/001-layer-0").join(name)).unwrap();
    let (before, after) = (text("0-source.ir"), text("1-awq.ir"));
    assert!(before.starts_with("layer 0:\n  %1 = norm %0 "), "{before}");
    assert_eq!(before, after, "the program and the shapes stay");
}

#[test]
fn experts_have_statistics_of_their_own() {
    let bench = Bench::new();
    let ids: Vec<String> = (0..2000).map(|i| (i * i * 37 % 61).to_string()).collect();
    fs::write(bench.path("ids.jsonl"), format!("[{}]\n", ids.join(","))).unwrap();
    let model = root().join("tests/fixtures/families/mixtral");
    let words = ["--quant", "int4", "--calibration", "ids.jsonl", "--no-gate", "-o", "out"];
    let result = bench.make(&model, &words);
    let weights = result["report"]["weights"].as_array().unwrap();
    let of = |layer: usize, part: &str| -> Vec<u64> {
        let own = weights.iter().filter(|w| {
            let name = w["tensor"].as_str().unwrap();
            name.contains(&format!("layers.{layer}.")) && name.ends_with(part)
        });
        own.map(|w| w["tokens"].as_u64().unwrap()).collect()
    };
    let tokens = result["report"]["calibration"]["tokens"].as_u64().unwrap();
    for layer in 0..2 {
        // Every token is given to two experts, which see it in all of their matrices.
        let given = of(layer, ".w1.weight");
        assert!(given.len() >= 4, "{given:?}");
        assert_eq!(given.iter().sum::<u64>(), 2 * tokens);
        assert_eq!(given, of(layer, ".w2.weight"));
        assert_eq!(given, of(layer, ".w3.weight"));
    }
    let config: Value =
        serde_json::from_slice(&fs::read(bench.path("out/config.json")).unwrap()).unwrap();
    let ignored = config["quantization_config"]["ignore"].to_string();
    assert!(ignored.contains("layers.1.block_sparse_moe.gate"), "{ignored}");
    assert!(!weights.iter().any(|w| w["tensor"].as_str().unwrap().ends_with("moe.gate.weight")));
    // What was written is read, and the same on every run.
    let first = files(&bench.path("out"));
    bench.make(&model, &[&words[..], &["--fresh", "--force"]].concat());
    assert_eq!(first, files(&bench.path("out")));
    let said = optimize().args(["inspect", "out"]).current_dir(bench.0.path()).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Experts that are stored together become the same artifact: its readers look for one tensor a matrix.
#[test]
fn stacked_experts_make_the_artifact_of_separate_ones() {
    let bench = Bench::new();
    let ids: Vec<String> = (0..900).map(|i| (i * i * 37 % 61).to_string()).collect();
    fs::write(bench.path("ids.jsonl"), format!("[{}]\n", ids.join(","))).unwrap();
    let make = |name: &str| {
        let model = root().join("tests/fixtures/families").join(name);
        let words = ["--quant", "int4", "--calibration", "ids.jsonl", "--no-gate", "-o", name];
        let result = bench.make(&model, &words);
        let mut made = files(&bench.path(name));
        made.remove("report.json").unwrap();
        (made, result["report"]["weights"].clone(), result["report"]["source"].clone())
    };
    let apart = make("mixtral");
    assert_eq!(apart, make("mixtral-stacked"));
}

#[test]
fn a_gate_that_fails_keeps_the_work() {
    let bench = Bench::new();
    let text = root().join("tests/fixtures/stories.txt");
    let text = text.to_str().unwrap();
    let gate =
        |most| ["--quant", "int4", "--gate-text", text, "--max-ppl-increase", most, "-o", "out"];
    let strict = gate("0.01%");
    bench.refuses(&stories(), &[&strict, &QUICK[..]].concat(), 3, "perplexity rose by");
    assert!(!bench.path("out").exists());
    let finished = bench.path("out.partial/artifact/model.safetensors");
    let made = fs::metadata(&finished).unwrap().modified().unwrap();
    let loose = gate("90%");
    bench.make(&stories(), &loose);
    let published = fs::metadata(bench.path("out/model.safetensors")).unwrap();
    assert_eq!(published.modified().unwrap(), made, "it was computed again");
    assert!(!bench.path("out.partial").exists());
    // Kept work that was damaged since is done again.
    let expected = files(&bench.path("out"));
    fs::remove_dir_all(bench.path("out")).unwrap();
    bench.refuses(&stories(), &[&strict, &QUICK[..]].concat(), 3, "perplexity rose by");
    let mut bytes = fs::read(&finished).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&finished, bytes).unwrap();
    bench.make(&stories(), &loose);
    assert_eq!(expected, files(&bench.path("out")));
    bench.refuses(
        &stories(),
        &["--quant", "int4", "--max-kl", "0", "-o", "kl", "--samples", "2"],
        3,
        "KL",
    );
}

#[test]
fn outputs_are_not_overwritten() {
    let bench = Bench::new();
    fs::create_dir(bench.path("mine")).unwrap();
    fs::write(bench.path("mine/notes"), "dear to somebody").unwrap();
    let to = |out| ["--quant", "int4", "--method", "rtn", "--no-gate", "-o", out];
    bench.refuses(&stories(), &to("mine"), 2, "exists");
    bench.refuses(&stories(), &[&to("mine")[..], &["--force"]].concat(), 2, "no model folder");
    bench.refuses(&stories(), &to("mine/notes/out"), 2, "is no folder");
    bench.make(&stories(), &to("out"));
    bench.refuses(&stories(), &to("out"), 2, "--force");
    let before = files(&bench.path("out"));
    bench.make(&stories(), &[&to("out")[..], &["--force"]].concat());
    assert_eq!(before, files(&bench.path("out")));
    fs::create_dir(bench.path("new.partial")).unwrap();
    fs::write(bench.path("new.partial/notes"), "dear to somebody").unwrap();
    bench.refuses(&stories(), &to("new"), 2, "is in the way");
}

#[test]
fn bad_input_is_refused_before_anything_is_visible() {
    let bench = Bench::new();
    let model = bench.path("model");
    tests::write_noise_model(&model, 2, 64, 100);
    let ids = (0..3000).map(|i| (i * 37 % 100).to_string()).collect::<Vec<_>>().join(",");
    fs::write(bench.path("ids.jsonl"), format!("[{ids}]\n")).unwrap();
    let with_ids = ["--quant", "int4", "--calibration", "ids.jsonl", "-o", "out"];
    bench.make(&model, &with_ids);
    assert!(bench.path("out").is_dir());

    fs::write(bench.path("far.jsonl"), "[1,2,100]").unwrap();
    let far = ["--quant", "int4", "--calibration", "far.jsonl", "-o", "b"];
    bench.refuses(&model, &far, 2, "token 100, but the embedding has 100 rows");
    fs::write(bench.path("one.jsonl"), "[1]").unwrap();
    let one = ["--quant", "int4", "--calibration", "one.jsonl", "--no-gate", "-o", "b"];
    bench.refuses(&model, &one, 2, "tokens");
    bench.refuses(&model, &["--quant", "int4", "-o", "b"], 2, "no tokenizer.json");
    bench.refuses(&model, &["--quant", "int9", "-o", "b"], 2, "not known");
    bench.refuses(&model, &["--quant", "int9"], 2, "is not known");
    bench.refuses(&stories(), &["--quant", "int4", "--memory", "1M"], 2, "is too little");

    // A weight that is not a number, found when its block is reached.
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offsets = &names["model.layers.1.mlp.up_proj.weight"]["data_offsets"];
    let at = 8 + header + offsets[0].as_u64().unwrap() as usize + 4 * 70;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let rtn = ["--quant", "int4", "--method", "rtn", "--no-gate", "-o", "b"];
    bench.refuses(&model, &rtn, 2, "\"model.layers.1.mlp.up_proj.weight\": element [1, 6] is NaN");
    assert!(!bench.path("b").exists());
}

/// What is packed is read as f32, whatever config.json says of the rest.
#[test]
fn an_artifact_is_not_warned_about() {
    let bench = Bench::new();
    bench.make(&stories(), &["--quant", "int4", "--dtype", "bf16", "--no-gate", "-o", "out"]);
    let out = bench.run(&bench.path("out"), &["inspect"]);
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
}

#[test]
fn a_report_without_end_is_refused() {
    let bench = Bench::new();
    fs::create_dir(bench.path("out")).unwrap();
    let report = fs::File::create(bench.path("out").join("report.json")).unwrap();
    // A hole: it takes no disk.
    report.set_len(1 << 40).unwrap();
    let out = optimize().arg("verify").arg(bench.path("out")).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() != Some(0) && said.contains("is longer than"), "{said}");
}

/// A conversation is what its template makes of it, with the special tokens where it has them.
#[test]
fn messages_go_through_the_models_chat_template() {
    let bench = Bench::new();
    let model = bench.path("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(stories()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let tale =
        "Once upon a time, there was a little girl named Lily. She liked to play. ".repeat(9);
    let lines = |line: &Value| vec![line.to_string(); 4].join("\n");
    let messages = json!({ "messages": [{ "role": "user", "content": format!("  {tale}") }] });
    fs::write(bench.path("messages.jsonl"), lines(&messages)).unwrap();
    fs::write(bench.path("text.jsonl"), lines(&json!({ "text": tale.trim() }))).unwrap();
    let with = |calibration, out| {
        ["--quant", "int4", "--no-gate", "--calibration", calibration, "-o", out]
    };
    bench.refuses(&model, &with("messages.jsonl", "a"), 2, "the model has no chat template");

    let template = "{% for m in messages %}{{ bos_token + m['content'] | trim }}{% endfor %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    bench.make(&model, &with("messages.jsonl", "a"));
    bench.make(&model, &with("text.jsonl", "b"));
    let samples = |out: &str| {
        let report = fs::read(bench.path(out).join("report.json")).unwrap();
        serde_json::from_slice::<Value>(&report).unwrap()["calibration"]["hash"].clone()
    };
    assert!(samples("a").is_string() && samples("a") == samples("b"));
    let carried = fs::read_to_string(bench.path("a").join("chat_template.jinja")).unwrap();
    assert_eq!(carried, template);

    let refuses = "{{ raise_exception('only tools may speak') }}";
    fs::write(model.join("chat_template.jinja"), refuses).unwrap();
    bench.refuses(&model, &with("messages.jsonl", "c"), 2, "only tools may speak");
}

#[test]
fn a_plan_reads_no_weight() {
    let bench = Bench::new();
    let plan = |arguments: &[&str]| -> Value {
        let arguments = [arguments, &["--dry-run", "--json"]].concat();
        let out = bench.run(&stories(), &arguments);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let planned = plan(&["--quant", "int4"]);
    let made = bench.make(&stories(), &["--quant", "int4"]);
    assert_eq!(planned["bytes"], made["report"]["sizes"]);
    let seconds = |key: &str| planned[key].as_f64().unwrap();
    assert!(seconds("replay_seconds") > 0.0 && seconds("replay_seconds") < seconds("seconds"));
    // Its head is tied: a copy of it on a grid would enlarge the artifact.
    // The table that the head reads too is a third of it; a head of its own would add to it.
    let advice = |plan: &Value| plan["advice"].to_string();
    assert!(advice(&planned).contains("which is the head too"), "{}", advice(&planned));
    assert!(!advice(&planned).contains("--head int8"));
    assert!(
        !advice(&plan(&["--quant", "int4", "--head", "int8", "-o", "other"])).contains("--head")
    );
    // The tensors are those that are then written.
    let bytes = fs::read(bench.path("stories260k-int4/model.safetensors")).unwrap();
    let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names: Vec<&str> = planned["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), written.len());
    assert!(names.iter().all(|name| written.tensor(name).is_ok()));
    assert!(!bench.path("stories260k-int4.partial").exists());
}
