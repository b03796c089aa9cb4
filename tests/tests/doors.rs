//! Checkpoints that are spelled in another way open, and folders that are none say what they are.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tests::{optimize, run, write_noise_model, write_safetensors};

fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    write_noise_model(&model, 1, 32, 64);
    model
}

fn edit(model: &Path, edit: impl FnOnce(&mut Value)) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// The header and the data of a safetensors file.
fn parts(path: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

/// Gives every tensor another name.
fn rename(model: &Path, name: impl Fn(&str) -> String) {
    let path = model.join("model.safetensors");
    let (header, data) = parts(&path);
    let renamed = header.as_object().unwrap().iter().map(|(k, v)| (name(k), v.clone()));
    let header = Value::Object(renamed.collect()).to_string();
    let length = (header.len() as u64).to_le_bytes().to_vec();
    fs::write(path, [length, header.into_bytes(), data].concat()).unwrap();
}

fn text(output: &Output) -> (i32, String, String) {
    let part = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), part(&output.stdout), part(&output.stderr))
}

#[track_caller]
fn refused(arguments: &[&str], said: &[&str]) {
    let (code, _, error) = text(&run(arguments));
    assert_eq!(code, 2, "{error}");
    said.iter().for_each(|said| assert!(error.contains(said), "{said:?} in {error}"));
}

#[test]
fn a_refusal_names_the_folder_and_the_option_that_overrules_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    edit(&model, |c| c["rope_scaling"] = json!({"type": "linear", "factor": 2, "new": 1}));
    let path = model.to_str().unwrap();
    let option = "--ignore-config-key rope_scaling.new";
    refused(&["inspect", path], &[path, "key \"rope_scaling.new\" = 1", option]);
    let (code, out, error) =
        text(&run(&["inspect", path, "--ignore-config-key", "rope_scaling.new"]));
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("context 512") && error.contains("linear scaling extends 256 by 2"));
    refused(&["inspect", path, "--ignore-config-key", "rope_scaling.old"], &["has no key"]);
}

/// transformers 5.23.0 loads the names of the backbone's class as those of its language model; the
/// artifact has the names that every reader takes, and says that the head is tied.
#[test]
fn names_of_the_backbones_class_open_and_are_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let path = model.to_str().unwrap();
    let tokens = dir.path().join("tokens");
    fs::write(&tokens, "1 2 3 4 5 6 7 8 9 10").unwrap();
    let eval = ["eval", path, "--tokens", tokens.to_str().unwrap(), "--json", "--device", "cpu"];
    let figures = |output: &Output| {
        let (code, out, error) = text(output);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<Value>(&out).unwrap()["perplexity"].as_f64().unwrap()
    };
    let whole = figures(&run(&eval));
    rename(&model, |name| name.trim_start_matches("model.").to_owned());
    edit(&model, |c| drop(c.as_object_mut().unwrap().shift_remove("tie_word_embeddings")));
    let (_, _, error) = text(&run(&["inspect", path]));
    assert!(error.contains("have no \"model.\"") && error.contains("read as the head"), "{error}");
    assert_eq!(figures(&run(&eval)).to_bits(), whole.to_bits());

    let out = dir.path().join("artifact");
    let job =
        ["--quant", "int8", "--method", "rtn", "--no-gate", path, "-o", out.to_str().unwrap()];
    let (code, _, error) = text(&run(&job));
    assert_eq!(code, 0, "{error}");
    let (header, _) = parts(&out.join("model.safetensors"));
    let mut names = header.as_object().unwrap().keys();
    let whole = |name: &String| name.starts_with("model.") || name == "__metadata__";
    assert!(names.all(whole), "{header}");
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], true);
}

/// transformers reads every tensor of every file that the index names.
#[test]
fn an_index_that_lists_too_much_or_too_little_is_a_warning_and_a_lost_tensor_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let path = model.to_str().unwrap();
    let (header, _) = parts(&model.join("model.safetensors"));
    const SHARD: &str = "model-00001-of-00001.safetensors";
    fs::rename(model.join("model.safetensors"), model.join(SHARD)).unwrap();
    let index = |more: &[&str], less: &str| {
        let names = header.as_object().unwrap().keys().map(String::as_str);
        let map: serde_json::Map<String, Value> = names
            .filter(|name| *name != less)
            .chain(more.iter().copied())
            .map(|name| (name.to_owned(), json!(SHARD)))
            .collect();
        let index = json!({"metadata": null, "weight_map": map});
        fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    index(&["lm_head.weight"], "model.norm.weight");
    let (code, _, error) = text(&run(&["inspect", path]));
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("tensor \"lm_head.weight\" is not in shard"), "{error}");
    assert!(error.contains("\"model.norm.weight\" of shard"), "{error}");
    rename_in(&model.join(SHARD), "model.norm.weight", "lost");
    refused(&["inspect", path], &["1 tensors", "are not stored: \"model.norm.weight\""]);
    rename_in(&model.join(SHARD), "lost", "model.norm.weight");
    edit(&model, |c| c["tie_word_embeddings"] = json!(false));
    refused(&["inspect", path], &["\"lm_head.weight\"", "no head to predict tokens with"]);
}

fn rename_in(path: &Path, from: &str, to: &str) {
    let (header, data) = parts(path);
    let header = header.to_string().replace(from, to);
    let length = (header.len() as u64).to_le_bytes().to_vec();
    fs::write(path, [length, header.into_bytes(), data].concat()).unwrap();
}

#[test]
fn folders_that_are_no_model_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, files: &[(&str, &str)]| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        files.iter().for_each(|(name, text)| fs::write(path.join(name), text).unwrap());
        path.to_str().unwrap().to_owned()
    };
    let adapter = r#"{"peft_type": "LORA", "base_model_name_or_path": "org/base"}"#;
    let adapter = folder("lora", &[("adapter_config.json", adapter)]);
    refused(&["inspect", &adapter], &["a LoRA adapter of \"org/base\"", "merge_and_unload"]);
    let gguf = folder("gguf", &[("x.Q4_K_M.gguf", "GGUF"), ("x.Q8_0.gguf", "GGUF")]);
    refused(&["run", &gguf, "hi"], &["\"x.Q4_K_M.gguf\"", "give the path of that file"]);
    // One alone is what is meant.
    let gguf = folder("one", &[("x.Q4_K_M.gguf", "GGUF")]);
    refused(&["run", &gguf, "hi"], &["x.Q4_K_M.gguf", "ends"]);
    let onnx = folder("onnx", &[("model.onnx", "")]);
    refused(&["inspect", &onnx], &["\"model.onnx\"", "ONNX is not read"]);
    let bin = folder("bin", &[("pytorch_model.bin", "")]);
    refused(&["inspect", &bin], &["pickle is never read", "save_pretrained"]);
    model(dir.path());
    refused(&["inspect", dir.path().to_str().unwrap()], &["in its folders: \"model\""]);
    let near = dir.path().join("modle");
    refused(&["inspect", near.to_str().unwrap()], &["no such folder", "did you mean", "/model\""]);
    let moe = folder("moe", &[("config.json", r#"{"model_type": "qwen3_moe"}"#)]);
    refused(&["run", &moe, "hi"], &["\"qwen3_moe\" (a mixture of experts)", &moe]);
}

/// Where a cache lies is found as huggingface_hub 2.4.0 finds it.
#[test]
fn the_cache_is_where_the_environment_says_and_the_command_that_fills_it_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    const HASH: &str = "0123456789abcdef0123456789abcdef01234567";
    let home = dir.path().join("hub/models--org--m");
    let snapshot = home.join("snapshots").join(HASH);
    fs::create_dir_all(home.join("refs")).unwrap();
    fs::create_dir_all(home.join("blobs")).unwrap();
    write_noise_model(&snapshot, 1, 32, 64);
    fs::write(home.join("refs/main"), HASH).unwrap();
    let find = |name: &str, value: &Path, model: &str| {
        let mut command = optimize();
        command.env_remove("HF_HOME").env_remove("HF_HUB_CACHE").env("HOME", dir.path().join("x"));
        text(&command.env(name, value).args(["inspect", model, "--quiet"]).output().unwrap())
    };
    let hub = dir.path().join("hub");
    assert_eq!(find("HF_HUB_CACHE", &hub, "org/m").0, 0);
    assert_eq!(find("HF_HOME", dir.path(), "org/m").0, 0);
    assert_eq!(find("HF_HOME", dir.path(), &format!("org/m@{HASH}")).0, 0);
    let (code, _, error) = find("HF_HOME", dir.path(), "org/m@v2");
    assert_eq!(code, 2);
    assert!(error.contains("hf download org/m --revision v2") && error.contains(HASH), "{error}");
    let (_, _, error) = find("HF_HOME", &dir.path().join("other"), "org/m");
    assert!(error.contains("hf download org/m") && error.contains("--hub-cache"), "{error}");
    assert!(error.contains("other/hub"), "{error}");
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("../../blobs/aa", snapshot.join("model.safetensors")).unwrap();
    let (code, _, error) = find("HF_HUB_CACHE", &hub, "org/m");
    assert_eq!(code, 2);
    assert!(error.contains("model.safetensors\": is a link to a file that is missing"), "{error}");
    assert!(error.contains("completes it: hf download org/m\n"), "{error}");
    let cache = hub.to_str().unwrap();
    refused(&["inspect", "org/n", "--hub-cache", cache], &["hf download org/n --cache-dir"]);
}

#[test]
fn a_header_without_metadata_may_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let path = model.join("model.safetensors");
    let (mut header, data) = parts(&path);
    header["__metadata__"] = Value::Null;
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes().to_vec();
    fs::write(&path, [length, header.into_bytes(), data].concat()).unwrap();
    assert_eq!(text(&run(&["inspect", model.to_str().unwrap()])).0, 0);
    write_safetensors(&path, &[("x".into(), vec![1], vec![0.0])]);
    refused(&["inspect", model.to_str().unwrap()], &["are not stored"]);
}

/// The bytes are those of the weights that the configuration's own model has.
#[test]
fn a_configuration_alone_says_what_its_model_would_take() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let path = model.to_str().unwrap();
    let inspect = || {
        let (code, out, error) = text(&run(&["inspect", path, "--json"]));
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let whole = inspect();
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let alone = inspect();
    for key in
        ["family", "layers", "hidden", "heads", "vocabulary", "context", "tied", "parameters"]
    {
        assert_eq!(alone[key], whole[key], "{key}");
    }
    // It was stored as f32.
    assert_eq!(alone["would_take"]["bf16"], whole["bytes"].as_u64().unwrap() / 2);
    // One layer: matrices of 32x32, 16x32 twice, 32x32, 96x32 twice and 32x96, one scale a row.
    let (matrices, rows) = (2 * 1024 + 2 * 512 + 3 * 3072, 2 * 32 + 2 * 16 + 2 * 96 + 32);
    let rest = whole["parameters"].as_u64().unwrap() - matrices;
    assert_eq!(alone["would_take"]["int8"], 2 * rest + matrices + 2 * rows);
    assert_eq!(alone["would_take"]["int4"], 2 * rest + matrices / 2 + 2 * rows);
    // Keys and values of one head of 16, in bf16.
    assert_eq!(alone["kv_bytes"]["thousand_tokens"], 2 * 2 * 16 * 1000);
    let (_, table, _) = text(&run(&["inspect", path]));
    assert!(table.contains("after --quant int4") && table.contains("none here"), "{table}");
    let next = format!("optimize inspect {path} says");
    refused(&["run", path, "hi"], &["has neither model.safetensors nor", &next]);
    refused(&["verify", path], &["is no artifact: it has no report.json"]);
    edit(&model, |c| c["model_type"] = json!("deepseek_v3"));
    refused(&["inspect", path], &["\"deepseek_v3\" (multi-head latent attention"]);
}
