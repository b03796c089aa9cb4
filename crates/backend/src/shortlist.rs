//! The few tokens of a row of logits that a draw can be decided by: found on a device, so that logits
//! need not leave it. Who draws says what that is; this is its form.

use crate::BackendError;
use std::any::Any;

/// The most tokens of a list that a device gives.
pub const SHORTLIST: usize = 64;

/// What to find in one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Seek<'a> {
    /// Which tokens.
    pub of: Sought,
    /// The key of the noise of `NearWinner`: token `t` has the upper half of
    /// `mix(key ^ t * 0xd6e8feb86659fd93)`, `mix` SplitMix64's finalizer.
    pub key: u64,
    /// Divides logits, relative to the best.
    pub temperature: f32,
    /// What is below this is left out.
    pub min_score: f32,
    /// Below 1, `NearWinner` is among the most likely tokens that together have this share of all
    /// exponentials; there is no list where it is not certain which these are.
    pub share: f32,
    /// Divides positive and multiplies negative logits of repeated tokens.
    pub repetition: f32,
    /// Taken from a token's logit `count` times.
    pub frequency: f32,
    /// Taken from the logits of tokens that are present.
    pub presence: f32,
    /// What is changed before anything is looked for, each token once.
    pub changes: &'a [SeekChange],
    /// So many of the largest before any change, and the sum of exponentials.
    pub raw: Option<usize>,
}

/// Which tokens are looked for, beside the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought {
    /// None.
    Best,
    /// Those whose logit, relative to the best and divided, plus noise is within a thousandth of the
    /// largest such sum.
    NearWinner,
    /// The [`SHORTLIST`] largest.
    Largest,
}

/// How a token's logit is changed, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SeekChange {
    /// The token.
    pub token: u32,
    /// Added.
    pub bias: Option<f32>,
    /// Whether it is repeated.
    pub repeated: bool,
    /// How often it occurred.
    pub count: u32,
    /// Whether it is present.
    pub present: bool,
}

/// A search that is under way.
pub trait Seeking: Send {
    /// The device's own data: the token of every row, as far as the device can tell, is in it.
    fn data(&self) -> &dyn Any;

    /// Waits for what was found, a row each.
    ///
    /// # Errors
    /// If the device failed.
    fn found(self: Box<Self>) -> Result<Vec<Shortlist>, BackendError>;
}

/// What was found in one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shortlist {
    /// The token that the device takes for the drawn one: right but where two are next to equal, or
    /// where the largest were asked for.
    pub token: u32,
    /// Whether a logit is NaN or infinite.
    pub bad: bool,
    /// The best token, the lowest among equals, and its logit.
    pub best: (u32, f32),
    /// What was looked for, in no order, and perhaps more; `None` if it is more than a list holds.
    pub list: Option<Vec<(u32, f32)>>,
    /// The largest logit before any change, and the sum of exponentials relative to it.
    pub raw: (f32, f32),
    /// The largest before any change, likewise.
    pub raw_list: Option<Vec<(u32, f32)>>,
    /// The logits that were changed, as they were.
    pub originals: Vec<f32>,
}
