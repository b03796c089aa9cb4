//! Renders what make_chat_goldens.py has rendered by transformers.

mod verdict;

use serde_json::Value;
use std::fs;
use std::path::Path;
use text::{ChatTemplate, TemplateFiles};

/// The cases of a goldens.json whose templates are in `templates`: how many, and which differ.
///
/// # Panics
/// If a file cannot be read.
pub(crate) fn goldens(goldens: &Path, templates: &Path) -> (usize, Vec<String>) {
    let goldens: Value = serde_json::from_slice(&fs::read(goldens).unwrap()).unwrap();
    let config = goldens["tokens"].to_string();
    let cases = goldens["cases"].as_array().unwrap();
    let mut differ = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = fs::read(templates.join(name)).unwrap();
        let files = TemplateFiles {
            tokenizer_config: Some(config.as_bytes()),
            chat_template: Some(&source),
            ..TemplateFiles::default()
        };
        let template = ChatTemplate::load(&files).unwrap().unwrap();
        let template = template.with_now(goldens["now"].as_i64().unwrap());
        let conversation = case["conversation"].as_str().unwrap();
        let prompt = case["prompt"].as_bool().unwrap();
        let tools = (case["tools"] == true).then_some(&goldens["tools"]);
        let made = template.render_with(&goldens["conversations"][conversation], tools, prompt);
        if !verdict::same(&made, case) {
            let expected = [&case["text"], &case["refused"], &case["failed"]];
            differ.push(format!(
                "{name} {conversation} {prompt} {}:\n{made:?}\n{expected:?}",
                case["tools"]
            ));
        }
    }
    (cases.len(), differ)
}
