//! Tokens that a checkpoint declares beside its tokenizer.json, added as transformers 5.23 adds them.
//!
//! What tokenizer_config.json lists under `added_tokens_decoder` comes first, by id; without that
//! list, special_tokens_map.json and added_tokens.json are read. Then come the named tokens
//! (`bos_token` and its kin), then the extra ones. The library numbers what is new, after the last
//! token there is, whatever id is declared. `add_bos_token` is not read: where a tokenizer.json
//! exists its post-processor says what is put before a text.

use crate::check;
use crate::error::{Error, message};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tokenizers::AddedToken;

const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The files of a checkpoint that declare tokens, as far as it has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenFiles<'a> {
    /// tokenizer_config.json.
    pub tokenizer_config: Option<&'a [u8]>,
    /// special_tokens_map.json.
    pub special_tokens_map: Option<&'a [u8]>,
    /// added_tokens.json.
    pub added_tokens: Option<&'a [u8]>,
}

/// A file that holds a JSON object; none at all is an empty one.
pub(crate) fn object(
    file: &'static str,
    bytes: Option<&[u8]>,
) -> Result<Map<String, Value>, Error> {
    let Some(bytes) = bytes else { return Ok(Map::new()) };
    let broken = |rule: String| Error::TemplateFile { file, rule };
    if bytes.len() > check::MAX_FILE {
        let (found, most) = (bytes.len(), check::MAX_FILE);
        return Err(broken(format!("has {found} bytes; at most {most} are read")));
    }
    serde_json::from_slice(bytes).map_err(|e| broken(format!("is no object: {}", message(&e))))
}

/// The settings that count: without `added_tokens_decoder`, special_tokens_map.json goes before.
pub(crate) fn settings(config: Map<String, Value>, map: Map<String, Value>) -> Map<String, Value> {
    let mut settings = config;
    if !settings.contains_key("added_tokens_decoder") {
        settings.extend(map);
    }
    settings
}

/// What the files declare and `existing`, the tokens of tokenizer.json, lacks: in order.
pub(crate) fn declared(
    files: &TokenFiles<'_>,
    existing: &[AddedToken],
) -> Result<Vec<AddedToken>, Error> {
    let config = object("tokenizer_config.json", files.tokenizer_config)?;
    let map = object("special_tokens_map.json", files.special_tokens_map)?;
    let legacy = !config.contains_key("added_tokens_decoder");
    let settings = settings(config, map);
    let named = named(&settings)?;
    let extra = extra(&settings)?;
    let mut listed: BTreeMap<u64, AddedToken> = BTreeMap::new();
    for (id, value) in
        settings.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten()
    {
        let id = id.parse().map_err(|_| wrong("an id of added_tokens_decoder is no number"))?;
        listed.insert(id, token(value, false)?);
    }
    if legacy {
        let special = |content: &str| named.iter().chain(&extra).any(|t| t.content == content);
        for (content, id) in object("added_tokens.json", files.added_tokens)? {
            let id = id.as_u64().ok_or_else(|| Error::TemplateFile {
                file: "added_tokens.json",
                rule: "an id is not a whole number".into(),
            })?;
            listed.insert(id, AddedToken::from(&*content, special(&content)));
        }
    }
    let mut wanted: Vec<AddedToken> = Vec::new();
    wanted.extend(listed.into_values().filter(|token| !existing.contains(token)));
    for token in named.iter().chain(&extra) {
        let known = |all: &[AddedToken]| all.iter().any(|t| t.content == token.content);
        if !known(existing) && !known(&wanted) {
            wanted.push(token.clone());
        }
    }
    for token in &mut wanted {
        token.special |= named.iter().any(|named| named.content == token.content);
        check::added_token(&token.content)?;
    }
    check::added_count(existing.len() + wanted.len())?;
    Ok(wanted)
}

/// The tokens that have a name: the usual ones, then those of the model.
fn named(settings: &Map<String, Value>) -> Result<Vec<AddedToken>, Error> {
    let usual = NAMED.iter().filter_map(|name| settings.get(*name));
    let own = settings.iter().filter(|(name, _)| {
        name.ends_with("_token") && !name.starts_with("add_") && !NAMED.contains(&name.as_str())
    });
    let extra = settings.get("extra_special_tokens").and_then(Value::as_object);
    let own = own.map(|(_, value)| value).chain(extra.into_iter().flat_map(Map::values));
    let all = usual.chain(own).filter(|v| v.is_string() || v.is_object());
    all.map(|value| token(value, true)).collect()
}

/// The special tokens without a name.
fn extra(settings: &Map<String, Value>) -> Result<Vec<AddedToken>, Error> {
    let filled = |value: &&Value| match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => false,
    };
    let list = settings.get("extra_special_tokens").filter(filled);
    let list = list.or_else(|| settings.get("additional_special_tokens"));
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.map(|value| token(value, true)).collect()
}

/// A token as it is declared: its spelling, or an object with its flags.
fn token(value: &Value, special: bool) -> Result<AddedToken, Error> {
    let content = value.as_str().or_else(|| value["content"].as_str());
    let content = content.ok_or_else(|| wrong("a declared token has no content"))?;
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special)))
}

fn wrong(rule: &str) -> Error {
    Error::TemplateFile { file: "tokenizer_config.json", rule: rule.into() }
}
