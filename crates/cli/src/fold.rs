//! Lines of 80 columns: a label, and words that go on under themselves.

/// Columns of a line.
pub(crate) const COLUMNS: usize = 80;

/// Where words stand after a label.
const INDENT: usize = 12;

/// `label` and `words`, in lines of at most 80 columns as far as words allow it.
pub(crate) fn fold(label: &str, words: &str) -> String {
    let (mut text, mut line) = (String::new(), format!("{label:<INDENT$}"));
    let mut empty = true;
    for word in words.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(INDENT);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_go_on_under_their_words() {
        assert_eq!(fold("a", "b c"), "a           b c\n");
        let folded = fold("label", &"word ".repeat(30));
        assert_eq!(folded.lines().count(), 3);
        assert!(folded.lines().all(|line| line.chars().count() <= COLUMNS));
        assert!(folded.lines().skip(1).all(|line| line.starts_with("            word")));
        // A word that no line holds is not cut.
        let long = "x".repeat(90);
        assert_eq!(fold("a", &format!("b {long}")), format!("a           b\n            {long}\n"));
    }
}
