//! The small files beside weights: for containers that take in what they say.

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::json::Limits;
use serde_json::{Map, Value};

/// What the files of a folder say of tokens and conversations.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// The bytes of tokenizer.json, if there is one.
    pub tokenizer: Option<Vec<u8>>,
    /// What tokenizer_config.json says; nothing if there is none.
    pub tokenizer_config: Map<String, Value>,
    /// What generation_config.json says; nothing if there is none.
    pub generation: Map<String, Value>,
    /// The chat templates, by name; that of a model with one is called `default`.
    pub templates: Vec<(String, String)>,
}

impl Texts {
    /// How tokenizer_config.json spells a special token, such as `bos_token`.
    pub fn token(&self, name: &str) -> Option<&str> {
        let said = self.tokenizer_config.get(name)?;
        said.as_str().or_else(|| said.get("content")?.as_str())
    }
}

impl Checkpoint {
    /// What its small files say.
    ///
    /// # Errors
    /// If one of them is too large, or is not what its name says.
    pub fn texts(&self) -> Result<Texts, Error> {
        let tokenizer_config = self.tokenizer_config()?.unwrap_or_default();
        let mut templates = self.template_files()?;
        // Where there is a file, those in tokenizer_config.json are not read, as transformers has it.
        if templates.is_empty() {
            templates = templates_of(tokenizer_config.get("chat_template"));
        }
        Ok(Texts {
            tokenizer: self.tokenizer()?,
            generation: self.generation_config().cloned().unwrap_or_default(),
            tokenizer_config,
            templates,
        })
    }

    fn template_files(&self) -> Result<Vec<(String, String)>, Error> {
        const FILE: &str = "chat_template.jinja";
        let most = Limits::CONFIG.bytes_max;
        let default = self.side_file(FILE, most)?.map(|bytes| ("default".to_owned(), bytes));
        let others = self.additional_chat_templates(most)?;
        let broken = |name: &str| {
            Error::broken(self.folder(), format!("the chat template {name:?} is not UTF-8"))
        };
        let text = |(name, bytes): (String, Vec<u8>)| match String::from_utf8(bytes) {
            Ok(text) => Ok((name, text)),
            Err(_) => Err(broken(&name)),
        };
        default.into_iter().chain(others).map(text).collect()
    }
}

/// A template, or a list of named ones.
fn templates_of(said: Option<&Value>) -> Vec<(String, String)> {
    match said {
        Some(Value::String(template)) => vec![("default".into(), template.clone())],
        Some(Value::Array(list)) => {
            let named = |one: &Value| {
                let (name, template) = (one.get("name")?.as_str()?, one.get("template")?.as_str()?);
                Some((name.to_owned(), template.to_owned()))
            };
            list.iter().filter_map(named).collect()
        }
        _ => Vec::new(),
    }
}
