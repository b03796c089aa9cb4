//! Models in other formats, with every value; and what columns are worth, in a file.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;
use tests::optimize;

/// A folder with a model of noise, whose widths every format takes, and token ids for it.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        tests::write_noise_model(&bench.path("noise"), 1, 256, 300);
        let ids: Vec<String> = (0..3000).map(|i| (i * i % 293).to_string()).collect();
        fs::write(bench.path("ids.jsonl"), format!("[{}]\n", ids.join(","))).unwrap();
        fs::write(bench.path("held"), ids[..256].join(" ")).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = optimize();
        command.args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let out = self.run(&[arguments, &["--json", "--quiet", "--threads", "2"]].concat());
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    fn refusal(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(out.stderr).unwrap()
    }

    /// The log-likelihood that a model gives the held-out ids.
    fn likelihood(&self, model: &str) -> f64 {
        let said = self.json(&["eval", model, "--tokens", "held", "--path", "exact"]);
        said["mean_nll"].as_f64().unwrap()
    }
}

#[test]
fn a_model_goes_from_format_to_format_with_every_value() {
    let bench = Bench::new();
    let small = ["--method", "rtn", "--group-size", "32", "--dtype", "f16", "--no-gate"];
    bench.json(&[&["--quant", "int4", "./noise", "-o", "int4"], &small[..]].concat());
    let expected = bench.likelihood("./int4");
    let mut from = "int4".to_string();
    for (format, to) in [
        ("gguf", "a.gguf"),
        ("gptq", "gptq"),
        ("compressed-tensors", "packed"),
        ("awq", "awq"),
        ("gptq_v2", "gptq_v2"),
        ("gguf", "b.gguf"),
        ("safetensors", "dense"),
    ] {
        let given = format!("./{from}");
        let said = bench.json(&["convert", &given, "--format", format, "-o", to]);
        let kept = said["report"]["weights"].as_array().unwrap();
        assert!(kept.iter().all(|weight| weight["method"] == "kept"), "{format}");
        assert_eq!(kept.len(), if format == "safetensors" { 0 } else { 7 }, "{format}");
        // Dense vectors are wider in some, never other: likelihoods differ by nothing at all.
        assert_eq!(bench.likelihood(&format!("./{to}")), expected, "{format}");
        let out = bench.run(&["verify", to]);
        assert!(out.status.success(), "{format}: {}", String::from_utf8_lossy(&out.stderr));
        from = to.to_string();
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_name_or_rounded_and_measured() {
    let bench = Bench::new();
    let calibrated = ["--calibration", "ids.jsonl", "--samples", "4", "--seq-len", "64"];
    bench.json(
        &[&["--quant", "q4_k_m", "./noise", "-o", "k.gguf", "--no-gate"], &calibrated[..]].concat(),
    );
    let said = bench.refusal(&["convert", "k.gguf", "--format", "compressed-tensors", "-o", "x"]);
    assert!(said.contains("cannot hold Q4_K exactly: gguf can"), "{said}");
    assert!(said.contains("--requantize"), "{said}");
    let said = bench.refusal(&["convert", "./noise", "--format", "gguf:q4_k_m"]);
    assert!(said.contains("optimize --quant q4_k_m"), "{said}");
    let said = bench.refusal(&["convert", "./noise", "--format", "gptq:bf16"]);
    assert!(said.contains("no dtype of gptq"), "{said}");
    let rounded =
        ["convert", "k.gguf", "--format", "compressed-tensors", "-o", "x", "--requantize"];
    let said = bench.json(&[&rounded[..], &["--no-gate"]].concat());
    let weights = said["report"]["weights"].as_array().unwrap();
    assert!(
        weights.iter().all(|w| w["method"] == "rtn" && w["relative_error"].as_f64() > Some(0.0))
    );
    // A zero point of 0 has no field in the first version of GPTQ.
    let asym =
        ["--quant", "int4", "./noise", "--asym", "--method", "rtn", "--no-gate", "--dtype", "f16"];
    bench.json(&[&asym[..], &["-o", "asym"]].concat());
    bench.json(&["convert", "./asym", "--format", "gptq_v2", "-o", "v2"]);
    assert_eq!(bench.likelihood("./v2"), bench.likelihood("./asym"));
}

#[test]
fn one_calibration_is_written_in_every_format_that_is_named() {
    let bench = Bench::new();
    let with = ["--calibration", "ids.jsonl", "--samples", "4", "--seq-len", "64", "--no-gate"];
    let formats = ["--format", "compressed-tensors,gptq,gguf:q4_k_m", "-o", "out"];
    let said = bench.json(&[&["--quant", "int4", "./noise"], &formats[..], &with[..]].concat());
    let outputs = said["report"]["outputs"].as_object().unwrap();
    let names: Vec<&str> = outputs.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for name in &names {
        let nll = bench.likelihood(&format!("out/{name}"));
        assert!((nll / bench.likelihood("./noise") - 1.0).abs() < 0.01, "{name}: {nll}");
    }
    // The codes of one solver on one grid are the same in both layouts, but for scales of 16 bits.
    assert!(bench.path("out/gptq/quantize_config.json").is_file());
    let said = bench.refusal(&["--quant", "int4", "./noise", "--format", "onnx", "--dry-run"]);
    assert!(said.contains("is not written"), "{said}");
    let said = bench.refusal(&["--quant", "int4", "./noise", "--format", "gguf:q9", "--dry-run"]);
    assert!(said.contains("q4_k_m"), "{said}");
}

#[test]
fn what_columns_are_worth_is_written_and_read() {
    let bench = Bench::new();
    let with = ["--calibration", "ids.jsonl", "--samples", "8", "--seq-len", "64"];
    let said = bench.json(&[&["imatrix", "./noise", "-o", "i.gguf"], &with[..]].concat());
    assert_eq!((said["tensors"].as_u64(), said["tokens"].as_u64()), (Some(7), Some(512)));
    let first = fs::read(bench.path("i.gguf")).unwrap();
    assert!(
        bench
            .refusal(&[&["imatrix", "./noise", "-o", "i.gguf"], &with[..]].concat())
            .contains("exists")
    );
    bench.json(&[&["imatrix", "./noise", "-o", "i.gguf", "--force"], &with[..]].concat());
    assert_eq!(fs::read(bench.path("i.gguf")).unwrap(), first);
    let given = ["--quant", "q3_k_m", "./noise", "--no-gate", "--imatrix", "i.gguf"];
    let said = bench.json(&[&given[..], &["-o", "a.gguf"]].concat());
    assert_eq!(said["report"]["recipe"]["imatrix"].as_str().map(str::len), Some(64));
    assert_eq!(said["report"]["calibration"]["tokens"], 0);
    let plain = ["--quant", "q3_k_m", "./noise", "--no-gate", "--method", "rtn", "-o", "b.gguf"];
    let other = bench.json(&plain);
    // Weighed errors are others, and of the weights alone they are larger.
    let error = |said: &Value| said["report"]["weights"][1]["relative_error"].as_f64().unwrap();
    assert!(error(&said) > error(&other), "{} {}", error(&said), error(&other));
    // The recipe of the artifact wants the same file again.
    let again = ["--recipe", "a.gguf", "./noise", "--no-gate", "-o", "c.gguf"];
    assert!(bench.refusal(&again).contains("--imatrix FILE"));
    let gptq = [&given[..], &["-o", "d.gguf", "--method", "gptq"]].concat();
    assert!(bench.refusal(&gptq).contains("GPTQ wants"));
    fs::write(bench.path("no.gguf"), "no matrix").unwrap();
    bench.refusal(&["--quant", "q3_k_m", "./noise", "--imatrix", "no.gguf", "-o", "e.gguf"]);
}
