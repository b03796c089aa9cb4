//! How text is cut into words before merges: what a tokenizer.json says as a program, llama.cpp by a name.
//!
//! `splits.json` has the program of each name. It is that of the models that the name was made for, as
//! their tokenizer.json spells it. llama.cpp computes the same by expressions of its own
//! (`src/llama-vocab.cpp`, `unicode.cpp`), which cut a few rare texts otherwise.

use serde::Deserialize;
use serde_json::Value as Json;

/// The expression of `ByteLevel` with `use_regex`: that of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Other spellings of a part of an expression, and the one that they are compared by. Nothing that a
/// repetition here matches may be matched by what follows it, so it gives nothing back.
const SPELLINGS: &[(&str, &str)] = &[
    ("\r", r"\r"),
    ("\n", r"\n"),
    (r"\p{N}{1}", r"\p{N}"),
    (r"?+\p{L}", r"?\p{L}"),
    (r"++[\r\n]", r"+[\r\n]"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    ("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
];
/// The longest text of a program in a message, in characters.
const SHOWN: usize = 600;

/// A way to cut text that llama.cpp has a name for.
#[derive(Debug, Deserialize)]
pub(super) struct Form {
    /// Its names, first the one that is written.
    pub(super) names: Vec<String>,
    /// Whether llama.cpp looks a whole word up before it merges.
    #[serde(default)]
    pub(super) ignore_merges: bool,
    /// Whether llama.cpp puts a token before every text where no key says whether.
    #[serde(default)]
    pub(super) add_bos: bool,
    /// Whether the models of the name normalize text (NFC), which llama.cpp leaves to its caller.
    #[serde(default)]
    pub(super) nfc: bool,
    /// The program.
    pub(super) pre_tokenizer: Json,
}

fn forms() -> Result<Vec<Form>, String> {
    serde_json::from_str(include_str!("splits.json")).map_err(|e| format!("splits.json: {e}"))
}

/// The way of llama.cpp's name `pre`.
pub(super) fn form(pre: &str) -> Result<Option<Form>, String> {
    Ok(forms()?.into_iter().find(|form| form.names.iter().any(|name| name == pre)))
}

/// The way that a `pre_tokenizer` cuts; of several names that of the same `ignore_merges`, then of the
/// same `nfc`.
///
/// # Errors
/// If llama.cpp has no name for it.
pub(super) fn recognized(
    pre_tokenizer: &Json,
    ignore_merges: bool,
    nfc: bool,
) -> Result<Form, String> {
    let wanted = steps(pre_tokenizer);
    let mut same = forms()?;
    same.retain(|form| steps(&form.pre_tokenizer) == wanted);
    // The first of equals.
    same.sort_by_key(|form| (form.ignore_merges != ignore_merges, form.nfc != nfc));
    same.into_iter().next().ok_or_else(|| {
        let shown: String = wanted.join(", then ").chars().take(SHOWN).collect();
        format!(
            "its pre_tokenizer cuts text at {shown}, which llama.cpp has no name for: write another \
             format"
        )
    })
}

/// The steps of a program in one spelling: two that are spelled alike cut alike.
fn steps(pre_tokenizer: &Json) -> Vec<String> {
    let part = pre_tokenizer;
    let flag = |name: &str, absent: bool| part.get(name).map_or(absent, |f| *f == Json::Bool(true));
    let at = |regex: &str| format!("the matches of {}", spelled(regex));
    match part.get("type").and_then(Json::as_str) {
        Some("Sequence") => {
            let inner = part.get("pretokenizers").and_then(Json::as_array);
            inner.into_iter().flatten().flat_map(steps).collect()
        }
        Some("ByteLevel") if !flag("add_prefix_space", true) => match flag("use_regex", true) {
            true => vec![at(GPT2), "bytes".into()],
            false => vec!["bytes".into()],
        },
        Some("Digits") => {
            vec![at(if flag("individual_digits", false) { r"\p{N}" } else { r"\p{N}+" })]
        }
        Some("Split") => {
            let regex = part.get("pattern").and_then(|p| p.get("Regex")).and_then(Json::as_str);
            let behavior = part.get("behavior").and_then(Json::as_str);
            match (regex, behavior, flag("invert", false)) {
                (Some(regex), Some("Isolated"), false) => vec![at(regex)],
                // Only matches are kept, and white space is the last that one covers.
                (Some(regex), Some("Removed"), true) if regex.ends_with(r"|\s+") => vec![at(regex)],
                _ => vec![part.to_string()],
            }
        }
        _ if part.is_null() => Vec::new(),
        _ => vec![part.to_string()],
    }
}

fn spelled(regex: &str) -> String {
    SPELLINGS.iter().fold(regex.to_owned(), |regex, (one, other)| regex.replace(one, other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_is_recognized_by_its_own_program() {
        let all = forms().unwrap();
        for form in &all {
            let found = recognized(&form.pre_tokenizer, form.ignore_merges, form.nfc).unwrap();
            // Two are one but for whether a token is put before a text, which a key says.
            assert!(found.names == form.names || form.names[0] == "glm4", "{:?}", form.names);
            assert_eq!((found.ignore_merges, found.nfc), (form.ignore_merges, form.nfc));
            for name in &form.names {
                assert_eq!(super::form(name).unwrap().unwrap().names, form.names, "{name}");
            }
        }
        let mut names: Vec<&String> = all.iter().flat_map(|form| &form.names).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), count > 60), (count, true));
    }

    #[test]
    fn spellings_of_one_way_are_one() {
        let cl100k = |digits: &str, contracted: &str, behavior: &str| {
            let regex = format!(
                "{contracted}|[^\r\n\\p{{L}}\\p{{N}}]?+\\p{{L}}+|{digits}| ?[^\\s\\p{{L}}\\p{{N}}]++\
                 [\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
            );
            let split = json!({
                "type": "Split", "pattern": { "Regex": regex }, "behavior": behavior,
                "invert": behavior == "Removed",
            });
            let bytes =
                json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
            json!({ "type": "Sequence", "pretokenizers": [split, bytes] })
        };
        let name =
            |pre: &Json, whole, nfc| recognized(pre, whole, nfc).map(|form| form.names[0].clone());
        let cased = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
        let three = cl100k(r"\p{N}{1,3}", "'(?i:[sdmt]|ll|ve|re)", "Removed");
        assert_eq!(name(&three, true, false).unwrap(), "llama-bpe");
        assert_eq!(name(&three, false, false).unwrap(), "dbrx");
        let one = cl100k(r"\p{N}{1}", cased, "Isolated");
        assert_eq!(name(&one, false, true).unwrap(), "qwen2");
        assert_eq!(name(&one, false, false).unwrap(), "deepseek-r1-qwen");
        // Not all words are matches: what lies between would be dropped.
        let four = cl100k(r"\p{N}{1,4}", cased, "Isolated");
        let error = name(&four, false, false).unwrap_err();
        assert!(error.contains(r"|\p{N}{1,4}|") && error.contains("no name"), "{error}");
        let spaced = json!({ "type": "ByteLevel", "add_prefix_space": true });
        assert!(name(&spaced, false, false).unwrap_err().contains("add_prefix_space"));
        assert_eq!(
            name(&json!({ "type": "ByteLevel", "add_prefix_space": false }), false, false).unwrap(),
            "gpt-2"
        );
    }
}
