//! Models that are safe to read and still no models: the configuration, the weights and the
//! tokenizer, one row a fault, through the built binary.
//!
//! Each row splices one fault into the committed model. Whatever it is: exit 2, one message that
//! names the file, the tensor or the key and the rule, nothing on standard output, nothing written,
//! and no weights before the refusal where the headers say enough. How the containers themselves
//! can be broken is in `bad_input.rs`.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use tests::{optimize, root};

const WEIGHTS: &str = "model.safetensors";
const UP: &str = "model.layers.2.mlp.up_proj.weight";
const NORM: &str = "model.layers.2.input_layernorm.weight";

/// One change to the model.
enum Fault {
    /// A key of config.json set to this JSON.
    Config(&'static str, &'static str),
    /// A key of config.json taken away.
    Without(&'static str),
    /// The weights: the header and the data.
    Weights(fn(&mut Value, &mut Vec<u8>)),
    /// tokenizer.json.
    Tokenizer(fn(&mut Value)),
}
use Fault::{Config, Tokenizer, Weights, Without};

/// An id of the map of faults, a fault, the rule that the error states.
type Case = (&'static str, Fault, &'static str);

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Copies the committed model and breaks it.
fn build(folder: &Path, fault: &Fault) {
    for entry in fs::read_dir(root().join("tests/models/stories260k")).unwrap() {
        let path = entry.unwrap().path();
        fs::write(folder.join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    let (config, weights) = (folder.join("config.json"), folder.join(WEIGHTS));
    match fault {
        Config(key, value) => edit(&config, |c| c[key] = serde_json::from_str(value).unwrap()),
        Without(key) => edit(&config, |c| drop(c.as_object_mut().unwrap().remove(*key).unwrap())),
        Tokenizer(change) => edit(&folder.join("tokenizer.json"), change),
        Weights(change) => {
            let bytes = fs::read(&weights).unwrap();
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
            let mut data = bytes[8 + length..].to_vec();
            change(&mut header, &mut data);
            let header = header.to_string();
            let length = (header.len() as u64).to_le_bytes();
            fs::write(&weights, [&length[..], header.as_bytes(), &data].concat()).unwrap();
        }
    }
}

/// The bytes of a tensor.
fn of<'a>(name: &str, header: &Value, data: &'a mut [u8]) -> &'a mut [u8] {
    let at = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    &mut data[at(0)..at(1)]
}

fn fill(name: &str, header: &Value, data: &mut [u8], value: f32) {
    of(name, header, data).chunks_mut(4).for_each(|v| v.copy_from_slice(&value.to_le_bytes()));
}

fn added(id: u64, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false,
    })
}

fn merges(tokenizer: &mut Value) -> &mut Vec<Value> {
    tokenizer["model"]["merges"].as_array_mut().unwrap()
}

/// Evaluates the model with this fault: the exit code, standard output, what was said.
fn outcome(id: &str, fault: &Fault) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), fault);
    let files = || fs::read_dir(folder.path()).unwrap().count();
    let model = folder.path().to_str().unwrap();
    // The shell ends what takes more than five seconds of a processor, whatever else the machine does.
    // A tenth of it is enough for an optimized build.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -t 5; exec \"$0\" \"$@\""]).arg(optimize().get_program());
    command.args(["eval", model, "--max-tokens", "60", "--threads", "1", "--quiet"]);
    let before = files();
    let out = command.output().unwrap();
    assert!(out.status.code().is_some(), "{id}: {}", out.status);
    assert_eq!(files(), before, "{id}: nothing is written");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn refuse(cases: &[Case]) {
    for (id, fault, rule) in cases {
        let (code, said, error) = outcome(id, fault);
        assert_eq!((code, &*said), (2, ""), "{id}: {rule}: {error}");
        assert!(error.contains(rule), "{id}: {error:?} states {rule:?}");
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{id}: {error}");
        assert!(error.len() < 4000, "{id}: {} bytes of message", error.len());
    }
}

#[rustfmt::skip] // one row a case
const CONFIGS: &[Case] = &[
    ("HF-11", Config("num_attention_heads", "0"), "\"num_attention_heads\" = 0: must be an integer from 1"),
    ("HF-11", Config("num_key_value_heads", "0"), "\"num_key_value_heads\" = 0: must be an integer from 1"),
    ("HF-11", Config("num_key_value_heads", "16"), "16 heads must divide num_attention_heads = 8"),
    ("HF-11", Config("num_key_value_heads", "3"), "3 heads must divide num_attention_heads = 8"),
    ("HF-11", Config("num_attention_heads", "3"), "4 heads must divide num_attention_heads = 3"),
    ("HF-11", Config("head_dim", "3"), "a head of size 3 cannot be rotated"),
    ("HF-12", Config("num_attention_heads", "2147483648"), "must be an integer from 1 to 65536"),
    ("HF-12", Config("hidden_size", "1099511627776"), "must be an integer from 1 to 1048576"),
    ("HF-12", Config("num_hidden_layers", "1000000000"), "must be an integer from 1 to 4096"),
    ("HF-12", Config("num_hidden_layers", "4096"), "are not stored: \"model.layers.5."),
    ("HF-12", Config("vocab_size", "9223372036854775808"), "\"vocab_size\" = 9223372036854775808: must be"),
    ("HF-12", Config("num_local_experts", "1000000000"), "key \"num_local_experts\" = 1000000000"),
    ("HF-12", Config("max_position_embeddings", "1152921504606846976"), "\"max_position_embeddings\""),
    ("HF-13", Config("hidden_size", "-1"), "\"hidden_size\" = -1: must be an integer"),
    ("HF-13", Config("hidden_size", "64.0"), "\"hidden_size\" = 64.0: must be an integer"),
    ("HF-13", Config("hidden_size", "\"64\""), "\"hidden_size\" = \"64\": must be an integer"),
    ("HF-13", Config("hidden_size", "null"), "\"hidden_size\" = null: must be an integer"),
    ("HF-13", Config("hidden_size", "true"), "\"hidden_size\" = true: must be an integer"),
    ("HF-13", Config("rms_norm_eps", "\"x\""), "\"rms_norm_eps\" = \"x\": must be a finite number"),
    ("HF-13", Config("rms_norm_eps", "-1"), "\"rms_norm_eps\" = -1: must be above 0"),
    ("HF-13", Config("rope_theta", "0"), "\"rope_theta\" = 0: must be above 1"),
    ("HF-13", Config("tie_word_embeddings", "1"), "\"tie_word_embeddings\" = 1"),
    ("HF-13", Without("hidden_size"), "key \"hidden_size\" is missing"),
    ("HF-13", Without("model_type"), "no key \"model_type\"; supported families are llama"),
    ("HF-15", Config("vocab_size", "500"), "\"model.embed_tokens.weight\" is [512, 64], expected [500, 64]"),
    ("HF-15", Config("intermediate_size", "64"), "\"model.layers.0.mlp.gate_proj.weight\" is [172, 64], expected [64, 64]"),
    ("HF-15", Weights(|h, _| h[UP]["shape"].as_array_mut().unwrap().reverse()), "up_proj.weight\" is [64, 172], expected [172, 64]"),
    ("HF-16", Config("tie_word_embeddings", "false"), "not stored: \"lm_head.weight\""),
    ("HF-32", Config("quantization_config", r#"{"quant_method":"bitsandbytes","load_in_4bit":true}"#), "quant_method \"bitsandbytes\""),
    ("HF-32", Config("quantization_config", "{}"), "quantization_config"),
    ("key", Config("frobnicate", "2"), "key \"frobnicate\" = 2 is not supported for llama"),
    ("key", Config("hidden_act", "\"gelu\""), "only \"silu\" is supported"),
    ("key", Config("rope_scaling", r#"{"type":"dynamic","factor":2.0}"#), "\"rope_scaling.type\" = \"dynamic\""),
    ("family", Config("model_type", "\"mamba\""), "model_type \"mamba\""),
];

#[rustfmt::skip] // one row a case
const WEIGHT_FAULTS: &[Case] = &[
    ("missing", Weights(|h, _| { let up = h[UP].take(); h.as_object_mut().unwrap().remove(UP); h["x"] = up; }), "are not stored: \"model.layers.2.mlp.up_proj.weight\""),
    ("dtype", Weights(|h, _| h[UP]["dtype"] = "I32".into()), "other than F32, F16 or BF16: \"model.layers.2.mlp.up_proj.weight\" is I32"),
    ("ST-31", Weights(|h, _| { h[NORM]["dtype"] = "BOOL".into(); h[NORM]["shape"] = json!([256]); }), NORM),
    ("HF-30", Weights(|h, d| of(UP, h, d)[40..44].copy_from_slice(&f32::NAN.to_le_bytes())), "1 of the 11008 elements of \"model.layers.2.mlp.up_proj.weight\" are not, the first is 10, NaN"),
    ("HF-30", Weights(|h, d| of(UP, h, d)[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes())), "the first is 2, inf"),
    ("HF-30", Weights(|h, d| fill(UP, h, d, f32::NAN)), "11008 of the 11008 elements"),
    ("HF-31", Weights(|h, d| fill(UP, h, d, f32::MAX)), "but some are too large"),
];

#[rustfmt::skip] // one row a case
const TOKENIZERS: &[Case] = &[
    ("HF-19", Tokenizer(|t| merges(t).push(json!(["a".repeat(1000), "b"]))), "model.merges["),
    ("HF-19", Tokenizer(|t| t["model"]["continuing_subword_prefix"] = "x".repeat(50).into()), "does not begin with the subword prefix"),
    ("HF-20", Tokenizer(|t| t["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})), "pre_tokenizer.length: a chunk length of 0"),
    ("HF-20", Tokenizer(|t| t["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "no", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}})), "\"no\" is not among special_tokens"),
    ("HF-21", Tokenizer(|t| t["model"]["vocab"]["zzz"] = 4294967295u32.into()), "id 4294967295 is out of bounds"),
    ("HF-21", Tokenizer(|t| t["model"]["vocab"]["zzz"] = (1u64 << 40).into()), "id 1099511627776 is out of bounds"),
    ("HF-24", Tokenizer(|t| t["added_tokens"].as_array_mut().unwrap().push(added(511, ""))), "content is empty"),
    ("HF-24", Tokenizer(|t| t["added_tokens"].as_array_mut().unwrap().push(added(600, "Z"))), "\"Z\" has id 600"),
    ("HF-25", Tokenizer(|t| t["model"]["vocab"]["zzz"] = 512.into()), "ids up to 512, the embedding only 512 rows"),
    ("shape", Tokenizer(|t| *t = json!([])), "tokenizer.json"),
    ("shape", Tokenizer(|t| *t = json!({})), "tokenizer.json: model"),
];

/// Odd, legal, and what they are worth: perplexity is 512, the vocabulary, of a model that knows
/// nothing.
#[rustfmt::skip] // one row a case
const ODDITIES: &[Case] = &[
    ("good", Config("bos_token_id", "1"), "perplexity  1182.8770"),
    ("HF-09", Config("auto_map", r#"{"AutoModel":"x--y.Z"}"#), "perplexity  1182.8770"),
    ("HF-10", Config("_name_or_path", r#""$(touch x) {{7*7}} __import__('os')""#), "perplexity  1182.8770"),
    ("HF-11", Without("head_dim"), "perplexity  1182.8770"),
    ("HF-14", Config("torch_dtype", "\"bfloat16\""), "perplexity  1182.8770"),
    ("HF-20", Tokenizer(|t| t["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5})), "perplexity  1182.8770"),
    ("HF-23", Tokenizer(|t| t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": false})), "perplexity  1182.8770"),
    ("HF-31", Weights(|_, d| d.fill(0)), "perplexity  512.0000"),
    ("HF-31", Weights(|h, d| fill(UP, h, d, 0.0)), "perplexity  847.1007"),
    ("HF-31", Weights(|h, d| fill(UP, h, d, f32::from_bits(1))), "perplexity  847.1007"),
];

#[test]
fn configurations_that_no_model_has() {
    refuse(CONFIGS);
}

#[test]
fn weights_that_no_model_has() {
    refuse(WEIGHT_FAULTS);
}

#[test]
fn tokenizers_that_do_not_fit() {
    refuse(TOKENIZERS);
}

#[test]
fn odd_models_are_evaluated() {
    for (id, fault, result) in ODDITIES {
        let (code, said, error) = outcome(id, fault);
        assert_eq!(code, 0, "{id}: {error}");
        assert!(said.contains(result), "{id}: {said:?} says {result:?}");
    }
}
