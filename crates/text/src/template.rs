//! A conversation as the model's own chat template writes it.
//!
//! A template is a program that the checkpoint brings. It runs in an interpreter without files,
//! loader or clock, on a budget of steps and bytes, and its errors name the line. What it sees and
//! what its constructs mean are as in transformers (`render_jinja_template`), whose output is
//! reproduced byte for byte on the templates of the tests: blocks trimmed, Python's string and
//! list methods, `tojson` as `json.dumps`, `raise_exception`, `strftime_now`, loop controls, and
//! `{% generation %}` blocks, which change nothing in the text.

use crate::added::{object, settings};
use crate::error::{Error, message, quoted};
use crate::{guarded, moment, pyjson, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind, Output, State, escape_formatter};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// The largest template in use has some 20 KB.
const MAX_TEMPLATE: usize = 1 << 18;
/// Bytes of one rendered conversation.
const MAX_OUTPUT: usize = 64 << 20;
/// Steps of a render; one also pays for 64 bytes of data that the template makes.
const FUEL: usize = 200_000;
/// Bytes of the conversation that add one step to the budget.
const BYTES_A_STEP: usize = 4;
/// What the budget never exceeds: conversations of some megabytes, more than any context holds.
const MAX_FUEL: usize = 1_500_000;
/// A template can nest a value once for each step, and the interpreter frees, prints and compares
/// values recursively, as it parses signs. The stack is as deep as the budget allows; pages not touched cost nothing.
const STACK: usize = 1 << 30;
/// What the budget does not see is comparing and joining values that share their parts. Honest
/// templates take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// The name under which the interpreter knows the template. Its ending must not ask for escapes.
const NAME: &str = "chat_template";
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
    environment: Environment<'static>,
    /// The one for conversations with tools, where there are two.
    tool_use: Option<Environment<'static>>,
    tokens: Map<String, Value>,
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
        let loaded = |source: String| in_time(move || guarded_template(|| environment(&source)));
        let tool_use = sources.0.remove("tool_use").map(loaded).transpose()?;
        let environment = loaded(default)?;
        Ok(Some(Self { environment, tool_use, tokens }.with_now(DEFAULT_NOW)))
    }

    /// Sets what `strftime_now` takes for the present, in seconds since 1970, UTC.
    ///
    /// It is a fixed day in July 2024 otherwise, so that what is rendered today is rendered
    /// tomorrow.
    #[must_use]
    pub fn with_now(mut self, seconds: i64) -> Self {
        let both = [Some(&mut self.environment), self.tool_use.as_mut()];
        for environment in both.into_iter().flatten() {
            environment.add_function("strftime_now", move |format: &str| {
                moment::strftime(seconds, format)
                    .map_err(|rule| minijinja::Error::new(ErrorKind::InvalidOperation, rule))
            });
        }
        self
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
        let fuel = FUEL
            .saturating_add((size(messages) + tools.map_or(0, size)) / BYTES_A_STEP)
            .min(MAX_FUEL) as u64;
        let environment = self.tool_use.as_ref().filter(|_| tools.is_some());
        let mut environment = environment.unwrap_or(&self.environment).clone();
        environment.set_fuel(Some(fuel));
        in_time(move || guarded_template(|| rendered(&environment, &context)))
    }
}

fn rendered(
    environment: &Environment<'_>,
    context: &Map<String, Value>,
) -> Result<String, minijinja::Error> {
    let template = environment.get_template(NAME)?;
    let mut out = Bounded(Vec::new());
    template.render_captured_to(Serde(context), &mut out)?;
    // Every piece was written as a string.
    String::from_utf8(out.0)
        .map_err(|e| minijinja::Error::new(ErrorKind::WriteFailure, e.to_string()))
}

/// The `string` filter, bounded: a small value can share its parts and be large when printed.
fn string(value: Jinja) -> Result<Jinja, minijinja::Error> {
    if value.as_str().is_some() {
        return Ok(value);
    }
    let mut out = Bounded(Vec::new());
    let printed = write!(out, "{value}").map(|()| String::from_utf8_lossy(&out.0).into_owned());
    printed.map(Jinja::from).map_err(|_| {
        let rule = format!("string: the value is longer than {MAX_OUTPUT} bytes");
        minijinja::Error::new(ErrorKind::InvalidOperation, rule)
    })
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

fn environment(source: &str) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python_words);
    environment.add_filter("tojson", pyjson::tojson);
    environment.add_filter("string", string);
    environment.add_filter("percent_format", python::percent_format);
    // Indenting a deep value takes the square of its depth, which no budget counts.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment.add_function("raise_exception", |text: &str| -> Result<Jinja, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{text}")))
    });
    environment.add_template_owned(NAME, without_generation(&python::rewritten(source)))?;
    Ok(environment)
}

/// Prints what Python spells otherwise.
fn python_words(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Jinja,
) -> Result<(), minijinja::Error> {
    match python::printed(value) {
        Some(word) => escape_formatter(out, state, &Jinja::from(word)),
        None => escape_formatter(out, state, value),
    }
}

/// Marks a message of `raise_exception` on its way through the interpreter.
const RAISED: &str = "raise_exception: ";

/// Makes `{% generation %}` blocks, which mark the model's own words for training, into blocks
/// that do nothing; the signs that trim white space around them stay.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        let signs: &[char] = &['-', '+'];
        match inner.trim_matches(signs).trim() {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Output that ends with an error rather than with the machine's memory.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_OUTPUT - self.0.len() {
            return Err(io::Error::other(format!("the text exceeds {MAX_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `work`, and frees what it made, on a stack of [`STACK`] bytes; gives up after [`PATIENCE`].
fn in_time<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let failed = |rule: String| Error::Template { line: None, rule };
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().stack_size(STACK).spawn(move || {
        // Nobody listens any more if the time was up.
        let _ = sender.send(work());
    });
    thread.map_err(|e| failed(format!("no stack of {STACK} bytes: {e}")))?;
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|why| match why {
        RecvTimeoutError::Timeout => Err(Error::TemplateBudget { line: None }),
        RecvTimeoutError::Disconnected => Err(failed("the interpreter panicked".into())),
    })
}

fn guarded_template<T>(work: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T, Error> {
    let result = guarded("running the chat template", work)?;
    result.map_err(|error| {
        // The innermost cause says most; a caller in between only says that it failed.
        let mut detail = error.detail().map(str::to_string);
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            detail = Some(match inner.downcast_ref::<minijinja::Error>() {
                Some(inner) => inner.detail().map_or(inner.to_string(), str::to_string),
                None => inner.to_string(),
            });
            cause = inner.source();
        }
        let line = error.line();
        if error.kind() == ErrorKind::OutOfFuel {
            return Error::TemplateBudget { line };
        }
        let detail = detail.unwrap_or_else(|| error.kind().to_string());
        match detail.strip_prefix(RAISED) {
            Some(text) => Error::TemplateRefused(quoted_long(text)),
            None => Error::Template { line, rule: message(&detail) },
        }
    })
}

/// What a template says when it refuses a conversation.
fn quoted_long(text: &str) -> String {
    let shown = message(&text);
    if shown.is_empty() { quoted(text) } else { shown }
}
