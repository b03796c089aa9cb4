//! Rules that a tokenizer.json must keep before the tokenizer library sees it.
//!
//! The library trusts its files: a template that names an absent token, a merge that is longer
//! than every token or a chunk length of zero panics, deeply nested pieces overflow the stack
//! (which cannot be caught), and a chain of replacements can multiply the text without end.
//! These are found here, on the parsed JSON, and refused by name.

use crate::error::{Error, quoted};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Real files have up to 34 MB (262,144 tokens and as many merges, indented).
pub(crate) const MAX_FILE: usize = 64 << 20;
const MAX_ID: u64 = 1 << 24;
/// The highest id may exceed the number of tokens this many times: room for padded vocabularies.
const MAX_SPARSITY: u64 = 16;
const MAX_ADDED: usize = 1 << 16;
/// Bytes of one token. The library builds a trie as deep as the longest and frees it recursively.
const MAX_TOKEN: usize = 4096;
const MAX_PATTERN: usize = 4096;
/// Normalizers, pre-tokenizers, decoders or post-processors, nested ones included.
const MAX_PARTS: usize = 64;
/// How often a chain of normalizers may multiply the length of a text.
const MAX_GROWTH: usize = 64;
/// The same with precompiled maps: SentencePiece's for NFKC writes up to 33 bytes for a character.
const MAX_MAPPED: usize = 256;
const MAX_SPECIAL: usize = 64;

type Checked = Result<(), Error>;

/// Checks the whole file.
pub(crate) fn check(file: &Value) -> Checked {
    let root = object(file, "the top level")?;
    let model = object(root.get("model").unwrap_or(&Value::Null), "model")?;
    let ids = vocabulary(model)?;
    let added = added_tokens(root.get("added_tokens"))?;
    let count = (ids.count + added.count) as u64;
    if let Some(highest) = ids.highest.max(added.highest) {
        id_bound(highest, count)?;
    }
    merges(model)?;
    random_or_slow(model)?;
    normalizers(root.get("normalizer"))?;
    pre_tokenizers(root.get("pre_tokenizer"))?;
    parts(root.get("decoder"), "decoder", "decoders")?;
    let highest = ids.highest.max(added.highest).unwrap_or(0);
    post_processors(root.get("post_processor"), highest)
}

/// The bytes that a byte-level vocabulary without an unknown token cannot spell.
///
/// The library drops them from the text without a word. Empty for every other kind.
pub(crate) fn missing_bytes(file: &Value) -> Vec<u8> {
    let model = &file["model"];
    let (Some(vocab), Some(merges)) = (model["vocab"].as_object(), model.get("merges")) else {
        return Vec::new();
    };
    let byte_level = ["normalizer", "pre_tokenizer"].iter().any(|key| {
        let mut found = Vec::new();
        let list = if *key == "normalizer" { "normalizers" } else { "pretokenizers" };
        collect(&file[*key], list, &mut found);
        found.iter().any(|part| part["type"] == "ByteLevel")
    });
    if !byte_level || !merges.is_array() || !model["unk_token"].is_null() {
        return Vec::new();
    }
    // 0xC0, 0xC1 and 0xF5 up never occur in UTF-8.
    let possible = (0..=0xF4u8).filter(|b| !matches!(b, 0xC0 | 0xC1));
    possible
        .filter(|&b| !vocab.contains_key(byte_char(b).encode_utf8(&mut [0; 4]) as &str))
        .collect()
}

/// Whether a regular expression splits the text: a pattern in the file or GPT-2's built-in one.
pub(crate) fn splits_by_pattern(file: &Value) -> bool {
    let mut found = Vec::new();
    collect(&file["pre_tokenizer"], "pretokenizers", &mut found);
    found.iter().any(|part| {
        let built_in = part["type"] == "ByteLevel" && part["use_regex"] != false;
        built_in || part["pattern"]["Regex"].is_string()
    })
}

/// The printable character that byte-level tokenizers write for a byte (GPT-2's table).
fn byte_char(byte: u8) -> char {
    let itself = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if itself(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !itself(b)).count() as u32;
    char::from_u32(256 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

struct Ids {
    count: usize,
    highest: Option<u64>,
}

fn vocabulary(model: &Map<String, Value>) -> Result<Ids, Error> {
    match model.get("vocab") {
        Some(Value::Object(map)) => keyed_vocabulary(map),
        Some(Value::Array(pieces)) => {
            for (i, piece) in pieces.iter().enumerate() {
                let key = || format!("model.vocab[{i}]");
                let text = piece.get(0).and_then(Value::as_str);
                let text =
                    text.ok_or_else(|| Error::rule(key(), "is not a [token, score] pair"))?;
                token_length(text, &key)?;
            }
            Ok(Ids { count: pieces.len(), highest: (pieces.len() as u64).checked_sub(1) })
        }
        _ => Err(Error::rule("model.vocab", "is not an object of ids or a list of pieces")),
    }
}

fn keyed_vocabulary(map: &Map<String, Value>) -> Result<Ids, Error> {
    let mut seen = HashSet::with_capacity(map.len());
    let mut highest = None;
    for (token, id) in map {
        let key = || format!("model.vocab.{}", quoted(token));
        let id = id.as_u64().ok_or_else(|| Error::rule(key(), "the id is not a whole number"))?;
        token_length(token, &key)?;
        if !seen.insert(id) {
            return Err(Error::rule(key(), format!("id {id} belongs to another token too")));
        }
        highest = highest.max(Some(id));
    }
    Ok(Ids { count: map.len(), highest })
}

fn token_length(token: &str, key: &dyn Fn() -> String) -> Checked {
    if token.len() > MAX_TOKEN {
        let rule = format!("the token has {} bytes; at most {MAX_TOKEN} are allowed", token.len());
        return Err(Error::rule(key(), rule));
    }
    Ok(())
}

fn id_bound(highest: u64, count: u64) -> Checked {
    let bound = MAX_ID.min(count.saturating_mul(MAX_SPARSITY));
    if highest >= bound {
        let rule = format!("id {highest} is out of bounds: {count} tokens allow ids below {bound}");
        return Err(Error::rule("model.vocab and added_tokens", rule));
    }
    Ok(())
}

fn added_tokens(value: Option<&Value>) -> Result<Ids, Error> {
    let mut ids = Ids { count: 0, highest: None };
    for (i, token) in list(value, "added_tokens", MAX_ADDED)?.iter().enumerate() {
        let key = || format!("added_tokens[{i}]");
        let content = token["content"].as_str();
        let content = content.ok_or_else(|| Error::rule(key(), "content is not a string"))?;
        if content.is_empty() {
            return Err(Error::rule(key(), "content is empty"));
        }
        token_length(content, &key)?;
        let id = token["id"].as_u64();
        let id = id.ok_or_else(|| Error::rule(key(), "id is not a whole number"))?;
        ids.highest = ids.highest.max(Some(id));
        ids.count += 1;
    }
    Ok(ids)
}

/// Whether a token that another file adds is one that the library can take.
pub(crate) fn added_token(content: &str) -> Checked {
    token_length(content, &|| format!("added token {}", quoted(content)))
}

/// Whether so many added tokens are allowed.
pub(crate) fn added_count(count: usize) -> Checked {
    within("added_tokens", count, MAX_ADDED)
}

fn merges(model: &Map<String, Value>) -> Checked {
    let Some(merges) = model.get("merges") else { return Ok(()) };
    let vocab = object(model.get("vocab").unwrap_or(&Value::Null), "model.vocab")?;
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("");
    let mut joined = String::new();
    for (i, merge) in list(Some(merges), "model.merges", usize::MAX)?.iter().enumerate() {
        let bad = |rule: String| Error::rule(format!("model.merges[{i}]"), rule);
        let (left, right) = match merge {
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' ').filter(|(_, b)| !b.contains(' ')),
            Value::Array(pair) if pair.len() == 2 => pair[0].as_str().zip(pair[1].as_str()),
            _ => None,
        }
        .ok_or_else(|| bad("is not a pair of tokens".into()))?;
        // The library cuts the prefix off by length, wherever that falls.
        let rest = right.strip_prefix(prefix).ok_or_else(|| {
            let rule = format!("{} does not begin with the subword prefix", quoted(right));
            bad(format!("{rule} {}", quoted(prefix)))
        })?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(rest);
        for token in [left, right, &joined] {
            if !vocab.contains_key(token) {
                return Err(bad(format!("{} is not in the vocabulary", quoted(token))));
            }
        }
    }
    Ok(())
}

/// Settings of the model that would make the result random or the time unbounded.
fn random_or_slow(model: &Map<String, Value>) -> Checked {
    let dropout = model.get("dropout").and_then(Value::as_f64).unwrap_or(0.0);
    if dropout != 0.0 {
        let rule = format!("{dropout} makes the encoding random; set it to null");
        return Err(Error::rule("model.dropout", rule));
    }
    let longest = model.get("max_input_chars_per_word").and_then(Value::as_u64).unwrap_or(0);
    if longest > MAX_TOKEN as u64 {
        let rule = format!("{longest} is more than {MAX_TOKEN}");
        return Err(Error::rule("model.max_input_chars_per_word", rule));
    }
    Ok(())
}

fn normalizers(value: Option<&Value>) -> Checked {
    let (mut growth, mut mapped) = (1usize, 1usize);
    for part in parts(value, "normalizer", "normalizers")? {
        // The library also takes a part without a type for the one whose keys it has.
        if let Some(map) = part.get("precompiled_charsmap") {
            mapped = mapped.saturating_mul(charsmap(map)?);
        }
        let added = |key: &str| part[key].as_str().map_or(0, str::len);
        match part["type"].as_str() {
            Some("Replace") => {
                // A regular expression may match nothing between every two bytes.
                let matched = part["pattern"]["String"].as_str().map_or(0, str::len);
                let factor = match matched {
                    0 => added("content").saturating_add(1),
                    n => added("content").div_ceil(n).max(1),
                };
                growth = growth.saturating_mul(factor);
            }
            Some("Prepend") => within("normalizer.prepend", added("prepend"), MAX_TOKEN)?,
            Some("ByteLevel") => growth = growth.saturating_mul(2),
            _ => {}
        }
    }
    if growth > MAX_GROWTH {
        let rule = format!("the replacements can make a text more than {MAX_GROWTH} times longer");
        return Err(Error::rule("normalizer", rule));
    }
    if growth.saturating_mul(mapped) > MAX_MAPPED {
        let rule = format!("the maps can make a text more than {MAX_MAPPED} times longer");
        return Err(Error::rule("normalizer", rule));
    }
    Ok(())
}

/// How often a precompiled character map may multiply a text.
///
/// It is base64 of: the bytes of a trie (4, little-endian), the trie, and the replacements, each
/// ended by a zero. The library allocates what the first four bytes say before it reads on.
fn charsmap(map: &Value) -> Result<usize, Error> {
    let bad = |rule: String| Error::rule("normalizer.precompiled_charsmap", rule);
    let text = map.as_str().ok_or_else(|| bad("is not a string".into()))?;
    let bytes = base64(text).ok_or_else(|| bad("is not base64".into()))?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| bad("has no trie".into()))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || size > rest.len() {
        let rule = format!("says that its trie has {size} bytes; {} follow", rest.len());
        return Err(bad(rule));
    }
    Ok(rest[size..].split(|b| *b == 0).map(<[u8]>::len).max().unwrap_or(0).max(1))
}

/// The bytes of standard base64 with padding; `None` if it is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [None; 256];
    SIGNS.iter().zip(0u32..).for_each(|(&sign, value)| values[usize::from(sign)] = Some(value));
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for sign in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | values[usize::from(sign)]?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

fn pre_tokenizers(value: Option<&Value>) -> Checked {
    for part in parts(value, "pre_tokenizer", "pretokenizers")? {
        if part["type"] == "FixedLength" && part["length"] == 0 {
            return Err(Error::rule("pre_tokenizer.length", "a chunk length of 0"));
        }
    }
    Ok(())
}

fn post_processors(value: Option<&Value>, highest: u64) -> Checked {
    let known = |id: &Value| match id.as_u64() {
        Some(id) if id <= highest => Ok(()),
        _ => Err(Error::rule("post_processor", format!("adds id {id}, which no token has"))),
    };
    for part in parts(value, "post_processor", "processors")? {
        match part["type"].as_str() {
            Some("TemplateProcessing") => {
                template(part)?;
                let tokens = part["special_tokens"].as_object().into_iter().flat_map(Map::values);
                tokens.flat_map(|t| t["ids"].as_array()).flatten().try_for_each(known)?;
            }
            Some("BertProcessing" | "RobertaProcessing") => {
                known(&part["cls"][1])?;
                known(&part["sep"][1])?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn template(part: &Value) -> Checked {
    let special = object(&part["special_tokens"], "post_processor.special_tokens")?;
    for (name, token) in special {
        let key = || format!("post_processor.special_tokens.{}", quoted(name));
        let length = |field: &str| token[field].as_array().map_or(0, Vec::len);
        if length("ids") != length("tokens") {
            return Err(Error::rule(key(), "ids and tokens differ in number"));
        }
        within(&key(), length("ids"), MAX_SPECIAL)?;
    }
    for (field, allowed) in [("single", &["A"][..]), ("pair", &["A", "B"][..])] {
        let key = format!("post_processor.{field}");
        let pieces = list(part.get(field), &key, MAX_SPECIAL)?;
        for piece in pieces {
            if let Some(id) = piece["SpecialToken"]["id"].as_str()
                && !special.contains_key(id)
            {
                let rule = format!("{} is not among special_tokens", quoted(id));
                return Err(Error::rule(key, rule));
            }
        }
        let mut texts: Vec<_> =
            pieces.iter().filter_map(|p| p["Sequence"]["id"].as_str()).collect();
        texts.sort_unstable();
        if texts != allowed {
            let rule = format!("the template must hold each text ({}) once", allowed.join(", "));
            return Err(Error::rule(key, rule));
        }
    }
    Ok(())
}

/// The parts of a pipeline, `Sequence`s opened; their number and their patterns are bounded.
fn parts<'v>(value: Option<&'v Value>, key: &str, nested: &str) -> Result<Vec<&'v Value>, Error> {
    let mut found = Vec::new();
    collect(value.unwrap_or(&Value::Null), nested, &mut found);
    within(key, found.len(), MAX_PARTS)?;
    for part in &found {
        for kind in ["Regex", "String"] {
            let pattern = part["pattern"][kind].as_str().unwrap_or("");
            within(&format!("{key}.pattern"), pattern.len(), MAX_PATTERN)?;
        }
    }
    Ok(found)
}

// Recursion is bounded: the JSON parser refuses more than 128 levels.
fn collect<'v>(value: &'v Value, nested: &str, found: &mut Vec<&'v Value>) {
    let inner = value[nested].as_array();
    inner.into_iter().flatten().for_each(|part| collect(part, nested, found));
    // A list beside another type does not make it a sequence.
    if !value.is_null() && (inner.is_none() || value["type"] != "Sequence") {
        found.push(value);
    }
}

fn within(key: &str, size: usize, limit: usize) -> Checked {
    if size > limit {
        return Err(Error::rule(key, format!("has a size of {size}; at most {limit} is allowed")));
    }
    Ok(())
}

fn object<'v>(value: &'v Value, key: &str) -> Result<&'v Map<String, Value>, Error> {
    value.as_object().ok_or_else(|| Error::rule(key, "is not an object"))
}

fn list<'v>(value: Option<&'v Value>, key: &str, limit: usize) -> Result<&'v [Value], Error> {
    let list: &[Value] = match value {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list,
        Some(_) => return Err(Error::rule(key, "is not a list")),
    };
    within(key, list.len(), limit)?;
    Ok(list)
}
