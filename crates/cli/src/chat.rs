//! `optimize chat`: a conversation, and the commands with which it is led.

use crate::args::Common;
use crate::args::serve::Chat;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::{Code, Failure};
use crate::output::{colours, counted, remark, write_stream};
use crate::run::{report, speed};
use crate::serve::Service;
use crate::written::{has_a_place, write_whole};
use command::{Command, HELP, Wrong, parse};
use engine::Request;
use input::{Input, Interrupt};
use runtime::{Answer, Answerer, Generation, Question};
use screen::{Screen, Shown};
use serde_json::{Value, json};
use settings::{KEYS, Settings};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use text::{ChatTemplate, Spelled, thinking};

mod command;
mod input;
mod screen;
mod settings;

pub(crate) fn run(args: &Chat) -> Result<(), Failure> {
    let devices = Devices::open(&args.common, Wanted::Fastest, Sums::of(args.serving.invariant))?;
    let served = Service::open(&args.model, &args.serving, &args.common, &devices)?;
    let mut template = served.opened.chat_template()?.ok_or_else(|| {
        let folder = served.opened.checkpoint.folder();
        Failure::refused(format!("{folder:?} has no chat template"))
            .with_hint("use run for a model that only continues text")
    })?;
    let shown = match (args.common.json, io::stdin().is_terminal() && io::stdout().is_terminal()) {
        (true, _) => Shown::Json,
        (false, true) => Shown::Terminal { colours: colours(&io::stdout()) },
        (false, false) => Shown::Plain,
    };
    let stats = shown == Shown::Plain && !args.common.quiet;
    let settings = Settings::new(&args.sampling, &args.think, stats);
    // What the template refuses is refused before the weights are read.
    ask(&mut template, settings.asks)?;
    template.render(&Value::Array(messages(args.system.as_deref(), &[turn("Hello")])), true)?;
    let generation = served.generation(&args.sampling, &args.common, template.eos())?;
    let marks = thinking::marks();
    let spelled = marks.filter_map(|text| {
        let token = served.tokenizer.special(text)?;
        Some(Spelled { token, text })
    });
    let mut talk = Talk {
        served: &served,
        common: Common { quiet: true, ..args.common.clone() },
        quiet: args.common.quiet,
        template,
        spelled: spelled.collect(),
        first: settings.clone(),
        settings,
        generation,
        system: args.system.clone(),
        turns: Vec::new(),
        saved: Vec::new(),
        shown,
        interrupt: Interrupt::new()?,
    };
    devices.pool.install(|| served.load(&devices, |answerer| talk.run(answerer)))
}

/// A failure as an object of the stream that `--json` gives.
pub(crate) fn error(failure: &Failure) -> Value {
    let mut object = json!({ "kind": "error" });
    for (key, value) in failure.json().as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

/// Asks the model to think or not to, with the variables that templates have for it.
fn ask(template: &mut ChatTemplate, asks: Option<bool>) -> Result<(), Failure> {
    let mut set = |asks: Option<bool>| {
        for name in ["enable_thinking", "thinking"] {
            template.set(name, asks.map(Value::Bool));
        }
        template.render(&json!([turn("Hello")]), true)
    };
    if asks.is_some() && set(Some(true))? == set(Some(false))? {
        set(None)?;
        return Err(Failure::refused("the chat template has no switch for thinking")
            .with_hint("--think fold, or /set think fold, leaves it out of what is shown"));
    }
    set(asks)?;
    Ok(())
}

fn turn(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

fn messages(system: Option<&str>, turns: &[Value]) -> Vec<Value> {
    let system = system.map(|text| json!({ "role": "system", "content": text }));
    system.into_iter().chain(turns.iter().cloned()).collect()
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::refused(wrong.message).with_hint(wrong.hint)
    }
}

struct Talk<'a> {
    served: &'a Service,
    /// As given, but quiet: what is to be said of the files has been said.
    common: Common,
    quiet: bool,
    template: ChatTemplate,
    /// Marks of thoughts that are special tokens.
    spelled: Vec<Spelled>,
    /// The settings of the command line, and those of now.
    first: Settings,
    settings: Settings,
    /// What they come to.
    generation: Generation,
    system: Option<String>,
    turns: Vec<Value>,
    /// Files that this conversation was saved to.
    saved: Vec<PathBuf>,
    shown: Shown,
    interrupt: Interrupt,
}

impl Talk<'_> {
    fn run(&mut self, answerer: &mut Answerer<'_>) -> Result<(), Failure> {
        let mut input = Input::open(self.quiet)?;
        if matches!(self.shown, Shown::Terminal { .. }) && !self.quiet {
            remark("/help lists the commands; Ctrl-D or /bye leaves.");
        }
        let mut read = true;
        while read {
            let Some(typed) = input.next(&self.interrupt)? else { break };
            let outcome = match parse(&typed) {
                Ok(Command::Leave) => break,
                Ok(Command::Say(text)) => match self.answer(answerer, &text) {
                    Ok(goes_on) => {
                        read = goes_on;
                        continue;
                    }
                    // Where nobody is there to say it otherwise, the conversation ends.
                    Err(failure) if !io::stdin().is_terminal() => return Err(failure),
                    Err(failure) => Err(failure),
                },
                Ok(command) => self.obey(&command),
                Err(wrong) => Err(wrong.into()),
            };
            read = self.say(outcome)?;
        }
        Ok(())
    }

    /// Says what came of a command, or that it failed; whether anybody reads on.
    fn say(&self, outcome: Result<Obeyed, Failure>) -> Result<bool, Failure> {
        let json = self.shown == Shown::Json;
        let object = match outcome {
            Ok(Obeyed { command, said, wanted }) => {
                if !json && (wanted || !self.quiet) {
                    remark(&said);
                }
                json!({ "kind": "command", "command": command, "said": said })
            }
            Err(failure) => {
                remark(&failure.to_string());
                error(&failure)
            }
        };
        if json { write_stream(&format!("{object}\n")) } else { Ok(true) }
    }

    /// Answers a turn; whether anybody reads on. A turn that fails, or to which nothing was said, is
    /// taken back.
    fn answer(&mut self, answerer: &mut Answerer<'_>, text: &str) -> Result<bool, Failure> {
        let mut turns = self.turns.clone();
        turns.push(turn(text));
        let messages = messages(self.system.as_deref(), &turns);
        let prompt = self.template.render(&Value::Array(messages), true)?;
        // The template has written every special token itself.
        let ids = self.served.tokenizer.encode_plain(&prompt)?;
        let tokens = ids.len();
        let max_tokens = self.generation.max_tokens(tokens, self.served.room());
        let request = Request {
            stop: self.generation.stop.clone(),
            sampling: self.generation.for_length(tokens, max_tokens),
            ..Request::new(ids, max_tokens)
        };
        self.interrupt.hold();
        let mut screen = Screen::new(self.shown, self.settings.folds, &prompt, &self.interrupt);
        let asked = Question { request, stops: &self.generation.stops, spelled: &self.spelled };
        let answer = answerer.answer(&self.served.tokenizer, asked, &mut screen);
        let read = screen.finish(answer.is_ok())?;
        let answer = answer.map_err(Failure::from).map_err(|failure| {
            match (&failure.hint, self.turns.len()) {
                (Some(_), _) | (None, 0) => failure,
                (None, _) => failure.with_hint("/clear forgets the turns so far"),
            }
        })?;
        let (thought, said) = thinking::divided(&prompt, &answer.text);
        if !(answer.finish == "interrupted" && answer.text.is_empty()) {
            let mut message = json!({ "role": "assistant", "content": said });
            if !thought.is_empty() {
                // Templates leave it out of earlier turns, or want it apart.
                message["reasoning_content"] = thought.clone().into();
            }
            turns.push(message);
            self.turns = turns;
        }
        if self.shown == Shown::Json {
            return write_stream(&format!("{}\n", object(&answer, &thought, &said, tokens)));
        }
        self.close(&answer, tokens);
        Ok(read)
    }

    /// What is said below an answer.
    fn close(&self, answer: &Answer, prompt: usize) {
        let count = answer.tokens.len();
        let terminal = matches!(self.shown, Shown::Terminal { .. });
        if terminal && !self.quiet {
            match (answer.finish, self.generation.most()) {
                ("length", Some(most)) if most <= count => {
                    let count = counted(count, "token");
                    remark(&format!("Cut after {count}; /set max_tokens N allows more."));
                }
                ("length", _) => remark("The context is full; /clear forgets the turns so far."),
                ("interrupted", _) if answer.text.is_empty() => {
                    remark("Stopped before an answer; the turn is taken back.");
                }
                _ => {}
            }
        }
        if self.settings.stats && answer.finish != "closed" {
            remark(&speed(answer, prompt));
        }
        if terminal {
            remark("");
        }
    }

    fn obey(&mut self, command: &Command) -> Result<Obeyed, Failure> {
        match command {
            Command::Clear => {
                self.turns.clear();
                let stays = if self.system.is_some() { "; the system text stays" } else { "" };
                Ok(Obeyed::done("clear", format!("The turns are forgotten{stays}.")))
            }
            Command::System(None) => {
                let system = self.system.as_deref().unwrap_or("There is no system text.");
                Ok(Obeyed::shown("system", system.into()))
            }
            Command::System(Some(text)) => self.set_system(text),
            Command::Save(file) => self.save(file),
            Command::Set(None) => Ok(Obeyed::shown("set", self.all_settings()?)),
            Command::Set(Some((key, None))) => {
                Ok(Obeyed::shown("set", self.settings.shown(key, &self.generation)?))
            }
            Command::Set(Some((key, Some(value)))) => self.set(key, value),
            Command::Show => Ok(Obeyed::shown("show", self.overview()?)),
            Command::Help | Command::Say(_) | Command::Leave => {
                Ok(Obeyed::shown("help", HELP.into()))
            }
        }
    }

    fn set_system(&mut self, text: &str) -> Result<Obeyed, Failure> {
        let system = Some(text.to_string()).filter(|text| !text.is_empty());
        let mut turns = self.turns.clone();
        turns.push(turn("Hello"));
        let messages = messages(system.as_deref(), &turns);
        self.template.render(&Value::Array(messages), true).map_err(|error| {
            Failure::from(error).with_hint("the system text is as it was before")
        })?;
        self.system = system;
        let what = if self.system.is_some() { "is set" } else { "is gone" };
        let said = match self.turns.len() {
            0 => format!("The system text {what}."),
            _ => format!("The system text {what}; the turns so far stay, and are read again."),
        };
        Ok(Obeyed::done("system", said))
    }

    fn save(&mut self, file: &str) -> Result<Obeyed, Failure> {
        if self.turns.is_empty() {
            return Err(Failure::refused("nothing has been said yet"));
        }
        let path = PathBuf::from(file);
        has_a_place(&path)?;
        if path.symlink_metadata().is_ok() && !self.saved.contains(&path) {
            return Err(Failure::refused(format!("{path:?} exists")).with_hint("name a new file"));
        }
        let line = json!({ "messages": messages(self.system.as_deref(), &self.turns) });
        write_whole(&path, format!("{line}\n").as_bytes())
            .map_err(|error| Failure::new(Code::Machine, error))?;
        let said = format!("Saved to {}.", path.display());
        self.saved.push(path);
        Ok(Obeyed::done("save", said))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<Obeyed, Failure> {
        let mut settings = self.settings.clone();
        settings.set(key, value, &self.first)?;
        let generation =
            self.served.generation(&settings.sampling, &self.common, self.template.eos())?;
        generation.sampling.check(self.served.opened.spec.vocab)?;
        if settings.asks != self.settings.asks {
            ask(&mut self.template, settings.asks)?;
        }
        let said = settings.shown(key, &generation)?;
        (self.settings, self.generation) = (settings, generation);
        Ok(Obeyed::done("set", said))
    }

    fn all_settings(&self) -> Result<String, Failure> {
        let shown = KEYS.iter().map(|key| self.settings.shown(key, &self.generation));
        Ok(shown.collect::<Result<Vec<String>, Wrong>>()?.join("\n"))
    }

    fn overview(&self) -> Result<String, Failure> {
        let model = self.served.opened.checkpoint.folder().display();
        let turns = self.turns.iter().filter(|turn| turn["role"] == "user").count();
        let (context, system) = (self.served.room(), self.system.as_deref().unwrap_or("none"));
        let settings = self.all_settings()?;
        let fact = |name: &str, value: String| format!("{name:18} {value}\n");
        Ok([
            fact("model", model.to_string()),
            fact("context", counted(context, "token")),
            fact("turns", turns.to_string()),
            fact("system", system.to_string()),
            settings,
        ]
        .concat())
    }
}

/// What came of a command.
struct Obeyed {
    command: &'static str,
    said: String,
    /// Whether it was the point of the command to have it said.
    wanted: bool,
}

impl Obeyed {
    fn done(command: &'static str, said: String) -> Self {
        Self { command, said, wanted: false }
    }

    fn shown(command: &'static str, said: String) -> Self {
        Self { command, said, wanted: true }
    }
}

/// An answer as the object that ends its turn.
fn object(answer: &Answer, thought: &str, said: &str, prompt: usize) -> Value {
    let mut object = json!({ "kind": "answer", "text": said });
    if !thought.is_empty() {
        object["thinking"] = thought.into();
    }
    for (key, value) in report(answer, prompt).as_object().into_iter().flatten() {
        if key != "text" {
            object[key] = value.clone();
        }
    }
    object
}
