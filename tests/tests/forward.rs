//! The forward against transformers: every fixture in `fixtures/families` holds a tiny checkpoint
//! and the logits that transformers computed from it in `f32` (versions in `VERSIONS.json`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend::{Backend, Reference};
use backend_cpu::{Cpu, Isa};
use calibration::{Model, logits};
use checkpoint::Checkpoint;
use safetensors::SafeTensors;
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures() -> Vec<PathBuf> {
    let folder = tests::root().join("tests/fixtures/families");
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

/// Input ids and transformers' logits `[ids, vocab]`.
fn golden(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    let ids = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
    let logits = file.tensor("logits").unwrap();
    let logits = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (ids.collect(), logits.collect())
}

fn ours(folder: &Path, backend: &dyn Backend, ids: &[u32]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;
    let model = Model { spec: &spec, source: &checkpoint };
    logits(backend, model.exact(), ids).unwrap()
}

#[test]
fn logits_equal_those_of_transformers() {
    let folders = fixtures();
    assert!(folders.len() >= 12, "only {} fixtures", folders.len());
    for folder in folders {
        let (ids, theirs) = golden(&folder);
        let ours = ours(&folder, &Cpu::new(), &ids);
        assert_eq!(ours.len(), theirs.len(), "{folder:?}");
        let largest = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let difference = |(a, b): (&f32, &f32)| (a - b).abs();
        let worst = ours.iter().zip(&theirs).map(difference).fold(0.0, f32::max);
        let name = folder.file_name().unwrap().to_string_lossy();
        println!("{name:<32} {:.1e} of the largest logit", worst / largest);
        assert!(worst <= 1e-4 * largest, "{name}: {worst} of {largest}");
    }
}

#[test]
fn every_instruction_set_gives_the_reference_bits() {
    for folder in fixtures() {
        let (ids, _) = golden(&folder);
        let plain = ours(&folder, &Reference, &ids);
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable] {
            let Some(cpu) = Cpu::with_isa(isa) else { continue };
            let fast = ours(&folder, &cpu, &ids);
            let same = plain.iter().zip(&fast).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{folder:?} on {isa:?}");
        }
    }
}
