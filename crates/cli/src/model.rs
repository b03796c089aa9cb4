//! Opens what a MODEL argument names: a folder, or a repository in the local cache.

use crate::args::Common;
use crate::failure::Failure;
use crate::output::remark;
use checkpoint::{Checkpoint, TensorInfo};
use compiler::Tensors;
use ir::ModelSpec;
use std::path::{Path, PathBuf};
use text::{ChatTemplate, TemplateFiles, Tokenizer};

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
        let folder = resolve(model, common)?;
        let checkpoint = Checkpoint::open(&folder)?;
        let mut config = checkpoint.config().clone();
        for key in &common.ignore_config_key {
            if config.shift_remove(key).is_none() {
                let message = format!("config.json has no key {key:?} to ignore");
                return Err(Failure::refused(message));
            }
        }
        let loaded = arch::load(&config, &Tensors(&checkpoint))?;
        if !common.quiet {
            let warnings = checkpoint.warnings().iter().chain(&loaded.warnings);
            warnings.for_each(|w| remark(&format!("warning: {w}")));
        }
        Ok(Self { checkpoint, spec: loaded.model })
    }

    /// What the weights take as stored.
    pub(crate) fn weight_bytes(&self) -> u64 {
        let stored = |name: &str| self.checkpoint.tensor(name).map_or(0, TensorInfo::bytes);
        self.spec.tensors().iter().map(|spec| stored(&spec.tensor)).sum()
    }

    /// The tokenizer, or `None` if the checkpoint has none at all.
    pub(crate) fn tokenizer(&self) -> Result<Option<Tokenizer>, Failure> {
        let Some(bytes) = self.checkpoint.tokenizer()? else { return Ok(None) };
        let tokenizer = Tokenizer::from_bytes(&bytes)?;
        let (ids, rows) = (tokenizer.size(), self.spec.vocab);
        if ids > rows {
            return Err(Failure::refused(format!(
                "tokenizer.json has ids up to {}, the embedding only {rows} rows",
                ids - 1
            )));
        }
        Ok(Some(tokenizer))
    }

    /// The chat template, or `None` if the checkpoint has none.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>, Failure> {
        let file = |name| self.checkpoint.side_file(name, CHAT_FILE);
        let files = ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
        let [config, map, template] = files.map(file);
        let (config, map, template) = (config?, map?, template?);
        let files = TemplateFiles {
            tokenizer_config: config.as_deref(),
            special_tokens_map: map.as_deref(),
            chat_template: template.as_deref(),
        };
        Ok(ChatTemplate::load(&files)?)
    }

    /// The model as the streamed forward wants it.
    pub(crate) fn streamed(&self) -> calibration::Model<'_> {
        calibration::Model { spec: &self.spec, source: &self.checkpoint }
    }
}

/// The folder of the local Hugging Face cache.
pub(crate) fn hub_cache(common: &Common) -> PathBuf {
    let home = || std::env::home_dir().map(|h| h.join(".cache/huggingface/hub"));
    common.hub_cache.clone().or_else(home).unwrap_or_default()
}

fn resolve(model: &str, common: &Common) -> Result<PathBuf, Failure> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.is_file() {
        let what = match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => "GGUF files cannot be read yet",
            _ => "a model is a folder with a config.json",
        };
        return Err(Failure::refused(format!("{model:?} is a file: {what}")));
    }
    let cache = hub_cache(common);
    let parts = model.split('/').count();
    if parts == 2
        && !model.starts_with(['.', '/'])
        && let Some(snapshot) = checkpoint::hub_snapshot(model, &cache)?
    {
        return Ok(snapshot);
    }
    Err(Failure::refused(format!("no model at {model:?}")).with_hint(format!(
        "it is neither a folder nor a repository in the local cache {cache:?}; nothing is downloaded"
    )))
}
