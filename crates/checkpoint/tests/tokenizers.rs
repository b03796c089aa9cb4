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
    assert_eq!(
        json!(said),
        json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" })
    );
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
