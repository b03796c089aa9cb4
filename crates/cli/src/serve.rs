//! A model that answers: what `run` and `chat` share.

use crate::args::Common;
use crate::args::serve::Serving;
use crate::device::{Devices, Joined};
use crate::eval::tokenizer;
use crate::failure::Failure;
use crate::memory::Taken;
use crate::model::Opened;
use crate::output::{printable, write_stream};
use crate::room::Room;
use engine::{Engine, Event, Finish, Request, SeqId, Speculator, Stats};
use runtime::Runner;
use std::io::{self, IsTerminal};
use std::time::Instant;
use text::{Detokenizer, StopStrings, Tokenizer};

/// What a model needs to answer, before its weights are read.
pub(crate) struct Served {
    pub(crate) opened: Opened,
    pub(crate) tokenizer: Tokenizer,
    room: Room,
}

impl Served {
    /// Opens a model and its draft, and says how much they may cache.
    pub(crate) fn open(
        model: &str,
        args: &Serving,
        (common, devices): (&Common, &Devices),
    ) -> Result<Self, Failure> {
        let opened = Opened::open(model, common)?;
        let tokenizer = tokenizer(&opened)?;
        let grid = |name: &str| opened.grid(name);
        let place = (devices, opened.weights(&grid));
        let room = Room::new(&opened.spec, Some(&tokenizer), (args, common), place, 1)?;
        Ok(Self { opened, tokenizer, room })
    }

    /// What it takes of memory.
    pub(crate) fn taken(&self) -> Taken {
        self.room.taken
    }

    /// Tokens a sequence can have at most: what the context and the cache hold.
    pub(crate) fn room(&self) -> usize {
        self.room.tokens(&self.opened.spec)
    }

    /// An engine for the model.
    pub(crate) fn engine(&self) -> Engine {
        self.room.engine(&self.opened.spec)
    }

    /// Loads the weights and hands what answers to `use_it`.
    pub(crate) fn load<T>(
        &self,
        devices: &Devices,
        use_it: impl FnOnce(&mut Answerer<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (spec, grid) = (&self.opened.spec, |name: &str| self.opened.grid(name));
        let weights = self.opened.weights(&grid);
        let stages = devices.stages();
        let backends: Vec<_> = stages.iter().map(Joined::backend).collect();
        let loaded = self.room.load(&backends, weights)?;
        use_it(&mut self.room.answerer(&backends, &loaded, spec)?)
    }
}

/// A loaded model with its engine.
pub(crate) struct Answerer<'m> {
    pub(crate) engine: Engine,
    pub(crate) runner: Runner<'m>,
    pub(crate) speculator: Option<Box<dyn Speculator + Send + 'm>>,
}

/// An answer, and what it took.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: &'static str,
    /// Seconds to the first token, and of all the others together.
    pub(crate) seconds: [f64; 2],
    pub(crate) stats: Stats,
}

/// Who an answer is for.
pub(crate) trait Listener {
    /// Takes in the next text, once it is certain; never none.
    fn hear(&mut self, text: &str) -> Result<(), Failure>;

    /// Why nothing more need be said, if so. It is asked after every step.
    fn leaves(&self) -> Option<&'static str>;
}

/// Standard output, unless it is to hold a report only.
pub(crate) struct Stream {
    silent: bool,
    /// Whether it is a terminal.
    terminal: bool,
    /// Whether anybody reads it.
    read: bool,
}

impl Stream {
    pub(crate) fn new(silent: bool) -> Self {
        Self { silent, terminal: io::stdout().is_terminal(), read: true }
    }
}

impl Listener for Stream {
    fn hear(&mut self, text: &str) -> Result<(), Failure> {
        if !self.silent {
            let text = if self.terminal { printable(text) } else { text.into() };
            self.read &= write_stream(&text)?;
        }
        Ok(())
    }

    fn leaves(&self) -> Option<&'static str> {
        (!self.read).then_some("closed")
    }
}

/// What is asked of a model.
pub(crate) struct Asked<'a> {
    pub(crate) request: Request,
    /// Strings that end the answer.
    pub(crate) stops: &'a [String],
    /// Special tokens that are to be seen all the same, and how.
    pub(crate) seen: &'a [(u32, &'static str)],
}

impl Answerer<'_> {
    /// Answers one request; its text goes to `listener` as it comes.
    pub(crate) fn answer(
        &mut self,
        tokenizer: &Tokenizer,
        asked: Asked<'_>,
        listener: &mut dyn Listener,
    ) -> Result<Answer, Failure> {
        let Asked { request, stops, seen } = asked;
        let (begun, before) = (Instant::now(), self.engine.stats());
        let prompt = request.prompt.clone();
        let stop_tokens = request.stop.clone();
        let seq = self.engine.add(request)?;
        let mut show = Show {
            detokenizer: Detokenizer::new(tokenizer, &prompt),
            stops: StopStrings::new(stops.iter().cloned()),
            seen,
            listener,
            text: String::new(),
        };
        let (mut tokens, mut first, mut finish, mut cut) = (Vec::new(), None, None, false);
        let mut events = Vec::new();
        while finish.is_none() {
            let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
            self.engine.step(&mut self.runner, speculator, &mut events)?;
            for event in events.drain(..) {
                match event {
                    Event::Token { sampled, .. } if finish.is_none() => {
                        first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
                        tokens.push(sampled.token);
                        if !stop_tokens.contains(&sampled.token) && show.push(sampled.token)? {
                            (finish, cut) = (Some("stop"), true);
                        }
                    }
                    Event::Finished { finish: Finish::Stop, .. } => {
                        finish = finish.or(Some("stop"));
                    }
                    Event::Finished { finish: Finish::Length, .. } => {
                        finish = finish.or(Some("length"));
                    }
                    Event::Finished { finish: Finish::Logits(error), .. } => {
                        show.end(false)?;
                        let hint = match error {
                            engine::SampleError::Banned => {
                                "ask for fewer bans: see --logit-bias and generation_config.json"
                            }
                            _ => "the model's weights are broken, or its config.json is",
                        };
                        return Err(Failure::refused(error).with_hint(hint));
                    }
                    Event::Finished { finish: Finish::Failed(error), .. } => {
                        return Err(Failure::from(error));
                    }
                    Event::Started { .. } | Event::Token { .. } | Event::Prompt { .. } => {}
                }
            }
            if let Some(why) = show.listener.leaves().filter(|_| finish.is_none()) {
                (finish, cut) = (Some(why), true);
            }
        }
        self.abort(seq);
        let text = show.end(cut)?;
        let all = begun.elapsed().as_secs_f64();
        let first = first.unwrap_or(all);
        let (finish, stats) = (finish.unwrap_or("length"), self.engine.stats().since(&before));
        Ok(Answer { text, tokens, finish, seconds: [first, all - first], stats })
    }

    /// Ends a sequence whose text has ended before its tokens did.
    fn abort(&mut self, seq: SeqId) {
        let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        self.engine.abort(seq, speculator);
    }
}

/// Text on its way to who listens.
struct Show<'t> {
    detokenizer: Detokenizer<'t>,
    stops: StopStrings,
    seen: &'t [(u32, &'static str)],
    listener: &'t mut dyn Listener,
    text: String,
}

impl Show<'_> {
    /// Shows a token's text; says whether a stop string has come.
    fn push(&mut self, token: u32) -> Result<bool, Failure> {
        let mut text = self.detokenizer.push(token)?;
        if let Some((_, spelled)) = self.seen.iter().find(|(id, _)| *id == token) {
            text.push_str(spelled);
        }
        let (text, stopped) = self.stops.push(&text);
        self.write(&text)?;
        Ok(stopped)
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        self.text.push_str(text);
        self.listener.hear(text)
    }

    /// Shows what was held back, unless the text was cut; returns all of it.
    fn end(mut self, cut: bool) -> Result<String, Failure> {
        if !cut {
            let stops = std::mem::take(&mut self.stops);
            let detokenizer = self.detokenizer;
            let rest = last(detokenizer.finish()?, stops);
            if !rest.is_empty() {
                self.text.push_str(&rest);
                self.listener.hear(&rest)?;
            }
        }
        Ok(self.text)
    }
}

/// What is left of a text: its last characters, and what might have become a stop.
fn last(text: String, mut stops: StopStrings) -> String {
    match stops.push(&text) {
        (before, true) => before,
        (before, false) => before + &stops.finish(),
    }
}
