//! The templates of transformers: jinja2 over Python's values, as its sandbox runs them.
//!
//! A chat template is a program in which a checkpoint's author trusts Python: tuples, `%` and
//! `str.format`, methods of `str`, `repr`, generators. What is here does what jinja2 3.1.6 does in the
//! environment of transformers 5 (`trim_blocks`, `lstrip_blocks`, loop controls, `generation` blocks,
//! an immutable sandbox), or says that it does not. It opens nothing and asks no clock.
//!
//! Templates are hostile. Each step, and each byte before it is allocated, is charged to a budget
//! ([`heap::Heap`]); how deep code and values nest is bounded, so that a stack of a known size does.

mod ast;
mod call;
mod expr;
mod filters;
mod format;
mod heap;
mod interpreter;
mod is;
mod lexer;
mod methods;
mod objects;
mod ops;
mod parser;
mod pretty;
mod pyjson;
mod strings;
mod textual;
mod value;
mod wrap;

use serde_json::Map;

/// Why a template could not be read, or a conversation not be rendered.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    /// Where, from 1.
    pub(crate) line: Option<usize>,
    pub(crate) kind: Failure,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// What Python would raise.
    Failed(String),
    /// What the template says by `raise_exception`.
    Refused(String),
    /// The budget is spent.
    Budget,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn failed(rule: impl Into<String>) -> Self {
        Self { line: None, kind: Failure::Failed(rule.into()) }
    }

    fn budget() -> Self {
        Self { line: None, kind: Failure::Budget }
    }

    /// At this line, unless it is known better.
    fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

/// A template that has been read.
#[derive(Debug)]
pub(crate) struct Template {
    body: ast::Body,
}

/// What a render may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Steps; one also pays for 64 bytes that are made.
    pub(crate) steps: usize,
    /// Bytes of the text.
    pub(crate) bytes: usize,
}

impl Template {
    pub(crate) fn parse(source: &str) -> Result<Self> {
        Ok(Self { body: parser::parse(source)? })
    }

    /// The text for these variables; `now` is what `strftime_now` takes for the present.
    pub(crate) fn render(
        &self,
        variables: &Map<String, serde_json::Value>,
        now: i64,
        limits: Limits,
    ) -> Result<String> {
        interpreter::render(&self.body, variables, now, limits)
    }
}
