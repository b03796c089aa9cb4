//! Experts are read one at a time, again and again: what if the source is not what it was, or fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend_cpu::Cpu;
use checkpoint::Checkpoint;
use compiler::CompileError;
use ir::{ReadError, Source};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use tensor::{Bytes, Tensor};
use tests::bench::files;
use tests::compile::{Int4, Windows};

/// A checkpoint of which reads of a tensor go wrong, from this one on.
struct Meddled<'a> {
    source: &'a Checkpoint,
    tensor: &'a str,
    from: usize,
    /// Whether reads fail; else they give other bytes.
    fails: bool,
    reads: Mutex<BTreeMap<String, usize>>,
}

impl Source for Meddled<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError> {
        let read = self.source.read_rows(name, rows)?;
        let mut reads = self.reads.lock().unwrap();
        let count = reads.entry(name.into()).or_default();
        *count += 1;
        if name != self.tensor || *count < self.from {
            return Ok(read);
        }
        if self.fails {
            return Err(ReadError::Machine("the disk is gone".into()));
        }
        let mut bytes = read.bytes().to_vec();
        bytes[0] ^= 1;
        Ok(Tensor::new(read.dtype(), read.shape().to_vec(), Bytes::from_slice(&bytes)).unwrap())
    }
}

const DOWN: &str = "model.layers.1.block_sparse_moe.experts.2.w2.weight";

/// Compiles `model` of the folder with a source that goes wrong from a read of an expert on.
fn compiled(folder: &Path, from: usize, fails: bool) -> (Result<String, CompileError>, usize) {
    let ids: Vec<u32> = (0..600u32).map(|i| i * i * 7 % 40).collect();
    let checkpoint = Checkpoint::open(&folder.join("model")).unwrap();
    let reads = Mutex::default();
    let source = Meddled { source: &checkpoint, tensor: DOWN, from, fails, reads };
    let windows = Windows { ids: &ids, samples: 4, length: 64 };
    let job = Int4 { checkpoint: &checkpoint, source: &source, passes: Vec::new(), windows };
    let made = job.compile(&folder.join("out"), &Cpu::new());
    let reads = source.reads.lock().unwrap()[DOWN];
    (made, reads)
}

#[test]
fn a_source_that_changes_or_fails_is_an_error_and_a_resumed_run_gives_the_same() {
    let folder = tests::bench::folder();
    tests::write_noise_mixtral(&folder.path().join("model"), 4, 32, 40);
    let (made, reads) = compiled(folder.path(), usize::MAX, false);
    made.unwrap();
    // Its hash, the original's way through it, its way into the artifact.
    assert_eq!(reads, 3);
    let expected = files(&folder.path().join("out"));
    for fails in [false, true] {
        std::fs::remove_dir_all(folder.path().join("out")).unwrap();
        let error = compiled(folder.path(), reads, fails).0.unwrap_err().to_string();
        let rule = if fails { "the disk is gone" } else { "changed while the model was compiled" };
        assert!(error.contains(rule), "{error}");
        // The layer before is finished; the samples go through it as it was written.
        compiled(folder.path(), usize::MAX, false).0.unwrap();
        assert_eq!(expected, files(&folder.path().join("out")));
    }
}
