//! An answer as it comes: on a terminal, in a pipe, or as objects for a program.

use super::input::Interrupt;
use crate::failure::Failure;
use crate::output::{printable, write_stream};
use runtime::Listener;
use serde_json::json;
use std::time::Instant;
use text::thinking::{Piece, Splitter};

/// What an answer is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// A person, with thoughts dimmed if there may be colours.
    Terminal { colours: bool },
    /// Whoever reads the pipe: the text as it is.
    Plain,
    /// A program: an object a line.
    Json,
}

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Shows one answer.
pub(super) struct Screen<'a> {
    shown: Shown,
    folds: bool,
    splitter: Splitter,
    interrupt: &'a Interrupt,
    /// Since when thoughts come, while they do.
    thinks: Option<Instant>,
    /// Whether anybody reads.
    pub(super) read: bool,
    failure: Option<Failure>,
}

impl<'a> Screen<'a> {
    /// For the answer to `prompt`; thoughts are left out if it `folds`.
    pub(super) fn new(shown: Shown, folds: bool, prompt: &str, interrupt: &'a Interrupt) -> Self {
        let splitter = Splitter::after(prompt);
        Self { shown, folds, splitter, interrupt, thinks: None, read: true, failure: None }
    }

    /// Shows what is left, after an answer that is `whole` or failed; whether anybody reads on.
    pub(super) fn finish(mut self, whole: bool) -> Result<bool, Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.shown != Shown::Plain || self.folds {
            let rest = self.splitter.clone().finish();
            rest.map_or(Ok(()), |piece| self.show(&piece))?;
        }
        if let Some(since) = self.thinks.take() {
            self.think_no_more(since)?;
        } else if whole && self.shown != Shown::Json {
            self.write("\n")?;
        }
        Ok(self.read)
    }

    fn write_next(&mut self, text: &str) -> Result<(), Failure> {
        // In a pipe nothing is lost, not even the marks.
        if self.shown == Shown::Plain && !self.folds {
            return self.write(text);
        }
        let pieces = self.splitter.push(text);
        pieces.iter().try_for_each(|piece| self.show(piece))
    }

    fn show(&mut self, piece: &Piece) -> Result<(), Failure> {
        if self.shown == Shown::Json {
            let mut line = json!({ "kind": "piece", "piece": piece.text });
            match (piece.thought, self.folds) {
                (true, true) => return Ok(()),
                (true, false) => line["thinking"] = true.into(),
                (false, _) => {}
            }
            return self.write(&format!("{line}\n"));
        }
        match (self.shown, self.thinks) {
            (Shown::Terminal { .. }, None) if piece.thought => self.think()?,
            (Shown::Terminal { .. }, Some(since)) if !piece.thought => {
                self.thinks = None;
                self.think_no_more(since)?;
                self.write("\n")?;
            }
            _ => {}
        }
        if piece.thought && self.folds {
            return Ok(());
        }
        match self.shown {
            Shown::Terminal { .. } => self.write(&printable(&piece.text)),
            _ => self.write(&piece.text),
        }
    }

    /// Thoughts begin, on a terminal.
    fn think(&mut self) -> Result<(), Failure> {
        self.thinks = Some(Instant::now());
        let end = if self.folds { "" } else { "\n" };
        self.write(&format!("{}Thinking ...{end}", self.dim()))
    }

    /// Thoughts have ended.
    fn think_no_more(&mut self, since: Instant) -> Result<(), Failure> {
        let seconds = since.elapsed().as_secs_f64();
        let plain = if self.dim().is_empty() { "" } else { PLAIN };
        let begin = if self.folds { " " } else { "\n... thought for " };
        self.write(&format!("{begin}{seconds:.1} s{plain}\n"))
    }

    fn dim(&self) -> &'static str {
        if self.shown == (Shown::Terminal { colours: true }) { DIM } else { "" }
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.read = self.read && write_stream(text)?;
        Ok(())
    }
}

impl Listener for Screen<'_> {
    fn hear(&mut self, text: &str) {
        if self.failure.is_none() {
            self.failure = self.write_next(text).err();
        }
    }

    fn leaves(&self) -> Option<&'static str> {
        match (self.read && self.failure.is_none(), self.interrupt.came()) {
            (false, _) => Some("closed"),
            (true, true) => Some("interrupted"),
            (true, false) => None,
        }
    }
}
