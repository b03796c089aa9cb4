//! A checkpoint and the programs it runs, of which only headers have been read.

use crate::error::OpenError;
use checkpoint::Checkpoint;
use ir::{Grid, ModelSpec, Source, Spec};
use serde_json::{Map, Value};
use std::path::Path;
use text::{ChatTemplate, TemplateFiles, TokenFiles, Tokenizer};

/// The longest file that goes with a chat template; a tokenizer_config.json may list many tokens.
const CHAT_FILE: usize = 64 << 20;

/// The grid that each tensor is stored on; `None` for a dense one.
pub type Grids<'a> = &'a (dyn Fn(&str) -> Option<Grid> + Sync);

/// What a model is loaded from, which need not be a file.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// Its programs.
    pub spec: &'a ModelSpec,
    /// Its weights.
    pub source: &'a dyn Source,
    /// What they take as stored, in bytes.
    pub bytes: u64,
    /// The grid that a tensor is stored on.
    pub grid: Grids<'a>,
    /// The length of the tokenizer's file, in bytes.
    pub tokenizer: u64,
}

/// A checkpoint and the programs it runs.
#[derive(Debug)]
pub struct Opened {
    /// Its files.
    pub checkpoint: Checkpoint,
    /// Its programs.
    pub spec: ModelSpec,
}

/// What config.json of `folder` says, without the keys that are to be `ignored`. There need be no
/// weights.
///
/// # Errors
/// If it cannot be read, or has no such key.
pub fn configuration(folder: &Path, ignored: &[String]) -> Result<Map<String, Value>, OpenError> {
    let mut config = Checkpoint::config_in(folder)?;
    for key in ignored {
        if !arch::ignore(&mut config, key) {
            return Err(OpenError::NoKey { folder: folder.into(), key: key.clone() });
        }
    }
    Ok(config)
}

impl Opened {
    /// Opens a model, reading headers only. What is odd and does not stop it goes to `warn`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or no family runs what the configuration says.
    pub fn open(
        folder: &Path,
        ignored: &[String],
        mut warn: impl FnMut(&str),
    ) -> Result<Self, OpenError> {
        let refuse =
            |error: arch::Error| OpenError::Refused { folder: folder.into(), error: error.into() };
        // A family that is refused is refused before anybody fetches its weights.
        arch::check(&configuration(folder, ignored)?).map_err(refuse)?;
        let checkpoint = Checkpoint::open(folder)?;
        checkpoint.warnings().iter().for_each(|warning| warn(warning));
        let mut config = checkpoint.config().clone();
        for key in ignored {
            arch::ignore(&mut config, key);
        }
        let loaded = arch::load(&config, &checkpoint).map_err(refuse)?;
        loaded.warnings.iter().for_each(|warning| warn(warning));
        Ok(Self { checkpoint, spec: loaded.model })
    }

    /// What the weights take as stored, in bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.spec.tensors().into_iter().map(|spec| self.stored_bytes(spec)).sum()
    }

    /// What a weight takes as stored, in bytes: its share of the tensor that it lies in.
    pub fn stored_bytes(&self, spec: &Spec) -> u64 {
        let elements = |shape: &[usize]| shape.iter().map(|&n| n as u128).product::<u128>();
        let Some(info) = self.checkpoint.tensor(&spec.at.tensor) else { return 0 };
        let (own, all) = (elements(&spec.shape), elements(&info.shape).max(1));
        (u128::from(info.bytes()).saturating_mul(own) / all) as u64
    }

    /// What it is loaded from.
    pub fn origin<'a>(&'a self, grid: Grids<'a>) -> Origin<'a> {
        let (bytes, tokenizer) = (self.weight_bytes(), self.tokenizer_bytes());
        Origin { spec: &self.spec, source: &self.checkpoint, bytes, grid, tokenizer }
    }

    /// The grid that a tensor is stored on.
    pub fn grid(&self, tensor: &str) -> Option<Grid> {
        self.checkpoint.tensor(tensor)?.grid
    }

    /// The length of its tokenizer's file in bytes; 0 if it has none.
    pub fn tokenizer_bytes(&self) -> u64 {
        let file = self.checkpoint.folder().join("tokenizer.json");
        std::fs::metadata(file).map_or(0, |file| file.len())
    }

    /// The tokenizer, or `None` if the checkpoint has none at all.
    ///
    /// # Errors
    /// If a file is malformed, or has more ids than the embedding has rows.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>, OpenError> {
        let Some(bytes) = self.checkpoint.tokenizer()? else { return Ok(None) };
        let [config, map, added] = self.text_files("added_tokens.json")?;
        let files = TokenFiles {
            tokenizer_config: config.as_deref(),
            special_tokens_map: map.as_deref(),
            added_tokens: added.as_deref(),
        };
        let tokenizer = Tokenizer::load(&bytes, &files)?;
        let (ids, rows) = (tokenizer.size(), self.spec.vocab);
        if ids > rows {
            return Err(OpenError::Ids { last: ids - 1, rows });
        }
        Ok(Some(tokenizer.with_rows(rows)))
    }

    /// The files that say how text becomes tokens, and a third one.
    fn text_files(&self, third: &str) -> Result<[Option<Vec<u8>>; 3], OpenError> {
        let file = |name| self.checkpoint.side_file(name, CHAT_FILE);
        Ok([file("tokenizer_config.json")?, file("special_tokens_map.json")?, file(third)?])
    }

    /// The chat template, or `None` if the checkpoint has none.
    ///
    /// # Errors
    /// If a file is malformed, or the template is none.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, OpenError> {
        let [config, map, template] = self.text_files("chat_template.jinja")?;
        let additional = self.checkpoint.additional_chat_templates(CHAT_FILE)?;
        let files = TemplateFiles {
            tokenizer_config: config.as_deref(),
            special_tokens_map: map.as_deref(),
            chat_template: template.as_deref(),
            additional: &additional,
        };
        Ok(ChatTemplate::load(&files)?)
    }
}
