//! An artifact is never broken quietly, and numbers mean what they say.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;
use tests::{optimize, root, write_noise_model};

const RTN: [&str; 5] = ["--quant", "int8", "--method", "rtn", "--no-gate"];

fn run(at: &TempDir, arguments: &[&str]) -> Output {
    optimize().args(arguments).current_dir(at.path()).output().unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn refused(at: &TempDir, arguments: &[&str], rule: &str) {
    let out = run(at, arguments);
    assert_eq!(out.status.code(), Some(2), "{}", said(&out));
    assert!(said(&out).contains(rule), "no {rule:?} in {}", said(&out));
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap()
}

/// The header of a safetensors file, and its data.
fn split(bytes: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn what_is_quantized_is_not_quantized_again_unasked() {
    let at = tempfile::tempdir().unwrap();
    write_noise_model(&at.path().join("model"), 1, 64, 100);
    assert!(run(&at, &[&RTN[..], &["-o", "once", "model"]].concat()).status.success());
    refused(&at, &[&RTN[..], &["-o", "twice", "once"]].concat(), "is quantized already");
    let out = run(&at, &[&RTN[..], &["-o", "twice", "--requantize", "once"]].concat());
    assert!(out.status.success() && said(&out).contains("what that cost stays"), "{}", said(&out));
    // The sizes are of what lies on the disk, not of what it stands for.
    let sizes = |name| report(&at.path().join(name))["sizes"].clone();
    assert_eq!(sizes("twice")["source"], sizes("once")["artifact"]);
    // And of folders: every file but the report, which cannot hold its own size.
    let folders = |name| report(&at.path().join(name))["folders"].clone();
    let files = fs::read_dir(at.path().join("once")).unwrap().map(|entry| entry.unwrap());
    let files = files.filter(|entry| entry.file_name() != "report.json");
    let bytes: u64 = files.map(|entry| entry.metadata().unwrap().len()).sum();
    assert_eq!(folders("once")["artifact"], bytes);
    assert_eq!(folders("twice")["source"], bytes);
}

#[test]
fn zero_weights_are_refused_unless_they_are_meant() {
    let at = tempfile::tempdir().unwrap();
    write_noise_model(&at.path().join("model"), 2, 64, 100);
    let path = at.path().join("model/model.safetensors");
    let (header, data) = split(&fs::read(&path).unwrap());
    let zeroed = |name: &str, rows: usize, width: usize| {
        let end = header[name]["data_offsets"][1].as_u64().unwrap() as usize;
        let mut data = data.clone();
        data[end - rows * width * 4..end].fill(0);
        fs::write(&path, join(&header, &data)).unwrap();
    };
    let arguments = [&RTN[..], &["--fresh", "-o", "out", "model"]].concat();
    for (name, rows, width) in [
        ("model.layers.1.mlp.down_proj.weight", 64, 192),
        ("model.layers.0.mlp.up_proj.weight", 48, 64),
        ("model.norm.weight", 1, 64),
        ("model.embed_tokens.weight", 40, 64),
    ] {
        zeroed(name, rows, width);
        refused(&at, &arguments, name);
        refused(&at, &arguments, "--allow-zero");
    }
    // Rows that pad a vocabulary, and single dead rows, are no damage.
    for (name, rows, width) in
        [("model.embed_tokens.weight", 20, 64), ("model.layers.0.mlp.up_proj.weight", 3, 64)]
    {
        zeroed(name, rows, width);
        let out = run(&at, &[&arguments[..], &["--force"]].concat());
        assert!(out.status.success(), "{name}: {}", said(&out));
    }
    zeroed("model.layers.1.mlp.down_proj.weight", 64, 192);
    let out = run(&at, &[&arguments[..], &["--force", "--allow-zero"]].concat());
    assert!(out.status.success(), "{}", said(&out));
}

#[test]
fn what_no_block_reads_is_carried_over_byte_by_byte() {
    let at = tempfile::tempdir().unwrap();
    write_noise_model(&at.path().join("model"), 1, 64, 100);
    let path = at.path().join("model/model.safetensors");
    let (mut header, mut data) = split(&fs::read(&path).unwrap());
    let carried = [("score.weight", json!([2, 64]), 512), ("model.some.buffer", json!([]), 4)];
    for (name, shape, bytes) in &carried {
        let begin = data.len();
        data.extend((0..*bytes).map(|n| n as u8 % 97));
        header[*name] =
            json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
    }
    fs::write(&path, join(&header, &data)).unwrap();
    let arguments = [&RTN[..], &["-o", "out", "model"]].concat();
    let out = run(&at, &[&arguments[..], &["--dry-run", "--json"]].concat());
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(plan["carried"], json!(["model.some.buffer", "score.weight"]));
    assert!(run(&at, &arguments).status.success());
    let written = fs::read(at.path().join("out/model.safetensors")).unwrap();
    let written = safetensors::SafeTensors::deserialize(&written).unwrap();
    for (name, _, bytes) in carried {
        let expected: Vec<u8> = (0..bytes).map(|n| n as u8 % 97).collect();
        assert_eq!(written.tensor(name).unwrap().data(), expected, "{name}");
        assert!(report(&at.path().join("out"))["source"][name].is_string(), "{name}");
    }
    let named = report(&at.path().join("out"))["carried"].clone();
    assert_eq!(named, json!(["model.some.buffer", "score.weight"]));
    // Readers take a linear that is not ignored for a packed one.
    let config = fs::read(at.path().join("out/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let ignored = config["quantization_config"]["ignore"].as_array().unwrap();
    assert!(ignored.contains(&json!("score")), "{ignored:?}");
}

#[test]
fn a_gate_that_proves_nothing_fails() {
    let at = tempfile::tempdir().unwrap();
    let model = root().join("tests/models/stories260k");
    let arguments = ["--quant", "int8", "--method", "rtn", "-o", "out", model.to_str().unwrap()];
    // The built-in text is foreign to this model.
    let out = run(&at, &[&arguments[..], &["--max-ppl-increase", "90%"]].concat());
    assert_eq!(out.status.code(), Some(3), "{}", said(&out));
    assert!(said(&out).contains("proves nothing"), "{}", said(&out));
    let text = root().join("tests/fixtures/stories.txt");
    let own = ["--fresh", "--gate-text", text.to_str().unwrap(), "--max-ppl-increase", "10%"];
    let out = run(&at, &[&arguments[..], &own].concat());
    assert!(out.status.success() && !said(&out).contains("proves"), "{}", said(&out));
    let quality = report(&at.path().join("out"))["quality"].clone();
    assert_eq!(quality["window"], 512);
    assert!(quality["original_perplexity"].as_f64() < Some(6.0), "{quality}");
}

#[test]
fn a_byte_order_mark_is_not_scored() {
    let at = tempfile::tempdir().unwrap();
    let model = root().join("tests/models/stories260k");
    let score = |bytes: &[u8]| {
        fs::write(at.path().join("text"), bytes).unwrap();
        let out = run(&at, &["eval", model.to_str().unwrap(), "--text", "text", "--json"]);
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    let text = "Once upon a time, there was a cat.";
    assert_eq!(score(text.as_bytes()), score(format!("\u{feff}{text}").as_bytes()));
}

#[test]
fn a_short_calibration_text_is_called_what_it_is() {
    let at = tempfile::tempdir().unwrap();
    let model = root().join("tests/models/stories260k");
    fs::write(at.path().join("c.jsonl"), "{\"text\":\"hi\"}\n").unwrap();
    let arguments = ["--quant", "int4", "--calibration", "c.jsonl", "--no-gate", "-o", "out"];
    let out = run(&at, &[&arguments[..], &[model.to_str().unwrap()]].concat());
    assert!(said(&out).contains("not even one sample of 512"), "{}", said(&out));
}

/// A small model has fewer samples by default; what is asked for stays.
#[test]
fn samples_fit_the_model() {
    let at = tempfile::tempdir().unwrap();
    let model = root().join("tests/models/stories260k");
    let samples = |more: &[&str]| {
        let arguments = ["--quant", "int4", "--dry-run", "--json", model.to_str().unwrap()];
        let out = run(&at, &[&arguments[..], more].concat());
        let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
        plan["recipe"]["calibration"]["samples"].clone()
    };
    assert_eq!(samples(&[]), 24);
    assert_eq!(samples(&["--samples", "128"]), 128);
}
