//! Tasks scored by log-likelihood, with the conventions of lm-evaluation-harness 0.4.13.
//!
//! Two forms, one JSON object a line:
//! * multiple choice (ARC): `{"query": "...", "choices": ["...", ...], "gold": 0}`. The context is
//!   the query and `"\nAnswer:"`, as in the harness's `arc_easy.yaml` (`"Question:
//!   {{question}}\nAnswer:"`): files in use hold `"Question: ..."` without the last line. A query
//!   that ends in `Answer:` is taken as it is. Each choice follows after one space.
//! * last word (LAMBADA): `{"context": "...", "continuation": "..."}`, the word after one space.
//!
//! `acc` takes the choice with the highest log-probability, the first of equals; `acc_norm`
//! divides by the choice's length in characters (Unicode code points, without the space: the
//! harness's bytes form is another metric there, `acc_bytes`). For the last word `acc` is the
//! share that greedy decoding would have found, and `perplexity` is that of whole words:
//! `exp(-mean log-probability)`. Standard errors are the sample deviation over the root of n;
//! that of the perplexity is the logarithm's, times the perplexity (the harness draws samples again
//! instead, which comes near).
//!
//! Context and continuation are tokenized together and cut at the length of the context's own
//! ids; white space at the context's end goes to the continuation first. An empty context is the
//! begin token. (The harness takes the end token where a tokenizer has no begin token; that is
//! refused here.)

use serde::{Deserialize, Serialize};
use std::fmt;
use text::Tokenizer;

/// Bytes of one line.
const MAX_LINE: usize = 1 << 20;
const MAX_CHOICES: usize = 256;

/// A parsed task: items of one form, one at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Pick the right one of several continuations.
    Choice(Vec<ChoiceItem>),
    /// Complete a text by one given word.
    LastWord(Vec<LastWordItem>),
}

/// A question with its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceItem {
    /// The question, before the answer's cue is added.
    pub query: String,
    /// The answers, two at least, none empty.
    pub choices: Vec<String>,
    /// Which of them is right.
    pub gold: usize,
}

/// A text and the word that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastWordItem {
    /// The text. Empty, or not of white space alone.
    pub context: String,
    /// The word, not empty.
    pub continuation: String,
}

/// One question to a model: how likely is this continuation after this context?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The item, from 0.
    pub item: usize,
    /// The choice within the item; 0 for a last word.
    pub choice: usize,
    /// The ids before; one at least.
    pub context: Vec<u32>,
    /// The ids to be scored; one at least.
    pub continuation: Vec<u32>,
}

/// What a model says to a [`Request`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// The sum of the continuation's log-probabilities, natural logarithm.
    pub logprob: f64,
    /// Each of the continuation's tokens was the likeliest.
    pub greedy: bool,
}

/// Whether an item was answered right, by each metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// By log-probability; of a last word, by greedy decoding.
    pub acc: bool,
    /// By log-probability a character; of a choice alone.
    pub acc_norm: Option<bool>,
}

/// What a task says about a model. A standard error needs two items.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Score {
    /// Of a multiple choice.
    Choice {
        /// Questions.
        items: usize,
        /// Share of right answers by log-probability.
        acc: f64,
        /// Its standard error.
        acc_stderr: Option<f64>,
        /// Share of right answers by log-probability a character.
        acc_norm: f64,
        /// Its standard error.
        acc_norm_stderr: Option<f64>,
    },
    /// Of last words.
    LastWord {
        /// Texts.
        items: usize,
        /// Share of words that greedy decoding finds.
        acc: f64,
        /// Its standard error.
        acc_stderr: Option<f64>,
        /// Of the words: `exp(-mean log-probability)`.
        perplexity: f64,
        /// Its standard error, to the first order.
        perplexity_stderr: Option<f64>,
    },
}

/// Why a task cannot be read or scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The file holds no item.
    #[error(
        "the task has no line; each must hold an object with query, choices and gold, or \
             with context and continuation"
    )]
    Empty,
    /// A line breaks a rule.
    #[error("line {line} of the task: {rule}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        rule: String,
    },
    /// A text cannot be tokenized.
    #[error("item {item}, choice {choice} of the task: {source}")]
    Text {
        /// Counted from 0.
        item: usize,
        /// Counted from 0.
        choice: usize,
        /// What the tokenizer says.
        source: text::Error,
    },
    /// An empty context, and nothing to stand for it.
    #[error("item {item} of the task has an empty context, and the tokenizer adds no begin token")]
    NoContext {
        /// Counted from 0.
        item: usize,
    },
    /// A continuation that gives no ids of its own.
    #[error("item {item}, choice {choice} of the task: the continuation adds no token")]
    NoContinuation {
        /// Counted from 0.
        item: usize,
        /// Counted from 0.
        choice: usize,
    },
    /// A continuation that no window can hold.
    #[error(
        "item {item}, choice {choice} of the task: the continuation has {tokens} tokens, and \
             the model's context has {limit}"
    )]
    Long {
        /// Counted from 0.
        item: usize,
        /// Counted from 0.
        choice: usize,
        /// Tokens of the continuation.
        tokens: usize,
        /// Tokens of the model's context.
        limit: usize,
    },
    /// Not one answer a request.
    #[error("the task has {requests} requests and {answers} answers")]
    Answers {
        /// Requests of the task.
        requests: usize,
        /// Answers given.
        answers: usize,
    },
    /// A log-probability that is none.
    #[error("the answer to request {request} has a log-probability of {logprob}")]
    Logprob {
        /// Counted from 0.
        request: usize,
        /// What was given.
        logprob: f64,
    },
}

/// Reads a task, one JSON object a line; empty lines are skipped. The first line's keys decide
/// the form of all.
pub fn parse(text: &str) -> Result<Task, TaskError> {
    let mut task = None;
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let item = item(line).map_err(|rule| TaskError::Line { line: i + 1, rule })?;
        match (&mut task, item) {
            (None, Item::Choice(item)) => task = Some(Task::Choice(vec![item])),
            (None, Item::LastWord(item)) => task = Some(Task::LastWord(vec![item])),
            (Some(Task::Choice(items)), Item::Choice(item)) => items.push(item),
            (Some(Task::LastWord(items)), Item::LastWord(item)) => items.push(item),
            _ => {
                let rule = "the item has another form than the ones before".into();
                return Err(TaskError::Line { line: i + 1, rule });
            }
        }
    }
    task.ok_or(TaskError::Empty)
}

impl Task {
    /// What is to be asked of a model, in the order in which [`Task::score`] takes the answers.
    pub fn requests(&self, tokenizer: &Tokenizer) -> Result<Vec<Request>, TaskError> {
        let mut requests = Vec::new();
        match self {
            Self::Choice(items) => {
                for (i, item) in items.iter().enumerate() {
                    let cue = if item.query.ends_with("Answer:") { "" } else { "\nAnswer:" };
                    let context = format!("{}{cue}", item.query);
                    for (c, choice) in item.choices.iter().enumerate() {
                        requests.push(request(tokenizer, i, c, &context, choice)?);
                    }
                }
            }
            Self::LastWord(items) => {
                for (i, item) in items.iter().enumerate() {
                    requests.push(request(tokenizer, i, 0, &item.context, &item.continuation)?);
                }
            }
        }
        Ok(requests)
    }

    /// Of each item, whether it was answered right: by log-probability, and by log-probability a
    /// character; of last words by greedy decoding alone.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn right(&self, answers: &[Answer]) -> Result<Vec<Right>, TaskError> {
        self.check(answers)?;
        Ok(match self {
            Self::Choice(items) => right(items, answers),
            Self::LastWord(_) => {
                answers.iter().map(|a| Right { acc: a.greedy, acc_norm: None }).collect()
            }
        })
    }

    /// The metrics, from one answer a request.
    pub fn score(&self, answers: &[Answer]) -> Result<Score, TaskError> {
        self.check(answers)?;
        Ok(match self {
            Self::Choice(items) => choices(items, answers),
            Self::LastWord(_) => last_words(answers),
        })
    }

    /// Refuses anything but one answer a request, each with a log-probability.
    fn check(&self, answers: &[Answer]) -> Result<(), TaskError> {
        let requests = match self {
            Self::Choice(items) => items.iter().map(|item| item.choices.len()).sum(),
            Self::LastWord(items) => items.len(),
        };
        if requests == 0 {
            return Err(TaskError::Empty);
        }
        if requests != answers.len() {
            return Err(TaskError::Answers { requests, answers: answers.len() });
        }
        // A sum of log-probabilities of minus infinity is possible; anything above is not one.
        let wrong = |a: &Answer| a.logprob.is_nan() || a.logprob == f64::INFINITY;
        if let Some(request) = answers.iter().position(wrong) {
            return Err(TaskError::Logprob { request, logprob: answers[request].logprob });
        }
        Ok(())
    }
}

impl Request {
    /// Drops tokens from the left of the context until the model's context (`limit` tokens) holds
    /// all but the last one, which is only predicted. Says how many were dropped.
    pub fn clip(&mut self, limit: usize) -> Result<usize, TaskError> {
        let tokens = self.continuation.len();
        if tokens > limit {
            return Err(TaskError::Long { item: self.item, choice: self.choice, tokens, limit });
        }
        // limit + 1 - tokens >= 1: at least one token of context stays.
        let room = (limit - tokens).saturating_add(1);
        let dropped = self.context.len().saturating_sub(room);
        self.context.drain(..dropped);
        Ok(dropped)
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = |e: &Option<f64>| e.map_or(String::new(), |e| format!(" +- {e:.4}"));
        match self {
            Self::Choice { items, acc, acc_stderr, acc_norm, acc_norm_stderr } => {
                write!(f, "acc {acc:.4}{}, ", error(acc_stderr))?;
                write!(f, "acc_norm {acc_norm:.4}{} ({items} items)", error(acc_norm_stderr))
            }
            Self::LastWord { items, acc, acc_stderr, perplexity, perplexity_stderr } => {
                write!(f, "acc {acc:.4}{}, ", error(acc_stderr))?;
                write!(f, "perplexity {perplexity:.4}{} ({items} items)", error(perplexity_stderr))
            }
        }
    }
}

enum Item {
    Choice(ChoiceItem),
    LastWord(LastWordItem),
}

/// A line as it stands; other keys are ignored, a key given twice is refused.
#[derive(Deserialize)]
struct Line {
    query: Option<String>,
    choices: Option<Vec<String>>,
    gold: Option<usize>,
    context: Option<String>,
    continuation: Option<String>,
}

fn item(line: &str) -> Result<Item, String> {
    if line.len() > MAX_LINE {
        return Err(format!("has {} bytes; at most {MAX_LINE} are allowed", line.len()));
    }
    // The library's message may repeat bytes of the line: `{:?}` escapes them.
    let line: Line = serde_json::from_str(line)
        .map_err(|e| format!("is no item: {}", e.to_string().escape_debug()))?;
    match (line.query, line.choices, line.gold, line.context, line.continuation) {
        (Some(query), Some(choices), Some(gold), None, None) => choice_item(query, choices, gold),
        (None, None, None, Some(context), Some(continuation)) => {
            if continuation.trim().is_empty() {
                return Err("continuation is empty".into());
            }
            if !context.is_empty() && trimmed(&context).is_empty() {
                return Err("context is white space alone".into());
            }
            Ok(Item::LastWord(LastWordItem { context, continuation }))
        }
        _ => Err("has neither query, choices and gold nor context and continuation".into()),
    }
}

fn choice_item(query: String, choices: Vec<String>, gold: usize) -> Result<Item, String> {
    if !(2..=MAX_CHOICES).contains(&choices.len()) {
        return Err(format!("has {} choices; 2 to {MAX_CHOICES} are allowed", choices.len()));
    }
    if let Some(empty) = choices.iter().position(|c| c.trim().is_empty()) {
        return Err(format!("choice {empty} is empty"));
    }
    if gold >= choices.len() {
        return Err(format!("gold is {gold}, but there are {} choices from 0", choices.len()));
    }
    Ok(Item::Choice(ChoiceItem { query, choices, gold }))
}

/// The harness's `loglikelihood` and `_encode_pair` for one pair.
fn request(
    tokenizer: &Tokenizer,
    item: usize,
    choice: usize,
    context: &str,
    continuation: &str,
) -> Result<Request, TaskError> {
    let failed = |source| TaskError::Text { item, choice, source };
    let (context, continuation) = if context.is_empty() {
        let bos = tokenizer.bos().ok_or(TaskError::NoContext { item })?;
        let mut ids = tokenizer.encode_plain(&format!(" {continuation}")).map_err(failed)?;
        if ids.first() == Some(&bos) {
            ids.remove(0);
        }
        (vec![bos], ids)
    } else {
        let head = trimmed(context);
        let whole = format!("{context} {continuation}");
        let ids = |text| encode(tokenizer, text).map_err(failed);
        let (head, mut whole) = (ids(head)?, ids(&whole)?);
        let tail = whole.split_off(head.len().min(whole.len()));
        (head, tail)
    };
    if context.is_empty() {
        return Err(TaskError::NoContext { item });
    }
    if continuation.is_empty() {
        return Err(TaskError::NoContinuation { item, choice });
    }
    Ok(Request { item, choice, context, continuation })
}

/// With special tokens, but no second begin token before a text that is spelt with one.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, text::Error> {
    let ids = tokenizer.encode(text)?;
    match tokenizer.bos() {
        Some(bos) if ids.get(1) == Some(&bos) => tokenizer.encode_plain(text),
        _ => Ok(ids),
    }
}

/// Without what Python's `rstrip` takes off the end: four separators more than Unicode's.
fn trimmed(text: &str) -> &str {
    text.trim_end_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

fn right(items: &[ChoiceItem], mut answers: &[Answer]) -> Vec<Right> {
    let right = |item: &ChoiceItem| {
        let (own, rest) = answers.split_at(item.choices.len());
        answers = rest;
        let norm = own.iter().zip(&item.choices);
        let norm = norm.map(|(a, choice)| a.logprob / choice.chars().count() as f64);
        Right {
            acc: first_highest(own.iter().map(|a| a.logprob)) == Some(item.gold),
            acc_norm: Some(first_highest(norm) == Some(item.gold)),
        }
    };
    items.iter().map(right).collect()
}

fn choices(items: &[ChoiceItem], answers: &[Answer]) -> Score {
    let right = right(items, answers);
    let count = |of: fn(&Right) -> bool| right.iter().filter(|right| of(right)).count();
    let items = items.len();
    let (acc, acc_stderr) = share(count(|right| right.acc), items);
    let (acc_norm, acc_norm_stderr) = share(count(|right| right.acc_norm == Some(true)), items);
    Score::Choice { items, acc, acc_stderr, acc_norm, acc_norm_stderr }
}

fn last_words(answers: &[Answer]) -> Score {
    let items = answers.len();
    let (acc, acc_stderr) = share(answers.iter().filter(|a| a.greedy).count(), items);
    let n = items as f64;
    let mean = answers.iter().map(|a| a.logprob).sum::<f64>() / n;
    let perplexity = libm::exp(-mean);
    let squares: f64 = answers.iter().map(|a| (a.logprob - mean) * (a.logprob - mean)).sum();
    let perplexity_stderr = (items > 1).then(|| (squares / (n - 1.0) / n).sqrt() * perplexity);
    Score::LastWord { items, acc, acc_stderr, perplexity, perplexity_stderr }
}

fn first_highest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, value) in values.enumerate() {
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}

/// The mean of `hits` ones among `n` values of 0 and 1, and its standard error: the deviation
/// with n - 1 below, over the root of n.
fn share(hits: usize, n: usize) -> (f64, Option<f64>) {
    let (hits, n) = (hits as f64, n as f64);
    let mean = hits / n;
    let squares = hits * (1.0 - mean) * (1.0 - mean) + (n - hits) * mean * mean;
    (mean, (n > 1.0).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt()))
}
