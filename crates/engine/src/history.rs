//! What was said so far.

/// The tokens that a token is drawn after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History<'a> {
    /// All of them.
    pub tokens: &'a [u32],
    /// How many of them were given, and not drawn.
    pub prompt: usize,
}

impl<'a> History<'a> {
    /// Tokens, of which the first `prompt` were given.
    pub fn new(tokens: &'a [u32], prompt: usize) -> Self {
        Self { tokens, prompt }
    }

    /// Those that were drawn.
    pub fn generated(self) -> &'a [u32] {
        self.tokens.get(self.prompt..).unwrap_or_default()
    }
}
