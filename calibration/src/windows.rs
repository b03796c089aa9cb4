//! Where each token of a text is scored: the evaluation protocol, as pure functions.
//!
//! A model sees a bounded context, so a long text goes through it in windows. Which token is
//! scored in which window decides the perplexity as much as the model does; two figures compare
//! only under one protocol.

use std::ops::Range;

/// A protocol, with its sizes in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// A window begins every `stride` tokens. Each token is scored once, by the first window that
    /// holds at least one token before it. So the first token of the text is never scored, and
    /// with `stride == window` neither is the first of any window.
    Windows {
        /// Tokens of a window, 2 at least.
        window: usize,
        /// Tokens from one window's begin to the next's: 1 to `window`.
        stride: usize,
    },
    /// What llama.cpp's `llama-perplexity` does: whole chunks, one after the other, what remains
    /// at the end is dropped; in each the second half is scored, without its first token.
    /// (That tool asks for two chunks of text; one is enough here.)
    LlamaCpp {
        /// Tokens of a chunk, 3 at least; the tool's default is 512.
        window: usize,
        /// The begin token, where the tokenizer adds one: it replaces the first of each chunk.
        bos: Option<u32>,
    },
}

/// A run of tokens that goes through the model at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The position in the text of the first token.
    pub begin: usize,
    /// The position after the last token.
    pub end: usize,
    /// The positions in the text that this window scores, never empty: each is predicted from
    /// the tokens before it in the window.
    pub score: Range<usize>,
    /// The first token is replaced by the begin token.
    pub bos: bool,
}

/// Why a text cannot be cut into windows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The window is too small to score anything.
    #[error("a window of {window} tokens scores nothing; the smallest is {smallest}")]
    Window {
        /// Tokens asked for.
        window: usize,
        /// Tokens needed.
        smallest: usize,
    },
    /// The stride leaves tokens out, or does not advance.
    #[error("a stride of {stride} tokens with windows of {window}; it must be 1 to {window}")]
    Stride {
        /// Tokens asked for.
        stride: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// The text is too short.
    #[error("the text has {tokens} tokens; the evaluation needs at least {needed}")]
    Tokens {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
    },
}

/// Cuts a text of so many tokens into windows, in order.
pub fn windows(protocol: &Protocol, tokens: usize) -> Result<Vec<Window>, WindowError> {
    match *protocol {
        Protocol::Windows { window, stride } => sliding(window, stride, tokens),
        Protocol::LlamaCpp { window, bos } => chunks(window, bos.is_some(), tokens),
    }
}

fn sliding(window: usize, stride: usize, tokens: usize) -> Result<Vec<Window>, WindowError> {
    at_least(window, 2)?;
    if stride == 0 || stride > window {
        return Err(WindowError::Stride { stride, window });
    }
    enough(tokens, 2)?;
    let mut cut = Vec::new();
    let (mut begin, mut scored) = (0usize, 0usize);
    while scored < tokens && begin < tokens {
        let end = begin.saturating_add(window).min(tokens);
        // The first token of a window has nothing before it there.
        let score = scored.max(begin + 1)..end;
        if !score.is_empty() {
            cut.push(Window { begin, end, score, bos: false });
        }
        scored = end;
        begin = begin.saturating_add(stride);
    }
    Ok(cut)
}

fn chunks(window: usize, bos: bool, tokens: usize) -> Result<Vec<Window>, WindowError> {
    at_least(window, 3)?;
    enough(tokens, window)?;
    let chunk = |k: usize| {
        let begin = k * window;
        let end = begin + window;
        // Position j predicts j + 1, for j from the middle to the last but one.
        Window { begin, end, score: begin + window / 2 + 1..end, bos }
    };
    Ok((0..tokens / window).map(chunk).collect())
}

fn at_least(window: usize, smallest: usize) -> Result<(), WindowError> {
    if window < smallest { Err(WindowError::Window { window, smallest }) } else { Ok(()) }
}

fn enough(tokens: usize, needed: usize) -> Result<(), WindowError> {
    if tokens < needed { Err(WindowError::Tokens { tokens, needed }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(window: usize, stride: usize, tokens: usize) -> Vec<(usize, usize, Range<usize>)> {
        let cut = windows(&Protocol::Windows { window, stride }, tokens).unwrap();
        cut.into_iter().map(|w| (w.begin, w.end, w.score)).collect()
    }

    #[test]
    fn windows_overlap_by_what_the_stride_leaves() {
        assert_eq!(cut(4, 2, 7), [(0, 4, 1..4), (2, 6, 4..6), (4, 7, 6..7)]);
        assert_eq!(cut(4, 4, 8), [(0, 4, 1..4), (4, 8, 5..8)]);
        assert_eq!(cut(4, 4, 6), [(0, 4, 1..4), (4, 6, 5..6)]);
        assert_eq!(cut(100, 7, 5), [(0, 5, 1..5)]);
        assert_eq!(cut(usize::MAX, usize::MAX, 3), [(0, 3, 1..3)]);
    }

    #[test]
    fn a_window_that_scores_nothing_is_left_out() {
        assert_eq!(cut(4, 4, 5), [(0, 4, 1..4)]);
    }

    /// Every small case: who scores what, against the rule as it is worded.
    #[test]
    fn each_token_is_scored_once_by_the_first_window_that_can() {
        for window in 2..9 {
            for stride in 1..=window {
                for tokens in 2..40 {
                    let cut = windows(&Protocol::Windows { window, stride }, tokens).unwrap();
                    check(&cut, window, tokens);
                    for t in 0..tokens {
                        let first = (0..tokens).step_by(stride).find(|b| *b < t && t < b + window);
                        let by: Vec<_> = cut.iter().filter(|w| w.score.contains(&t)).collect();
                        assert_eq!(by.len(), usize::from(first.is_some()), "{t}: {cut:?}");
                        assert_eq!(by.first().map(|w| w.begin), first, "{t}: {cut:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn chunks_score_their_second_half() {
        for window in 3..12 {
            for tokens in window..50 {
                let cut = windows(&Protocol::LlamaCpp { window, bos: None }, tokens).unwrap();
                check(&cut, window, tokens);
                assert_eq!(cut.len(), tokens / window);
                assert!(cut.iter().all(|w| w.end - w.begin == window && !w.bos));
                let each = window - window / 2 - 1;
                assert!(cut.iter().all(|w| w.score.len() == each));
            }
        }
    }

    #[test]
    fn the_default_chunk_is_the_tools() {
        let protocol = Protocol::LlamaCpp { window: 512, bos: Some(1) };
        let cut = windows(&protocol, 3 * 512 + 511).unwrap();
        assert_eq!(cut.len(), 3);
        assert_eq!(cut[1], Window { begin: 512, end: 1024, score: 769..1024, bos: true });
        assert_eq!(cut[0].score.len(), 255);
    }

    #[test]
    fn what_cannot_be_cut_says_what_is_needed() {
        let sliding = |window, stride, tokens| {
            windows(&Protocol::Windows { window, stride }, tokens).unwrap_err()
        };
        assert_eq!(sliding(1, 1, 9), WindowError::Window { window: 1, smallest: 2 });
        assert_eq!(sliding(4, 5, 9), WindowError::Stride { stride: 5, window: 4 });
        assert_eq!(sliding(4, 0, 9), WindowError::Stride { stride: 0, window: 4 });
        assert_eq!(sliding(4, 2, 1), WindowError::Tokens { tokens: 1, needed: 2 });
        let chunks = |window, tokens| {
            windows(&Protocol::LlamaCpp { window, bos: None }, tokens).unwrap_err()
        };
        assert_eq!(chunks(2, 9), WindowError::Window { window: 2, smallest: 3 });
        assert_eq!(chunks(512, 511), WindowError::Tokens { tokens: 511, needed: 512 });
    }

    fn check(cut: &[Window], window: usize, tokens: usize) {
        assert!(!cut.is_empty());
        for w in cut {
            assert!(w.end <= tokens && w.end - w.begin <= window);
            assert!(!w.score.is_empty());
            assert!(w.begin < w.score.start && w.score.end <= w.end);
        }
        assert!(cut.windows(2).all(|p| p[0].score.end <= p[1].score.start), "{cut:?}");
    }
}
