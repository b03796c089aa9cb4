//! Tokenizers in GGUF files: ids against those of llama.cpp (xllamacpp 2026.10.11549, by
//! `tests/interop/make_gguf_token_goldens.py`), there and back, and files that are damaged.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

mod tokenized;
mod written;

use checkpoint::{Checkpoint, Error};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use text::Tokenizer;

fn fixture(path: &str) -> Json {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A value of a key.
enum Key<'a> {
    Text(&'a str),
    Texts(Vec<&'a str>),
    Count(u32),
    Flag(bool),
    Floats(Vec<f32>),
    Integers(Vec<i32>),
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Key<'_> {
    fn bytes(&self) -> Vec<u8> {
        let list = |kind: u32, count: usize, all: Vec<u8>| {
            [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(count as u64).to_le_bytes(), &all]
                .concat()
        };
        match self {
            Self::Text(said) => [&8u32.to_le_bytes()[..], &text(said)].concat(),
            Self::Texts(all) => {
                list(8, all.len(), all.iter().flat_map(|said| text(said)).collect())
            }
            Self::Count(n) => [4u32.to_le_bytes(), n.to_le_bytes()].concat(),
            Self::Flag(flag) => [&7u32.to_le_bytes()[..], &[u8::from(*flag)]].concat(),
            Self::Floats(all) => {
                list(6, all.len(), all.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            Self::Integers(all) => {
                list(5, all.len(), all.iter().flat_map(|n| n.to_le_bytes()).collect())
            }
        }
    }
}

/// A llama of one small matrix, with these keys of a tokenizer; each begins with "tokenizer.".
fn gguf(folder: &Path, rows: usize, keys: &[(&str, Key<'_>)]) -> PathBuf {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(1u64.to_le_bytes());
    let model = [
        ("general.architecture", Key::Text("llama")),
        ("llama.embedding_length", Key::Count(2)),
        ("llama.attention.head_count", Key::Count(1)),
        ("llama.feed_forward_length", Key::Count(2)),
        ("llama.block_count", Key::Count(1)),
        ("llama.context_length", Key::Count(64)),
        ("llama.attention.layer_norm_rms_epsilon", Key::Floats(Vec::new())),
    ];
    file.extend(((model.len() + keys.len()) as u64).to_le_bytes());
    for (key, value) in &model {
        file.extend(text(key));
        match value {
            Key::Floats(_) => file.extend([6u32.to_le_bytes(), 1e-5f32.to_le_bytes()].concat()),
            value => file.extend(value.bytes()),
        }
    }
    for (key, value) in keys {
        file.extend(text(&format!("tokenizer.{key}")));
        file.extend(value.bytes());
    }
    file.extend(text("token_embd.weight"));
    file.extend(2u32.to_le_bytes());
    file.extend([2u64.to_le_bytes(), (rows as u64).to_le_bytes()].concat());
    file.extend([&0u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat());
    file.resize(file.len().next_multiple_of(32) + rows * 8, 0);
    let path = folder.join("x.gguf");
    std::fs::write(&path, file).unwrap();
    path
}

fn texts(list: &Json) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn read(path: &Path) -> Result<Json, Error> {
    let bytes = Checkpoint::open(path)?.tokenizer()?;
    Ok(bytes.map_or(Json::Null, |bytes| serde_json::from_slice(&bytes).unwrap()))
}

fn load(file: &Json) -> Tokenizer {
    Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
}

/// Writes a tokenizer.json, and a tokenizer_config.json, to a GGUF file of a llama of so many rows.
fn write(
    folder: &Path,
    file: &Json,
    rows: usize,
    config: Option<&Json>,
) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let [model, made] = ["model", "made"].map(|name| folder.join(name));
    tokenized::llama(&model, rows, file.to_string().as_bytes())?;
    if let Some(config) = config {
        std::fs::write(model.join("tokenizer_config.json"), config.to_string())?;
    }
    written::gguf(&model, &made, None)?;
    Ok(made.join("model.gguf"))
}

#[test]
fn every_name_of_a_way_to_cut_gives_llama_cpps_ids() {
    let golden = fixture("fixtures/gguf/tokenizers.json");
    let dir = tempfile::tempdir().unwrap();
    let (tokens, merges) = (texts(&golden["tokens"]), texts(&golden["merges"]));
    let mut differ = Vec::new();
    for (pre, ids) in golden["ids"].as_object().unwrap() {
        let keys = [
            ("ggml.model", Key::Text("gpt2")),
            ("ggml.pre", Key::Text(pre)),
            ("ggml.tokens", Key::Texts(tokens.clone())),
            ("ggml.merges", Key::Texts(merges.clone())),
            ("ggml.add_bos_token", Key::Flag(false)),
        ];
        let path = gguf(dir.path(), tokens.len(), &keys);
        let file = read(&path).unwrap();
        let tokenizer = load(&file);
        for (i, text) in texts(&golden["texts"]).into_iter().enumerate() {
            let found = tokenizer.encode(text).unwrap();
            if json!(found) != ids[i] {
                differ.push((pre.as_str(), i));
            }
        }
        // What was read is written under the same name, or one that is the same to llama.cpp.
        let again = tempfile::tempdir().unwrap();
        let written = write(again.path(), &file, tokens.len(), None).unwrap();
        assert_eq!(read(&written).unwrap(), file, "{pre}");
    }
    // Here the models' own tokenizers cut otherwise than llama.cpp, which normalizes nothing (the
    // combining marks of text 5), does not tell the case of letters beyond ASCII (7), and leaves digits
    // together that these keep apart, as if merges made nothing of them.
    let nfc = [("command-r", 5), ("qwen2", 5), ("qwen35", 5)];
    let cases = ["gpt-4o", "tekken", "youtu", "tiny_aya", "kimi-k2"].map(|pre| (pre, 7));
    let deepseek = [1, 2, 6].map(|text| ("deepseek-llm", text));
    let falcon = [1, 2, 3, 5, 6].map(|text| ("falcon", text));
    let mut known = [&nfc[..], &cases, &deepseek, &falcon, &[("laguna", 9)]].concat();
    known.sort_unstable();
    differ.sort_unstable();
    assert_eq!(differ, known);
}

#[test]
fn pieces_go_there_and_back() {
    let file = fixture("models/stories260k/tokenizer.json");
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "bos_token": "<s>", "eos_token": { "content": "</s>" }, "unk_token": "<unk>", "pad_token": null,
        "chat_template": "{{ bos_token }}",
    });
    let path = write(dir.path(), &file, 520, Some(&config)).unwrap();
    let again = read(&path).unwrap();
    for key in ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model"] {
        assert_eq!(again[key], file[key], "{key}");
    }
    let opened = Checkpoint::open(&path).unwrap();
    let said = opened.tokenizer_config().unwrap().unwrap();
    for (name, text) in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")] {
        assert_eq!(said[name], text);
    }
    assert!(!said.contains_key("pad_token"));
    let template = opened.side_file("chat_template.jinja", 1 << 20).unwrap();
    assert_eq!(template.as_deref(), Some(&b"{{ bos_token }}"[..]));
    assert_eq!(
        (&opened.config()["bos_token_id"], &opened.config()["eos_token_id"]),
        (&json!(1), &json!(2))
    );
    let (one, other) = (load(&file), load(&again));
    for text in
        ["", " ", "Once upon  a time,\n\tLily", "caf\u{e9} \u{1f642}", "<s>a</s> b", "aaaaaaaaa"]
    {
        assert_eq!(one.encode(text).unwrap(), other.encode(text).unwrap(), "{text:?}");
    }
}

/// What llama.cpp has no keys for is said by keys of our own.
#[test]
fn what_llama_cpp_does_not_do_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let again = |name: &str, file: &Json| {
        read(&write(&dir.path().join(name), file, 600, None).unwrap()).unwrap()
    };
    let texts = [" a", "a</s>b", "a</s> b", "  ", "e\u{301}"];
    let mut file = fixture("models/stories260k/tokenizer.json");
    file["normalizer"] = Json::Null;
    for scheme in ["first", "always", "never"] {
        // What is put before is taken away.
        let last = file["decoder"]["decoders"].as_array_mut().unwrap();
        last.truncate(if scheme == "never" { 3 } else { 4 });
        file["pre_tokenizer"] = json!({
            "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false,
        });
        let read = again(scheme, &file);
        let (one, other) = (load(&file), load(&read));
        for text in texts {
            let ids = one.encode(text).unwrap();
            assert_eq!(other.encode(text).unwrap(), ids, "{scheme} {text:?}");
            assert_eq!(other.decode(&ids).unwrap(), one.decode(&ids).unwrap(), "{scheme} {text:?}");
        }
    }
    let mut file = bytes();
    let forms = fixture("../crates/checkpoint/src/gguf/tokenizer/splits.json");
    for pre in ["gpt-2", "qwen35"] {
        let form = forms.as_array().unwrap().iter().find(|form| form["names"][0] == pre).unwrap();
        file["pre_tokenizer"] = form["pre_tokenizer"].clone();
        for normalizer in [json!({ "type": "NFC" }), Json::Null] {
            file["normalizer"] = normalizer.clone();
            let name = format!("{pre} {normalizer}");
            assert_eq!(again(&name, &file)["normalizer"], normalizer, "{name}");
        }
    }
}

/// Ids as llama.cpp finds them: of two neighbours that are a token the one of the highest score is made,
/// of equal ones the leftmost.
fn pieces(tokens: &[&str], scores: &[f32], text: &str) -> Vec<usize> {
    let id = |text: &str| tokens.iter().position(|token| *token == text);
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for (at, two) in parts.windows(2).enumerate() {
            if let Some(id) = id(&two.concat())
                && best.is_none_or(|(score, _)| scores[id] > score)
            {
                best = Some((scores[id], at));
            }
        }
        let Some((_, at)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
    parts.iter().map(|part| id(part).unwrap()).collect()
}

proptest::proptest! {
    #[test]
    fn merges_do_what_scores_say(
        longer in proptest::collection::vec("[abc\u{2581}]{2,5}", 1..40),
        text in "[abc ]{0,40}",
        order in proptest::collection::vec(0u32..1000, 50),
    ) {
        let mut tokens = vec!["<unk>", "a", "b", "c", "\u{2581}"];
        for token in &longer {
            if !tokens.contains(&token.as_str()) {
                tokens.push(token);
            }
        }
        // Each of its own, in any order.
        let scores: Vec<f32> =
            (0..tokens.len()).map(|i| -((order[i] * 100) as f32) - i as f32).collect();
        let mut kinds = vec![1; tokens.len()];
        kinds[0] = 2;
        let keys = [
            ("ggml.model", Key::Text("llama")),
            ("ggml.tokens", Key::Texts(tokens.clone())),
            ("ggml.scores", Key::Floats(scores.clone())),
            ("ggml.token_type", Key::Integers(kinds)),
            ("ggml.add_bos_token", Key::Flag(false)),
            ("ggml.add_space_prefix", Key::Flag(false)),
        ];
        let dir = tempfile::tempdir().unwrap();
        let file = read(&gguf(dir.path(), tokens.len(), &keys)).unwrap();
        let found: Vec<usize> =
            load(&file).encode(&text).unwrap().into_iter().map(|id| id as usize).collect();
        let wanted = pieces(&tokens, &scores, &text.replace(' ', "\u{2581}"));
        proptest::prop_assert_eq!(found, wanted);
    }
}

#[test]
fn keys_that_say_no_tokenizer_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let long = "a".repeat(5000);
    let chain: Vec<String> = (1..=2500).map(|length| "a".repeat(length)).collect();
    let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
    let bytes = |name: &str, key: Option<Key<'_>>| {
        let mut keys = vec![
            ("ggml.model", Key::Text("gpt2")),
            ("ggml.pre", Key::Text("gpt-2")),
            ("ggml.tokens", Key::Texts(vec!["a", "b", "ab"])),
            ("ggml.merges", Key::Texts(vec!["a b"])),
        ];
        keys.retain(|(known, _)| *known != name);
        keys.extend(key.map(|key| (name, key)));
        read(&gguf(dir.path(), 3, &keys)).map_err(|error| error.to_string())
    };
    assert!(bytes("ggml.bos_token_id", Some(Key::Count(1))).is_ok());
    let refused = |name: &str, key: Option<Key<'_>>, said: &str| {
        let error = bytes(name, key).unwrap_err();
        assert!(error.contains(said) && error.contains("x.gguf"), "{said}: {error}");
    };
    refused("ggml.model", Some(Key::Text("rwkv")), "\"rwkv\": \"gpt2\" (BPE)");
    refused("ggml.model", Some(Key::Count(1)), "tokenizer.ggml.model is 1");
    refused("ggml.pre", None, "no tokenizer.ggml.pre");
    refused("ggml.pre", Some(Key::Text("gpt-9")), "\"gpt-9\"");
    refused("ggml.tokens", None, "tokenizer.ggml.tokens is missing");
    refused("ggml.tokens", Some(Key::Texts(vec!["a", "b", "a"])), "\"a\" twice");
    refused("ggml.tokens", Some(Key::Texts(vec!["a", "b", &long])), "token 2 has 5000 bytes");
    refused("ggml.token_type", Some(Key::Integers(vec![1, 1])), "as many numbers");
    refused("ggml.token_type", Some(Key::Integers(vec![1, 9, 1])), "token_type[1] is 9");
    refused("ggml.token_type", Some(Key::Text("a")), "as many numbers");
    refused("ggml.merges", None, "tokenizer.ggml.merges is missing");
    refused("ggml.merges", Some(Key::Texts(vec!["ab"])), "has \"ab\"");
    refused("ggml.add_bos_token", Some(Key::Count(1)), "no truth value");
    refused("ggml.add_bos_token", Some(Key::Flag(true)), "no bos_token_id");
    refused("ggml.bos_token_id", Some(Key::Count(3)), "bos_token_id");
    let pieces = |tokens: &[&str], scores: Option<Vec<f32>>| {
        let mut keys =
            vec![("ggml.model", Key::Text("llama")), ("ggml.tokens", Key::Texts(tokens.to_vec()))];
        keys.extend(scores.map(|scores| ("ggml.scores", Key::Floats(scores))));
        read(&gguf(dir.path(), tokens.len(), &keys)).map_err(|error| error.to_string())
    };
    let refused = |tokens: &[&str], scores, said: &str| {
        let error = pieces(tokens, scores).unwrap_err();
        assert!(error.contains(said) && error.contains("x.gguf"), "{said}: {error}");
    };
    refused(&["a", "b", "ab"], None, "tokenizer.ggml.scores");
    refused(&["a", "b", "ab"], Some(vec![0.0; 2]), "tokenizer.ggml.scores");
    refused(&["a", "b", "ab"], Some(vec![0.0, 0.0, f32::NAN]), "scores[2] of \"ab\" is NaN");
    refused(&chain, Some(vec![0.0; chain.len()]), "make each other in more than");
}

/// A tokenizer of words of bytes.
fn bytes() -> Json {
    let golden = fixture("fixtures/gguf/tokenizers.json");
    let tokens = texts(&golden["tokens"]).into_iter().zip(0..);
    let vocab: serde_json::Map<String, Json> =
        tokens.map(|(token, id)| (token.to_owned(), json!(id))).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "ignore_merges": false, "vocab": vocab, "merges": golden["merges"] },
    })
}

#[test]
fn what_keys_cannot_say_is_refused_by_name() {
    let refused = |mut file: Json, at: &str, value: Json, said: &str| {
        *file.pointer_mut(at).unwrap() = value;
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), &file, 600, None).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("tokenizer.json"), "{said}: {error}");
    };
    let added =
        |id: usize, content: &str| json!([{ "id": id, "content": content, "special": true }]);
    let (words, pieces) = (bytes(), fixture("models/stories260k/tokenizer.json"));
    let words = |at: &str, value: Json, said: &str| refused(words.clone(), at, value, said);
    words("/model/type", json!("Unigram"), "\"Unigram\", and BPE alone");
    words("/model/vocab", json!([["a", 0.0]]), "no vocabulary");
    words("/model/vocab/a", json!(600), "the embedding has 600 rows");
    words("/model/vocab/a", json!(-1), "the id of \"a\"");
    words("/model/vocab/a", json!(0), "both have id 0");
    words("/added_tokens", added(1, "x"), "both have id 1");
    words("/added_tokens", added(599, "a"), "\"a\" has two ids");
    words("/model/merges", json!(["ab"]), "model.merges[0]");
    words("/model/merges", json!([["a", " "]]), "blank");
    words("/normalizer", json!({ "type": "Lowercase" }), "Lowercase");
    words("/pre_tokenizer", json!({ "type": "Whitespace" }), "Whitespace");
    words("/pre_tokenizer/add_prefix_space", json!(true), "add_prefix_space");
    words("/post_processor", json!({ "type": "Other" }), "post_processor");
    // A whole word that merges do not make, and no name of these cuts looks words up.
    let mut file = bytes();
    file["model"]["vocab"]["zq"] = json!(599);
    refused(file.clone(), "/model/ignore_merges", json!(true), "\"zq\" is taken whole");
    // The keys say no more than that a token is not for unknown text.
    file["model"]["unk_token"] = json!("zq");
    file["model"]["vocab"].as_object_mut().unwrap().remove("%");
    refused(file, "/version", json!("1.0"), "no token '%'");
    let pieces = |at: &str, value: Json, said: &str| refused(pieces.clone(), at, value, said);
    pieces("/model/byte_fallback", json!(false), "byte_fallback");
    pieces("/model/merges/0", json!(["a", "b"]), "makes no token");
    pieces("/pre_tokenizer", json!({ "type": "Digits" }), "Digits");
    let merges = fixture("models/stories260k/tokenizer.json")["model"]["merges"].clone();
    let mut fewer = merges.as_array().unwrap().clone();
    fewer.pop();
    pieces("/model/merges", json!(fewer), "llama.cpp would merge them all");
}

/// A table has more rows than there are tokens: each has a name, and none is read back.
#[test]
fn rows_without_a_token_are_filled() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = bytes();
    let last = file["model"]["vocab"].as_object().unwrap().len() - 1;
    // And an id in between has none.
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let gap = vocab.iter().find(|(_, id)| **id == json!(last - 1)).unwrap().0.clone();
    vocab.remove(&gap);
    file["model"]["merges"].as_array_mut().unwrap().truncate(10);
    let path = write(dir.path(), &file, last + 4, None).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let filled = |id: usize| has(&format!("[PAD{id}]"));
    assert!(filled(last - 1) && filled(last + 1) && filled(last + 3));
    assert!(!filled(last) && !filled(last + 4));
    assert_eq!(read(&path).unwrap()["model"]["vocab"], file["model"]["vocab"]);
}

#[test]
fn no_damage_makes_a_tokenizer_panic() {
    let dir = tempfile::tempdir().unwrap();
    let shared = |model: &'static str| {
        vec![
            ("ggml.model", Key::Text(model)),
            (
                "ggml.tokens",
                Key::Texts(vec!["<unk>", "<0x0A>", "a", "b", "ab", "\u{2581}", "\u{2581}ab"]),
            ),
            ("ggml.token_type", Key::Integers(vec![2, 6, 1, 1, 1, 1, 4])),
            ("ggml.bos_token_id", Key::Count(2)),
            ("ggml.add_bos_token", Key::Flag(true)),
        ]
    };
    let mut words = shared("gpt2");
    words.push(("ggml.pre", Key::Text("falcon")));
    words.push(("ggml.merges", Key::Texts(vec!["a b", "\u{2581} ab"])));
    let mut pieces = shared("llama");
    pieces.push(("ggml.scores", Key::Floats(vec![0.0, 0.0, -3.0, -4.0, -1.0, -5.0, -2.0])));
    for keys in [words, pieces] {
        let path = gguf(dir.path(), 7, &keys);
        let whole = std::fs::read(&path).unwrap();
        assert!(read(&path).is_ok());
        let from = whole.windows(10).position(|window| window == b"tokenizer.").unwrap();
        for place in from..whole.len() - 56 {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            std::fs::write(&path, bytes).unwrap();
            // What is still a tokenizer is loaded, too.
            if let Ok(file) = read(&path) {
                let _ = Tokenizer::from_bytes(file.to_string().as_bytes());
            }
        }
    }
}
