//! A tokenizer, as tokenizer.json and as keys of a GGUF file.
//!
//! The ids of a text are the same both ways and in llama.cpp, but for what its keys have no words for: it
//! normalizes nothing, puts a blank before every piece of text or before none, and finds added tokens as they
//! are spelled (`lstrip`, `rstrip`, `single_word`). The first two are keys of our own ([`NORMALIZER`],
//! [`SCHEME`]), so that here a file has the ids of the model that it was made of. What would change common
//! texts is refused.

mod bpe;
mod marks;
mod splits;
mod spm;
mod vocabulary;

use super::header::{Header, Value};
use super::special;
use marks::Marks;
use serde_json::{Value as Json, json};
use spm::Prefix;
use vocabulary::{Kind, Token};

/// How text is normalized, "NFC" or "none", where the name of the pre-tokenizer says otherwise.
const NORMALIZER: &str = "whittle.tokenizer.normalizer";
/// Which pieces of text are given a blank, "first" or "always": a `Metaspace` gives none to one that has one.
const SCHEME: &str = "whittle.tokenizer.prepend_scheme";

/// What the keys of a file say of a tokenizer.json, of a model whose embedding has `rows` rows.
///
/// # Errors
/// If it is of a kind that llama.cpp's keys have no words for here.
pub(crate) fn keys(bytes: &[u8], rows: usize) -> Result<Vec<(String, Value)>, String> {
    let file: Json = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let core = file.get("model").unwrap_or(&Json::Null);
    // The oldest files do not say it.
    if !matches!(core.get("type").and_then(Json::as_str), Some("BPE") | None) {
        return Err(format!("its model is {}, and BPE alone is written", core["type"]));
    }
    for (name, plain) in [
        ("dropout", json!(0.0)),
        ("continuing_subword_prefix", json!("")),
        ("end_of_word_suffix", json!("")),
    ] {
        let said = core.get(name).filter(|said| !said.is_null());
        if let Some(said) = said.filter(|said| **said != plain) {
            return Err(format!("its model has the {name} {said}, which llama.cpp has not"));
        }
    }
    let mut tokens = vocabulary::of_file(&file, rows)?;
    let merges = bpe::merges(core)?;
    let marks = Marks::of(file.get("post_processor").unwrap_or(&Json::Null))?;
    let text = |text: &str| Value::Text(text.to_owned());
    let mut keys = Vec::new();
    if let Some(prefix) = spm::space_prefix(&file, &tokens)? {
        spm::name_kinds(core, &mut tokens)?;
        let scores = spm::scores(&tokens, &merges)?;
        keys.push(("tokenizer.ggml.model".to_owned(), text("llama")));
        keys.push(("tokenizer.ggml.pre".to_owned(), text("default")));
        keys.push(("tokenizer.ggml.scores".to_owned(), Value::Floats(scores)));
        keys.push((
            "tokenizer.ggml.add_space_prefix".to_owned(),
            Value::Bool(prefix != Prefix::None),
        ));
        keys.extend(prefix.scheme().map(|scheme| (SCHEME.to_owned(), text(scheme))));
    } else {
        let (pre, normalizer) = bpe::pre(&file, &tokens, &merges)?;
        keys.extend(normalizer.map(|said| (NORMALIZER.to_owned(), text(said))));
        keys.push(("tokenizer.ggml.model".to_owned(), text("gpt2")));
        keys.push(("tokenizer.ggml.pre".to_owned(), Value::Text(pre)));
        keys.push(("tokenizer.ggml.merges".to_owned(), Value::Texts(bpe::merges_key(&merges)?)));
        keys.push(("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(false)));
    }
    // Always said: where it is not, llama.cpp guesses by the name of the pre-tokenizer. And what it puts
    // first is the token that it calls the first.
    for (flag, id, mark) in [
        ("add_bos_token", "bos_token_id", marks.before),
        ("add_eos_token", "eos_token_id", marks.after),
    ] {
        keys.push((format!("tokenizer.ggml.{flag}"), Value::Bool(mark.is_some())));
        keys.extend(mark.map(|mark| (format!("tokenizer.ggml.{id}"), Value::Integer(mark as i64))));
    }
    let unknown = core.get("unk_token").and_then(Json::as_str);
    if let Some(id) = tokens.iter().position(|token| Some(token.text.as_str()) == unknown) {
        keys.push(("tokenizer.ggml.unknown_token_id".to_owned(), Value::Integer(id as i64)));
    }
    keys.extend(vocabulary::keys(tokens));
    Ok(keys)
}

/// The tokenizer.json that says what the keys of a file say; `None` if there is no tokenizer in it.
///
/// # Errors
/// If it is of a kind that is not read.
pub(crate) fn tokenizer(header: &Header) -> Result<Option<Vec<u8>>, String> {
    let get = |key: &str| header.keys.get(&format!("tokenizer.ggml.{key}"));
    match get("model") {
        None => Ok(None),
        Some(Value::Text(none)) if none == "no_vocab" || none == "none" => Ok(None),
        Some(Value::Text(model)) if model == "gpt2" => bytes_of_words(header).map(Some),
        Some(Value::Text(model)) if model == "llama" => sentence_pieces(header).map(Some),
        Some(model) => Err(format!(
            "tokenizer.ggml.model is {}: \"gpt2\" (BPE) and \"llama\" (SentencePiece) are read",
            model.shown()
        )),
    }
}

/// The tokenizer.json of the model "gpt2".
fn bytes_of_words(header: &Header) -> Result<Vec<u8>, String> {
    let get = |key: &str| header.keys.get(&format!("tokenizer.ggml.{key}"));
    let Some(Value::Text(pre)) = get("pre") else {
        return Err(
            "has no tokenizer.ggml.pre, which says how text is cut: it was made before llama.cpp \
                    wrote it, convert the model again"
                .into(),
        );
    };
    let form = splits::form(pre)?;
    let form =
        form.ok_or_else(|| format!("tokenizer.ggml.pre is {pre:?}, which is not known here"))?;
    let Some(Value::Texts(merges)) = get("merges") else {
        return Err("tokenizer.ggml.merges is missing, or no list of texts".into());
    };
    let tokens = vocabulary::of_keys(&get)?;
    let nfc = match header.keys.get(NORMALIZER) {
        None => form.nfc,
        Some(Value::Text(said)) if said == bpe::NFC => true,
        Some(Value::Text(said)) if said == bpe::NONE => false,
        Some(other) => return Err(format!("{NORMALIZER} is {}", other.shown())),
    };
    let normalizer = if nfc { json!({ "type": bpe::NFC }) } else { Json::Null };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": form.ignore_merges, "vocab": vocabulary::vocab_json(&tokens),
        "merges": bpe::merges_json(merges)?,
    });
    let marks = marks_of(header, form.add_bos, [None; 2])?;
    Ok(file(&tokens, marks, [normalizer, form.pre_tokenizer, bytes, model]))
}

/// The tokenizer.json of the model "llama".
fn sentence_pieces(header: &Header) -> Result<Vec<u8>, String> {
    let get = |key: &str| header.keys.get(&format!("tokenizer.ggml.{key}"));
    let tokens = vocabulary::of_keys(&get)?;
    let integers: Vec<f64>;
    let scores: &[f64] = match get("scores") {
        Some(Value::Floats(scores)) if scores.len() == tokens.len() => scores,
        Some(Value::Integers(scores)) if scores.len() == tokens.len() => {
            integers = scores.iter().map(|&score| score as f64).collect();
            &integers
        }
        _ => {
            return Err(
                "tokenizer.ggml.scores is no list of as many numbers as there are tokens".into()
            );
        }
    };
    let unknown = special::id(header, "unknown")?.and_then(|id| tokens.get(id));
    let is_unknown = |token: &&Token| token.kind == Kind::Unknown;
    let unknown = unknown.or_else(|| tokens.iter().find(is_unknown)).map(|token| &token.text);
    let prefix = match (header.keys.get(SCHEME), flag(header, "add_space_prefix", true)?) {
        (None, true) => Prefix::Every,
        (None, false) => Prefix::None,
        (Some(said), _) => match said {
            Value::Text(said) => Prefix::of_scheme(said),
            _ => None,
        }
        .ok_or_else(|| format!("{SCHEME} is {}", said.shown()))?,
    };
    let [normalizer, cut, decoder] = spm::around(prefix);
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary::vocab_json(&tokens), "merges": spm::merges_json(&tokens, scores)?,
    });
    // What llama.cpp takes where no key says it.
    let marks = marks_of(header, true, [Some(1), Some(2)])?;
    Ok(file(&tokens, marks, [normalizer, cut, decoder, model]))
}

/// What is put around a text; `ids` are those of its begin and end where no key says them.
fn marks_of(header: &Header, before: bool, ids: [Option<u64>; 2]) -> Result<Marks, String> {
    let [begin, end] = ids;
    let mark = |name: &str, put: bool, id: Option<u64>| {
        if !flag(header, &format!("add_{name}_token"), put)? {
            return Ok(None);
        }
        let id = special::id(header, name)?.map(|id| id as u64).or(id);
        id.map(Some).ok_or_else(|| {
            format!(
                "add_{name}_token puts a token around each text, and no {name}_token_id says which"
            )
        })
    };
    Ok(Marks { before: mark("bos", before, begin)?, after: mark("eos", false, end)? })
}

/// A truth value of a key, or what holds without it.
fn flag(header: &Header, name: &str, absent: bool) -> Result<bool, String> {
    match header.keys.get(&format!("tokenizer.ggml.{name}")) {
        None => Ok(absent),
        Some(&Value::Bool(flag)) => Ok(flag),
        Some(other) => Err(format!("tokenizer.ggml.{name} is {}, no truth value", other.shown())),
    }
}

/// A tokenizer.json of its parts.
fn file(tokens: &[Token], marks: Marks, parts: [Json; 4]) -> Vec<u8> {
    let text = |id: u64| tokens.get(id as usize).map_or(String::new(), |token| token.text.clone());
    let [normalizer, pre_tokenizer, decoder, model] = parts;
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary::added_json(tokens), "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": marks.post_processor(&text),
        "decoder": decoder, "model": model,
    });
    file.to_string().into_bytes()
}
