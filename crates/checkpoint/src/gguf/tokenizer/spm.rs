//! SentencePiece's tokenizers that merge characters (`tokenizer.ggml.model` is "llama"): a GGUF file has a
//! score for each token, a tokenizer.json a list of merges.
//!
//! llama.cpp makes one of two neighbours whenever that is a token, the one of the highest score first, of
//! equal ones the leftmost. So scores say what merges do if every way to make a token of two is a merge, and
//! all merges that make a token have their turn together.

use super::bpe::Merge;
use super::vocabulary::{self, Kind, Token};
use serde_json::{Value as Json, json};
use std::collections::HashMap;

/// What SentencePiece writes for a blank.
pub(super) const BLANK: char = '\u{2581}';
/// The scores of what users added, and of what fills a row, as llama.cpp's own converter has them.
const ADDED: f64 = -1000.0;
const UNUSED: f64 = -10000.0;
/// The most merges, and the bytes of their parts: several times those of the largest vocabulary there is.
const MERGES_MAX: usize = 1 << 21;
const MERGES_BYTES_MAX: usize = 1 << 26;

/// Before which pieces of a text a blank is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// None.
    None,
    /// Each: the text, and what follows a special token.
    Every,
    /// The text, if it does not begin with one.
    First,
    /// Each that does not begin with one.
    Always,
}

impl Prefix {
    /// The `prepend_scheme` of a `Metaspace` that does what no key of llama.cpp's says.
    pub(super) fn scheme(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Every => None,
            Self::First => Some("first"),
            Self::Always => Some("always"),
        }
    }

    pub(super) fn of_scheme(said: &str) -> Option<Self> {
        [Self::First, Self::Always].into_iter().find(|prefix| prefix.scheme() == Some(said))
    }
}

/// Where blanks are put, by the normalizer and pre-tokenizer of a tokenizer.json; `None` if it does not write
/// blanks as SentencePiece does.
///
/// # Errors
/// If it does more than that, which no key says.
pub(super) fn space_prefix(file: &Json, tokens: &[Token]) -> Result<Option<Prefix>, String> {
    let get = |name: &str| file.get(name).unwrap_or(&Json::Null);
    let blank = json!(BLANK.to_string());
    let is_prepend = |part: &Json| part["type"] == "Prepend" && part["prepend"] == blank;
    let is_replace = |part: &Json| {
        part["type"] == "Replace" && part["pattern"]["String"] == " " && part["content"] == blank
    };
    let (normalizer, cut) = (get("normalizer"), get("pre_tokenizer"));
    let parts = match normalizer.get("normalizers").and_then(Json::as_array) {
        Some(parts) => parts.as_slice(),
        None if normalizer.is_null() => &[],
        None => std::slice::from_ref(normalizer),
    };
    let odd = |what: &str, part: &Json| {
        Err(format!("its {what} is {part}, which no key of a GGUF file says"))
    };
    let prefix = match parts {
        [] if cut["type"] == "Metaspace" && cut["replacement"] == blank => {
            return metaspace(cut, tokens).map(Some);
        }
        [replace] if is_replace(replace) => Prefix::None,
        [prepend, replace] if is_prepend(prepend) && is_replace(replace) => Prefix::Every,
        _ if !parts.iter().any(is_replace) => return Ok(None),
        _ => return odd("normalizer", normalizer),
    };
    // A cut at blanks, of which none are left.
    let at = [&cut["pattern"]["String"], &cut["pattern"]["Regex"]];
    let idle = cut["type"] == "Split" && at.into_iter().any(|at| at == " ");
    match cut.is_null() || idle {
        true => Ok(Some(prefix)),
        false => odd("pre_tokenizer", cut),
    }
}

fn metaspace(part: &Json, tokens: &[Token]) -> Result<Prefix, String> {
    // Cut before each blank, words have none but at their begin.
    let inner = |token: &&Token| {
        token.kind == Kind::Normal && token.text.chars().skip(1).any(|c| c == BLANK)
    };
    if part.get("split") != Some(&Json::Bool(false))
        && let Some(token) = tokens.iter().find(inner)
    {
        return Err(format!(
            "its pre_tokenizer cuts text before each blank, and {:?} has one inside, which llama.cpp \
             would make",
            token.text
        ));
    }
    let scheme = part.get("prepend_scheme").and_then(Json::as_str);
    match scheme {
        Some("never") => Ok(Prefix::None),
        // As the library once said it.
        None if part["add_prefix_space"] == false => Ok(Prefix::None),
        None => Ok(Prefix::Always),
        Some(said) => Prefix::of_scheme(said)
            .ok_or_else(|| format!("the prepend_scheme of its pre_tokenizer is {said:?}")),
    }
}

/// The kinds of tokens of a tokenizer.json's model: which is unknown, and which are bytes.
///
/// # Errors
/// If there is none for unknown text, or for a byte.
pub(super) fn name_kinds(model: &Json, tokens: &mut [Token]) -> Result<(), String> {
    if model.get("byte_fallback") != Some(&Json::Bool(true)) {
        return Err("its model has no byte_fallback, which llama.cpp's \"llama\" is".into());
    }
    if model.get("ignore_merges") == Some(&Json::Bool(true)) {
        return Err("its model has ignore_merges, which llama.cpp's \"llama\" has not".into());
    }
    let unknown = model.get("unk_token").and_then(Json::as_str);
    let mut bytes = [false; 256];
    for token in tokens.iter_mut() {
        if unknown == Some(&token.text) {
            token.kind = Kind::Unknown;
        } else if let Some(byte) = vocabulary::byte(&token.text) {
            token.kind = Kind::Byte;
            bytes[usize::from(byte)] = true;
        }
    }
    match bytes.iter().position(|there| !there) {
        Some(byte) => Err(format!("its vocabulary has no token <0x{byte:02X}>")),
        None => Ok(()),
    }
}

/// The scores by which llama.cpp does what these merges do.
///
/// # Errors
/// If it would merge something that they do not, or in another order.
pub(super) fn scores(tokens: &[Token], merges: &[Merge<'_>]) -> Result<Vec<f64>, String> {
    let ids = vocabulary::ids(tokens);
    // By the token: when its turn is, and how many merges make it.
    let mut turns: HashMap<u32, (usize, usize)> = HashMap::new();
    let mut last = None;
    for &(left, right) in merges {
        let made = format!("{left}{right}");
        let Some(&id) = ids.get(made.as_str()) else {
            return Err(format!("the merge of {left:?} and {right:?} makes no token"));
        };
        let turn = turns.len();
        let (_, count) = turns.entry(id).or_insert((turn, 0));
        if *count > 0 && last != Some(id) {
            return Err(format!(
                "merges that make {made:?} stand apart: a SentencePiece vocabulary has one score for it"
            ));
        }
        *count += 1;
        last = Some(id);
    }
    let ways = Splits::of(tokens);
    for (id, token) in (0u32..).zip(tokens).filter(|(_, token)| token.kind == Kind::Normal) {
        let count = turns.get(&id).map_or(0, |(_, count)| *count);
        let ways = ways.of_token(id as usize).len();
        if count != ways {
            return Err(format!(
                "{:?} can be made of two tokens in {ways} ways, and {count} of them are merges: llama.cpp \
                 would merge them all",
                token.text
            ));
        }
    }
    let mut rest = turns.len();
    let score = |(id, token): (u32, &Token)| match (turns.get(&id), token.kind) {
        (Some((turn, _)), _) => -(*turn as f64),
        (None, Kind::Normal) => {
            rest += 1;
            1.0 - rest as f64
        }
        (None, Kind::UserDefined) => ADDED,
        (None, Kind::Unused) => UNUSED,
        (None, Kind::Unknown | Kind::Control | Kind::Byte) => 0.0,
    };
    Ok((0u32..).zip(tokens).map(score).collect())
}

/// The merges that do what scores say: every way to make a token of two, the highest scores first, and of
/// equal scores the lowest id (llama.cpp's own converter, without a tokenizer.model, gives all the same).
///
/// # Errors
/// If a score is no number, or there are more merges than a vocabulary has.
pub(super) fn merges_json(tokens: &[Token], scores: &[f64]) -> Result<Json, String> {
    let mut order = Vec::new();
    let made = |kind: Kind| matches!(kind, Kind::Normal | Kind::Unused);
    for (id, (token, &score)) in tokens.iter().zip(scores).enumerate() {
        if score.is_nan() {
            return Err(format!("tokenizer.ggml.scores[{id}] of {:?} is NaN", token.text));
        }
        if made(token.kind) {
            order.push((id, score));
        }
    }
    order.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let splits = Splits::of(tokens);
    let (mut merges, mut bytes) = (Vec::new(), 0);
    for (id, _) in order {
        let mut ways = splits.of_token(id);
        ways.retain(|&(left, right)| {
            [left, right].iter().all(|&part| tokens.get(part).is_some_and(|t| made(t.kind)))
        });
        ways.sort_unstable();
        for (left, right) in ways {
            bytes += tokens.get(id).map_or(0, |token| token.text.len());
            if merges.len() == MERGES_MAX || bytes > MERGES_BYTES_MAX {
                return Err(format!(
                    "its tokens make each other in more than {MERGES_MAX} ways, or of more than \
                     {MERGES_BYTES_MAX} bytes"
                ));
            }
            let text = |id: usize| tokens.get(id).map(|token| token.text.as_str());
            merges.push(json!([text(left), text(right)]));
        }
    }
    Ok(Json::Array(merges))
}

/// For each token the longest one that it begins with and the longest that it ends with, itself
/// left out: so that all ways to make tokens of two are found in time that grows with their length alone.
struct Splits<'a> {
    tokens: &'a [Token],
    begins: Vec<Option<usize>>,
    ends: Vec<Option<usize>>,
}

impl<'a> Splits<'a> {
    fn of(tokens: &'a [Token]) -> Self {
        let texts = || tokens.iter().map(|token| token.text.as_bytes());
        let mut reversed: Vec<Vec<u8>> = texts().map(<[u8]>::to_vec).collect();
        reversed.iter_mut().for_each(|text| text.reverse());
        let begins = longest(&texts().collect::<Vec<_>>());
        let ends = longest(&reversed.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Self { tokens, begins, ends }
    }

    /// The pairs of tokens that make this one.
    fn of_token(&self, id: usize) -> Vec<(usize, usize)> {
        let bytes = |id: usize| self.tokens.get(id).map_or(0, |token| token.text.len());
        let chain = |links: &'_ [Option<usize>]| -> Vec<usize> {
            let next = |&id: &usize| links.get(id).copied().flatten();
            std::iter::successors(next(&id), next).collect()
        };
        // The longest first; the shortest first.
        let (begins, mut ends) = (chain(&self.begins), chain(&self.ends));
        ends.reverse();
        let (whole, mut at, mut pairs) = (bytes(id), 0, Vec::new());
        for left in begins {
            let rest = whole - bytes(left);
            while ends.get(at).is_some_and(|&right| bytes(right) < rest) {
                at += 1;
            }
            if let Some(&right) = ends.get(at).filter(|&&right| bytes(right) == rest) {
                pairs.push((left, right));
            }
        }
        pairs
    }
}

/// For each text the longest other one that it begins with.
fn longest(texts: &[&[u8]]) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_unstable_by_key(|&id| texts[id]);
    let mut found = vec![None; texts.len()];
    // In this order what a text begins with comes before it, and nothing else lies between.
    let mut open: Vec<usize> = Vec::new();
    for id in order {
        while open.last().is_some_and(|&other| !texts[id].starts_with(texts[other])) {
            open.pop();
        }
        found[id] = open.last().copied();
        open.push(id);
    }
    found
}

/// The `normalizer`, `pre_tokenizer` and `decoder` of a tokenizer.json.
pub(super) fn around(prefix: Prefix) -> [Json; 3] {
    let blank = BLANK.to_string();
    let prepend = json!({ "type": "Prepend", "prepend": blank });
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": blank });
    let back = json!({ "type": "Replace", "pattern": { "String": blank }, "content": " " });
    let (bytes, fuse) = (json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" }));
    let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
    let mut decoders = vec![back, bytes, fuse];
    if prefix != Prefix::None {
        decoders.push(strip);
    }
    let decoder = json!({ "type": "Sequence", "decoders": decoders });
    match prefix {
        Prefix::None => [replace, Json::Null, decoder],
        Prefix::Every => {
            let both = json!({ "type": "Sequence", "normalizers": [prepend, replace] });
            [both, Json::Null, decoder]
        }
        Prefix::First | Prefix::Always => {
            let scheme = prefix.scheme();
            let cut = json!({
                "type": "Metaspace", "replacement": blank, "prepend_scheme": scheme, "split": false,
            });
            [Json::Null, cut, decoder]
        }
    }
}
