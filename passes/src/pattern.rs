//! Patterns of module names.

use regex::{Regex, RegexBuilder};

/// What a regular expression may take once it is compiled, in bytes: patterns come from files.
const REGEX_BYTES: usize = 1 << 20;

/// A pattern of module names: a name, in which `*` stands for any characters, or `re:` and a regular
/// expression that the name begins with, as llm-compressor and compressed-tensors read it.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    /// A name, with stars.
    Name(String),
    /// A regular expression, held against a name from its beginning.
    Regex(Regex),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// If it is no regular expression, or a huge one.
    pub(crate) fn new(pattern: &str) -> Result<Self, String> {
        let Some(regex) = pattern.strip_prefix("re:") else {
            return Ok(Self::Name(pattern.into()));
        };
        let built = RegexBuilder::new(&format!("^(?:{regex})")).size_limit(REGEX_BYTES).build();
        built.map(Self::Regex).map_err(|error| {
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("{pattern:?} is no regular expression that is understood here: {last}")
        })
    }

    /// Whether a name is of this pattern.
    pub(crate) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(pattern) => matches(pattern, name),
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

/// Whether `name` is `pattern`, in which `*` stands for any characters, or none.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    while let Some((part, after)) = rest.split_once('*') {
        let Some(at) = name.find(part) else { return false };
        (name, rest) = (&name[at + part.len()..], after);
    }
    name.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        let name = "model.layers.10.mlp.down_proj";
        for pattern in ["*", "*down_proj", "model.*", "model.layers.*.mlp.*", name, "*.10.*", "**"]
        {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in
            ["", "down_proj", "*.1.*", "model", "*up_proj", "model.*.mlp", "*down_proj.*"]
        {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }
    #[test]
    fn a_regular_expression_is_held_against_the_beginning_of_a_name() {
        let name = "model.layers.10.mlp.down_proj";
        for pattern in ["re:.*down_proj", "re:.*down_proj$", "re:model", "re:.*\\.1\\d\\."] {
            assert!(Pattern::new(pattern).unwrap().matches(name), "{pattern}");
        }
        for pattern in ["re:down_proj", "re:layers", "re:model$"] {
            assert!(!Pattern::new(pattern).unwrap().matches(name), "{pattern}");
        }
        assert!(Pattern::new("re:(").unwrap_err().contains("no regular expression"));
        assert!(
            Pattern::new("re:(?:a{1000}){1000}").unwrap_err().contains("no regular expression")
        );
    }
}
