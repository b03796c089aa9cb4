//! The built-in calibration text.

/// Prose, dialogue, code and several languages; see `data/LICENSE.md`.
pub fn builtin_calibration() -> &'static str {
    include_str!("../data/calibration.txt")
}
