//! The text that an evaluation takes when none is given.
//!
//! English prose in two halves: Shakespeare, *The Tragedy of King Richard the Third*, act IV from
//! the second scene on, and the inaugural addresses of the presidents of the United States of 2013
//! (its second part), 2017 and 2021. Nothing of these passages is ever calibration text: a model
//! is not measured on what it was fitted to.
//!
//! Licence: public domain. Shakespeare's works are out of copyright everywhere; the addresses are
//! works of officers of the United States government, to which its copyright law (17 U.S.C. 105)
//! gives none. Apart from em dashes, which are spelt `--`, the words are untouched. The text is
//! ASCII; paragraphs and speeches are separated by one empty line.
//!
//! A figure on it says how two artifacts compare. It is too short, and too likely to be known to
//! a trained model, to be quoted as a benchmark: give a text of your own for that.

/// The evaluation text, about 60 KB.
pub const EVAL_TEXT: &str = include_str!("../data/eval.txt");

#[cfg(test)]
mod tests {
    use super::EVAL_TEXT;

    /// Figures are compared over time, so the text must not change by accident.
    #[test]
    fn the_text_is_pinned() {
        let fnv = EVAL_TEXT.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!((EVAL_TEXT.len(), fnv), (59_628, 0xafd50ec9c2b626e3));
    }

    #[test]
    fn the_text_is_plain() {
        assert!(EVAL_TEXT.is_ascii());
        assert!(!EVAL_TEXT.contains('\r') && !EVAL_TEXT.contains("\n\n\n"));
        assert!(EVAL_TEXT.starts_with("KING RICHARD III:\nAy, what's o'clock?"));
        assert!(EVAL_TEXT.ends_with("Thank you, America.\n"));
    }
}
