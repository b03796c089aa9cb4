//! Importance matrices against the files of llama-imatrix (llama.cpp 0.5.0, `ggml` 0.25.3): the mixture of
//! `tests/fixtures/families/mixtral` on three pieces of 32 tokens, as a GGUF and as a `.dat`.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::disk::System;
use checkpoint::gguf::Imatrix;
use std::path::{Path, PathBuf};

const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const WIDTH: usize = 24;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf").join(name)
}

fn expert(layer: usize, expert: usize, leaf: &str) -> String {
    format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{leaf}.weight")
}

/// Writes bytes as a file and reads it.
fn read(bytes: &[u8]) -> Result<Imatrix, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Imatrix::read(&path).map_err(|error| error.to_string())
}

#[test]
fn files_of_llama_imatrix_are_read() {
    let gguf = Imatrix::read(&fixture("imatrix.gguf")).unwrap();
    assert_eq!((gguf.chunks, gguf.chunk_size), (3, 32));
    assert_eq!(gguf.datasets, ["text"]);
    assert_eq!(gguf.names().count(), 16);
    let query = gguf.columns(QUERY, WIDTH).unwrap().unwrap();
    assert_eq!(query.count, 96.0);
    assert_eq!(query.mean_squares[0], 237.917_53 / 96.0);
    assert_eq!(query.mean_squares.len(), WIDTH);
    // Of a stack each matrix has its own.
    let counts =
        [0, 1, 2, 3].map(|e| gguf.columns(&expert(0, e, "w1"), WIDTH).unwrap().unwrap().count);
    assert_eq!(counts, [59.0, 44.0, 37.0, 52.0]);
    let first = gguf.columns(&expert(1, 0, "w2"), 28).unwrap().unwrap();
    assert_eq!(first.mean_squares[..2], [88.093_08 / 52.0, 597.724_1 / 52.0]);
    // The older form has the same means; it has no counts of experts.
    let dat = Imatrix::read(&fixture("imatrix.dat")).unwrap();
    assert_eq!((dat.chunks, &dat.datasets[..]), (3, &["text".to_owned()][..]));
    assert!(dat.names().eq(gguf.names()));
    for name in
        [QUERY.to_owned(), expert(1, 3, "w3"), "model.layers.1.self_attn.o_proj.weight".into()]
    {
        let [one, other] = [&gguf, &dat].map(|file| file.columns(&name, WIDTH).unwrap().unwrap());
        for (a, b) in one.mean_squares.iter().zip(&other.mean_squares) {
            assert!((a - b).abs() <= a * 1e-6, "{name}: {a} {b}");
        }
    }
}

#[test]
fn what_is_written_has_the_bytes_of_llama_imatrix() {
    let theirs = std::fs::read(fixture("imatrix.gguf")).unwrap();
    let read = read(&theirs).unwrap();
    assert_eq!(read.to_bytes().unwrap(), theirs);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.gguf");
    read.write_on(&System, &path).unwrap();
    assert_eq!(Imatrix::read(&path).unwrap(), read);
}

#[test]
fn an_expert_without_data_is_neutral_and_the_others_stay() {
    let mut made = Imatrix::new("a", 2, 8);
    made.put(&expert(0, 2, "w1"), 3, &[4.0, 8.0], 4).unwrap();
    made.put(&expert(0, 0, "w1"), 3, &[1.0, 0.0], 2).unwrap();
    made.put(QUERY, 0, &[9.0, 3.0, 0.0], 3).unwrap();
    let again = read(&made.to_bytes().unwrap()).unwrap();
    assert_eq!(again, made);
    let means = |name: &str, width| {
        again.columns(name, width).unwrap().map(|columns| (columns.mean_squares, columns.count))
    };
    assert_eq!(means(&expert(0, 0, "w1"), 2), Some((vec![0.5, 0.0], 2.0)));
    assert_eq!(means(&expert(0, 1, "w1"), 2), Some((vec![1.0, 1.0], 0.0)));
    assert_eq!(means(&expert(0, 2, "w1"), 2), Some((vec![1.0, 2.0], 4.0)));
    // What has the same input, and what nothing is known of.
    assert_eq!(means(&expert(0, 2, "w3"), 2), Some((vec![1.0, 2.0], 4.0)));
    assert_eq!(
        means("model.layers.0.self_attn.v_proj.weight", 3),
        Some((vec![3.0, 1.0, 0.0], 3.0))
    );
    assert_eq!(means(&expert(0, 2, "w2"), 2), None);
    assert_eq!(means("model.layers.1.self_attn.q_proj.weight", 3), None);
    assert_eq!(means("no.such", 3), None);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut made = Imatrix::default();
    made.put(&expert(0, 1, "w1"), 2, &[1.0, 2.0], 4).unwrap();
    let mut refused = |name: &str, experts, sums: &[f32]| {
        let error = made.put(name, experts, sums, 1).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    refused(&expert(0, 0, "w1"), 2, &[1.0]);
    refused(&expert(0, 2, "w1"), 2, &[1.0, 2.0]);
    refused(QUERY, 0, &[f32::NAN]);
    refused(QUERY, 0, &[-1.0]);
    refused("model.rotary.weight", 0, &[1.0]);
    for (name, width) in [(expert(0, 0, "w1"), 3), (expert(0, 3, "w1"), 2), (expert(0, 0, "w1"), 0)]
    {
        let error = made.columns(&name, width).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
    }
    assert!(Imatrix::default().to_bytes().is_err());
}

#[test]
fn damaged_files_are_refused() {
    let gguf = std::fs::read(fixture("imatrix.gguf")).unwrap();
    let at = |text: &str| gguf.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let start = (at("blk.1.ffn_up_exps.weight.counts") + 100).next_multiple_of(32);
    let cases: [(Change<'_>, &str); 6] = [
        (&|b| b[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes()), "NaN at"),
        (&|b| b[start..start + 4].copy_from_slice(&(-1f32).to_le_bytes()), "-1 at"),
        (
            &|b| b[at("blk.0.attn_q.weight.in_sum2")] = b'x',
            "has one alone of blk.0.attn_q.weight.in_sum2",
        ),
        (&|b| b[at("imatrix")] = b'x', "general.type is \"xmatrix\""),
        (&|b| b.truncate(b.len() - 64), "beyond the file"),
        (&|b| b[0] = 0, "neither a GGUF nor a .dat"),
    ];
    for (change, said) in cases {
        let mut bytes = gguf.clone();
        change(&mut bytes);
        let error = read(&bytes).unwrap_err();
        assert!(error.contains(said) && error.contains("x.gguf"), "{said}: {error}");
    }
    // Every truncation, and every byte of the older form turned over, is an error or a file.
    let dat = std::fs::read(fixture("imatrix.dat")).unwrap();
    let entries = dat.len() - 12 - 4;
    for length in (0..entries).step_by(31) {
        assert!(read(&dat[..length]).is_err(), "{length}");
    }
    for place in (0..dat.len()).step_by(13) {
        let mut bytes = dat.clone();
        bytes[place] ^= 0xff;
        let _ = read(&bytes);
    }
}
