//! What a model thinks before it answers, told apart from the answer.

/// How models mark it. The template may open it for them.
const MARKS: &[(&str, &str)] = &[
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
];

/// Every mark, for those that tokenizers spell as tokens of no text.
pub fn marks() -> impl Iterator<Item = &'static str> {
    MARKS.iter().flat_map(|(open, close)| [*open, *close])
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whether it is thought rather than said.
    pub thought: bool,
    /// What it says.
    pub text: String,
}

/// Tells thought from answer in a text that grows. Only what a text begins with is thought; white
/// space around the marks belongs to neither.
#[derive(Clone, Debug)]
pub struct Splitter {
    state: State,
    /// The end of the text that is not certain yet.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A mark may still come.
    Begin,
    /// Within the marks, of which this one ends it; whether any thought has come.
    Thought(&'static str, bool),
    /// Behind the marks: white space is left out.
    Between,
    /// The answer.
    Answer,
}

impl Splitter {
    /// For an answer to `prompt`, in which the template may have opened a thought.
    pub fn after(prompt: &str) -> Self {
        let opened = MARKS.iter().find(|(open, _)| prompt.trim_end().ends_with(open));
        let state = opened.map_or(State::Begin, |(_, close)| State::Thought(close, false));
        Self { state, held: String::new() }
    }

    /// Takes text in; returns what is certain, none of it empty.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// What is left when no text comes any more.
    pub fn finish(self) -> Option<Piece> {
        let text = match self.state {
            State::Begin | State::Answer => &self.held,
            State::Thought(_, false) => self.held.trim(),
            State::Thought(_, true) => self.held.trim_end(),
            State::Between => "",
        };
        let thought = matches!(self.state, State::Thought(..));
        (!text.is_empty()).then(|| Piece { thought, text: text.to_string() })
    }

    /// Takes what it can from what is held; says whether more may follow.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Begin => {
                let text = self.held.trim_start();
                if let Some((open, close)) = MARKS.iter().find(|(open, _)| text.starts_with(open)) {
                    self.held = text[open.len()..].to_string();
                    self.state = State::Thought(close, false);
                    return true;
                }
                let open = MARKS.iter().any(|(open, _)| open.starts_with(text));
                self.state = if open { State::Begin } else { State::Answer };
                !open
            }
            State::Thought(close, begun) => {
                let end = self.held.find(close);
                // What might be the beginning of the mark is held, and white space before it.
                let begins = |at: &usize| {
                    close.starts_with(&self.held[*at..]) || self.held[*at..].trim().is_empty()
                };
                let keep = || {
                    let mut ends = self.held.char_indices().map(|(at, _)| at);
                    let keep = ends.find(begins).unwrap_or(self.held.len());
                    self.held[..keep].trim_end().len()
                };
                let certain = end.unwrap_or_else(keep);
                let text = &self.held[..certain];
                let text = if begun { text } else { text.trim_start() };
                let text = if end.is_some() { text.trim_end() } else { text };
                if !text.is_empty() {
                    pieces.push(Piece { thought: true, text: text.to_string() });
                    self.state = State::Thought(close, true);
                }
                self.held.drain(..certain + end.map_or(0, |_| close.len()));
                if end.is_some() {
                    self.state = State::Between;
                }
                end.is_some()
            }
            State::Between => {
                self.held = self.held.trim_start().to_string();
                let said = !self.held.is_empty();
                self.state = if said { State::Answer } else { State::Between };
                said
            }
            State::Answer => {
                let text = std::mem::take(&mut self.held);
                if !text.is_empty() {
                    pieces.push(Piece { thought: false, text });
                }
                false
            }
        }
    }
}

/// A whole answer to `prompt`: what was thought, if anything, and what was said.
pub fn divided(prompt: &str, text: &str) -> (String, String) {
    let mut splitter = Splitter::after(prompt);
    let mut pieces = splitter.push(text);
    pieces.extend(splitter.finish());
    let all = |thought: bool| {
        let of = pieces.iter().filter(|piece| piece.thought == thought);
        of.map(|piece| piece.text.as_str()).collect()
    };
    (all(true), all(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in any pieces.
    fn both(prompt: &str, text: &str) -> (String, String) {
        let whole = divided(prompt, text);
        for size in 1..6 {
            let mut splitter = Splitter::after(prompt);
            let (mut thought, mut said) = (String::new(), String::new());
            let letters: Vec<char> = text.chars().collect();
            let mut pieces: Vec<Piece> =
                letters.chunks(size).flat_map(|c| splitter.push(&String::from_iter(c))).collect();
            pieces.extend(splitter.finish());
            for piece in pieces {
                assert!(!piece.text.is_empty());
                if piece.thought { &mut thought } else { &mut said }.push_str(&piece.text);
            }
            assert_eq!((thought, said), whole, "{text:?} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn thought_is_what_stands_in_marks_at_the_beginning() {
        for (prompt, text, thought, said) in [
            ("", "hello", "", "hello"),
            ("", " \n girl <think>x</think>", "", " \n girl <think>x</think>"),
            ("", "<think>\nwhy\n\nnot\n</think>\n\nso ", "why\n\nnot", "so "),
            ("", "\n<think>\n\n</think>\n\nso", "", "so"),
            ("", "[THINK]a </think> b[/THINK]c", "a </think> b", "c"),
            ("", "<thin ice", "", "<thin ice"),
            ("", "<think>a < b </th", "a < b </th", ""),
            ("", "<thi", "", "<thi"),
            ("", "  ", "", "  "),
            ("", "<think>a</think>\n", "a", ""),
            ("ai<think>\n", "\nwhy \u{e9}\n</think>so</think>", "why \u{e9}", "so</think>"),
            ("<think>\n\n</think>\n", "so", "", "so"),
        ] {
            assert_eq!(both(prompt, text), (thought.into(), said.into()), "{text:?}");
        }
    }
}
