//! What was asked for and cannot be done.

/// Something that was asked for and cannot be done, known before a weight is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {rule}")]
pub struct Refusal {
    /// The tensor, or the setting.
    pub what: String,
    /// What must hold and does not.
    pub rule: String,
}
