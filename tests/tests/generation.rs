//! What a checkpoint says about generating: `run` says what transformers says, and names what it does
//! not follow.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use tests::{optimize, root, run};

/// stories260k with another generation_config.json.
fn model(folder: &Path, config: &Value) -> String {
    for entry in fs::read_dir(root().join("tests/models/stories260k")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(folder.join("generation_config.json"), config.to_string()).unwrap();
    folder.display().to_string()
}

/// `run` over `prompt`, computed as transformers does in float32.
fn said(config: &Value, prompt: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path(), config);
    let plain = ["--exact", "--kv-dtype", "f32", "--device", "cpu", "--json"];
    run(&[&["run", &model, prompt], &plain[..], more].concat())
}

fn tokens(out: &Output) -> Vec<u64> {
    let remarks = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{remarks}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    report["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

fn with(mut config: Map<String, Value>, key: &str, value: Value) -> Value {
    config.entry(key).or_insert(value);
    Value::Object(config)
}

#[test]
fn every_key_acts_as_in_transformers() {
    // Made by transformers 5.23.0: tests/interop/make_generation_goldens.py.
    let golden = fs::read(root().join("tests/fixtures/generation.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 25);
    for case in cases {
        let mut config = case["config"].as_object().unwrap().clone();
        let prompt = config.shift_remove("prompt");
        let prompt = prompt.as_ref().or(golden.get("prompt")).unwrap().as_str().unwrap();
        if !config.contains_key("max_length") {
            config.entry("max_new_tokens").or_insert(json!(40));
        }
        let out = said(&with(config, "eos_token_id", json!(2)), prompt, &[]);
        let wanted = case["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
        assert_eq!(tokens(&out), wanted.collect::<Vec<_>>(), "{}", case["config"]);
        assert!(!String::from_utf8_lossy(&out.stderr).contains("not supported"));
    }
}

#[test]
fn options_go_before_what_the_file_says() {
    let config = json!({ "max_new_tokens": 3, "repetition_penalty": 1.3, "eos_token_id": 2 });
    assert_eq!(tokens(&said(&config, "Once", &["--max-tokens", "9"])).len(), 9);
    assert_eq!(tokens(&said(&config, "Once", &["--max-tokens", "0"])).len(), 0);
    let all = tokens(&said(&json!({ "max_new_tokens": 3 }), "Once", &["--max-tokens", "-1"]));
    assert!(all.len() > 60, "{}", all.len());
    let plain = ["-n", "30", "--repetition-penalty", "1"];
    let file = said(&config, "Once upon", &plain);
    assert_eq!(tokens(&file), tokens(&said(&json!({}), "Once upon", &plain)));
}

#[test]
fn what_is_not_followed_is_named_in_one_line() {
    let config = json!({
        "guidance_scale": 1.5, "num_beams": 4, "typical_p": 0.9, "some_new_key": 3, "use_cache": true,
        "pad_token_id": 0, "transformers_version": "5.23.0", "top_h": 0.4, "diversity_penalty": 0.0,
    });
    let out = said(&config, "Once", &["-n", "2"]);
    let remarks = String::from_utf8(out.stderr).unwrap();
    assert_eq!(
        remarks.lines().filter(|line| line.contains("not supported")).collect::<Vec<_>>(),
        [
            "warning: generation_config.json: guidance_scale, num_beams, some_new_key: not supported, \
          left out"
        ]
    );
    let sampled = json!({ "do_sample": true, "typical_p": 0.9, "top_k": -1 });
    let remarks = String::from_utf8(said(&sampled, "Once", &["-n", "2"]).stderr).unwrap();
    assert!(remarks.contains("typical_p: not supported"), "{remarks}");
}

#[test]
fn wrong_values_are_refused_by_key() {
    for (key, value) in [
        ("repetition_penalty", json!("1.3")),
        ("eos_token_id", json!(-7)),
        ("suppress_tokens", json!([1.5])),
        ("bad_words_ids", json!([["a"]])),
        ("min_length", json!(2.5)),
        ("stop_strings", json!([1])),
        ("sequence_bias", json!([[[1], 2.0, 3.0]])),
        ("exponential_decay_length_penalty", json!([1])),
    ] {
        let out = said(&with(Map::new(), key, value.clone()), "Once", &["-n", "2"]);
        let remarks = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{key} {value}: {remarks}");
        assert!(remarks.contains(&format!("generation_config.json: {key} is")), "{remarks}");
    }
}

#[test]
fn banning_every_token_is_said() {
    let all: Vec<u32> = (0..512).collect();
    let out = said(&json!({ "suppress_tokens": all }), "Once", &["-n", "2"]);
    let remarks = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{remarks}");
    assert!(remarks.contains("every token is banned"), "{remarks}");
}

#[test]
fn a_special_token_is_a_stop_string_and_a_pipe_a_prompt() {
    // </s> has id 2: biased, it comes at once and ends the text though it is no end token here.
    let config = json!({ "eos_token_id": null, "sequence_bias": [[[2], 100.0]] });
    let out = said(&config, "Once", &["-n", "9", "--stop", "</s>"]);
    assert_eq!(tokens(&out).len(), 1);
    let stories = root().join("tests/models/stories260k");
    let prompt = Path::new(&stories).join("../../fixtures/generation.json");
    let piped = optimize()
        .args(["run", &stories.display().to_string(), "-n", "3", "--json"])
        .stdin(Stdio::from(fs::File::open(prompt).unwrap()))
        .output()
        .unwrap();
    let remarks = String::from_utf8_lossy(&piped.stderr);
    // A prompt of thousands of tokens: it was read, and is longer than the context.
    assert!(remarks.contains("the model's context only"), "{remarks}");
}

#[test]
fn a_reader_that_leaves_ends_the_text() {
    use std::io::Read;
    let stories = root().join("tests/models/stories260k").display().to_string();
    let mut child = optimize()
        .args(["run", &stories, "Once", "--logit-bias", "2=-inf", "--logit-bias", "1=-inf"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0));
    let remarks = String::from_utf8_lossy(&out.stderr);
    let count = remarks.split(" ms; ").nth(1).and_then(|rest| rest.split(' ').next());
    let count: usize = count.unwrap().parse().unwrap();
    assert!(count < 500, "{count} tokens were said to nobody");
}
