//! What can be wrong with a tokenizer file, a chat template or a text.

/// Why a tokenizer could not be loaded or used. The caller knows the path of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is larger than any tokenizer in use.
    #[error("tokenizer.json has {bytes} bytes; at most {limit} are read")]
    FileSize {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes are not JSON, or nest too deeply.
    #[error("tokenizer.json is not valid JSON: {0}")]
    Json(String),
    /// A value breaks a rule that every sound tokenizer keeps.
    #[error("tokenizer.json: {key}: {rule}")]
    Rule {
        /// The place in the file, in dotted form.
        key: String,
        /// What is wrong there.
        rule: String,
    },
    /// The tokenizer library refused the file.
    #[error("tokenizer.json cannot be loaded: {0}")]
    Load(String),
    /// The text is longer than what is tokenized in one call.
    #[error("the text has {bytes} bytes; at most {limit} are tokenized at once: cut it")]
    TextSize {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The vocabulary cannot spell a byte of the text and has no token for unknown ones.
    #[error(
        "byte 0x{byte:02x} at position {at} of the text has no token, and the tokenizer has no \
         unknown token for it; remove the character or use a complete tokenizer"
    )]
    MissingByte {
        /// The byte without a token.
        byte: u8,
        /// Its position in the text, in bytes.
        at: usize,
    },
    /// More white space in a row than the tokenizer's pattern can split.
    #[error(
        "more than {limit} white space characters follow each other at position {at} of the text, \
         too many for the tokenizer's pattern; shorten the run"
    )]
    BlankRun {
        /// Where the run begins, in bytes.
        at: usize,
        /// White space characters allowed.
        limit: usize,
    },
    /// The text has an added token for which the embedding has no row.
    #[error(
        "the text has the token {token}, whose id {id} is beyond the {rows} rows of the model's \
         embedding; leave it out"
    )]
    BeyondEmbedding {
        /// The token, quoted.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// The library could not tokenize the text.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    /// The library could not turn ids into text.
    #[error("the ids cannot be decoded: {0}")]
    Decode(String),
    /// A file that goes with the chat template cannot be read.
    #[error("{file}: {rule}")]
    TemplateFile {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        rule: String,
    },
    /// The chat template is no template, or fails on a conversation.
    #[error("the chat template{}: {rule}", at(*.line))]
    Template {
        /// Its line, from 1.
        line: Option<usize>,
        /// What the interpreter says.
        rule: String,
    },
    /// The chat template ran for too long, or made too much.
    #[error(
        "the chat template{}: it takes too many steps or too much memory for this conversation",
        at(*.line)
    )]
    TemplateBudget {
        /// Its line, from 1.
        line: Option<usize>,
    },
    /// The chat template called `raise_exception`.
    #[error("the chat template refuses the conversation: {0}")]
    TemplateRefused(String),
    /// Something else than a conversation was to be rendered.
    #[error("messages must be a list of objects with a role and a content, one at least")]
    Messages,
    /// A library panicked: the file passed every check and is malformed all the same.
    #[error("a library failed while {doing}: {message}; the file is malformed")]
    Panicked {
        /// What was being done.
        doing: &'static str,
        /// The panic's message.
        message: String,
    },
}

impl Error {
    pub(crate) fn rule(key: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::Rule { key: key.into(), rule: rule.into() }
    }
}

/// Where in a template an error is.
fn at(line: Option<usize>) -> String {
    line.map_or(String::new(), |line| format!(", line {line}"))
}

/// A name from a hostile file, quoted, escaped and cut: safe to print.
pub(crate) fn quoted(name: &str) -> String {
    const SHOWN: usize = 60;
    let cut: String = name.chars().take(SHOWN).collect();
    let dots = if cut.len() < name.len() { "..." } else { "" };
    format!("{cut:?}{dots}")
}

/// A message of the library, which may repeat bytes of the file: escaped and cut.
pub(crate) fn message(text: &dyn std::fmt::Display) -> String {
    const SHOWN: usize = 300;
    text.to_string().chars().take(SHOWN).flat_map(escape).collect()
}

fn escape(c: char) -> impl Iterator<Item = char> {
    // Quotes stay readable; everything that `{:?}` would escape and is not a quote is escaped.
    let plain = matches!(c, '\'' | '"' | '\\');
    let escaped = (!plain).then(|| c.escape_debug()).into_iter().flatten();
    plain.then_some(c).into_iter().chain(escaped)
}
