//! What a model keeps of the tokens that it has seen, from one step to the next.

use crate::op::Heads;

/// Names a cache: an index into [`crate::ModelSpec::caches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u32);

/// The keys and values that an op writes and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Of which tokens.
    pub keep: Keep,
    /// What a token takes: keys and values of these heads.
    pub heads: Heads,
}

/// Which tokens a cache keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// Every one.
    Full,
    /// The last so many.
    Window(u32),
}

impl Cache {
    /// What an attention with these heads and this window needs.
    pub fn of(heads: Heads, window: Option<u32>) -> Self {
        Self { keep: window.map_or(Keep::Full, Keep::Window), heads }
    }
}
