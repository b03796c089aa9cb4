//! Where a MODEL argument leads: a folder, or a revision of a repository in the local Hugging Face
//! cache; and what to do when it leads nowhere.

use crate::args::Common;
use crate::failure::Failure;
use checkpoint::Snapshot;
use runtime::OpenError;
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder that was found, and how to fetch what it lacks.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    /// The command that downloads the repository, if it is one.
    fetch: Option<String>,
}

impl Place {
    /// What config.json says, without the keys that are to be ignored. There need be no weights.
    pub(crate) fn config(&self, common: &Common) -> Result<Map<String, Value>, Failure> {
        runtime::configuration(&self.folder, &common.ignore_config_key)
            .map_err(|error| self.failed(error))
    }

    /// A failure to open the folder, with what may be done about it.
    pub(crate) fn failed(&self, error: OpenError) -> Failure {
        match error {
            OpenError::Checkpoint(error) => self.missing(error),
            OpenError::Refused { error, .. } => self.refuse(*error),
            error => error.into(),
        }
    }

    /// Whether there is a config.json, and nothing beside it that could be meant as weights.
    pub(crate) fn has_configuration_alone(&self) -> bool {
        const WEIGHTS: [&str; 10] =
            ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "onnx", "h5", "msgpack", "npz"];
        let Ok(entries) = fs::read_dir(&self.folder) else { return false };
        let is_weight = |path: &Path| {
            let extension = path.extension().and_then(|e| e.to_str());
            extension.is_some_and(|e| WEIGHTS.contains(&e))
                || path.ends_with("adapter_config.json")
                || path.to_string_lossy().ends_with(".safetensors.index.json")
        };
        self.folder.join("config.json").is_file()
            && !entries.flatten().any(|entry| is_weight(&entry.path()))
    }

    /// How to get the weights.
    pub(crate) fn fetching(&self) -> String {
        let fetch = self.fetch.as_ref().map(|fetch| format!("{fetch} brings them"));
        fetch.unwrap_or_else(|| "put them beside config.json, as safetensors".to_owned())
    }

    /// A failure to open the folder, with the command that brings what is missing.
    fn missing(&self, error: checkpoint::Error) -> Failure {
        let hint = match &self.fetch {
            _ if !error.is_missing() => None,
            Some(fetch) => {
                Some(format!("the download is not complete; this completes it: {fetch}"))
            }
            None if self.has_configuration_alone() => Some(format!(
                "its weights must lie beside config.json; optimize inspect {} says what it would take",
                quoted(&self.folder.to_string_lossy())
            )),
            None => None,
        };
        Failure { hint, ..Failure::from(error) }
    }

    /// A refusal of what the folder holds, which is named, with what overrules it.
    pub(crate) fn refuse(&self, error: arch::Error) -> Failure {
        let hint = match &error {
            arch::Error::UnknownKey { path, .. } => Some(format!(
                "if you know that the key does not change the result: --ignore-config-key {}",
                quoted(path)
            )),
            arch::Error::Quantized { key, .. } => Some(format!(
                "if the weights are not quantized in truth, and the key is a relic: --ignore-config-key {key}"
            )),
            arch::Error::MissingTensors { count: 1, names } if names == &["\"lm_head.weight\""] => Some(
                "it has no head to predict tokens with: a reward model, a classifier or an embedding model? \
                 If its head is the embedding, config.json must say \"tie_word_embeddings\": true"
                    .to_owned(),
            ),
            _ => None,
        };
        let failure = Failure::refused(format!("{:?}: {error}", self.folder));
        Failure { hint, ..failure }
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
    if word.bytes().all(plain) { word.to_owned() } else { format!("{word:?}") }
}

/// Finds what `model` names: a folder, `ORG/NAME`, or `ORG/NAME@REVISION`.
pub(crate) fn resolve(model: &str, common: &Common) -> Result<Place, Failure> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(Place { folder: path.to_path_buf(), fetch: None });
    }
    if path.is_file() {
        if path.extension().is_some_and(|extension| extension == "gguf") {
            return Ok(Place { folder: path.to_path_buf(), fetch: None });
        }
        let rule = "a model is a folder with a config.json, or a GGUF file";
        return Err(Failure::refused(format!("{model:?} is a file: {rule}")));
    }
    let cache = hub_cache(common);
    let (repo, revision) = model.split_once('@').unwrap_or((model, MAIN));
    let is_repository = repo.split('/').count() == 2 && !model.starts_with(['.', '/', '~']);
    if !is_repository {
        return Err(nowhere(model, path, &cache));
    }
    let fetch = fetch(repo, revision, common);
    match checkpoint::hub_snapshot(repo, revision, &cache)? {
        Snapshot::Found(folder) => Ok(Place { folder, fetch: Some(fetch) }),
        Snapshot::Others(hashes) => {
            let message =
                format!("revision {revision:?} of {repo:?} is not in the local cache {cache:?}");
            let there =
                hashes.first().map_or(String::new(), |hash| format!("{repo}@{hash} is there; "));
            Err(Failure::refused(message)
                .with_hint(format!("{there}nothing is downloaded here, this fetches it: {fetch}")))
        }
        Snapshot::Absent => {
            let near = near(path).map_or(String::new(), |near| format!("did you mean {near:?}? "));
            Err(Failure::refused(format!("no model at {model:?}")).with_hint(format!(
                "{near}it is neither a folder nor a repository in the local cache {cache:?} (--hub-cache, \
                 HF_HUB_CACHE or HF_HOME name another); nothing is downloaded here, this fetches it: {fetch}"
            )))
        }
    }
}

/// The revision that is meant where none is named.
const MAIN: &str = "main";

fn nowhere(model: &str, path: &Path, cache: &Path) -> Failure {
    let hint = match near(path) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!(
            "give a folder, or a repository ORG/NAME in the local cache {cache:?}; nothing is downloaded"
        ),
    };
    Failure::refused(format!("no model at {model:?}: there is no such folder")).with_hint(hint)
}

/// The command that downloads a repository to where it is looked for.
fn fetch(repo: &str, revision: &str, common: &Common) -> String {
    let mut command = format!("hf download {repo}");
    if revision != MAIN {
        command += &format!(" --revision {revision}");
    }
    if let Some(cache) = &common.hub_cache {
        command += &format!(" --cache-dir {}", quoted(&cache.to_string_lossy()));
    }
    command
}

/// The folder of the cache, found as Hugging Face's tools find it: huggingface_hub 2.4.0,
/// `constants.py`.
pub(crate) fn hub_cache(common: &Common) -> PathBuf {
    if let Some(given) = &common.hub_cache {
        return given.clone();
    }
    let home = std::env::home_dir().unwrap_or_default();
    let said = |name: &str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        let path = PathBuf::from(value);
        Some(path.strip_prefix("~").map_or(path.clone(), |rest| home.join(rest)))
    };
    said("HF_HUB_CACHE")
        .or_else(|| Some(said("HF_HOME")?.join("hub")))
        .unwrap_or_else(|| home.join(".cache/huggingface/hub"))
}

/// The folder whose name is nearest to one that is not there.
fn near(path: &Path) -> Option<PathBuf> {
    /// The most folders that are looked at.
    const MOST: usize = 1 << 12;
    let name = path.file_name()?.to_str()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = fs::read_dir(parent.unwrap_or(Path::new("."))).ok()?;
    let names = entries.take(MOST).filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        entry.path().is_dir().then_some(name)
    });
    let measured = names.map(|found| (distance(name, &found), found));
    let (far, found) = measured.min()?;
    let is_near = far <= name.chars().count().div_ceil(3);
    is_near.then(|| parent.map_or(PathBuf::from(&found), |parent| parent.join(&found)))
}

/// Letters to insert, remove or replace until `a` is `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_letters() {
        for (a, b, far) in [("llama", "llama", 0), ("lama", "llama", 1), ("qwen3", "qwen2.5", 3)] {
            assert_eq!(distance(a, b), far, "{a} {b}");
            assert_eq!(distance(b, a), far, "{b} {a}");
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell_where_they_must_be() {
        assert_eq!(quoted("rope_scaling.attn_factor"), "rope_scaling.attn_factor");
        assert_eq!(quoted("a key"), "\"a key\"");
    }
}
