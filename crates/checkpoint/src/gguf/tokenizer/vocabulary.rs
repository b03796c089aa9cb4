//! Tokens by their ids, each of a kind: a tokenizer.json has them in its vocabulary and among its added
//! tokens, a GGUF file in two lists.

use super::super::header::{ELEMENTS_MAX, Value};
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};

/// The most tokens: lists of them, of their kinds and scores, and of merges go into the head of a file.
const COUNT_MAX: u64 = ELEMENTS_MAX / 4;
/// The longest token, in bytes: as long as the tokenizer library may be given.
const TOKEN_MAX: usize = 4096;

/// What a token is, as llama.cpp numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What merges make.
    Normal = 1,
    /// What stands for text that cannot be spelled.
    Unknown = 2,
    /// What text does not show, such as the end of a turn.
    Control = 3,
    /// What users added to be taken whole.
    UserDefined = 4,
    /// What only fills a row of the embedding.
    Unused = 5,
    /// A byte that no token spells.
    Byte = 6,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];

    fn numbered(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as i64 == number)
    }

    /// Whether it is found in a text before anything else.
    pub(super) fn is_added(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

/// A token of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: Kind,
}

/// What a token that only fills a row is called.
fn filler(id: usize) -> Token {
    Token { text: format!("[PAD{id}]"), kind: Kind::Unused }
}

/// The byte of a token such as `<0x0A>`.
pub(super) fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = digits.len() == 2 && !digits.contains(|c: char| c.is_ascii_lowercase());
    upper.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The tokens of a tokenizer.json, of an embedding of `rows` rows: what has no token is filled.
///
/// # Errors
/// If ids are shared, too high, or beyond the embedding.
pub(super) fn of_file(file: &Json, rows: usize) -> Result<Vec<Token>, String> {
    let vocab = file.get("model").and_then(|model| model.get("vocab")).and_then(Json::as_object);
    let vocab = vocab.ok_or("its model has no vocabulary of ids")?;
    let mut tokens: Vec<Option<Token>> = Vec::new();
    let mut put = |id: &Json, text: &str, kind: Kind| {
        let id = id.as_u64().filter(|&id| id < COUNT_MAX);
        let id = id.ok_or_else(|| format!("the id of {text:?} is no count below {COUNT_MAX}"))?;
        let (id, count) = (id as usize, tokens.len());
        if rows > 0 && id >= rows {
            return Err(format!("{text:?} has id {id}, and the embedding has {rows} rows"));
        }
        tokens.resize(count.max(id + 1), None);
        match tokens.get_mut(id) {
            Some(Some(other)) if other.text != text => {
                Err(format!("{:?} and {text:?} both have id {id}", other.text))
            }
            Some(place) => {
                *place = Some(Token { text: text.to_owned(), kind });
                Ok(())
            }
            None => Err(format!("id {id} has no place")),
        }
    };
    for (text, id) in vocab {
        put(id, text, Kind::Normal)?;
    }
    for token in added(file) {
        let (text, special) = token?;
        put(&special.id, text, special.kind)?;
    }
    let count = tokens.len().max(rows);
    tokens.resize(count, None);
    let filled = tokens.into_iter().enumerate();
    let tokens: Vec<Token> =
        filled.map(|(id, token)| token.unwrap_or_else(|| filler(id))).collect();
    match twice(&tokens) {
        Some(text) => Err(format!("{text:?} has two ids")),
        None => Ok(tokens),
    }
}

/// An added token's id and kind.
struct Added {
    id: Json,
    kind: Kind,
}

fn added(file: &Json) -> impl Iterator<Item = Result<(&str, Added), String>> {
    let list = file.get("added_tokens").and_then(Json::as_array);
    list.into_iter().flatten().enumerate().map(|(i, token)| {
        let text = token.get("content").and_then(Json::as_str);
        let text = text.ok_or_else(|| format!("added_tokens[{i}] has no content"))?;
        let special = token.get("special") == Some(&Json::Bool(true));
        let kind = if special { Kind::Control } else { Kind::UserDefined };
        Ok((text, Added { id: token.get("id").cloned().unwrap_or_default(), kind }))
    })
}

fn twice(tokens: &[Token]) -> Option<&str> {
    let mut seen = HashSet::with_capacity(tokens.len());
    tokens.iter().map(|token| token.text.as_str()).find(|text| !seen.insert(*text))
}

/// The ids of tokens by their texts.
pub(super) fn ids(tokens: &[Token]) -> HashMap<&str, u32> {
    tokens.iter().map(|token| token.text.as_str()).zip(0..).collect()
}

/// The tokens that the keys of a GGUF file list.
///
/// # Errors
/// If a list is missing or no list, or a token is there twice or too long.
pub(super) fn of_keys<'a>(get: &dyn Fn(&str) -> Option<&'a Value>) -> Result<Vec<Token>, String> {
    let Some(Value::Texts(texts)) = get("tokens") else {
        return Err("tokenizer.ggml.tokens is missing, or no list of texts".into());
    };
    let kinds: &[i64] = match get("token_type") {
        Some(Value::Integers(kinds)) if kinds.len() == texts.len() => kinds,
        None => &[],
        _ => {
            let rule =
                "tokenizer.ggml.token_type is no list of as many numbers as there are tokens";
            return Err(rule.into());
        }
    };
    let mut tokens = Vec::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        if text.len() > TOKEN_MAX {
            let bytes = text.len();
            return Err(format!("token {id} has {bytes} bytes, at most {TOKEN_MAX} are read"));
        }
        // 0 is llama.cpp's own number for a token without a kind.
        let number = kinds.get(id).copied().filter(|&n| n != 0).unwrap_or(Kind::Normal as i64);
        let kind = Kind::numbered(number);
        let kind = kind.ok_or_else(|| format!("tokenizer.ggml.token_type[{id}] is {number}"))?;
        // llama.cpp's name for a token without a text.
        let text = if text.is_empty() { format!("[EMPTY_{id}]") } else { text.clone() };
        tokens.push(Token { text, kind });
    }
    match twice(&tokens) {
        Some(text) => Err(format!("tokenizer.ggml.tokens has {text:?} twice")),
        None => Ok(tokens),
    }
}

/// The tokens as keys of a GGUF file.
pub(super) fn keys(tokens: Vec<Token>) -> [(String, Value); 2] {
    let (texts, kinds) = tokens.into_iter().map(|token| (token.text, token.kind as i64)).unzip();
    [
        ("tokenizer.ggml.tokens".into(), Value::Texts(texts)),
        ("tokenizer.ggml.token_type".into(), Value::Integers(kinds)),
    ]
}

/// The `added_tokens` of a tokenizer.json.
pub(super) fn added_json(tokens: &[Token]) -> Json {
    let added = tokens.iter().enumerate().filter(|(_, token)| token.kind.is_added());
    let entry = |(id, token): (usize, &Token)| {
        serde_json::json!({
            "id": id, "content": token.text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": token.kind != Kind::UserDefined,
        })
    };
    added.map(entry).collect()
}

/// The `vocab` of a tokenizer.json: all but what only fills a row.
pub(super) fn vocab_json(tokens: &[Token]) -> Json {
    let held = tokens.iter().enumerate().filter(|(id, token)| **token != filler(*id));
    Json::Object(held.map(|(id, token)| (token.text.clone(), id.into())).collect())
}
