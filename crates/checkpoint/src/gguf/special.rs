//! What a GGUF file says of tokens and conversations beside its tokenizer: special tokens, chat templates
//! and how tokens are drawn.

use super::header::{Header, Value};
use crate::texts::Texts;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// Special tokens, as a `tokenizer_config.json` and as a file calls them.
const TOKENS: &[(&str, &str)] =
    &[("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")];
/// Other tokens at which llama.cpp ends an answer.
const ENDS: &[&str] = &["eot", "eom"];
/// Control tokens at which it does whatever the keys say, of the families that are read: they end a text
/// where the keys name one token only, as those of llama.cpp's converter do.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
];
/// How tokens are drawn, as a `generation_config.json` and as a file calls it.
const SAMPLING: &[(&str, &str)] = &[
    ("temperature", "temp"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("repetition_penalty", "penalty_repeat"),
];
const TEMPLATE: &str = "tokenizer.chat_template";
/// The files that are made of what the keys of a file say.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";
const JINJA: &str = "chat_template.jinja";
const FOLDER: &str = "additional_chat_templates/";
/// What llama.cpp calls control tokens.
const CONTROL: i64 = 3;

/// What the keys of a file must say of what lies beside weights, where `tokens` are the texts of all ids.
pub(crate) fn keys(
    texts: &Texts,
    config: &Map<String, Json>,
    tokens: &[String],
) -> Vec<(String, Value)> {
    let mut keys = Vec::new();
    let mut said = BTreeMap::new();
    for (ours, theirs) in TOKENS {
        let spelled = texts.token(&format!("{ours}_token"));
        let spelled = spelled.and_then(|text| tokens.iter().position(|token| token == text));
        let counted = || first(config.get(&format!("{ours}_token_id"))?, tokens.len());
        if let Some(id) = spelled.or_else(counted) {
            said.insert(*ours, id);
            keys.push((format!("tokenizer.ggml.{theirs}_token_id"), Value::Integer(id as i64)));
        }
    }
    let lists = [texts.generation.get("eos_token_id"), config.get("eos_token_id")];
    let mut others: Vec<usize> = Vec::new();
    for id in lists.into_iter().flatten().flat_map(|list| ids_of(list, tokens.len())) {
        if said.get("eos") != Some(&id) && !others.contains(&id) {
            others.push(id);
        }
    }
    // Where there is no other, the same again, which llama.cpp takes in any case: so that a reader knows that
    // these are all.
    if others.is_empty() {
        others.extend(said.get("eos"));
    }
    for (name, id) in ENDS.iter().zip(others) {
        keys.push((format!("tokenizer.ggml.{name}_token_id"), Value::Integer(id as i64)));
    }
    keys.extend(templates(texts));
    keys.extend(sampling(&texts.generation));
    keys
}

fn templates(texts: &Texts) -> Vec<(String, Value)> {
    let (mut keys, mut names) = (Vec::new(), Vec::new());
    for (name, template) in &texts.templates {
        let key = match name.as_str() {
            "default" => TEMPLATE.to_owned(),
            name => {
                names.push(name.to_owned());
                format!("{TEMPLATE}.{name}")
            }
        };
        keys.push((key, Value::Text(template.clone())));
    }
    if !names.is_empty() {
        keys.push((format!("{TEMPLATE}s"), Value::Texts(names)));
    }
    keys
}

/// What llama.cpp draws with where nothing else is asked for, if the model's files say to draw.
fn sampling(generation: &Map<String, Json>) -> Vec<(String, Value)> {
    if generation.get("do_sample") != Some(&json!(true)) {
        return Vec::new();
    }
    let said = SAMPLING.iter().filter_map(|(ours, theirs)| {
        let said = generation.get(*ours)?;
        let value = match *ours {
            "top_k" => Value::Integer(said.as_i64().filter(|n| (0..1 << 31).contains(n))?),
            _ => Value::Float(said.as_f64()?),
        };
        Some((format!("general.sampling.{theirs}"), value))
    });
    said.collect()
}

/// An id, or the first of a list.
fn first(said: &Json, count: usize) -> Option<usize> {
    ids_of(said, count).next()
}

/// An id or a list of them, of `count`.
fn ids_of(said: &Json, count: usize) -> impl Iterator<Item = usize> + '_ {
    let all = said.as_array().map_or(std::slice::from_ref(said), Vec::as_slice);
    let ids = all.iter().filter_map(Json::as_u64);
    ids.filter_map(|id| usize::try_from(id).ok()).filter(move |id| *id < count)
}

fn tokens(header: &Header) -> &[String] {
    match header.keys.get("tokenizer.ggml.tokens") {
        Some(Value::Texts(tokens)) => tokens,
        _ => &[],
    }
}

/// The id that a key gives, of the tokens that there are.
pub(crate) fn id(header: &Header, name: &str) -> Result<Option<usize>, String> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let count = tokens(header).len();
    match header.keys.get(&key) {
        None => Ok(None),
        // Some writers say so that there is none.
        Some(&Value::Integer(n)) if n == i64::from(u32::MAX) || n == -1 => Ok(None),
        Some(&Value::Integer(n)) if n >= 0 && (count == 0 || (n as usize) < count) => {
            Ok(Some(n as usize))
        }
        Some(other) => Err(format!("key {key:?} is {}, of {count} tokens", other.shown())),
    }
}

/// The ids that a `config.json` says: the tokens that begin and end a text.
///
/// # Errors
/// If one is no token's.
pub(crate) fn ids(header: &Header) -> Result<Map<String, Json>, String> {
    let mut said = Map::new();
    for name in ["bos", "pad"] {
        let theirs = if name == "pad" { "padding" } else { name };
        if let Some(id) = id(header, theirs)? {
            said.insert(format!("{name}_token_id"), json!(id));
        }
    }
    let mut ends = Vec::new();
    for name in ENDS {
        ends.extend(id(header, name)?);
    }
    let all = !ends.is_empty();
    ends.splice(..0, id(header, "eos")?);
    if let Some(Value::Integers(kinds)) = header.keys.get("tokenizer.ggml.token_type")
        && !all
    {
        let control = tokens(header).iter().zip(kinds).enumerate();
        let control = control.filter(|(_, (_, kind))| **kind == CONTROL);
        ends.extend(
            control.filter(|(_, (text, _))| END_TEXTS.contains(&text.as_str())).map(|(id, _)| id),
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    match ends[..] {
        [] => {}
        [one] => drop(said.insert("eos_token_id".into(), json!(one))),
        _ => drop(said.insert("eos_token_id".into(), json!(ends))),
    }
    Ok(said)
}

/// The small files of a folder that say what the keys of a file say, by name.
///
/// # Errors
/// If a key is no text where it must be.
pub(crate) fn files(header: &Header) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut files = BTreeMap::new();
    for (key, value) in header.keys.range(TEMPLATE.to_owned()..) {
        let Some(rest) = key.strip_prefix(TEMPLATE) else { break };
        let name = match rest.strip_prefix('.') {
            Some(name) if is_name(name) => format!("{FOLDER}{name}.jinja"),
            None if rest.is_empty() => JINJA.to_owned(),
            None => continue,
            Some(name) => return Err(format!("key {key:?}: {name:?} is no name of a template")),
        };
        let Value::Text(template) = value else {
            return Err(format!("key {key:?} is {}, not a text", value.shown()));
        };
        files.insert(name, template.clone().into_bytes());
    }
    let mut config = Map::new();
    if !tokens(header).is_empty() {
        // Of all classes the one that takes tokenizer.json as it is.
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    }
    for (ours, theirs) in TOKENS {
        if let Some(text) = id(header, theirs)?.and_then(|id| tokens(header).get(id)) {
            config.insert(format!("{ours}_token"), json!(text));
        }
    }
    let mut generation = Map::new();
    for (ours, theirs) in SAMPLING {
        let value = header.keys.get(&format!("general.sampling.{theirs}"));
        if let Some(value @ (Value::Integer(_) | Value::Float(_))) = value {
            generation.insert((*ours).to_owned(), value.json());
        }
    }
    if !generation.is_empty() {
        generation.insert("do_sample".into(), json!(true));
    }
    for (name, said) in [(TOKENIZER_CONFIG, config), (GENERATION, generation)] {
        if !said.is_empty() {
            files.insert(name.to_owned(), format!("{:#}\n", Json::Object(said)).into_bytes());
        }
    }
    Ok(files)
}

/// Whether a text may be the name of a file.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    !name.is_empty() && name.len() <= 64 && name.chars().all(fits)
}
