//! One request, answered.

use crate::Runner;
use crate::error::AnswerError;
use engine::{Engine, Event, Finish, Request, SeqId, Speculator, Stats};
use std::time::Instant;
use text::{Reply, Spelled, Tokenizer};

/// A loaded model with its engine.
pub struct Answerer<'m> {
    /// What says which tokens are computed.
    pub engine: Engine,
    /// What computes them.
    pub runner: Runner<'m>,
    /// Who guesses.
    pub speculator: Option<Box<dyn Speculator + Send + 'm>>,
}

/// What is asked of a model.
pub struct Question<'a> {
    /// The prompt, how tokens are drawn, and which end the answer.
    pub request: Request,
    /// Strings that end the answer.
    pub stops: &'a [String],
    /// Special tokens that are to be seen all the same.
    pub spelled: &'a [Spelled],
}

/// An answer, and what it took.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its text, which ends before a stop string.
    pub text: String,
    /// Every token that was generated.
    pub tokens: Vec<u32>,
    /// `stop`, `length`, or why the listener left.
    pub finish: &'static str,
    /// Seconds to the first token, and of all the others together.
    pub seconds: [f64; 2],
    /// What the engine did for it.
    pub stats: Stats,
}

/// Who an answer is for.
pub trait Listener {
    /// Takes in the next text, once it is certain; never none. A listener that fails leaves.
    fn hear(&mut self, text: &str);

    /// Why nothing more need be said, if so. It is asked after every step.
    fn leaves(&self) -> Option<&'static str>;
}

impl Answerer<'_> {
    /// Answers one request; its text goes to `listener` as it comes.
    ///
    /// # Errors
    /// If the request is refused, a step fails, or no token can be drawn. What was certain by then has
    /// been heard.
    pub fn answer(
        &mut self,
        tokenizer: &Tokenizer,
        asked: Question<'_>,
        listener: &mut dyn Listener,
    ) -> Result<Answer, AnswerError> {
        let Question { request, stops, spelled } = asked;
        let (begun, before) = (Instant::now(), self.engine.stats());
        let mut reply = Reply::new(tokenizer, &request.prompt, stops, spelled);
        let stop_tokens = request.stop.clone();
        let seq = self.engine.add(request)?;
        let hear = |text: &str, listener: &mut dyn Listener| {
            if !text.is_empty() {
                listener.hear(text);
            }
        };
        let (mut tokens, mut first, mut finish, mut left) = (Vec::new(), None, None, false);
        let mut events = Vec::new();
        while finish.is_none() {
            let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
            self.engine.step(&mut self.runner, speculator, &mut events)?;
            for event in events.drain(..) {
                match event {
                    Event::Token { sampled, .. } if finish.is_none() => {
                        first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
                        tokens.push(sampled.token);
                        if !stop_tokens.contains(&sampled.token) {
                            let grown = reply.push(sampled.token)?;
                            hear(&grown.text, listener);
                            finish = grown.stopped.then_some("stop");
                        }
                    }
                    Event::Finished { finish: Finish::Stop, .. } => {
                        finish = finish.or(Some("stop"));
                    }
                    Event::Finished { finish: Finish::Length, .. } => {
                        finish = finish.or(Some("length"));
                    }
                    Event::Finished { finish: Finish::Logits(error), .. } => {
                        hear(&reply.finish()?, listener);
                        return Err(AnswerError::Logits(error));
                    }
                    Event::Finished { finish: Finish::Failed(error), .. } => {
                        return Err(error.into());
                    }
                    Event::Started { .. } | Event::Token { .. } | Event::Prompt { .. } => {}
                }
            }
            if let Some(why) = listener.leaves().filter(|_| finish.is_none()) {
                (finish, left) = (Some(why), true);
            }
        }
        self.abort(seq);
        if !left {
            hear(&reply.finish()?, listener);
        }
        let all = begun.elapsed().as_secs_f64();
        let first = first.unwrap_or(all);
        let (finish, stats) = (finish.unwrap_or("length"), self.engine.stats().since(&before));
        let (text, seconds) = (reply.into_text(), [first, all - first]);
        Ok(Answer { text, tokens, finish, seconds, stats })
    }

    /// Ends a sequence whose text has ended before its tokens did.
    fn abort(&mut self, seq: SeqId) {
        let speculator = self.speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        self.engine.abort(seq, speculator);
    }
}
