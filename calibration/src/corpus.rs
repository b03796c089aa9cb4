//! The text that a calibration takes when none is given.
//!
//! About 800 KB, meant to resemble what a general model reads: encyclopedic articles and news,
//! speeches, plays and verse, questions and answers, prose in French and Swedish, and code in
//! several languages. A text like what the model will see is better where there is one.
//!
//! It is made by `data/make_calibration.py`, and shares no long line with the evaluation text
//! ([`crate::builtin::EVAL_TEXT`]), which comes from later parts of the same sources.
//!
//! Licence: the inaugural addresses of the presidents of the United States (1901 to 2013),
//! Shakespeare and the three translations of Genesis are in the public domain; the articles, the
//! dialogues and the code were written for this project and are under its licence. Many of the
//! articles are about invented people, places and events. `data/LICENSE.md` says which is which.

/// The calibration text, UTF-8, documents separated by empty lines.
pub fn builtin_calibration() -> &'static str {
    include_str!("../data/calibration.txt")
}

#[cfg(test)]
mod tests {
    use super::builtin_calibration;
    use crate::builtin::EVAL_TEXT;
    use sha2::{Digest, Sha256};

    /// The same recipe must give the same bytes, so the text must not change by accident.
    #[test]
    fn the_text_is_pinned() {
        let text = builtin_calibration();
        let hash = format!("{:x}", Sha256::digest(text.as_bytes()));
        assert_eq!(
            (text.len(), hash.as_str()),
            (817_758, "71c2bc566f687aaa82e56de5de5df5f21c408160832c5a71e1d82242cb86db54")
        );
    }

    /// A model is not measured on what it was fitted to.
    #[test]
    fn no_long_line_of_the_evaluation_text_is_in_it() {
        let text = builtin_calibration();
        let long = || EVAL_TEXT.lines().filter(|line| line.len() > 40);
        assert!(long().count() > 400);
        assert_eq!(long().find(|line| text.contains(line)), None);
    }

    #[test]
    fn the_text_is_clean_and_of_many_kinds() {
        let text = builtin_calibration();
        let control = |c: &char| c.is_control() && !matches!(c, '\n' | '\t');
        assert_eq!(text.chars().find(control), None);
        assert!(!text.contains("\n\n\n") && text.ends_with('\n') && !text.contains(" \n"));
        let kinds = ["= Tidal power =", "\nUser: ", "fellow-citizens", "MENENIUS:", "God said"];
        let more = ["Dieu dit", "Och Gud", "def ", "pub fn ", "SELECT ", "#include", "\"lat\": "];
        for kind in kinds.iter().chain(&more) {
            assert!(text.contains(kind), "{kind}");
        }
    }
}
