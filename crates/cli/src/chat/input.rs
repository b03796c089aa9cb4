//! What the user types: edited on a terminal, else a line at a time.

use super::command::{NAMES, is_whole};
use super::settings::KEYS;
use crate::failure::{Code, Failure};
use crate::output::remark;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::cell::Cell;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The longest turn, in bytes.
const TURN_BYTES: u64 = 1 << 20;

const PROMPT: &str = "> ";

/// Ctrl-C: while an answer comes it stops the answer, and once more, before that is noticed, the
/// program; otherwise it stops the program, as ever.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(super) fn new() -> Result<Self, Failure> {
        // One flag does both: it is set while nobody answers, and by the first signal.
        let set = Arc::new(AtomicBool::new(true));
        flag::register_conditional_default(SIGINT, Arc::clone(&set))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&set)))
            .map_err(|error| {
                let error = anyhow::Error::new(error).context("cannot wait for signals");
                Failure::new(Code::Machine, error)
            })?;
        Ok(Self(set))
    }

    /// From now on the signal stops an answer.
    pub(super) fn hold(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// From now on the signal stops the program.
    fn release(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn came(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Where turns come from.
pub(super) enum Input {
    /// A terminal, with its history.
    Terminal(Box<Editor<Keys, DefaultHistory>>),
    /// A pipe or a file, or a terminal whose output goes elsewhere; whether to ask for a turn.
    Lines(bool),
}

impl Input {
    pub(super) fn open(quiet: bool) -> Result<Self, Failure> {
        let asks = io::stdin().is_terminal();
        if !asks || !io::stdout().is_terminal() {
            return Ok(Self::Lines(asks && !quiet));
        }
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_config(config).map_err(unreadable)?;
        editor.set_helper(Some(Keys { empty: Cell::new(true) }));
        Ok(Self::Terminal(Box::new(editor)))
    }

    /// The next turn or command that says anything; `None` at the end.
    pub(super) fn next(&mut self, interrupt: &Interrupt) -> Result<Option<String>, Failure> {
        loop {
            let typed = match self {
                Self::Terminal(editor) => edited(editor)?,
                Self::Lines(asks) => {
                    interrupt.release();
                    lines(&mut io::stdin().lock(), *asks)?
                }
            };
            match typed {
                Some(text) if text.trim().is_empty() => {}
                typed => return Ok(typed),
            }
        }
    }
}

/// Lines up to one that ends what is typed.
fn lines(from: &mut impl BufRead, asks: bool) -> Result<Option<String>, Failure> {
    let mut typed = String::new();
    loop {
        if asks {
            let prompt = if typed.is_empty() { PROMPT } else { "... " };
            // If nobody can see the prompt, nothing is lost.
            let _ = write!(io::stderr().lock(), "{prompt}");
        }
        let before = typed.len();
        let read = from.take(TURN_BYTES + 1 - before as u64).read_line(&mut typed);
        read.map_err(|error| Failure::io(Path::new("standard input"), error))?;
        if typed.len() as u64 > TURN_BYTES {
            let message = format!("a turn is longer than {TURN_BYTES} bytes");
            return Err(Failure::refused(message).with_hint("give long texts to run, in a pipe"));
        }
        let ended = typed.len() == before;
        if ended && before == 0 {
            if asks {
                remark("");
            }
            return Ok(None);
        }
        let line = typed.trim_end_matches(['\r', '\n']).len();
        let newline = line < typed.len();
        typed.truncate(line.max(before));
        if is_whole(&typed) {
            return Ok(Some(typed));
        }
        if ended || !newline {
            // The last line may end in the sign that it goes on; quotes must be closed.
            return match typed.strip_suffix('\\') {
                Some(text) => Ok(Some(text.to_string())),
                None => Err(Failure::refused("standard input ends within \"\"\"")
                    .with_hint("close the text with \"\"\" at the end of a line")),
            };
        }
        typed.push('\n');
    }
}

fn edited(editor: &mut Editor<Keys, DefaultHistory>) -> Result<Option<String>, Failure> {
    loop {
        if let Some(keys) = editor.helper() {
            keys.empty.set(true);
        }
        match editor.readline(PROMPT) {
            Ok(text) => return Ok(Some(text)),
            Err(ReadlineError::Eof) => return Ok(None),
            Err(ReadlineError::Interrupted) => {
                if editor.helper().is_some_and(|keys| keys.empty.get()) {
                    remark("Ctrl-D or /bye leaves.");
                }
            }
            // The window has another size, or another program sent a signal.
            Err(ReadlineError::Signal(_)) => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

fn unreadable(error: ReadlineError) -> Failure {
    let error = anyhow::Error::new(error).context("cannot read from the terminal");
    Failure::new(Code::Machine, error)
}

/// What the line editor asks of us.
pub(super) struct Keys {
    /// Whether nothing stands in the line.
    empty: Cell<bool>,
}

impl Helper for Keys {}

impl Highlighter for Keys {}

impl Hinter for Keys {
    type Hint = String;

    /// Gives no hints, but is told of every change.
    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.empty.set(line.is_empty());
        None
    }
}

impl Validator for Keys {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_whole(context.input()) {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl Completer for Keys {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..at];
        let (word, all) = match (typed.strip_prefix("/set "), typed.strip_prefix('/')) {
            (Some(word), _) => (word, KEYS),
            (None, Some(word)) => (word, NAMES),
            (None, None) => return Ok((at, Vec::new())),
        };
        let pair =
            |name: &&str| Pair { display: name.to_string(), replacement: format!("{name} ") };
        let begins = all.iter().filter(|name| name.starts_with(word));
        Ok((at - word.len(), begins.map(pair).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(mut text: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(turn) = lines(&mut text, false).unwrap() {
            all.push(turn);
        }
        all
    }

    #[test]
    fn lines_are_turns_unless_they_go_on() {
        assert_eq!(turns(b"one\r\n\n two"), ["one", "", " two"]);
        assert_eq!(turns(b"\"\"\"one\n\ntwo\"\"\"\nthree"), ["\"\"\"one\n\ntwo\"\"\"", "three"]);
        assert_eq!(turns(b"a\\\nb\nc\\"), ["a\\\nb", "c"]);
        let mut open = &b"\"\"\"one\n\n"[..];
        assert!(lines(&mut open, false).unwrap_err().to_string().contains("within"));
        let long = "x".repeat(1 << 20) + "y\n";
        assert!(lines(&mut long.as_bytes(), false).unwrap_err().to_string().contains("longer"));
        assert!(lines(&mut &b"\xff\n"[..], false).is_err());
    }
}
