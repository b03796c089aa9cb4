//! What is put into a sink is what comes out of the files, read by us and by the `safetensors`
//! crate; and what was not put, or twice, is not passed over.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::{
    Checkpoint, Described, Format, Layout, Placed, Planned, Rows, SHARD_BYTES, Sink, Stored, Use,
    hash_file, write_file,
};
use ir::{Grid, Params, Quantized, Source, Span};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use tensor::DType;

fn content(tensor: &Planned, seed: usize) -> Vec<u8> {
    let bytes = usize::try_from(tensor.bytes().unwrap()).unwrap();
    (0..bytes).map(|i| u8::try_from((i * 7 + seed) % 251).unwrap()).collect()
}

fn planned() -> impl Strategy<Value = Vec<Planned>> {
    let dtypes: Vec<DType> = DType::names().filter_map(DType::parse).collect();
    let shape = prop::collection::vec(0..5usize, 0..4);
    let tensor = (prop::sample::select(dtypes), shape)
        .prop_filter("fills whole bytes", |(dtype, shape)| dtype.bytes_of(shape).is_some());
    prop::collection::vec(tensor, 1..9).prop_map(|tensors| {
        let named = |(i, (dtype, shape))| Planned::new(format!("t\"{i}"), dtype, shape);
        tensors.into_iter().enumerate().map(named).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn what_is_put_is_what_is_read(tensors in planned(), shard in 1..200u64, backwards: bool) {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::create(dir.path(), tensors.clone(), shard).unwrap();
        let mut order: Vec<(usize, &Planned)> = tensors.iter().enumerate().collect();
        if backwards {
            order.reverse();
        }
        for (seed, tensor) in order {
            sink.put(&tensor.name, &content(tensor, seed)).unwrap();
        }
        let written = sink.finish().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let opened = Checkpoint::open(dir.path()).unwrap();
        prop_assert_eq!(opened.warnings(), Vec::<String>::new());
        prop_assert_eq!(opened.tensors().len(), tensors.len());
        for file in &written {
            let bytes = fs::metadata(dir.path().join(&file.name)).unwrap().len();
            prop_assert_eq!(bytes, file.bytes);
        }
        for file in opened.files() {
            let bytes = fs::read(&file.path).unwrap();
            let theirs = SafeTensors::deserialize(&bytes).unwrap();
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
            prop_assert_eq!(data % 8, 0);
            for (seed, tensor) in tensors.iter().enumerate() {
                let Ok(view) = theirs.tensor(&tensor.name) else { continue };
                prop_assert_eq!(view.data(), content(tensor, seed));
                prop_assert_eq!(view.dtype().to_string(), tensor.dtype.name());
                prop_assert_eq!(view.shape(), &tensor.shape[..]);
                let begin = opened.tensor(&tensor.name).unwrap().begin;
                let width = tensor.dtype.bits().div_ceil(8) as u64;
                prop_assert_eq!(begin % width, 0, "{} is not aligned", &tensor.name);
            }
        }
        for (seed, tensor) in tensors.iter().enumerate() {
            let rows = tensor.shape.first().copied().unwrap_or(1);
            let whole = opened.read_rows(&tensor.name, 0..rows).map(|t| t.bytes().to_vec());
            if tensor.dtype.bytes_of(tensor.shape.get(1..).unwrap_or_default()).is_some() {
                prop_assert_eq!(whole.unwrap(), content(tensor, seed));
            }
        }
    }
}

fn three() -> Vec<Planned> {
    vec![
        Planned::new("a", DType::BF16, [4, 3]),
        Planned::new("b", DType::I64, [2]),
        Planned::new("c", DType::F32, [0, 3]),
    ]
}

#[test]
fn the_bytes_do_not_depend_on_how_they_came() {
    let fill = |sink: Sink, rows: &[(usize, usize)]| {
        let (a, b) = (content(&three()[0], 1), content(&three()[1], 2));
        std::thread::scope(|scope| {
            for &(from, to) in rows {
                let (sink, a) = (&sink, &a);
                scope.spawn(move || sink.put_rows("a", from, &a[from * 6..to * 6]).unwrap());
            }
            sink.put("b", &b).unwrap();
        });
        sink.finish().unwrap()
    };
    let mut files = Vec::new();
    for rows in [&[(0, 4)][..], &[(0, 1), (1, 2), (2, 4)], &[(3, 4), (1, 3), (0, 1)]] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("not/yet");
        let written = fill(Sink::create(&out, three(), SHARD_BYTES).unwrap(), rows);
        assert_eq!(written.len(), 1);
        assert_eq!(written[0].name, "model.safetensors");
        files.push(fs::read(out.join("model.safetensors")).unwrap());
    }
    assert!(files.iter().all(|f| f == &files[0]));
    let head = String::from_utf8_lossy(&files[0][8..]).into_owned();
    assert!(head.starts_with("{\"__metadata__\":{\"format\":\"pt\"},\"a\":"), "{head}");
}

#[test]
fn shards_are_filled_in_order_and_indexed() {
    let dir = tempfile::tempdir().unwrap();
    let t = |name: &str, bytes: usize| Planned::new(name, DType::U8, [bytes]);
    let tensors = vec![t("z", 8), t("y", 8), t("x", 40), t("w", 1)];
    let sink = Sink::create(dir.path(), tensors.clone(), 16).unwrap();
    tensors.iter().for_each(|t| sink.put(&t.name, &content(t, 0)).unwrap());
    let written = sink.finish().unwrap();
    let names: Vec<&str> = written.iter().map(|w| w.name.as_str()).collect();
    let shard = |i: usize| format!("model-0000{i}-of-00003.safetensors");
    assert_eq!(names, [&shard(1), &shard(2), &shard(3), "model.safetensors.index.json"]);
    let index = fs::read_to_string(dir.path().join(names[3])).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], 57);
    assert_eq!(index["weight_map"]["y"], shard(1));
    assert_eq!(index["weight_map"]["x"], shard(2));
    assert_eq!(index["weight_map"]["w"], shard(3));
}

#[test]
fn what_is_missing_or_doubled_is_an_error() {
    let sink = |dir: &Path| Sink::create(dir, three(), SHARD_BYTES).unwrap();
    let (a, b) = (content(&three()[0], 1), content(&three()[1], 2));
    let finish = |put: &dyn Fn(&Sink)| {
        let dir = tempfile::tempdir().unwrap();
        let sink = sink(dir.path());
        put(&sink);
        sink.finish().map(drop)
    };
    assert!(
        finish(&|s| [("a", &a), ("b", &b)].iter().for_each(|t| s.put(t.0, t.1).unwrap())).is_ok()
    );
    let error = finish(&|s| s.put("a", &a).unwrap()).unwrap_err();
    assert!(error.is_internal() && !error.is_machine());
    assert!(error.to_string().contains("1 tensors were not put, or not whole: [\"b\"]"), "{error}");
    let error = finish(&|s| {
        s.put("b", &b).unwrap();
        s.put_rows("a", 0, &a[..6]).unwrap();
        s.put_rows("a", 2, &a[12..]).unwrap();
    });
    assert!(error.unwrap_err().to_string().contains("[\"a\"]"));

    let dir = tempfile::tempdir().unwrap();
    let sink = sink(dir.path());
    sink.put_rows("a", 1, &a[6..18]).unwrap();
    for (name, result, rule) in [
        ("all again", sink.put("a", &a), "was put twice"),
        ("first row again", sink.put_rows("a", 1, &a[..6]), "was put twice"),
        ("overlap before", sink.put_rows("a", 0, &a[..12]), "was put twice"),
        ("overlap after", sink.put_rows("a", 2, &a[..12]), "was put twice"),
        ("half a row", sink.put_rows("a", 0, &a[..5]), "not whole rows"),
        ("beyond the end", sink.put_rows("a", 3, &a[..12]), "not whole rows"),
        ("far beyond", sink.put_rows("a", usize::MAX, &a[..6]), "not whole rows"),
        ("too short", sink.put("b", &b[..8]), "takes 16 bytes, 8 were put"),
        ("unknown", sink.put("d", &[]), "\"d\" was not planned"),
    ] {
        let error = result.unwrap_err();
        assert!(error.is_internal() && error.to_string().contains(rule), "{name}: {error}");
    }
    sink.put_rows("a", 3, &a[18..]).unwrap();
    sink.put_rows("a", 0, &a[..6]).unwrap();
    sink.put("b", &b).unwrap();
    sink.finish().unwrap();
}

#[test]
fn what_cannot_be_stored_is_refused_before_anything_is_written() {
    let t = |name: &str, shape: &[usize]| Planned::new(name, DType::F32, shape);
    for (tensors, rule) in [
        (vec![], "0 tensors"),
        (vec![t("", &[1])], "is empty"),
        (vec![t("../x", &[1])], "looks like a path"),
        (vec![t("a\u{202e}", &[1])], "formatting character"),
        (vec![t("__metadata__", &[1])], "another meaning"),
        (vec![t("a", &[1]), t("a", &[1])], "planned twice"),
        (vec![t("a", &[usize::MAX, 2])], "overflows"),
        (vec![t("a", &[1 << 60])], "overflows"),
        (vec![Planned::new("a", DType::F4, [3])], "not whole"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = Sink::create(&dir.path().join("x"), tensors, SHARD_BYTES).unwrap_err();
        assert!(error.to_string().contains(rule) && !error.is_machine(), "{error}");
        assert!(!dir.path().join("x").exists());
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), "precious").unwrap();
    let error = Sink::create(dir.path(), three(), SHARD_BYTES).unwrap_err();
    assert!(error.to_string().contains("exists already") && !error.is_machine(), "{error}");
    assert_eq!(fs::read(dir.path().join("model.safetensors")).unwrap(), b"precious");
    let error = Sink::create(&dir.path().join("model.safetensors/x"), three(), SHARD_BYTES);
    assert!(!error.unwrap_err().is_machine());
}

/// A file of this length cannot be: the file system answers as a full disk does.
#[test]
fn a_full_disk_is_the_machines_fault() {
    let dir = tempfile::tempdir().unwrap();
    let huge = Planned::new("a", DType::U8, [1 << 40, 1 << 20]);
    match Sink::create(dir.path(), vec![huge], SHARD_BYTES) {
        Err(error) => {
            assert!(error.is_machine(), "{error}");
            let text = error.to_string();
            assert!(text.contains("model.safetensors") && text.contains("1152921504606"), "{text}");
        }
        // A file system of such files exists: nothing was written but a header.
        Ok(sink) => assert!(sink.finish().unwrap_err().is_internal()),
    }
}

#[test]
fn whole_files_are_replaced_at_once_and_hashed() {
    let dir = tempfile::tempdir().unwrap();
    write_file(dir.path(), "config.json", b"old").unwrap();
    fs::write(dir.path().join(".config.json.partial"), "left over").unwrap();
    let written = write_file(dir.path(), "config.json", b"abc").unwrap();
    assert_eq!((written.name.as_str(), written.bytes), ("config.json", 3));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["config.json"]);
    let path = dir.path().join("config.json");
    let (hash, bytes) = hash_file(&path).unwrap();
    // FIPS 180-2, appendix B.1.
    assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(bytes, 3);
    fs::write(dir.path().join("plain"), "").unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
    assert_eq!(mode("config.json"), mode("plain"), "the umask decides");
    for name in ["", ".", "..", "a/b", "/a", "a\\b", "a\n", ".hidden"] {
        assert!(!write_file(dir.path(), name, b"x").unwrap_err().is_machine(), "{name:?}");
    }
    assert!(!write_file(&dir.path().join("absent"), "a", b"x").unwrap_err().is_machine());
    assert!(!hash_file(dir.path()).unwrap_err().is_machine());
    assert!(!hash_file(&dir.path().join("absent")).unwrap_err().is_machine());
}

#[test]
fn side_files_are_copied_and_nothing_else_is() {
    let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = Sink::create(model.path(), three(), SHARD_BYTES).unwrap();
    three().iter().for_each(|t| sink.put(&t.name, &content(t, 0)).unwrap());
    sink.finish().unwrap();
    let side = ["LICENSE", "NOTICE.txt", "chat_template.jinja", "tokenizer.json", "vocab.json"];
    let other = ["LICENSE.py", "README.md", "config.json", "modeling_x.py", "pytorch_model.bin"];
    for name in side.iter().chain(&other) {
        fs::write(model.path().join(name), "{}").unwrap();
    }
    fs::set_permissions(model.path().join("LICENSE"), PermissionsExt::from_mode(0o755)).unwrap();
    let opened = Checkpoint::open(model.path()).unwrap();
    assert_eq!(opened.side_files(), side);
    for name in side {
        write_file(out.path(), name, &opened.read_side_file(name).unwrap()).unwrap();
        assert_eq!(fs::read(out.path().join(name)).unwrap(), b"{}");
    }
    let mode = fs::metadata(out.path().join("LICENSE")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0, "a copy cannot be executed");
    for name in other.iter().chain(&["../secret", "merges.txt"]) {
        assert!(opened.read_side_file(name).is_err(), "{name}");
    }
    fs::write(out.path().join("secret"), "s").unwrap();
    fs::remove_file(model.path().join("vocab.json")).unwrap();
    symlink(out.path().join("secret"), model.path().join("vocab.json")).unwrap();
    let error = opened.read_side_file("vocab.json").unwrap_err().to_string();
    assert!(error.contains("link that leaves the folder"), "{error}");
}

#[test]
fn another_process_goes_on_where_one_was_killed() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = || Arc::new(checkpoint::disk::System);
    for shard_bytes in [SHARD_BYTES, 16] {
        let laid = || Layout::of_tensors(three(), shard_bytes).unwrap();
        let (whole, parts) = (whole.path().join("x"), parts.path().join("x"));
        let _ = (fs::remove_dir_all(&whole), fs::remove_dir_all(&parts));
        let sink = Sink::create(&whole, three(), shard_bytes).unwrap();
        three().iter().for_each(|t| sink.put(&t.name, &content(t, 0)).unwrap());
        let written = sink.finish().unwrap();

        let sink = Sink::create(&parts, three(), shard_bytes).unwrap();
        let all = three();
        let (first, rest) = all.split_first().unwrap();
        sink.put(&first.name, &content(first, 0)).unwrap();
        sink.put(&rest[0].name, &vec![9; content(&rest[0], 0).len()]).unwrap();
        let hash = sink.hash(&first.name).unwrap();
        drop(sink);
        let sink = Sink::resume_on(disk(), &parts, laid()).unwrap();
        assert_eq!(sink.hash(&first.name).unwrap(), hash);
        let rows = first.shape.first().copied().unwrap_or(1);
        let Rows::Dense(read) = sink.read(&first.name, 0..rows).unwrap() else { panic!("dense") };
        assert_eq!(read.bytes(), content(first, 0));
        sink.keep(&first.name).unwrap();
        assert!(sink.keep(&first.name).is_err(), "kept twice");
        assert!(sink.put(&first.name, &content(first, 0)).is_err(), "kept, then put");
        rest.iter().for_each(|t| sink.put(&t.name, &content(t, 0)).unwrap());
        assert_eq!(sink.finish().unwrap(), written);
        for file in &written {
            let read = |folder: &Path| fs::read(folder.join(&file.name)).unwrap();
            assert_eq!(read(&whole), read(&parts), "{}", file.name);
        }
        // Another header, another length, and nothing at all are not what was begun.
        let path = parts.join(&written[0].name);
        let bytes = fs::read(&path).unwrap();
        let resume = || Sink::resume_on(disk(), &parts, laid()).is_err();
        fs::write(&path, [&bytes[..9], b"x", &bytes[10..]].concat()).unwrap();
        assert!(resume(), "another header");
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(resume(), "another length");
        fs::remove_file(&path).unwrap();
        assert!(resume(), "nothing");
    }
}

/// A model laid out in a format, its codes put by rows: read back while it is written, and by the
/// reader when it is finished.
#[test]
fn weights_are_read_back_as_they_were_put() {
    let grid = Grid::Int { bits: 4, symmetric: false, span: Span::Group(8), scale: DType::F16 };
    let scales = (1..=80u8).map(|i| f32::from(i) / 8.0).collect();
    let zeros = (0..80).map(|i| (i % 16) as i8 - 8).collect();
    let codes = (0..40 * 16).map(|i| (i * 7 % 16) as i8 - 8).collect();
    let whole = Quantized { grid, shape: [40, 16], codes, params: Params::Flat { scales, zeros } };
    let placed = |name: &str, shape: &[usize], stored, used| Placed {
        name: name.into(),
        shape: shape.to_vec(),
        stored,
        used,
    };
    let weights = [
        placed("table.weight", &[3, 4], Stored::Dense(DType::F16), Use::Embedding),
        placed("a.weight", &[40, 16], Stored::On(grid), Use::Model),
        placed("b.weight", &[40, 16], Stored::Elsewhere, Use::Model),
    ];
    let format = Format::named("pack-quantized").unwrap();
    let config = serde_json::Map::new();
    let llama = json!({
        "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 4,
    });
    let spec = arch::imagine(llama.as_object().unwrap(), DType::F32).unwrap().model;
    let model = Described {
        config: &config,
        model: &spec,
        tied: true,
        dtype: None,
        texts: None,
        name: None,
        shard_bytes: None,
    };
    let layout = format.container.layout(format, &model, &weights).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for file in layout.manifest() {
        write_file(dir.path(), &file.name, &file.bytes).unwrap();
    }
    let sink = Sink::create_on(Arc::new(checkpoint::disk::System), dir.path(), layout).unwrap();
    let table = tensor::Bytes::from_slice(&[7; 24]);
    let table = tensor::Tensor::new(DType::F16, vec![3, 4], table).unwrap();
    sink.put_values("table.weight", 0, &table).unwrap();
    assert!(sink.put_values("a.weight", 0, &table).is_err(), "dense, and laid out on a grid");
    // Slices begin where a word of zero points does.
    for rows in [32..40, 0..32] {
        let part = whole.cut(rows.clone(), 0..16).unwrap();
        sink.put_codes("a.weight", rows.start, &part).unwrap();
        assert_eq!(sink.read("a.weight", rows).unwrap(), Rows::On(part));
    }
    assert!(sink.put_codes("a.weight", 0, &whole).is_err(), "put twice");
    assert!(sink.put_codes("b.weight", 0, &whole).is_err(), "not stored");
    assert_eq!(sink.read("a.weight", 0..40).unwrap(), Rows::On(whole.clone()));
    assert_eq!(sink.read("table.weight", 0..3).unwrap(), Rows::Dense(table));
    assert!(sink.read("table.weight", 0..4).is_err(), "beyond the last row");
    assert_eq!(sink.parts("a.weight").unwrap().len(), 4);
    sink.finish().unwrap();
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(opened.quantized_rows("a.weight", 0..40).unwrap(), Some(whole));
}
