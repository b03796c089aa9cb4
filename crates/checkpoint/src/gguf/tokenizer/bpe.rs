//! Tokenizers that merge the bytes of words (`tokenizer.ggml.model` is "gpt2").

use super::splits;
use super::vocabulary::{Kind, Token};
use serde_json::{Value as Json, json};
use std::collections::HashMap;

/// The longest word that is tried, in characters: beyond, it counts as one that merges do not make.
const WORD_MAX: usize = 256;

/// Normalizers, by their names.
pub(super) const NFC: &str = "NFC";
pub(super) const NONE: &str = "none";

/// A merge: what stands left and right of each other and becomes one.
pub(super) type Merge<'a> = (&'a str, &'a str);

/// The merges of a tokenizer.json's model, in order.
///
/// # Errors
/// If one is no pair.
pub(super) fn merges(model: &Json) -> Result<Vec<Merge<'_>>, String> {
    let list = model.get("merges").and_then(Json::as_array);
    let list = list.into_iter().flatten().enumerate();
    list.map(|(i, merge)| {
        pair(merge).ok_or_else(|| format!("model.merges[{i}] is no pair of tokens"))
    })
    .collect()
}

fn pair(merge: &Json) -> Option<Merge<'_>> {
    match merge {
        Json::String(merge) => merge.split_once(' '),
        Json::Array(parts) => match &parts[..] {
            [Json::String(left), Json::String(right)] => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

/// Merges as llama.cpp's key has them: it cuts each at its first blank.
///
/// # Errors
/// If a part is empty or has a blank.
pub(super) fn merges_key(merges: &[Merge<'_>]) -> Result<Vec<String>, String> {
    let said = |&(left, right): &Merge<'_>| match [left, right] {
        parts if parts.iter().any(|part| part.is_empty() || part.contains(' ')) => Err(format!(
            "the merge of {left:?} and {right:?} cannot be written with a blank between"
        )),
        _ => Ok(format!("{left} {right}")),
    };
    merges.iter().map(said).collect()
}

/// The merges of a key as a tokenizer.json has them.
///
/// # Errors
/// If one is no pair.
pub(super) fn merges_json(key: &[String]) -> Result<Json, String> {
    let pair = |merge: &String| {
        // The first character may be a blank of a token's own, as llama.cpp reads it.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let at = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first);
        let parts = at.and_then(|at| merge.get(..at).zip(merge.get(at + 1..)));
        let parts = parts.filter(|(_, right)| !right.is_empty());
        let (left, right) = parts.ok_or_else(|| format!("tokenizer.ggml.merges has {merge:?}"))?;
        Ok(json!([left, right]))
    };
    key.iter().map(pair).collect()
}

/// llama.cpp's name for how the text of a tokenizer.json is cut, and how text is normalized if the name says
/// otherwise.
///
/// # Errors
/// If it has none, or computes otherwise what comes after the cuts.
pub(super) fn pre(
    file: &Json,
    tokens: &[Token],
    merges: &[Merge<'_>],
) -> Result<(String, Option<&'static str>), String> {
    let get = |name: &str| file.get(name).unwrap_or(&Json::Null);
    let nfc = normalizes(get("normalizer"))?;
    let model = get("model");
    let whole = model.get("ignore_merges") == Some(&Json::Bool(true));
    let form = splits::recognized(get("pre_tokenizer"), whole, nfc)?;
    let name = form.names.first().cloned().unwrap_or_default();
    if form.ignore_merges != whole
        && let Some(token) = unmade(tokens, merges)
    {
        let said = if whole { "is taken whole where it is a word" } else { "is never made" };
        return Err(format!(
            "{token:?} {said} (ignore_merges), and not so by llama.cpp's \"{name}\", the only name for its \
             pre_tokenizer"
        ));
    }
    let missing = || byte_chars().find(|c| !tokens.iter().any(|t| t.text.chars().eq([*c])));
    if model.get("unk_token").is_some_and(Json::is_string)
        && let Some(c) = missing()
    {
        return Err(format!(
            "it has no token {c:?}, and llama.cpp no unknown token for words of bytes"
        ));
    }
    Ok((name, (nfc != form.nfc).then_some(if nfc { NFC } else { NONE })))
}

/// Whether a `normalizer` is NFC; llama.cpp has none, so that what is no NFC has other ids there.
fn normalizes(normalizer: &Json) -> Result<bool, String> {
    let inner = normalizer.get("normalizers").and_then(Json::as_array).map(Vec::as_slice);
    match (normalizer.get("type").and_then(Json::as_str), inner) {
        (None, _) if normalizer.is_null() => Ok(false),
        (Some("NFC"), _) => Ok(true),
        (Some("Sequence"), Some([])) => Ok(false),
        (Some("Sequence"), Some([one])) => normalizes(one),
        _ => Err(format!(
            "its normalizer is {normalizer}, and llama.cpp has none for words of bytes"
        )),
    }
}

/// The characters that bytes are written as.
fn byte_chars() -> impl Iterator<Item = char> {
    let itself = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(move |&b| !itself(b)).zip(256u32..);
    let others = others.filter_map(|(_, code)| char::from_u32(code));
    (0..=u8::MAX).filter(move |&b| itself(b)).map(char::from).chain(others)
}

/// A token that merges do not make of its characters.
fn unmade<'t>(tokens: &'t [Token], merges: &[Merge<'_>]) -> Option<&'t str> {
    let ranks: HashMap<Merge<'_>, usize> = merges.iter().copied().zip(0..).collect();
    let normal = tokens.iter().filter(|token| token.kind == Kind::Normal);
    normal.map(|token| token.text.as_str()).find(|text| !made(text, &ranks))
}

fn made(word: &str, ranks: &HashMap<Merge<'_>, usize>) -> bool {
    // Where each part begins, and the end.
    let mut cuts: Vec<usize> = word.char_indices().map(|(at, _)| at).collect();
    if cuts.len() > WORD_MAX {
        return false;
    }
    cuts.push(word.len());
    let rank = |cuts: &[usize]| match *cuts {
        [a, b, c] => ranks.get(&(&word[a..b], &word[b..c])).copied().unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let mut next: Vec<usize> = cuts.windows(3).map(rank).collect();
    while let Some((at, _)) =
        next.iter().enumerate().min_by_key(|(_, rank)| **rank).filter(|(_, r)| **r != usize::MAX)
    {
        cuts.remove(at + 1);
        next.remove(at);
        for place in [at.checked_sub(1), Some(at)].into_iter().flatten() {
            if let Some(known) = next.get_mut(place) {
                *known = rank(&cuts[place..place + 3]);
            }
        }
    }
    cuts.len() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_cut_where_llama_cpp_cuts_them() {
        let key = ["a b", " b c"].map(String::from);
        assert_eq!(merges_json(&key).unwrap(), json!([["a", "b"], [" b", "c"]]));
        for broken in ["", "ab", "a ", " "] {
            assert!(merges_json(&[broken.into()]).is_err(), "{broken:?}");
        }
        assert_eq!(merges_key(&[("a", "b")]).unwrap(), ["a b"]);
        assert!(merges_key(&[("a b", "c")]).unwrap_err().contains("blank"));
        let model = json!({ "merges": ["a b", ["c", "d e"]] });
        assert_eq!(merges(&model).unwrap(), [("a", "b"), ("c", "d e")]);
        assert!(merges(&json!({ "merges": ["ab"] })).unwrap_err().contains("merges[0]"));
    }

    #[test]
    fn tokens_that_no_merges_make_are_found() {
        let merges = [("b", "c"), ("a", "b"), ("ab", "c")];
        let token = |text: &str| Token { text: text.into(), kind: Kind::Normal };
        let made = |text: &str| unmade(&[token(text)], &merges).is_none();
        // "abc" becomes "a" and "bc", which nothing merges.
        assert_eq!(["a", "bc", "ab", "abc"].map(made), [true, true, true, false]);
        assert!(!made(&"a".repeat(WORD_MAX + 1)));
    }

    #[test]
    fn bytes_are_written_as_gpt_2_does() {
        let all: Vec<char> = byte_chars().collect();
        assert_eq!(
            (all.len(), all.contains(&'\u{120}'), all.contains(&'\u{143}')),
            (256, true, true)
        );
        assert!(!all.contains(&' ') && !all.contains(&'\u{ad}') && !all.contains(&'\u{144}'));
    }
}
