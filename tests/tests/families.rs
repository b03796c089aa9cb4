//! Every family fixture opens as a checkpoint and loads as a program.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use checkpoint::Checkpoint;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensor::DType;

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn load(folder: &Path) -> arch::Loaded {
    let opened = Checkpoint::open(folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    let infos = opened.tensors().iter();
    let stored: BTreeMap<String, (DType, Vec<usize>)> =
        infos.map(|t| (t.name.clone(), (t.dtype, t.shape.clone()))).collect();
    arch::load(opened.config(), &stored).unwrap_or_else(|e| panic!("{folder:?}: {e}"))
}

#[test]
fn every_fixture_loads_and_every_family_has_one() {
    let folders = fixtures();
    let loaded: Vec<arch::Loaded> = folders.iter().map(|folder| load(folder)).collect();
    for family in arch::families() {
        assert!(loaded.iter().any(|l| l.model.family == family), "no fixture of {family}");
    }
}

/// What transformers wrote is read to the last tensor; the odd fixtures say what is odd.
#[test]
fn only_odd_fixtures_warn() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let expected = match name {
            "llama-mixed-dtypes" => vec![
                "config.json says dtype = \"float32\", the tensors are stored 1 as F16, 15 as BF16, \
                 5 as F32; the stored dtypes are used",
            ],
            "llama-linear" => vec![
                "the context is 80 tokens, as linear scaling extends 32 by 2.5; config.json says \
                 max_position_embeddings = 32",
            ],
            "llama-linear-old-spelling" => vec![
                "the context is 96 tokens, as linear scaling extends 32 by 3; config.json says \
                 max_position_embeddings = 32",
            ],
            "llama-tied-head-stored" => vec![
                "config.json says tie_word_embeddings = true, but \"lm_head.weight\" is stored too; \
                 it is read as the head",
            ],
            _ => vec![],
        };
        assert_eq!(load(&folder).warnings, expected, "{name}");
    }
}
