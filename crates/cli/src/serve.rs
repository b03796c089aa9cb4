//! A model that answers: what `run` and `chat` share.

use crate::args::Common;
use crate::args::serve::Serving;
use crate::device::{Devices, Joined};
use crate::eval::tokenizer;
use crate::failure::Failure;
use crate::model::Opened;
use crate::output::write_stream;
use crate::room::{Room, Weights};
use engine::{Engine, Event, Finish, Request, SeqId, Speculator, Stats};
use runtime::Runner;
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
        let place = (devices, opened.weight_bytes());
        let room = Room::new(&opened.spec, Some(&tokenizer), (args, common), place, 1)?;
        Ok(Self { opened, tokenizer, room })
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
        let (spec, source) = (&self.opened.spec, &self.opened.checkpoint);
        let weights = Weights { spec, source, bytes: self.opened.weight_bytes() };
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

impl Answerer<'_> {
    /// Answers one request, showing text as it comes unless told to be `silent`.
    pub(crate) fn answer(
        &mut self,
        tokenizer: &Tokenizer,
        request: Request,
        stops: &[String],
        silent: bool,
    ) -> Result<Answer, Failure> {
        let begun = Instant::now();
        let prompt = request.prompt.clone();
        let stop_tokens = request.stop.clone();
        let seq = self.engine.add(request)?;
        let mut show = Show {
            detokenizer: Detokenizer::new(tokenizer, &prompt),
            stops: StopStrings::new(stops.iter().cloned()),
            silent,
            read: true,
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
                        if !show.read {
                            (finish, cut) = (Some("closed"), true);
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
        }
        self.abort(seq);
        let text = show.end(cut)?;
        let all = begun.elapsed().as_secs_f64();
        let first = first.unwrap_or(all);
        let (finish, stats) = (finish.unwrap_or("length"), self.engine.stats());
        Ok(Answer { text, tokens, finish, seconds: [first, all - first], stats })
    }

    /// Ends a sequence whose text has ended before its tokens did.
    fn abort(&mut self, seq: SeqId) {
        let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        self.engine.abort(seq, speculator);
    }
}

/// Text on its way to the terminal.
struct Show<'t> {
    detokenizer: Detokenizer<'t>,
    stops: StopStrings,
    silent: bool,
    /// Whether anybody reads what is shown.
    read: bool,
    text: String,
}

impl Show<'_> {
    /// Shows a token's text; says whether a stop string has come.
    fn push(&mut self, token: u32) -> Result<bool, Failure> {
        let text = self.detokenizer.push(token)?;
        let (text, stopped) = self.stops.push(&text);
        self.write(&text)?;
        Ok(stopped)
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.text.push_str(text);
        if !self.silent {
            self.read &= write_stream(text)?;
        }
        Ok(())
    }

    /// Shows what was held back, unless a stop string has come; returns the whole text.
    fn end(mut self, stopped: bool) -> Result<String, Failure> {
        if !stopped {
            let stops = std::mem::take(&mut self.stops);
            let rest = last(self.detokenizer.finish()?, stops);
            if !self.silent {
                write_stream(&rest)?;
            }
            self.text.push_str(&rest);
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
