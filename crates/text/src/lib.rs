//! Text to token ids and back, by the tokenizer.json that a checkpoint brings, and conversations
//! to text, by its chat template.
//!
//! The work is done by the `tokenizers` library, so the ids are those of the model's own
//! tokenizer. What this crate adds is trust: the file is hostile until it has passed the rules of
//! `check`, settings that alter a text (truncation, padding) are switched off, and whatever the
//! library still panics on becomes an [`Error`].

mod added;
mod check;
mod error;
mod jinja;
mod moment;
mod reply;
mod stream;
mod template;
pub mod thinking;

pub use added::TokenFiles;
pub use error::Error;
pub use moment::strftime;
pub use reply::{Grown, Reply, Spelled};
pub use stream::{Detokenizer, StopStrings};
pub use template::{ChatTemplate, TemplateFiles};

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A text is tokenized in one call; the library needs some hundred bytes a byte of text.
const MAX_TEXT: usize = 64 << 20;

/// White space characters in a row, where a pattern splits the text. The usual patterns (GPT-2's
/// `\s+(?!\S)` and its kin) backtrack once a character there, and the library's engine gives up
/// after a million steps: it then leaves the rest of the text unsplit without an error.
const MAX_BLANK_RUN: usize = 200_000;

/// A loaded tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    missing: Vec<u8>,
    splits: bool,
    bos: Option<u32>,
    base: usize,
    rows: usize,
}

impl Tokenizer {
    /// Loads the bytes of a tokenizer.json, which the caller has found to be strict JSON.
    pub fn from_bytes(json: &[u8]) -> Result<Self, Error> {
        Self::load(json, &TokenFiles::default())
    }

    /// Loads a tokenizer.json and the tokens that other files of the checkpoint declare, with the
    /// ids that transformers gives them.
    pub fn load(json: &[u8], files: &TokenFiles<'_>) -> Result<Self, Error> {
        if json.len() > check::MAX_FILE {
            return Err(Error::FileSize { bytes: json.len(), limit: check::MAX_FILE });
        }
        let file: serde_json::Value =
            serde_json::from_slice(json).map_err(|e| Error::Json(error::message(&e)))?;
        check::check(&file)?;
        let inner = guarded("loading it", || -> tokenizers::Result<_> {
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            // Both change the ids: one cuts the text, the other lengthens it.
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(inner)
        })?
        .map_err(|e| Error::Load(error::message(&e)))?;
        agreed_ids(&file, &inner)?;
        let mut inner = inner;
        let existing: Vec<_> = inner.get_added_tokens_decoder().into_values().collect();
        let declared = added::declared(files, &existing)?;
        if !declared.is_empty() {
            let added = guarded("adding tokens", || inner.add_tokens(declared))?;
            added.map_err(|e| Error::Load(error::message(&e)))?;
        }
        let highest = inner.get_vocab(false).into_values().max();
        let base = highest.map_or(0, |id| id as usize + 1);
        let missing = check::missing_bytes(&file);
        let splits = check::splits_by_pattern(&file);
        let mut tokenizer = Self { inner, missing, splits, bos: None, base, rows: usize::MAX };
        tokenizer.bos = tokenizer.find_bos()?;
        Ok(tokenizer)
    }

    /// The ids of a text as the tokenizer gives them by default: with the special tokens that its
    /// post-processor adds. The spelling of a special token within the text becomes that token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode_with(text, true)
    }

    /// The ids of a text without added special tokens.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode_with(text, false)
    }

    /// The text of a sequence of ids. Special tokens and ids without a token (a padded embedding
    /// has such) add nothing; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        guarded("decoding", || self.inner.decode(ids, true))?
            .map_err(|e| Error::Decode(error::message(&e)))
    }

    /// The id of a token by its spelling; `None` if there is no such token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id that [`Tokenizer::encode`] puts before every text, if it puts one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The highest id of the vocabulary plus one, without added tokens. An embedding may have
    /// more rows.
    pub fn size(&self) -> usize {
        self.base
    }

    /// Says how many rows the embedding has: a text that needs another is then an error.
    #[must_use]
    pub fn with_rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// The id of a text that is one special token: it decodes to nothing.
    pub fn special(&self, text: &str) -> Option<u32> {
        let id = self.id(text)?;
        self.decode(&[id]).is_ok_and(|shown| shown.is_empty()).then_some(id)
    }

    /// Whether both give every token the same id.
    pub fn has_vocabulary_of(&self, other: &Self) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::TextSize { bytes: text.len(), limit: MAX_TEXT });
        }
        if !self.missing.is_empty()
            && let Some(at) = text.bytes().position(|b| self.missing.contains(&b))
        {
            return Err(Error::MissingByte { byte: text.as_bytes()[at], at });
        }
        if self.splits
            && let Some(at) = blank_run(text)
        {
            return Err(Error::BlankRun { at, limit: MAX_BLANK_RUN });
        }
        // `encode_fast` leaves out the offsets, which nobody here reads.
        let encoding = guarded("encoding", || self.inner.encode_fast(text, special))?;
        let encoding = encoding.map_err(|e| Error::Encode(error::message(&e)))?;
        let ids = encoding.get_ids();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            let token = error::quoted(&self.inner.id_to_token(id).unwrap_or_default());
            return Err(Error::BeyondEmbedding { token, id, rows: self.rows });
        }
        Ok(ids.to_vec())
    }

    /// What stands before the plain ids of a text when special tokens are added.
    fn find_bos(&self) -> Result<Option<u32>, Error> {
        // A small vocabulary may give no id for some of these.
        for probe in ["a", "0", " ", ".", "\n"] {
            let (Ok(with), Ok(plain)) = (self.encode(probe), self.encode_plain(probe)) else {
                continue;
            };
            if plain.is_empty() {
                continue;
            }
            return Ok(if with.starts_with(&plain) { None } else { with.first().copied() });
        }
        Ok(self.encode("")?.first().copied())
    }
}

/// Where a run of white space begins that is too long for the patterns, in bytes.
fn blank_run(text: &str) -> Option<usize> {
    let (mut start, mut length) = (0, 0);
    for (at, c) in text.char_indices() {
        if !c.is_whitespace() {
            length = 0;
            continue;
        }
        if length == 0 {
            start = at;
        }
        length += 1;
        if length > MAX_BLANK_RUN {
            return Some(start);
        }
    }
    None
}

/// The library numbers added tokens itself, in order, whatever ids the file gives them.
fn agreed_ids(file: &serde_json::Value, inner: &tokenizers::Tokenizer) -> Result<(), Error> {
    let added = file["added_tokens"].as_array().into_iter().flatten().enumerate();
    for (i, token) in added {
        let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            continue;
        };
        let given = inner.token_to_id(content);
        if given.map(u64::from) != Some(id) {
            let given = given.map_or("none".into(), |id| id.to_string());
            let rule =
                format!("{} has id {id}, but its place gives it {given}", error::quoted(content));
            return Err(Error::rule(format!("added_tokens[{i}]"), rule));
        }
    }
    Ok(())
}

/// Runs the library and turns its panics into errors.
///
/// It asserts on its files in places that no rule here can name in full (precompiled character
/// maps, decoders, offsets). Nothing of ours is changed inside the closure, so there is no state
/// that a panic could leave half done; the library's own caches are keyed by text and written
/// last. The panic's message still reaches standard error: silencing it would take a global hook.
fn guarded<T>(doing: &'static str, work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Error::Panicked { doing, message: error::message(&text.unwrap_or("no message")) }
    })
}
