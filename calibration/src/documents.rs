//! Calibration files: plain text, or JSON Lines of one document each.
//!
//! A line of a `.jsonl` file is a bare list of token ids, or an object with one of these (the
//! first that it has, other keys are ignored):
//!
//! - `tokens`: a list of token ids, made by the model's own tokenizer;
//! - `messages`: a conversation, which the model's chat template writes out, with the `tools` that the
//!   line may have: a list of JSON schemas;
//! - `text`: a text;
//! - `prompt` and `completion`: two texts that are joined as they are. Either may be left out.
//!
//! Lines with ids and lines with text are not mixed: ids need no tokenizer, and a file that has
//! both is more likely a mistake. Any other file is one text.

use crate::CalibrationError;
use serde::Deserialize;
use serde_json::Value;
use text::Tokenizer;

/// Bytes of one line of a JSON Lines file.
const MAX_LINE: usize = 16 << 20;

/// A document, as its file has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A text.
    Text(String),
    /// A prompt and what follows it.
    Pair {
        /// What comes first.
        prompt: String,
        /// What follows.
        completion: String,
    },
    /// A conversation, for the model's chat template.
    Messages(Conversation),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A conversation, and what its model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// A list of objects with a `role`, one at least.
    pub messages: Value,
    /// A list of objects, each the schema of a tool; `None` where the file says nothing of tools.
    pub tools: Option<Value>,
}

/// Reads a calibration file: `.jsonl` a document a line, anything else one text.
///
/// # Errors
/// If it is not UTF-8, is empty, or a line is no document; the error names the line.
pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Vec<Document>, CalibrationError> {
    let broken = |line, rule: String| CalibrationError::Line { file: name.into(), line, rule };
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let lines = error.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count();
        broken(lines + 1, format!("is not UTF-8, from byte {valid} of the file"))
    })?;
    // Editors of some systems put a byte order mark first; no model was trained to read it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim().is_empty() {
        return Err(broken(0, "is empty".into()));
    }
    let extension = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    match extension.as_deref() {
        Some("jsonl") => {}
        Some("json") => {
            let rule = "is a .json file; JSON data is read from .jsonl, a document a line";
            return Err(broken(0, rule.into()));
        }
        _ => return Ok(vec![Document::Text(text.into())]),
    }
    let mut documents: Vec<Document> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let document = document(line.trim()).map_err(|rule| broken(i + 1, rule))?;
        let ids = |d: &Document| matches!(d, Document::Tokens(_));
        if documents.first().is_some_and(|first| ids(first) != ids(&document)) {
            let rule = "mixes token ids with text: the lines before have the other form";
            return Err(broken(i + 1, rule.into()));
        }
        documents.push(document);
    }
    Ok(documents)
}

/// Makes token ids of documents, one list each; `render` makes a text of a conversation.
///
/// Texts get the special tokens that the tokenizer adds by default, but no second begin token
/// where they are spelt with one. A rendered conversation gets none: the template writes its own,
/// and their spellings become the tokens.
///
/// # Errors
/// If a text cannot be encoded or rendered, or an id is not below `vocab`.
pub fn tokenize(
    documents: Vec<Document>,
    tokenizer: Option<&Tokenizer>,
    render: &dyn Fn(&Conversation) -> Result<String, text::Error>,
    vocab: usize,
) -> Result<Vec<Vec<u32>>, CalibrationError> {
    let tokens = |(i, document): (usize, Document)| {
        let document_number = i + 1;
        let failed = |source| CalibrationError::Text { document: document_number, source };
        let tokenizer = || tokenizer.ok_or(CalibrationError::NoTokenizer);
        let ids = match document {
            Document::Text(text) => encode(tokenizer()?, &text).map_err(failed)?,
            Document::Pair { prompt, completion } => {
                encode(tokenizer()?, &(prompt + &completion)).map_err(failed)?
            }
            Document::Messages(messages) => {
                let tokenizer = tokenizer()?;
                let text = render(&messages).map_err(failed)?;
                tokenizer.encode_plain(&text).map_err(failed)?
            }
            Document::Tokens(ids) => ids,
        };
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(CalibrationError::Id { document: document_number, id, vocab }),
            None => Ok(ids),
        }
    };
    documents.into_iter().enumerate().map(tokens).collect()
}

/// With special tokens, but no second begin token before a text that is spelt with one.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, text::Error> {
    let ids = tokenizer.encode(text)?;
    match tokenizer.bos() {
        Some(bos) if ids.first() == Some(&bos) && ids.get(1) == Some(&bos) => {
            tokenizer.encode_plain(text)
        }
        _ => Ok(ids),
    }
}

/// A line as it stands. A key given twice is refused.
#[derive(Deserialize)]
struct Line {
    tokens: Option<Vec<u32>>,
    messages: Option<Value>,
    tools: Option<Value>,
    text: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
}

fn document(line: &str) -> Result<Document, String> {
    if line.len() > MAX_LINE {
        return Err(format!("has {} bytes; at most {MAX_LINE} are read", line.len()));
    }
    if line.starts_with('[') {
        let ids = serde_json::from_str(line);
        return ids.map(Document::Tokens).map_err(|e| {
            format!("is not a list of token ids, whole numbers below 2^32: {}", escaped(&e))
        });
    }
    if !line.starts_with('{') {
        return Err("is neither an object nor a list of token ids".into());
    }
    let line: Line = serde_json::from_str(line)
        .map_err(|e| format!("is not a document in JSON: {}", escaped(&e)))?;
    match line {
        Line { tokens: Some(ids), .. } => Ok(Document::Tokens(ids)),
        Line { messages: Some(messages), tools, .. } => conversation(messages, tools),
        Line { text: Some(text), .. } => Ok(Document::Text(text)),
        Line { prompt: None, completion: None, .. } => {
            Err("has none of text, prompt, completion, messages, tokens".into())
        }
        Line { prompt, completion, .. } => Ok(Document::Pair {
            prompt: prompt.unwrap_or_default(),
            completion: completion.unwrap_or_default(),
        }),
    }
}

fn conversation(messages: Value, tools: Option<Value>) -> Result<Document, String> {
    let list = messages.as_array().filter(|list| !list.is_empty());
    let list = list.ok_or("messages is no list of objects with a role and a content")?;
    if let Some(i) = list.iter().position(|m| !m.get("role").is_some_and(Value::is_string)) {
        return Err(format!("messages[{i}] is no object with a role"));
    }
    if let Some(tools) = &tools
        && !tools.as_array().is_some_and(|list| list.iter().all(Value::is_object))
    {
        return Err("tools is no list of objects, each the schema of a tool".into());
    }
    Ok(Document::Messages(Conversation { messages, tools }))
}

/// The library's message, which may repeat bytes of the line.
fn escaped(error: &serde_json::Error) -> String {
    const SHOWN: usize = 200;
    error.to_string().chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENIZER: &str = r#"{"version":"1.0","added_tokens":[
        {"id":0,"content":"<s>","special":true,"single_word":false,"lstrip":false,"rstrip":false,
         "normalized":false},
        {"id":1,"content":"<|end|>","special":true,"single_word":false,"lstrip":false,
         "rstrip":false,"normalized":false}],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"decoder":null,
        "post_processor":{"type":"TemplateProcessing",
            "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
            "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
            "special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}},
        "model":{"type":"WordLevel","unk_token":"?",
            "vocab":{"<s>":0,"<|end|>":1,"?":2,"one":3,"two":4,"onetwo":5}}}"#;

    fn read(text: &str) -> Result<Vec<Document>, String> {
        parse("f.jsonl", text.as_bytes().to_vec()).map_err(|e| e.to_string())
    }

    fn no_template(_: &Conversation) -> Result<String, text::Error> {
        Ok("<s>one<|end|>".into())
    }

    #[test]
    fn each_form_is_read() {
        let lines = "\u{feff}{\"text\":\"a\\u0000\"}\r\n\n  {\"prompt\":\"b\",\"completion\":\"c\"}\n\
                     {\"messages\":[{\"role\":\"user\",\"content\":\"d\"}],\"prompt\":\"x\"}\n\
                     {\"text\":null,\"completion\":\"e\",\"id\":[1]}";
        let documents = read(lines).unwrap();
        assert_eq!(documents[0], Document::Text("a\0".into()));
        let pair = Document::Pair { prompt: "b".into(), completion: "c".into() };
        assert_eq!(documents[1], pair);
        assert!(matches!(&documents[2], Document::Messages(c) if c.messages[0]["content"] == "d"));
        let pair = Document::Pair { prompt: String::new(), completion: "e".into() };
        assert_eq!(documents[3], pair);
        let ids = read("[1, 2]\n{\"tokens\": [3], \"text\": \"c\"}\n[]").unwrap();
        let list = [vec![1, 2], vec![3], vec![]].map(Document::Tokens);
        assert_eq!(ids, list);
        let text = parse("a.txt", b"[1]\r\n".to_vec()).unwrap();
        assert_eq!(text, [Document::Text("[1]\r\n".into())]);
        assert_eq!(parse("wiki", b"w".to_vec()).unwrap(), [Document::Text("w".into())]);
        assert_eq!(parse("A.JSONL", b"[7]".to_vec()).unwrap(), [Document::Tokens(vec![7])]);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, rule) in [
            ("", "is empty"),
            (" \r\n\u{feff}", "line 2 is neither"),
            ("\u{feff}\n \n", "is empty"),
            ("{\"text\":\"a\"}\n{", "line 2 is not a document in JSON"),
            ("{}", "line 1 has none of"),
            ("\n7", "line 2 is neither"),
            ("{\"text\":1}", "expected a string"),
            ("{\"text\":\"a\",\"text\":\"b\"}", "duplicate field"),
            ("{\"text\":\"a\"} {\"text\":\"b\"}", "trailing characters"),
            ("{\"messages\":[]}", "messages is no list of objects"),
            ("{\"messages\":{}}", "messages is no list of objects"),
            ("{\"messages\":[{\"role\":\"user\"},1]}", "messages[1] is no object with a role"),
            ("{\"messages\":[{\"role\":7}]}", "messages[0] is no object with a role"),
            ("{\"messages\":[{\"role\":\"user\"}],\"tools\":{}}", "tools is no list of objects"),
            ("{\"messages\":[{\"role\":\"user\"}],\"tools\":[1]}", "tools is no list of objects"),
            ("[-1]", "below 2^32"),
            ("[4294967296]", "below 2^32"),
            ("[1.0]", "below 2^32"),
            ("[[1]]", "below 2^32"),
            ("[1]\n\n{\"text\":\"a\"}", "line 3 mixes token ids"),
            ("{\"text\":\"a\"}\n[]", "line 2 mixes token ids"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(rule) && said.contains("f.jsonl"), "{text:?}: {said}");
        }
        let said = parse("a.txt", vec![b'a', b'\n', 0xff]).unwrap_err().to_string();
        assert!(said.contains("line 2 is not UTF-8, from byte 2"), "{said}");
        let said = parse("a.json", b"[1]".to_vec()).unwrap_err().to_string();
        assert!(said.contains(".jsonl"), "{said}");
    }

    #[test]
    fn what_a_line_hides_is_shown_escaped_or_bounded() {
        let said = read("{\"text\":\"a\u{1b}[2J\"}").unwrap_err();
        assert!(!said.contains('\u{1b}'), "{said}");
        let said = parse("\u{202e}.jsonl", b"{".to_vec()).unwrap_err().to_string();
        assert!(!said.contains('\u{202e}'), "{said}");
        let deep = format!("{{\"messages\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        assert!(read(&deep).unwrap_err().contains("recursion limit"));
        let long = format!("{{\"text\":\"{}\"}}", "a".repeat(MAX_LINE));
        assert!(read(&long).unwrap_err().contains("at most 16777216"));
    }

    #[test]
    fn texts_become_ids_with_one_begin_token() {
        let tokenizer = Tokenizer::from_bytes(TOKENIZER.as_bytes()).unwrap();
        let pair = |prompt: &str, completion: &str| Document::Pair {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        let documents = vec![
            Document::Text("one two".into()),
            Document::Text("<s>one".into()),
            pair("one", "two"),
            pair("one ", "two"),
            Document::Messages(Conversation::default()),
        ];
        let ids = tokenize(documents, Some(&tokenizer), &no_template, 6).unwrap();
        assert_eq!(ids, [vec![0, 3, 4], vec![0, 3], vec![0, 5], vec![0, 3, 4], vec![0, 3, 1]]);
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_refused() {
        let documents = || vec![Document::Tokens(vec![1]), Document::Tokens(vec![0, 5])];
        assert_eq!(tokenize(documents(), None, &no_template, 6).unwrap(), [vec![1], vec![0, 5]]);
        let said = tokenize(documents(), None, &no_template, 5).unwrap_err().to_string();
        assert!(said.contains("document 2") && said.contains("token 5"), "{said}");
        // A tokenizer may have more tokens than the embedding has rows.
        let tokenizer = Tokenizer::from_bytes(TOKENIZER.as_bytes()).unwrap();
        let text = vec![Document::Text("onetwo".into())];
        let said = tokenize(text, Some(&tokenizer), &no_template, 5).unwrap_err().to_string();
        assert!(said.contains("document 1") && said.contains("token 5"), "{said}");
    }

    #[test]
    fn text_without_a_tokenizer_or_a_template_is_refused() {
        for document in [Document::Text("a".into()), Document::Messages(Conversation::default())] {
            let said = tokenize(vec![document], None, &no_template, 5).unwrap_err();
            assert!(matches!(said, CalibrationError::NoTokenizer), "{said}");
        }
        let tokenizer = Tokenizer::from_bytes(TOKENIZER.as_bytes()).unwrap();
        let refuse = |_: &Conversation| Err(text::Error::Encode("no template".into()));
        let messages = vec![Document::Messages(Conversation::default())];
        let said = tokenize(messages, Some(&tokenizer), &refuse, 5).unwrap_err().to_string();
        assert!(said.contains("document 1") && said.contains("no template"), "{said}");
    }
}
