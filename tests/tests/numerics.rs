//! Weights, activations and calibration that are hard on the numbers: what comes out is finite and
//! every fallback is in the report, or it is refused by name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use tests::bench::{Bench, folder};

/// Changes the values of a stored `f32` tensor.
fn change(model: &Path, tensor: &str, new: impl Fn(usize, f32) -> f32) {
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offsets = &names[tensor]["data_offsets"];
    let at = |i: usize| 8 + header + offsets[i].as_u64().unwrap() as usize;
    for (i, word) in bytes[at(0)..at(1)].chunks_exact_mut(4).enumerate() {
        let value = new(i, f32::from_le_bytes(word.try_into().unwrap()));
        word.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

/// A model of one layer, and its bench.
fn bench(samples: usize) -> (tempfile::TempDir, Bench) {
    let dir = folder();
    let bench = Bench::new(dir.path(), 1, samples);
    (dir, bench)
}

/// Runs the main job and holds every number that it wrote to what must be.
fn finite(bench: &Bench, more: &[&str]) -> Value {
    let files = bench.make(more);
    let tensors = safetensors::SafeTensors::deserialize(&files["model.safetensors"]).unwrap();
    for (name, tensor) in tensors.iter() {
        let words = || tensor.data().chunks_exact(4).map(|w| w.try_into().unwrap());
        if tensor.dtype() == safetensors::Dtype::F32 {
            let mut values = words().map(f32::from_le_bytes);
            let is_scale = name.ends_with("_scale");
            let sound = values.all(|v| v.is_finite() && (!is_scale || v > 0.0));
            assert!(sound, "{more:?}: {name}");
        }
    }
    let report: Value = serde_json::from_slice(&files["report.json"]).unwrap();
    for weight in report["weights"].as_array().unwrap() {
        let error = weight["relative_error"].as_f64();
        assert!(error.is_some_and(|e| e.is_finite() && e >= 0.0), "{more:?}: {weight}");
    }
    let out = tests::run(&["verify", bench.path("out").to_str().unwrap()]);
    assert!(out.status.success(), "{more:?}");
    bench.clean();
    report
}

/// How many weights fell back, and for which reasons.
fn fallbacks(report: &Value) -> (usize, Vec<String>) {
    let weights = report["weights"].as_array().unwrap();
    let mut why: Vec<String> =
        weights.iter().filter_map(|w| Some(w["fallback"].as_str()?.to_string())).collect();
    let count = why.len();
    why.sort();
    why.dedup();
    (count, why)
}

#[test]
fn fewer_tokens_than_columns_are_enough() {
    let (_dir, bench) = bench(1);
    for tokens in ["2", "3", "17"] {
        let mut few = Bench::new(bench.path("").as_path(), 1, 1);
        let at = few.options.iter().position(|o| o == "64").unwrap();
        few.options[at] = tokens.into();
        for more in [
            &["--no-gate", "--allow-zero"][..],
            &["--no-gate", "--allow-zero", "--act-order", "off"],
            &[],
        ] {
            let report = finite(&few, more);
            assert_eq!(report["calibration"]["tokens"].to_string(), tokens);
            let damping = report["weights"][0]["damping"].as_f64().unwrap();
            assert!(damping >= 0.01, "{damping}");
        }
    }
}

#[test]
fn fewer_samples_than_asked_are_said() {
    let (_dir, bench) = bench(4);
    fs::write(bench.path("ids.jsonl"), "[1,2,3,4,5,6,7,8,9,1,2,3]\n").unwrap();
    let report = finite(&bench, &["--no-gate", "--allow-zero"]);
    assert_eq!(report["calibration"]["sequences"], 1);
    assert_eq!(report["calibration"]["tokens"], 12);
    assert_eq!(report["recipe"]["calibration"]["samples"], 4);
    for text in ["", "[]\n", "[1]\n"] {
        fs::write(bench.path("ids.jsonl"), text).unwrap();
        let said = bench.fails(&["--no-gate", "--allow-zero"], 2);
        assert!(said.contains("tokens") || said.contains("is empty"), "{text:?}: {said}");
        assert!(bench.litter().is_empty(), "{text:?}: {:?}", bench.litter());
    }
    let mut none = Bench::new(bench.path("").as_path(), 1, 4);
    let at = none.options.iter().position(|o| o == "--samples").unwrap();
    none.options[at + 1] = "0".into();
    assert!(none.fails(&["--no-gate", "--allow-zero"], 2).contains("at least 1"));
}

#[test]
fn dead_inputs_keep_their_nearest_codes() {
    let (_dir, bench) = bench(4);
    let norm = "model.layers.0.input_layernorm.weight";
    change(&bench.path("model"), norm, |i, v| if i % 7 == 0 { 0.0 } else { v });
    assert_eq!(fallbacks(&finite(&bench, &[])).0, 0);
    // All of them dead: rounded, and said.
    change(&bench.path("model"), norm, |_, _| 0.0);
    let report = finite(&bench, &["--no-gate", "--allow-zero"]);
    let (count, why) = fallbacks(&report);
    // What q, k and v read is zero, so that o reads zeros too.
    assert_eq!((count, &why[..]), (4, &["every calibration input is zero".to_string()][..]));
}

#[test]
fn loud_activations_end_in_finite_numbers_or_a_fallback() {
    for (loud, falls_back) in [(1e4f32, false), (1e15, false), (1e30, true)] {
        let (_dir, bench) = bench(4);
        let norm = "model.layers.0.input_layernorm.weight";
        change(&bench.path("model"), norm, |i, v| if i == 5 { loud } else { v });
        let report = finite(&bench, &["--no-gate", "--allow-zero"]);
        let (count, why) = fallbacks(&report);
        assert_eq!(count > 0, falls_back, "{loud}: {why:?}");
        if falls_back {
            assert!(why.iter().any(|w| w.contains("not finite")), "{why:?}");
            assert_eq!(report["weights"][0]["method"], "rtn");
        }
    }
    // A model whose own answers are not finite cannot be judged.
    let (_dir, bench) = bench(4);
    change(&bench.path("model"), "model.norm.weight", |_, _| 3e38);
    let said = bench.fails(&[], 2);
    assert!(said.contains("not finite on the held-out text"), "{said}");
}

const RTN: &[&str] = &["--method", "rtn", "--no-gate", "--allow-zero"];
const BF16: &[&str] = &["--dtype", "bf16", "--no-gate", "--allow-zero"];
const HEAD: &[&str] = &["--head", "int8", "--no-gate", "--allow-zero"];

#[test]
fn what_is_not_a_number_is_refused_by_name_and_place() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (tensor, at, place, runs) in [
            (
                "model.layers.0.mlp.down_proj.weight",
                200,
                "[1, 8]",
                &[&["--no-gate", "--allow-zero"][..], RTN, &[]][..],
            ),
            (
                "model.layers.0.mlp.down_proj.weight",
                200,
                "[1, 8]",
                &[&["--no-gate", "--allow-zero", "--ignore", "*.mlp.*"]],
            ),
            (
                "model.embed_tokens.weight",
                200,
                "[3, 8]",
                &[&["--no-gate", "--allow-zero"], BF16, HEAD],
            ),
            ("model.norm.weight", 60, "[60]", &[&["--no-gate", "--allow-zero"]]),
            (
                "model.layers.0.input_layernorm.weight",
                60,
                "[60]",
                &[&["--no-gate", "--allow-zero"]],
            ),
        ] {
            let (_dir, bench) = bench(2);
            change(&bench.path("model"), tensor, |i, v| if i == at { value } else { v });
            for more in runs {
                let said = bench.fails(more, 2);
                let expected = format!("{tensor:?}: element {place} is {value}");
                assert!(said.contains(&expected), "{more:?}: no {expected:?} in {said}");
                assert!(!bench.path("out").exists());
                bench.clean();
            }
        }
    }
}

#[test]
fn groups_of_zeros_and_extreme_weights_have_sound_scales() {
    let (_dir, bench) = bench(4);
    let weight = "model.layers.0.mlp.gate_proj.weight";
    type New = fn(usize, f32) -> f32;
    let cases: [(&str, New); 6] = [
        ("a group of zeros", |i, v| if i < 64 { 0.0 } else { v }),
        ("zeros", |_, _| 0.0),
        ("tiny", |_, v| v.signum() * 1e-40),
        ("tiny beside usual", |i, v| if i % 2 == 0 { 1e-45 } else { v }),
        ("huge", |_, v| v * 1e30),
        ("near the largest", |i, v| if i % 2 == 0 { 1e37 } else { v }),
    ];
    let original = fs::read(bench.path("model/model.safetensors")).unwrap();
    for (what, new) in cases {
        change(&bench.path("model"), weight, new);
        for more in [
            &["--no-gate", "--allow-zero"][..],
            &["--no-gate", "--allow-zero", "--asym", "--group-size", "32"],
            &["--no-gate", "--allow-zero", "--method", "rtn", "--asym"],
            &["--no-gate", "--allow-zero", "--method", "rtn", "--group-size", "channel"],
        ] {
            let report = finite(&bench, more);
            assert!(report["weights"].as_array().unwrap().len() == 7, "{what}");
        }
        fs::write(bench.path("model/model.safetensors"), &original).unwrap();
    }
    // The value of a code may not overflow.
    change(&bench.path("model"), weight, |i, _| if i % 2 == 0 { f32::MAX } else { f32::MIN });
    for more in [
        &["--no-gate", "--allow-zero"][..],
        &["--no-gate", "--allow-zero", "--method", "rtn", "--asym"],
    ] {
        let said = bench.fails(more, 2);
        assert!(said.contains(weight) && said.contains("too large"), "{said}");
        bench.clean();
    }
}
