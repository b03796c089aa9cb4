//! Every family's fixture as a GGUF file, and back: the same programs and the same weights, or a refusal by
//! name.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

mod written;

use checkpoint::Checkpoint;
use ir::{ModelSpec, Source};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What GGUF cannot carry, and what is said of it.
const REFUSED: &[(&str, &[&str])] = &[
    ("llama-yarn-mscale-old-spelling", &["beta_fast = 16", "\"llama\""]),
    ("mistral-window", &["layer 0", "window of 7 tokens", "max_position_embeddings"]),
    ("mixtral-window", &["layer 0", "window of 7 tokens"]),
    ("qwen2-layer-types", &["layer 0", "window of 9 tokens", "\"qwen2\""]),
    ("qwen2-windows", &["layer 1", "window of 5 tokens"]),
    ("qwen3-bias", &["o_proj.bias", "\"qwen3\""]),
    ("qwen3-windows", &["layer 1", "window of 6 tokens"]),
];

fn fixtures() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let folders = entries.filter(|path| path.is_dir());
    let mut all: Vec<(String, PathBuf)> = folders
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    all.sort();
    all
}

fn load(path: &Path) -> (Checkpoint, ModelSpec) {
    let opened = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    let model =
        arch::load(opened.config(), &opened).unwrap_or_else(|e| panic!("{path:?}: {e}")).model;
    (opened, model)
}

/// Holds a model that was read from a file against the one that it was made from.
fn same(name: &str, [theirs, ours]: [&(Checkpoint, ModelSpec); 2]) {
    let ((from, model), (file, read)) = (theirs, ours);
    let sizes = |m: &ModelSpec| (m.hidden, m.vocab, m.context, m.layers.len());
    assert_eq!(sizes(model), sizes(read), "{name}");
    for (one, other) in model.blocks().zip(read.blocks()) {
        assert_eq!(one.ops, other.ops, "{name}: {}", one.id);
        for (one, other) in one.weights.iter().zip(&other.weights) {
            assert_eq!(
                (one.role, &one.tensor, &one.shape),
                (other.role, &other.tensor, &other.shape)
            );
            let rows = 0..one.shape[0];
            let [a, b] = [from.read_view(&one.at, rows.clone()), file.read_view(&other.at, rows)];
            let [a, b] = [a, b].map(|read| read.unwrap().to_f32().unwrap());
            assert_eq!(a, b, "{name}: {}", one.tensor);
            // Not from the beginning.
            let last = one.shape[0] - 1..one.shape[0];
            let [a, b] = [from.read_view(&one.at, last.clone()), file.read_view(&other.at, last)];
            let [a, b] = [a, b].map(|read| read.unwrap().to_f32().unwrap());
            assert_eq!(a, b, "{name}: {}", one.tensor);
        }
    }
}

#[test]
fn a_family_is_written_and_read_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, folder) in fixtures() {
        let out = dir.path().join(&name);
        let done = written::gguf(&folder, &out, None);
        if let Some((_, said)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let error = done.unwrap_err().to_string();
            assert!(said.iter().all(|part| error.contains(part)), "{name}: {error}");
            continue;
        }
        done.unwrap_or_else(|e| panic!("{name}: {e}"));
        let (from, read) = (load(&folder), load(&out.join("model.gguf")));
        same(&name, [&from, &read]);
        for key in ["bos_token_id", "eos_token_id"] {
            // Without a tokenizer there are no ids of tokens.
            assert_eq!(read.0.config().get(key), None, "{name}");
        }
    }
}

#[test]
fn a_model_is_written_in_files_and_read_from_any_of_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama-llama3", "mixtral", "qwen3-tied-bf16"] {
        let folder = fixtures().into_iter().find(|(n, _)| n == name).unwrap().1;
        let out = dir.path().join(name);
        written::gguf(&folder, &out, Some(4096)).unwrap();
        let files: Vec<PathBuf> =
            std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() > 3, "{files:?}");
        let from = load(&folder);
        for path in files.iter().chain([&out]) {
            let read = load(path);
            assert_eq!(read.0.files().len(), files.len());
            same(name, [&from, &read]);
        }
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let fixtures = fixtures();
    let folder = |name: &str| fixtures.iter().find(|(n, _)| n == name).unwrap().1.clone();
    written::gguf(&folder("llama-plain"), &out("one"), Some(8192)).unwrap();
    written::gguf(&folder("llama-bf16"), &out("other"), Some(4096)).unwrap();
    let count = std::fs::read_dir(out("one")).unwrap().count();
    let part = |i: usize| out("one").join(format!("model-{i:05}-of-{count:05}.gguf"));
    let refused = |path: &Path, said: &[&str]| {
        let error = Checkpoint::open(path).map(drop).unwrap_err().to_string();
        assert!(said.iter().all(|part| error.contains(part)), "{error}");
    };
    let kept = std::fs::read(part(2)).unwrap();
    std::fs::remove_file(part(2)).unwrap();
    refused(&part(1), &["model-00002-of", "is missing", "part 2 of"]);
    std::fs::write(part(2), std::fs::read(part(3)).unwrap()).unwrap();
    refused(&part(1), &["model-00002-of", "split.no", "part 3 of"]);
    refused(&part(2), &["split.no", "its name does not end in", "-00003-of-"]);
    std::fs::write(part(2), &kept).unwrap();
    // A key of another count, and a name that says nothing.
    let at = |file: &[u8], key: &str| {
        file.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4
    };
    let mut first = std::fs::read(part(1)).unwrap();
    let place = at(&first, "split.tensors.count");
    first[place] += 1;
    std::fs::write(part(1), &first).unwrap();
    refused(&part(1), &["split.tensors.count is", "files have"]);
    let mut second = kept.clone();
    let place = at(&second, "split.no");
    second[place] = 0xff;
    std::fs::write(part(2), &second).unwrap();
    refused(&part(2), &["split.no is"]);
    let named = out("other").join("plain.gguf");
    let files: Vec<PathBuf> =
        std::fs::read_dir(out("other")).unwrap().map(|entry| entry.unwrap().path()).collect();
    std::fs::rename(&files[0], &named).unwrap();
    refused(&named, &["split.count say that it is part", "its name does not end in"]);
}

/// A folder of a llama with a tokenizer of four tokens, and what a conversation needs.
fn conversing(folder: &Path) {
    let fixture = fixtures().into_iter().find(|(name, _)| name == "llama-plain").unwrap().1;
    std::fs::create_dir_all(folder.join("additional_chat_templates")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), folder.join(name)).unwrap();
    }
    let special = |id: usize, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let bytes = |prefix: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true,
        })
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<|eot_id|>"), special(3, "<x>")],
        "normalizer": null, "pre_tokenizer": bytes(false), "post_processor": null, "decoder": bytes(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": { "<s>": 0, "</s>": 1, "<|eot_id|>": 2, "<x>": 3, "a": 4 }, "merges": [],
        },
    });
    let files = [
        ("tokenizer.json", tokenizer),
        (
            "tokenizer_config.json",
            json!({
                "bos_token": "<s>", "eos_token": { "content": "</s>" }, "chat_template": "not this one",
            }),
        ),
        (
            "generation_config.json",
            json!({
                "eos_token_id": [1, 3], "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
            }),
        ),
    ];
    for (name, said) in files {
        std::fs::write(folder.join(name), said.to_string()).unwrap();
    }
    std::fs::write(folder.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let other = folder.join("additional_chat_templates/tool_use.jinja");
    std::fs::write(other, "{{ tools }}").unwrap();
}

/// llama.cpp's converter names one token that ends a text; others are known by what they are called, as
/// llama.cpp knows them. A file of ours names all.
#[test]
fn tokens_that_end_a_text_are_named_or_known() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("chat");
    conversing(&folder);
    std::fs::remove_file(folder.join("generation_config.json")).unwrap();
    let ends = |name: &str| {
        let opened = Checkpoint::open(&dir.path().join(name)).unwrap();
        opened.config()["eos_token_id"].clone()
    };
    // config.json has another one than tokenizer_config.json.
    written::gguf(&folder, &dir.path().join("two"), None).unwrap();
    assert_eq!(ends("two"), json!([1, 2]));
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = config.replace("\"eos_token_id\": 2", "\"eos_token_id\": 1");
    std::fs::write(folder.join("config.json"), config).unwrap();
    written::gguf(&folder, &dir.path().join("one"), None).unwrap();
    assert_eq!(ends("one"), 1);
    // As if the key that names it again were another.
    let path = dir.path().join("one/model.gguf");
    let mut file = std::fs::read(&path).unwrap();
    let key = b"tokenizer.ggml.eot_token_id";
    let at = file.windows(key.len()).position(|w| w == key).unwrap();
    file[at..at + key.len()].copy_from_slice(b"tokenizer.ggml.sep_token_id");
    std::fs::write(&path, file).unwrap();
    assert_eq!(ends("one"), json!([1, 2]));
}

/// The Jinja file goes before the template in tokenizer_config.json, and a GGUF file says what the files beside
/// weights did.
#[test]
fn a_conversation_needs_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("chat");
    conversing(&folder);
    written::gguf(&folder, &dir.path().join("out"), None).unwrap();
    let opened = Checkpoint::open(&dir.path().join("out")).unwrap();
    let file = |name: &str| opened.side_file(name, 1 << 20).unwrap();
    assert_eq!(file("chat_template.jinja").as_deref(), Some(&b"{{ messages }}"[..]));
    let others = opened.additional_chat_templates(1 << 20).unwrap();
    assert_eq!(others, [("tool_use".to_owned(), b"{{ tools }}".to_vec())]);
    let config = opened.tokenizer_config().unwrap().unwrap();
    assert_eq!(config["bos_token"], "<s>");
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(config["eos_token"], "</s>");
    // Those of generation_config.json, then that of config.json.
    assert_eq!(opened.config()["eos_token_id"], json!([1, 3, 2]));
    assert_eq!(opened.config()["bos_token_id"], 0);
    let drawn = Value::Object(opened.generation_config().unwrap().clone());
    assert_eq!(drawn, json!({ "temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": true }));
    let names = [
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(opened.side_files(), names);
    for name in names {
        assert!(!opened.read_side_file(name).unwrap().is_empty(), "{name}");
    }
}
