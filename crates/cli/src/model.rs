//! Opens what a MODEL argument names: a folder, or a repository in the local cache.

use crate::allocator;
use crate::args::Common;
use crate::failure::Failure;
use crate::memory::Grids;
use crate::output::remark;
use crate::place;
use crate::room::Weights;
use checkpoint::{Checkpoint, TensorInfo};
use ir::{Grid, ModelSpec};
use text::{ChatTemplate, TemplateFiles, TokenFiles, Tokenizer};

/// The longest file that goes with a chat template; a tokenizer_config.json may list many tokens.
const CHAT_FILE: usize = 64 << 20;

/// A checkpoint and the programs it runs.
pub(crate) struct Opened {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) spec: ModelSpec,
}

impl Opened {
    /// Opens a model, reading headers only.
    pub(crate) fn open(model: &str, common: &Common) -> Result<Self, Failure> {
        let place = place::resolve(model, common)?;
        let config = place.config(common)?;
        // A family that is refused is refused before anybody fetches its weights.
        arch::check(&config).map_err(|e| place.refuse(e))?;
        let checkpoint = Checkpoint::open(&place.folder).map_err(|e| place.missing(e))?;
        let warn = |warnings: &[String]| {
            let said = warnings.iter().filter(|_| !common.quiet);
            said.for_each(|w| remark(&format!("warning: {w}")));
        };
        warn(checkpoint.warnings());
        let mut config = checkpoint.config().clone();
        for key in &common.ignore_config_key {
            arch::ignore(&mut config, key);
        }
        let loaded = arch::load(&config, &checkpoint).map_err(|e| place.refuse(e))?;
        warn(&loaded.warnings);
        Ok(Self { checkpoint, spec: loaded.model })
    }

    /// What the weights take as stored.
    pub(crate) fn weight_bytes(&self) -> u64 {
        let stored = |name: &str| self.checkpoint.tensor(name).map_or(0, TensorInfo::bytes);
        self.spec.tensors().iter().map(|spec| stored(&spec.tensor)).sum()
    }

    /// What it is loaded from.
    pub(crate) fn weights<'a>(&'a self, grid: Grids<'a>) -> Weights<'a> {
        let (bytes, tokenizer) = (self.weight_bytes(), self.tokenizer_bytes());
        Weights { spec: &self.spec, source: &self.checkpoint, bytes, grid, tokenizer }
    }

    /// The grid that a tensor is stored on.
    pub(crate) fn grid(&self, tensor: &str) -> Option<Grid> {
        self.checkpoint.tensor(tensor)?.grid
    }

    /// The length of its tokenizer's file; 0 if it has none.
    pub(crate) fn tokenizer_bytes(&self) -> u64 {
        let file = self.checkpoint.folder().join("tokenizer.json");
        std::fs::metadata(file).map_or(0, |file| file.len())
    }

    /// The tokenizer, or `None` if the checkpoint has none at all.
    pub(crate) fn tokenizer(&self) -> Result<Option<Tokenizer>, Failure> {
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
            return Err(Failure::refused(format!(
                "tokenizer.json has ids up to {}, the embedding only {rows} rows",
                ids - 1
            )));
        }
        // What the file was parsed into is gone, and is several times what stays.
        allocator::return_free_memory();
        Ok(Some(tokenizer.with_rows(rows)))
    }

    /// The files that say how text becomes tokens, and a third one.
    fn text_files(&self, third: &str) -> Result<[Option<Vec<u8>>; 3], Failure> {
        let file = |name| self.checkpoint.side_file(name, CHAT_FILE);
        Ok([file("tokenizer_config.json")?, file("special_tokens_map.json")?, file(third)?])
    }

    /// The chat template, or `None` if the checkpoint has none.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>, Failure> {
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

    /// The model as the streamed forward wants it.
    pub(crate) fn streamed(&self) -> calibration::Model<'_> {
        calibration::Model { spec: &self.spec, source: &self.checkpoint }
    }
}
