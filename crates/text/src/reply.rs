//! A reply: tokens in, text out.

use crate::{Detokenizer, Error, StopStrings, Tokenizer};

/// A special token that is to be seen all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelled {
    /// Its id.
    pub token: u32,
    /// How it is shown.
    pub text: &'static str,
}

/// What a token adds to a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Text that is certain now; often none.
    pub text: String,
    /// Whether a stop string has come, which ends the reply.
    pub stopped: bool,
}

/// The text of a reply, which grows token by token and ends before a stop string. It knows of no
/// model and no listener.
pub struct Reply<'t> {
    detokenizer: Detokenizer<'t>,
    stops: StopStrings,
    spelled: &'t [Spelled],
    stopped: bool,
    text: String,
}

impl<'t> Reply<'t> {
    /// A reply to `prompt` that ends before any of `stops`.
    pub fn new(
        tokenizer: &'t Tokenizer,
        prompt: &[u32],
        stops: &[String],
        spelled: &'t [Spelled],
    ) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer, prompt),
            stops: StopStrings::new(stops.iter().cloned()),
            spelled,
            stopped: false,
            text: String::new(),
        }
    }

    /// Takes a token in. Nothing is added behind a stop string.
    ///
    /// # Errors
    /// If the library cannot decode.
    pub fn push(&mut self, token: u32) -> Result<Grown, Error> {
        if self.stopped {
            return Ok(Grown { text: String::new(), stopped: true });
        }
        let mut text = self.detokenizer.push(token)?;
        if let Some(spelled) = self.spelled.iter().find(|spelled| spelled.token == token) {
            text.push_str(spelled.text);
        }
        let (text, stopped) = self.stops.push(&text);
        self.text.push_str(&text);
        self.stopped = stopped;
        Ok(Grown { text, stopped })
    }

    /// What was held back, when no token comes any more: the last characters, and what might have
    /// become a stop string. Nothing after a stop string.
    ///
    /// # Errors
    /// If the library cannot decode.
    pub fn finish(&mut self) -> Result<String, Error> {
        if self.stopped {
            return Ok(String::new());
        }
        self.stopped = true;
        let mut stops = std::mem::take(&mut self.stops);
        let rest = match stops.push(&self.detokenizer.rest()?) {
            (before, true) => before,
            (before, false) => before + &stops.finish(),
        };
        self.text.push_str(&rest);
        Ok(rest)
    }

    /// All text so far.
    pub fn into_text(self) -> String {
        self.text
    }
}
