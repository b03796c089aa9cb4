//! Text that grows token by token.

use crate::{Error, Tokenizer};

/// Tokens of context that are decoded with each new one: a decoder may treat the first token of a
/// text in its own way.
const CONTEXT: usize = 6;

/// Turns tokens into text as they come. A character is given out once it is whole.
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    /// The last tokens given out, then those that are not yet whole characters.
    ids: Vec<u32>,
    /// So many of `ids` have been given out.
    read: usize,
}

impl<'t> Detokenizer<'t> {
    /// A text that follows `before`, of which nothing is given out.
    pub fn new(tokenizer: &'t Tokenizer, before: &[u32]) -> Self {
        let ids = before[before.len().saturating_sub(CONTEXT)..].to_vec();
        Self { tokenizer, read: ids.len(), ids }
    }

    /// Takes a token in; returns the text that is new, which may be none yet.
    ///
    /// # Errors
    /// If the library cannot decode.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let text = self.rest()?;
        // A character whose last bytes are to come is decoded as U+FFFD. None has more than four.
        let broken = text.ends_with('\u{fffd}') && self.ids.len() - self.read < 4;
        if broken || text.is_empty() {
            return Ok(String::new());
        }
        self.ids.drain(..self.ids.len().saturating_sub(CONTEXT));
        self.read = self.ids.len();
        Ok(text)
    }

    /// The text of the tokens that have not been given out: what is left when no token comes any more.
    ///
    /// # Errors
    /// If the library cannot decode.
    pub fn rest(&self) -> Result<String, Error> {
        let before = self.tokenizer.decode(&self.ids[..self.read])?;
        let whole = self.tokenizer.decode(&self.ids)?;
        // The same tokens decode to the same text, unless what follows completes their last bytes.
        let text = whole.strip_prefix(before.as_str());
        Ok(text.or_else(|| whole.get(before.len()..)).unwrap_or_default().to_string())
    }
}

/// Ends a growing text where one of some strings occurs.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text, which may be the beginning of a stop string.
    held: String,
}

impl StopStrings {
    /// Stops at any of `stops`; empty ones are no stops.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new() }
    }

    /// Takes text in; returns what is certain to come before any stop, and whether one has come.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            let before = self.held[..at].to_string();
            self.held.clear();
            return (before, true);
        }
        let begins = |at: &usize| {
            let rest = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(rest))
        };
        let mut ends = self.held.char_indices().map(|(at, _)| at);
        let keep = ends.find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is left when no text comes any more.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut strings = StopStrings::new(stops.iter().map(|s| s.to_string()));
        let mut all = String::new();
        for piece in pieces {
            let (text, stop) = strings.push(piece);
            all.push_str(&text);
            if stop {
                return (all, true);
            }
        }
        (all + &strings.finish(), false)
    }

    #[test]
    fn a_text_ends_before_the_first_stop_string_however_it_is_cut() {
        let whole = "one two\n\nthree \u{e9}nd";
        let cuts: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
        for &a in &cuts {
            for &b in cuts.iter().filter(|&&b| b >= a) {
                let pieces = [&whole[..a], &whole[a..b], &whole[b..]];
                assert_eq!(stopped(&["\n\n"], &pieces), ("one two".into(), true));
                assert_eq!(stopped(&["nd", "three"], &pieces), ("one two\n\n".into(), true));
                assert_eq!(stopped(&["two three", "", "ndx"], &pieces), (whole.into(), false));
                assert_eq!(stopped(&["\u{e9}"], &pieces), ("one two\n\nthree ".into(), true));
            }
        }
    }

    #[test]
    fn only_what_may_become_a_stop_is_held_back() {
        let mut strings = StopStrings::new(["abab!".to_string()]);
        assert_eq!(strings.push("xaba"), ("x".into(), false));
        assert_eq!(strings.push("bab"), ("ab".into(), false));
        assert_eq!(strings.push("!z"), (String::new(), true));
    }
}
