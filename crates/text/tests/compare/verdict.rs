//! Whether a rendering is what transformers made of it.

use serde_json::Value;
use text::Error;

/// The text; or that the template refuses, in its words; or that it fails.
pub(crate) fn same(made: &Result<String, Error>, case: &Value) -> bool {
    match (made, case["text"].as_str(), case["refused"].as_str()) {
        (Ok(text), Some(expected), _) => text == expected,
        (Err(Error::TemplateRefused(said)), _, Some(expected)) => said == expected,
        (Err(Error::Template { .. }), None, None) => true,
        _ => false,
    }
}
