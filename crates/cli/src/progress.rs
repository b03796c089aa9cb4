//! Progress of long work, on standard error: a bar on a terminal, now and then a plain line elsewhere,
//! or an object a line for a program that reads it.

use crate::args::{Common, Progress};
use crate::output::{remark, seconds};
use crate::stop::{Position, say_where};
use compiler::Event;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Between two plain lines, or two objects that say only how far it is.
const EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
enum Shown {
    Bar(ProgressBar),
    Lines,
    Objects,
    Nothing,
}

impl Shown {
    fn new(common: &Common, template: &str) -> Self {
        match common.progress {
            Progress::Json => Self::Objects,
            _ if common.quiet => Self::Nothing,
            Progress::Off => Self::Nothing,
            Progress::Auto if io::stderr().is_terminal() => {
                let bar = ProgressBar::new(0);
                let style = ProgressStyle::with_template(template);
                Self::Bar(style.map_or(bar.clone(), |s| bar.with_style(s.progress_chars("=> "))))
            }
            Progress::Auto => Self::Lines,
        }
    }
}

/// How far work is.
struct Clock {
    started: Instant,
    said: Instant,
    done: usize,
    total: usize,
}

impl Clock {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, said: now, done: 0, total: 0 }
    }

    /// Whether it is time for a line.
    fn due(&mut self) -> bool {
        let due = self.said.elapsed() >= EVERY;
        if due {
            self.said = Instant::now();
        }
        due
    }

    /// Seconds left at the pace so far.
    fn left(&self) -> Option<f64> {
        let done = (self.done > 0).then_some(self.done as f64)?;
        Some(self.started.elapsed().as_secs_f64() * (self.total - self.done) as f64 / done)
    }

    /// `, 12 s left`; nothing while that is not known.
    fn left_in_words(&self) -> String {
        self.left().map_or(String::new(), |left| format!(", {} left", seconds(left)))
    }

    /// An object on a line of its own.
    fn object(&self, event: &str, more: Value) {
        let mut all = json!({
            "progress": event,
            "done": self.done,
            "total": self.total,
            "seconds": self.started.elapsed().as_secs_f64(),
            "seconds_left": self.left(),
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        remark(&all.to_string());
    }
}

/// Progress of work that has steps of one kind.
pub(crate) struct Meter {
    what: &'static str,
    shown: Shown,
    clock: Clock,
}

impl Meter {
    pub(crate) fn new(what: &'static str, common: &Common) -> Self {
        let shown = Shown::new(common, "{msg} [{bar:32}] {pos}/{len}  {eta} left");
        if let Shown::Bar(bar) = &shown {
            bar.set_message(what);
        }
        Self { what, shown, clock: Clock::new() }
    }

    pub(crate) fn at(&mut self, done: usize, total: usize) {
        (self.clock.done, self.clock.total) = (done, total);
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
            Shown::Lines => {
                if done > 0 && self.clock.due() {
                    let left = self.clock.left_in_words();
                    remark(&format!("{}: step {done} of {total}{left}", self.what));
                }
            }
            Shown::Objects => {
                if done == total || self.clock.due() {
                    self.clock.object(self.what, json!({}));
                }
            }
        }
    }

    pub(crate) fn finish(self) -> Duration {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
        self.clock.started.elapsed()
    }
}

/// Progress of a compilation: the block, what is done to it, the time left.
pub(crate) struct CompileMeter {
    shown: Shown,
    quiet: bool,
    clock: Clock,
    block: String,
    position: Position,
    /// Blocks that an earlier run had finished.
    replayed: usize,
}

impl CompileMeter {
    pub(crate) fn new(common: &Common) -> Self {
        let shown = Shown::new(common, "[{bar:20}] {pos}/{len} {msg}");
        let position = Position::default();
        if !common.quiet {
            say_where(&position);
        }
        let (quiet, clock, block) = (common.quiet, Clock::new(), String::new());
        Self { shown, quiet, clock, block, position, replayed: 0 }
    }

    pub(crate) fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Survey(id, done, total) => {
                self.at(*done, *total);
                self.block = id.to_string();
                self.say("survey", &format!("survey of {id}"), json!({ "block": self.block }));
            }
            Event::Block(id, done, total) => {
                self.at(*done, *total);
                self.block = id.to_string();
                if std::mem::take(&mut self.replayed) > 0 && !self.quiet {
                    remark(&format!("an earlier run goes on from block {} of {total}", done + 1));
                }
                self.say("block", &id.to_string(), json!({ "block": self.block }));
            }
            Event::Replay(id, done, total) => {
                self.at(*done, *total);
                self.replayed += 1;
                let block = id.to_string();
                self.say("replay", &format!("{id} is done already"), json!({ "block": block }));
            }
            Event::Damaged(id) => {
                if !self.quiet {
                    remark(&format!(
                        "warning: {id} was finished, but is damaged; it is done again"
                    ));
                }
            }
            Event::Stage { pass, .. } => self.detail(pass),
            Event::Weight(weight) => {
                if let Shown::Objects = self.shown {
                    let more = json!({ "block": self.block, "weight": weight });
                    self.clock.object("weight", more);
                }
                // The block is said already.
                let module = weight.tensor.strip_suffix(".weight").unwrap_or(&weight.tensor);
                self.detail(module.rsplit('.').next().unwrap_or(module));
            }
            Event::Measure => {
                self.at(self.clock.total, self.clock.total);
                self.say("measure", "measuring the result", json!({}));
            }
            Event::Kept => self.say("kept", "an earlier run had finished this work", json!({})),
        }
    }

    /// So many blocks are finished.
    fn at(&mut self, done: usize, total: usize) {
        (self.clock.done, self.clock.total) = (done, total);
        self.position.set(done, total);
    }

    /// A step begins.
    fn say(&mut self, event: &str, what: &str, more: Value) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Objects => self.clock.object(event, more),
            Shown::Bar(bar) => {
                bar.set_length(self.clock.total as u64);
                bar.set_position(self.clock.done as u64);
                bar.set_message(format!("{what}{}", self.clock.left_in_words()));
            }
            Shown::Lines => {
                if self.clock.due() {
                    let (done, total) = (self.clock.done, self.clock.total);
                    remark(&format!("{done}/{total} {what}{}", self.clock.left_in_words()));
                }
            }
        }
    }

    /// What is being done within a step; only a bar shows it.
    fn detail(&self, what: &str) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_message(format!("{} {what}{}", self.block, self.clock.left_in_words()));
        }
    }

    pub(crate) fn finish(self) {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}
