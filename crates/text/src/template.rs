//! A conversation as the model's own chat template writes it.
//!
//! A template is a program that the checkpoint brings. It runs in an interpreter of our own (`jinja`)
//! without files, loader or clock, on a budget of steps and bytes, and its errors name the line. What it
//! sees and what its constructs mean are as in transformers (`apply_chat_template`), whose output is
//! reproduced byte for byte on the templates of the tests and on a table of idioms.

use crate::added::{object, settings};
use crate::error::{Error, message, quoted};
use crate::guarded;
use crate::jinja::{self, Failure, Limits, Template};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::thread;

/// The largest template in use has some 20 KB.
const MAX_TEMPLATE: usize = 1 << 18;
/// Bytes of one rendered conversation.
const MAX_OUTPUT: usize = 64 << 20;
/// Steps of a render; one also pays for 64 bytes of data that the template makes.
const STEPS: usize = 400_000;
/// Bytes of the conversation that add one step to the budget.
const BYTES_A_STEP: usize = 2;
/// What the budget never exceeds: conversations of some megabytes, more than any context holds.
const MAX_STEPS: usize = 6_000_000;
/// What code and values may nest takes a part of this. Pages not touched cost nothing.
const STACK: usize = 256 << 20;
/// 26 July 2024: the date that templates without a clock of their own have in them most often.
const DEFAULT_NOW: i64 = 1_721_952_000;

/// The files of a checkpoint that say how a conversation is written, as far as it has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateFiles<'a> {
    /// tokenizer_config.json: the special tokens, and often the template.
    pub tokenizer_config: Option<&'a [u8]>,
    /// special_tokens_map.json: special tokens that the former does not name.
    pub special_tokens_map: Option<&'a [u8]>,
    /// chat_template.jinja: the template; goes before one in tokenizer_config.json.
    pub chat_template: Option<&'a [u8]>,
    /// The files of additional_chat_templates/, by name without `.jinja`. With one of these, or the
    /// former, templates in tokenizer_config.json are not read.
    pub additional: &'a [(String, Vec<u8>)],
}

/// The loaded chat templates of a checkpoint, and the special tokens they may name.
pub struct ChatTemplate {
    default: Template,
    /// The one for conversations with tools, where there are two.
    tool_use: Option<Template>,
    /// The special tokens, and variables that were set.
    tokens: Map<String, Value>,
    now: i64,
}

impl ChatTemplate {
    /// How the tokenizer spells the token that ends a turn, if it says.
    pub fn eos(&self) -> Option<&str> {
        self.tokens.get("eos_token").and_then(Value::as_str)
    }

    /// Loads the template of a checkpoint; `None` if it has none.
    ///
    /// Of several named templates the one called `default` is taken, and the one called `tool_use`
    /// where there are tools.
    pub fn load(files: &TemplateFiles<'_>) -> Result<Option<Self>, Error> {
        let config = object("tokenizer_config.json", files.tokenizer_config)?;
        let map = object("special_tokens_map.json", files.special_tokens_map)?;
        let mut sources = Sources::of_files(files)?;
        if sources.is_empty() {
            sources = Sources::of_config(config.get("chat_template"))?;
        }
        if sources.is_empty() {
            return Ok(None);
        }
        let Some(default) = sources.0.remove("default") else {
            let names: Vec<_> = sources.0.keys().map(|name| quoted(name)).collect();
            let rule = format!("there are {}, and none named default", names.join(", "));
            return Err(Error::TemplateFile { file: "chat templates", rule });
        };
        let tokens = special_tokens(&settings(config, map));
        let loaded =
            |source: String| deep("reading the chat template", || Template::parse(&source));
        let tool_use = sources.0.remove("tool_use").map(loaded).transpose()?;
        let default = loaded(default)?;
        Ok(Some(Self { default, tool_use, tokens, now: DEFAULT_NOW }))
    }

    /// Sets what `strftime_now` takes for the present, in seconds since 1970, UTC.
    ///
    /// It is a fixed day in July 2024 otherwise, so that what is rendered today is rendered
    /// tomorrow.
    #[must_use]
    pub fn with_now(mut self, seconds: i64) -> Self {
        self.now = seconds;
        self
    }

    /// Sets a variable that the template finds beside the usual ones, such as `enable_thinking`;
    /// `None` takes it back. In transformers it is a further argument of `apply_chat_template`.
    pub fn set(&mut self, name: &str, value: Option<Value>) {
        match value {
            Some(value) => self.tokens.insert(name.to_string(), value),
            None => self.tokens.shift_remove(name),
        };
    }

    /// The text of a conversation: a list of messages, objects with a `role` and a `content`.
    ///
    /// Special tokens are in it as the template spells them, the begin token included: encode it
    /// without adding any. With `add_generation_prompt` it ends where the answer begins.
    pub fn render(&self, messages: &Value, add_generation_prompt: bool) -> Result<String, Error> {
        self.render_with(messages, None, add_generation_prompt)
    }

    /// [`ChatTemplate::render`] of a conversation whose model may call `tools`: a list of objects,
    /// each the JSON schema of one. An empty list is not the same as `None`.
    pub fn render_with(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let list = messages.as_array().filter(|l| !l.is_empty() && l.iter().all(Value::is_object));
        let list = list.ok_or(Error::Messages)?;
        let mut context = self.tokens.clone();
        context.insert(
            "messages".into(),
            list.iter().map(|m| with_reasoning(&without_nulls(m))).collect(),
        );
        // Templates ask whether these are none, not only whether they are defined.
        context.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let given = size(messages) + tools.map_or(0, size);
        let steps = STEPS.saturating_add(given / BYTES_A_STEP).min(MAX_STEPS);
        let limits = Limits { steps, bytes: MAX_OUTPUT };
        let template = self.tool_use.as_ref().filter(|_| tools.is_some()).unwrap_or(&self.default);
        deep("running the chat template", || template.render(&context, self.now, limits))
    }
}

/// Templates by name.
#[derive(Default)]
struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Those that are files of their own.
    fn of_files(files: &TemplateFiles<'_>) -> Result<Self, Error> {
        let mut all = Self::default();
        if let Some(bytes) = files.chat_template {
            all.add("default", decoded("chat_template.jinja", bytes)?)?;
        }
        for (name, bytes) in files.additional {
            all.add(name, decoded("additional_chat_templates", bytes)?)?;
        }
        Ok(all)
    }

    /// What tokenizer_config.json says: a template, or a list of named ones.
    fn of_config(value: Option<&Value>) -> Result<Self, Error> {
        let broken = |rule: &str| Error::TemplateFile {
            file: "tokenizer_config.json",
            rule: rule.to_string(),
        };
        let mut all = Self::default();
        match value {
            None | Some(Value::Null) => {}
            Some(Value::String(source)) => all.add("default", source.clone())?,
            Some(Value::Array(list)) => {
                for template in list {
                    let (name, source) = (template["name"].as_str(), template["template"].as_str());
                    let named = name.zip(source).ok_or_else(|| {
                        broken("chat_template is a list, but not of objects with a name and a template")
                    });
                    let (name, source) = named?;
                    all.add(name, source.to_string())?;
                }
            }
            Some(_) => return Err(broken("chat_template is neither a string nor a list")),
        }
        Ok(all)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, name: &str, source: String) -> Result<(), Error> {
        if source.len() > MAX_TEMPLATE {
            return Err(Error::TemplateFile {
                file: "the chat template",
                rule: format!("has {} bytes; at most {MAX_TEMPLATE} are read", source.len()),
            });
        }
        self.0.insert(name.to_string(), source);
        Ok(())
    }
}

fn decoded(file: &'static str, bytes: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(bytes).map(str::to_string);
    text.map_err(|e| Error::TemplateFile {
        file,
        rule: format!("is not UTF-8, from byte {}", e.valid_up_to()),
    })
}

/// What is called `..._token` and is one: a string, or an object with its content.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let token = |value: &Value| match value {
        Value::String(_) => Some(value.clone()),
        Value::Object(added) => added.get("content").filter(|c| c.is_string()).cloned(),
        _ => None,
    };
    let named = config.iter().filter(|(key, _)| key.ends_with("_token"));
    named.filter_map(|(key, value)| Some((key.clone(), token(value)?))).collect()
}

/// A message without the keys that say nothing: interfaces write `"content": null` where templates
/// look for the key.
fn without_nulls(message: &Value) -> Value {
    let Some(fields) = message.as_object() else { return message.clone() };
    let said = fields.iter().filter(|(_, value)| !value.is_null());
    Value::Object(said.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Reasoning goes by three names; templates read the first or the second.
fn with_reasoning(message: &Value) -> Value {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let found = NAMES.iter().filter_map(|name| message.get(name)).find(|value| !value.is_null());
    let (Some(reasoning), Some(fields)) = (found, message.as_object()) else {
        return message.clone();
    };
    let mut aliased = Map::new();
    aliased.insert("thinking".into(), reasoning.clone());
    aliased.extend(fields.clone());
    aliased.insert("reasoning_content".into(), reasoning.clone());
    Value::Object(aliased)
}

/// Bytes of the strings of a value, and a few for each value. The depth is bounded by the parser
/// that made it.
fn size(value: &Value) -> usize {
    const EACH: usize = 16;
    EACH + match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 0,
    }
}

/// Runs `work` on a stack of [`STACK`] bytes.
fn deep<T: Send>(
    doing: &'static str,
    work: impl FnOnce() -> jinja::Result<T> + Send,
) -> Result<T, Error> {
    let failed = |rule: String| Error::Template { line: None, rule };
    thread::scope(|scope| {
        let run = || guarded(doing, work);
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run);
        let thread = thread.map_err(|e| failed(format!("no stack of {STACK} bytes: {e}")))?;
        let done = thread.join().map_err(|_| failed("the interpreter panicked".into()))?;
        done?.map_err(|error| {
            let line = error.line;
            match error.kind {
                Failure::Budget => Error::TemplateBudget { line },
                Failure::Refused(text) => Error::TemplateRefused(quoted_long(&text)),
                Failure::Failed(rule) => Error::Template { line, rule: message(&rule) },
            }
        })
    })
}

/// What a template says when it refuses a conversation.
fn quoted_long(text: &str) -> String {
    let shown = message(&text);
    if shown.is_empty() { quoted(text) } else { shown }
}
