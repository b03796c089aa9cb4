//! Opening whole folders: what is read, and what the layouts of the Hugging Face cache allow.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::{Checkpoint, Snapshot, hub_snapshot};
use ir::{ReadError, Source};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tensor::DType;

/// A safetensors file of `tensors`: name, dtype, shape, data.
fn file(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        let end = data.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    let json = format!("{{{}}}", entries.join(","));
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat()
}

fn count(n: u8) -> Vec<u8> {
    (0..n).collect()
}

/// A folder with a 4x3 matrix of bytes, a vector, a scalar and packed 4-bit rows.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let weights = file(&[
        ("matrix", "U8", &[4, 3], &count(12)),
        ("vector", "BF16", &[3], &count(6)),
        ("scalar", "F32", &[], &count(4)),
        ("packed", "F4", &[3, 4], &count(6)),
        ("odd", "F4", &[4, 3], &count(6)),
        ("empty", "F32", &[0, 5], &[]),
    ]);
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    dir
}

#[test]
fn rows_are_the_bytes_of_the_file() {
    let dir = folder();
    let opened = Checkpoint::open(dir.path()).unwrap();
    let read = |name: &str, rows| {
        let t = opened.read_rows(name, rows).map_err(|e| e.to_string())?;
        Ok::<_, String>((t.dtype(), t.shape().to_vec(), t.bytes().to_vec()))
    };
    assert_eq!(read("matrix", 1..3), Ok((DType::U8, vec![2, 3], vec![3, 4, 5, 6, 7, 8])));
    assert_eq!(read("matrix", 4..4), Ok((DType::U8, vec![0, 3], vec![])));
    assert_eq!(read("vector", 1..3), Ok((DType::BF16, vec![2], vec![2, 3, 4, 5])));
    assert_eq!(read("scalar", 0..1), Ok((DType::F32, vec![1], vec![0, 1, 2, 3])));
    assert_eq!(read("packed", 2..3), Ok((DType::F4, vec![1, 4], vec![4, 5])));
    assert_eq!(read("empty", 0..0), Ok((DType::F32, vec![0, 5], vec![])));
    for (name, rows, rule) in [
        ("odd", 0..2, "the rows do not begin at whole bytes"),
        ("matrix", 3..5, "rows 3..5 of 4"),
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        ("matrix", 3..2, "rows 3..2 of 4"),
        ("matrix", 0..usize::MAX, "of 4"),
        ("absent", 0..1, "has no tensor \"absent\""),
    ] {
        let error = read(name, rows).unwrap_err();
        assert!(error.contains(rule), "{error}");
    }
    assert_eq!(opened.tensor("matrix").unwrap().bytes(), 12);
    let names: Vec<_> = opened.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["empty", "matrix", "odd", "packed", "scalar", "vector"]);
    assert_eq!(opened.files()[0].tensors, 6);
    assert!(opened.warnings().is_empty());
}

/// A stack that transformers 5.23.0 saved holds the matrices that it saves apart.
#[test]
fn matrices_of_a_stack_are_read_by_rows() {
    let open = |name: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/families");
        Checkpoint::open(&Path::new(folder).join(name)).unwrap()
    };
    let (apart, stacked) = (open("mixtral"), open("mixtral-stacked"));
    let gate_up = "model.layers.1.mlp.experts.gate_up_proj";
    let down = "model.layers.1.mlp.experts.down_proj";
    for expert in 0..4 {
        for (part, stack, first, rows) in
            [("w1", gate_up, 0, 28), ("w3", gate_up, 28, 28), ("w2", down, 0, 24)]
        {
            let name = format!("model.layers.1.block_sparse_moe.experts.{expert}.{part}.weight");
            for rows in [0..rows, 5..6, 9..20, 7..7] {
                let expected = apart.read_rows(&name, rows.clone()).unwrap();
                let lie = first + rows.start..first + rows.end;
                assert_eq!(stacked.read_stacked(stack, expert, lie).unwrap(), expected);
            }
        }
    }
    for (name, index, rows, rule) in [
        (down, 4, 0..1, "rows 0..1 of 24, of matrix 4 of 4"),
        (down, usize::MAX, 0..1, "of matrix 18446744073709551615 of 4"),
        (down, 3, 0..25, "rows 0..25 of 24"),
        (down, 3, 0..usize::MAX, "of 24, of matrix 3"),
        (down, 3, usize::MAX..usize::MAX, "of 24, of matrix 3"),
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        (down, 3, 2..1, "rows 2..1 of 24"),
        ("model.norm.weight", 0, 0..1, "[24] is no stack of matrices"),
        ("absent", 0, 0..1, "\"absent\": is not there"),
    ] {
        let error = stacked.read_stacked(name, index, rows).unwrap_err().to_string();
        assert!(error.contains(rule), "{error}");
    }
}

/// ST-32: whatever happens to the file after it was checked is an error, never other bytes.
#[test]
fn a_file_that_changes_after_it_was_opened_is_an_error() {
    let change = |f: &dyn Fn(&Path)| {
        let dir = folder();
        let path = dir.path().join("model.safetensors");
        let opened = Checkpoint::open(dir.path()).unwrap();
        // The clock that stamps files ticks every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        f(&path);
        opened.read_rows("matrix", 0..4).map(|t| t.bytes().to_vec())
    };
    let resize = |by: i64| {
        move |path: &Path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let bytes = file.metadata().unwrap().len().checked_add_signed(by).unwrap();
            file.set_len(bytes).unwrap();
        }
    };
    let rewrite = |path: &Path| {
        let same = fs::read(path).unwrap();
        fs::write(path, same).unwrap();
    };
    for changed in
        [change(&resize(-1)), change(&resize(-200)), change(&resize(1)), change(&rewrite)]
    {
        match changed {
            Err(ReadError::Input(rule)) => assert!(rule.contains("changed while"), "{rule}"),
            other => panic!("{other:?}"),
        }
    }
    // What was opened stays what it was if another file takes the name.
    let renamed = change(&|path| {
        let other = path.with_extension("other");
        fs::write(&other, "something else").unwrap();
        fs::rename(other, path).unwrap();
    });
    assert_eq!(renamed.unwrap(), count(12));
}

/// `cache/models--org--name` as huggingface_hub lays it out.
fn cache(cache: &Path) -> std::path::PathBuf {
    let home = cache.join("models--org--name");
    let snapshot = home.join("snapshots/0123abcd");
    fs::create_dir_all(home.join("refs")).unwrap();
    fs::create_dir_all(home.join("blobs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(home.join("refs/main"), "0123abcd").unwrap();
    fs::create_dir_all(home.join("refs/refs/pr")).unwrap();
    fs::write(home.join("refs/refs/pr/1"), "0123abcd\n").unwrap();
    fs::write(home.join("blobs/aa"), "{}").unwrap();
    fs::write(home.join("blobs/bb"), file(&[("x", "U8", &[2], &[7, 8])])).unwrap();
    symlink("../../blobs/aa", snapshot.join("config.json")).unwrap();
    symlink("../../blobs/bb", snapshot.join("model.safetensors")).unwrap();
    snapshot
}

#[test]
fn a_snapshot_of_the_hub_cache_opens_through_its_links() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = cache(dir.path());
    for revision in ["main", "refs/pr/1", "0123abcd"] {
        let found = hub_snapshot("org/name", revision, dir.path()).unwrap();
        assert_eq!(found, Snapshot::Found(snapshot.clone()), "{revision}");
    }
    let other = hub_snapshot("org/name", "v2", dir.path()).unwrap();
    assert_eq!(other, Snapshot::Others(vec!["0123abcd".into()]));
    let found = snapshot.clone();
    let opened = Checkpoint::open(&found).unwrap();
    assert_eq!(opened.read_rows("x", 0..2).unwrap().bytes(), [7, 8]);
    // A link to the folder itself is the user's own doing.
    let link = dir.path().join("link");
    symlink(&snapshot, &link).unwrap();
    assert!(Checkpoint::open(&link).is_ok());
    // A link out of the repository is not, even from within a cache.
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    fs::write(dir.path().join("secret"), file(&[("x", "U8", &[2], &[7, 8])])).unwrap();
    symlink("../../../secret", snapshot.join("model.safetensors")).unwrap();
    let error = Checkpoint::open(&found).unwrap_err();
    assert!(error.to_string().contains("link that leaves the folder"), "{error}");
}

#[test]
fn a_repository_that_is_not_in_the_cache_is_none_and_a_bad_id_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = cache(dir.path());
    let find = |repo: &str| hub_snapshot(repo, "main", dir.path()).map_err(|e| e.to_string());
    assert_eq!(find("org/other"), Ok(Snapshot::Absent));
    assert_eq!(find("name"), Ok(Snapshot::Absent));
    for revision in ["../main", "", "/etc", "a//b", "a b", ".", "\u{202e}"] {
        let error = hub_snapshot("org/name", revision, dir.path()).unwrap_err().to_string();
        assert!(error.contains("is not the name of a revision") && error.is_ascii(), "{error}");
    }
    for id in [
        "",
        "/",
        "a/b/c",
        "../x",
        "a/..",
        "a..b/c",
        "a--b",
        "-a/b",
        "a/b.",
        "a/b c",
        "a/\u{202e}b",
        "a\\b",
        "a/b\0",
    ] {
        let error = find(id).unwrap_err();
        assert!(error.contains("is not a repository id") && error.is_ascii(), "{id:?}: {error}");
    }
    assert!(find(&"a".repeat(97)).is_err());
    fs::remove_dir_all(&snapshot).unwrap();
    assert_eq!(find("org/name"), Ok(Snapshot::Absent), "a download that did not finish");
    for revision in ["../../..", "", "a/b", "\u{ff}", &"a".repeat(1000)] {
        fs::write(dir.path().join("models--org--name/refs/main"), revision).unwrap();
        assert!(find("org/name").is_err(), "{revision:?}");
    }
}
