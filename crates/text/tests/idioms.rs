//! A table of what templates do, against what transformers' environment makes of it.

#![expect(clippy::unwrap_used, reason = "a test may fail by it, in its own functions too")]

#[path = "compare/verdict.rs"]
mod verdict;

use serde_json::Value;
use text::{ChatTemplate, Error, TemplateFiles};

fn rendered(table: &Value, source: &str) -> Result<String, Error> {
    let config = table["usual"].to_string();
    let files = TemplateFiles {
        tokenizer_config: Some(config.as_bytes()),
        chat_template: Some(source.as_bytes()),
        ..TemplateFiles::default()
    };
    let template = ChatTemplate::load(&files)?.unwrap();
    let mut template = template.with_now(table["now"].as_i64().unwrap());
    for (name, value) in table["variables"].as_object().unwrap() {
        template.set(name, Some(value.clone()));
    }
    template.render(&table["messages"], false)
}

#[test]
fn idioms_mean_what_they_do_in_transformers() {
    let table: Value = serde_json::from_str(include_str!("fixtures/chat/idioms.json")).unwrap();
    let cases = table["cases"].as_array().unwrap();
    assert!(cases.len() >= 300, "{}", cases.len());
    let mut differ = Vec::new();
    for case in cases {
        let source = case["template"].as_str().unwrap();
        let made = rendered(&table, source);
        if !verdict::same(&made, case) {
            differ.push(format!("{source}\n  made {made:?}\n  want {case}"));
        }
    }
    assert!(differ.is_empty(), "{} of {}:\n{}", differ.len(), cases.len(), differ.join("\n"));
}
