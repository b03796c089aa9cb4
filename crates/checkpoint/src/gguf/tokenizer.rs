//! The tokenizer of a GGUF file, as a tokenizer.json.

use super::header::{Header, Value};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// What the kinds of tokens are numbered: those that text cannot spell, and those that users added.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Splits of text before merges, by llama.cpp's names of them: `src/llama-vocab.cpp`.
fn splits(pre: &str) -> Option<Json> {
    let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let regex = match pre {
        "gpt-2" => return Some(bytes(true)),
        "llama-bpe" => {
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        }
        "qwen2" => {
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        }
        _ => return None,
    };
    let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    Some(json!({ "type": "Sequence", "pretokenizers": [split, bytes(false)] }))
}

/// What the keys of a file say of a tokenizer.json.
///
/// # Errors
/// If it is of a kind that llama.cpp's keys have no words for here.
pub(crate) fn keys(tokenizer: &[u8]) -> Result<Vec<(&'static str, Value)>, String> {
    let said: Json = serde_json::from_slice(tokenizer).map_err(|e| e.to_string())?;
    let pre = ["gpt-2", "llama-bpe", "qwen2"]
        .into_iter()
        .find(|name| splits(name).is_some_and(|split| said.get("pre_tokenizer") == Some(&split)));
    let pre = pre.ok_or("its pre_tokenizer has no name in llama.cpp that is known here")?;
    let model = said.get("model").filter(|m| m.get("type") == Some(&json!("BPE")));
    let model = model.ok_or("its model is not BPE")?;
    let vocab = model.get("vocab").and_then(Json::as_object).ok_or("it has no vocabulary")?;
    let added = said.get("added_tokens").and_then(Json::as_array);
    let added = added.into_iter().flatten();
    let mut tokens: BTreeMap<u64, (String, i64)> = BTreeMap::new();
    for (token, id) in vocab {
        tokens.insert(id.as_u64().ok_or("an id is no count")?, (token.clone(), 1));
    }
    for token in added {
        let id = token.get("id").and_then(Json::as_u64).ok_or("an added token has no id")?;
        let content = token.get("content").and_then(Json::as_str).unwrap_or_default();
        let special = token.get("special") == Some(&json!(true));
        tokens.insert(id, (content.into(), if special { CONTROL } else { USER_DEFINED }));
    }
    if tokens.keys().copied().ne(0..tokens.len() as u64) {
        return Err("its ids are not 0, 1, 2 and so on".into());
    }
    let merge = |merge: &Json| match merge {
        Json::String(merge) => Some(merge.clone()),
        Json::Array(two) => Some(two.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(" ")),
        _ => None,
    };
    let merges = model.get("merges").and_then(Json::as_array).into_iter().flatten();
    let (tokens, kinds) = tokens.into_values().unzip();
    Ok(vec![
        ("tokenizer.ggml.model", Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Value::Text(pre.into())),
        ("tokenizer.ggml.tokens", Value::Texts(tokens)),
        ("tokenizer.ggml.token_type", Value::Integers(kinds)),
        ("tokenizer.ggml.merges", Value::Texts(merges.filter_map(merge).collect())),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ])
}

/// The tokenizer.json that says what the keys of a file say; `None` if there is no tokenizer in it.
///
/// # Errors
/// If it is of a kind that is not read.
pub(crate) fn tokenizer(header: &Header) -> Result<Option<Vec<u8>>, String> {
    let get = |key: &str| header.keys.get(&format!("tokenizer.ggml.{key}"));
    let Some(model) = get("model") else { return Ok(None) };
    if let Value::Text(kind) = model
        && matches!(kind.as_str(), "no_vocab" | "none")
    {
        return Ok(None);
    }
    if *model != Value::Text("gpt2".into()) {
        return Err(format!("tokenizer.ggml.model is {model:?}: \"gpt2\" (BPE) is read"));
    }
    let split = match get("pre") {
        Some(Value::Text(pre)) => splits(pre),
        _ => None,
    };
    let split = split.ok_or_else(|| {
        format!(
            "tokenizer.ggml.pre is {:?}: \"gpt-2\", \"llama-bpe\" and \"qwen2\" are read",
            get("pre")
        )
    })?;
    let (Some(Value::Texts(tokens)), Some(Value::Texts(merges))) = (get("tokens"), get("merges"))
    else {
        return Err("tokenizer.ggml.tokens or .merges is missing, or no list of texts".into());
    };
    let kinds = match get("token_type") {
        Some(Value::Integers(kinds)) if kinds.len() == tokens.len() => kinds.as_slice(),
        None => &[],
        _ => {
            return Err(
                "tokenizer.ggml.token_type is no list of as many as there are tokens".into()
            );
        }
    };
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = kinds.get(id).copied().unwrap_or(1);
        if matches!(kind, CONTROL | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            }));
        }
        if vocab.insert(token.clone(), json!(id)).is_some() {
            return Err(format!("tokenizer.ggml.tokens has {token:?} twice"));
        }
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added, "normalizer": null, "pre_tokenizer": split, "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": get("pre") == Some(&Value::Text("llama-bpe".into())),
            "vocab": vocab, "merges": merges,
        },
    });
    Ok(Some(tokenizer.to_string().into_bytes()))
}
