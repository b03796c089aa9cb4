//! When requests that have come are handed to the engine.

/// How requests are put together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Batching {
    /// Each joins the running ones at the next step, and leaves when it ends.
    Continuous,
    /// So many are waited for and run to their end; the next ones wait for that.
    Static(usize),
    /// As static, but what is there begins after a while.
    Dynamic {
        /// The most at once.
        most: usize,
        /// Seconds that the first is kept waiting at most.
        wait: f64,
    },
}

/// What there is to hand over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// Requests that wait.
    pub(crate) count: usize,
    /// When the first of them came, in seconds.
    pub(crate) since: f64,
    /// Whether the engine has nothing to do.
    pub(crate) idle: bool,
    /// Whether no other can come before one of these has ended.
    pub(crate) all: bool,
}

impl Batching {
    /// How many are handed over at `now`.
    pub(crate) fn released(self, waiting: Waiting, now: f64) -> usize {
        let Waiting { count, since, idle, all } = waiting;
        match self {
            Self::Continuous => count,
            _ if !idle => 0,
            Self::Static(size) if count >= size || all => count.min(size),
            Self::Dynamic { most, wait } if count >= most || all || now >= since + wait => {
                count.min(most)
            }
            Self::Static(_) | Self::Dynamic { .. } => 0,
        }
    }

    /// When waiting ends even if nothing else comes.
    pub(crate) fn patience(self, since: f64) -> f64 {
        match self {
            Self::Dynamic { wait, .. } => since + wait,
            _ => f64::INFINITY,
        }
    }
}
