//! GGUF: blocks against what ggml makes of them (`tests/interop/make_gguf_goldens.py`, llama.cpp of
//! xllamacpp 2026.10.11549), a small model, and files that are damaged.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::gguf::GgufBlocks;
use checkpoint::gguf::header::{Header, HeaderError, Value, parse};
use checkpoint::{
    Checkpoint, Codec, Described, Error, Format, Grain, Placed, Rows, Sink, Slice, Stored, Texts,
    Use,
};
use ir::{Grid, Params, Quantized, Source, Span};
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::{Bytes, DType, Tensor};

fn golden() -> Vec<u8> {
    let path = "../../tests/fixtures/gguf/blocks.gguf";
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn header(file: &[u8]) -> Result<Header, HeaderError> {
    parse(file, file.len() as u64)
}

#[test]
fn blocks_are_read_and_written_as_ggml_does() {
    let file = golden();
    let header = header(&file).unwrap();
    assert_eq!(header.keys["golden.text"], Value::Text("caf\u{e9}".into()));
    assert_eq!(header.keys["golden.ids"], Value::Integers(vec![-1, 2, 3]));
    assert_eq!(header.keys["golden.float"], Value::Float(1e-5));
    let entry = |name: &str| header.entries.iter().find(|e| e.name == name).unwrap();
    let bytes = |name: &str| {
        let entry = entry(name);
        &file[entry.begin as usize..][..entry.bytes as usize]
    };
    let names = header.entries.iter().filter_map(|e| e.name.strip_suffix(".blocks"));
    let kinds: Vec<&str> = names.collect();
    let simple = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];
    let nested = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"];
    let points =
        ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"];
    assert_eq!(kinds, [&simple[..], &nested, &points].concat());
    for kind in kinds {
        let (entry, blocks) = (entry(&format!("{kind}.blocks")), bytes(&format!("{kind}.blocks")));
        let (grid, shape) = (entry.grid().unwrap(), [entry.shape[0], entry.shape[1]]);
        let expected: Vec<u32> = bytes(&format!("{kind}.values"))
            .as_chunks()
            .0
            .iter()
            .map(|&b| u32::from_le_bytes(b))
            .collect();
        let is_written = !points.contains(&kind);
        match GgufBlocks.holds(grid, shape) {
            Ok(grain) => assert!(is_written && grain == Grain::Rows(1), "{kind}"),
            Err(e) => assert!(!is_written && e.to_string().contains("is read and not written")),
        }
        if is_written {
            let parts = GgufBlocks.parts("w", grid, shape).unwrap();
            assert_eq!(parts[0].bytes(), Some(blocks.len() as u64), "{kind}");
        }
        let get = |_: &str, rows: Range<usize>| -> Result<Tensor, Error> {
            let part = &blocks[rows.start * entry.row_bytes..rows.end * entry.row_bytes];
            let shape = vec![rows.len(), entry.row_bytes];
            Ok(Tensor::new(DType::U8, shape, Bytes::from_slice(part)).unwrap())
        };
        for rows in [0..4, 1..3, 0..0] {
            let at = Slice { rows: rows.clone(), shape };
            let read = GgufBlocks.decode("w", grid, &at, &get).unwrap();
            assert!(read.is_whole() || rows.is_empty());
            let outers = match &read.params {
                Params::Flat { scales, .. } | Params::Scattered { scales, .. } => scales,
                Params::Nested { outer_scales, .. } => outer_scales,
            };
            let below = outers.iter().any(|&scale| scale < 0.0);
            assert!(below != kind.contains("FP4") || rows.len() < 4, "{kind}");
            let values: Vec<u32> = read.dequantize().iter().map(|x| x.to_bits()).collect();
            assert_eq!(values, expected[rows.start * shape[1]..rows.end * shape[1]], "{kind}");
            if !is_written {
                continue;
            }
            let mut written = Vec::new();
            let mut put = |part: &str, first: usize, bytes: &[u8]| {
                assert_eq!((part, first), ("w", rows.start));
                written.extend_from_slice(bytes);
                Ok(())
            };
            GgufBlocks.encode("w", &read, &at, &mut put).unwrap();
            let stored = rows.start * entry.row_bytes..rows.end * entry.row_bytes;
            assert_eq!(written, blocks[stored], "{kind}");
        }
    }
}

/// What is no number as a scale is refused, in every type that can say it; ggml reads it as some number.
#[test]
fn scales_that_are_no_numbers_are_refused() {
    let file = golden();
    let header = header(&file).unwrap();
    for entry in header.entries.iter().filter(|entry| entry.name.ends_with(".blocks")) {
        let (grid, width) = (entry.grid().unwrap(), entry.shape[1]);
        let row = &file[entry.begin as usize..][..entry.row_bytes];
        let at = Slice { rows: 0..1, shape: [1, width] };
        let mut refused = 0;
        for byte in 0..row.len() {
            let mut row = row.to_vec();
            row[byte] = 255;
            // The other half of an F16 that is no number, or a part of it that lies further.
            (1..3).for_each(|by| row[(byte + by) % entry.row_bytes] |= 124);
            let get = |_: &str, _: Range<usize>| -> Result<Tensor, Error> {
                let bytes = Bytes::from_slice(&row);
                Ok(Tensor::new(DType::U8, vec![1, row.len()], bytes).unwrap())
            };
            match GgufBlocks.decode("w", grid, &at, &get) {
                Ok(read) => assert!(read.dequantize().iter().all(|x| !x.is_nan())),
                Err(e) => {
                    assert!(e.to_string().contains("not finite"), "{e}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{}", entry.name);
    }
}

/// A file as GGUF's specification lays it out.
struct Writer {
    keys: Vec<u8>,
    count: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
    tensors: u64,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    /// A llama of one layer: hidden 8, two heads of 4, one of keys, FFN 4, three tokens.
    fn llama() -> Self {
        let (keys, infos, data) = (Vec::new(), Vec::new(), Vec::new());
        let mut file = Self { keys, count: 0, infos, data, tensors: 0 };
        let said = [&8u32.to_le_bytes()[..], &text("llama")].concat();
        file.key("general.architecture", &said);
        for (name, value) in [
            ("block_count", 1u32),
            ("context_length", 16),
            ("embedding_length", 8),
            ("feed_forward_length", 4),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            let said = [4u32.to_le_bytes(), value.to_le_bytes()].concat();
            file.key(&format!("llama.{name}"), &said);
        }
        let said = [6u32.to_le_bytes(), 1e-5f32.to_le_bytes()].concat();
        file.key("llama.attention.layer_norm_rms_epsilon", &said);
        for (name, shape) in [
            ("token_embd.weight", vec![3, 8]),
            ("output_norm.weight", vec![8]),
            ("blk.0.attn_norm.weight", vec![8]),
            ("blk.0.attn_q.weight", vec![8, 8]),
            ("blk.0.attn_k.weight", vec![4, 8]),
            ("blk.0.attn_v.weight", vec![4, 8]),
            ("blk.0.attn_output.weight", vec![8, 8]),
            ("blk.0.ffn_norm.weight", vec![8]),
            ("blk.0.ffn_gate.weight", vec![4, 8]),
            ("blk.0.ffn_up.weight", vec![4, 8]),
            ("blk.0.ffn_down.weight", vec![8, 4]),
        ] {
            file.tensor(name, &shape);
        }
        file
    }

    fn key(&mut self, key: &str, said: &[u8]) {
        self.keys.extend(text(key));
        self.keys.extend_from_slice(said);
        self.count += 1;
    }

    /// One of `F32`, whose elements are 0, 1, 2, and so on.
    fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.infos.extend(text(name));
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| self.infos.extend((n as u64).to_le_bytes()));
        self.infos.extend(0u32.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        let values = (0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes());
        self.data.extend(values);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors += 1;
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.to_le_bytes(), self.count.to_le_bytes()].concat();
        let mut file = [b"GGUF\x03\0\0\0", &counts[..], &self.keys, &self.infos].concat();
        file.resize(file.len().next_multiple_of(32), 0);
        [file, self.data.clone()].concat()
    }
}

fn open(folder: &Path, bytes: &[u8]) -> Result<Checkpoint, Error> {
    let path = folder.join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

#[test]
fn a_model_opens_as_the_folder_it_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), &Writer::llama().bytes()).unwrap();
    let config = opened.config();
    assert_eq!((&config["head_dim"], &config["vocab_size"]), (&4.into(), &3.into()));
    assert_eq!(
        (&config["tie_word_embeddings"], &config["rms_norm_eps"]),
        (&true.into(), &1e-5.into())
    );
    assert!(opened.tokenizer().unwrap().is_none());
    assert!(opened.side_files().is_empty());
    // Pairs of rows that are rotated together lie side by side in the file, and apart in the folder.
    let q = "model.layers.0.self_attn.q_proj.weight";
    let first = |name: &str, rows: Range<usize>| -> Vec<f32> {
        let read = opened.read_rows(name, rows).unwrap();
        read.to_f32().unwrap().chunks(8).map(|row| row[0] / 8.0).collect()
    };
    assert_eq!(first(q, 0..8), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(first(q, 1..6), [2.0, 1.0, 3.0, 4.0, 6.0]);
    assert_eq!(first("model.layers.0.self_attn.v_proj.weight", 1..3), [1.0, 2.0]);
    assert!(opened.read_rows(q, 7..9).is_err());
    assert!(opened.read_rows("blk.0.attn_q.weight", 0..1).is_err());
}

#[test]
fn damaged_files_are_refused_with_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Writer::llama().bytes();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        open(dir.path(), &bytes).map(drop).unwrap_err().to_string()
    };
    let at = |find: &str| whole.windows(find.len()).position(|w| w == find.as_bytes()).unwrap();
    let (key, name) = (at("general.architecture"), at("blk.0.ffn_up.weight"));
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let cases: [(Change<'_>, &str); 11] = [
        (&|b| b[0] = b'X', "GGUF"),
        (&|b| b[4] = 1, "version 1"),
        (&|b| b[4..8].reverse(), "big-endian"),
        (&|b| b[4] = 9, "version 9"),
        (&|b| b[8..16].fill(255), "tensors: at most"),
        (&|b| b[16..24].fill(255), "keys: at most"),
        (&|b| b[key - 8..key].fill(255), "a text of"),
        (&|b| b[key] = 255, "not UTF-8"),
        (&|b| b[name + 19..name + 23].fill(255), "dimensions, at most 4"),
        (&|b| b[name + 39..name + 43].fill(99), "ggml's type"),
        (&|b| b.truncate(b.len() - 32), "ends beyond the file"),
    ];
    for (change, rule) in cases {
        let error = changed(change);
        assert!(error.contains(rule) && error.contains("x.gguf"), "{rule}: {error}");
    }
    let error = changed(&|b| b[key + 32..key + 37].copy_from_slice(b"gemma"));
    assert!(error.contains("\"gemma\"") && error.contains("\"llama\", \"qwen2\""), "{error}");
}

#[test]
fn no_damage_makes_the_reader_panic() {
    for whole in [Writer::llama().bytes(), golden()] {
        let end = header(&whole).unwrap().entries[0].begin as usize;
        for length in 0..end {
            assert!(parse(&whole[..length], length as u64).is_err(), "{length}");
        }
        for at in 0..end {
            for bit in [1, 128] {
                let mut changed = whole[..end].to_vec();
                changed[at] ^= bit;
                if let Ok(header) = parse(&changed, whole.len() as u64) {
                    let inside = |e: &checkpoint::gguf::header::Entry| {
                        e.begin + e.bytes <= whole.len() as u64
                    };
                    assert!(header.entries.iter().all(inside));
                }
            }
        }
    }
}

/// A tokenizer of three tokens and a special one, as GGUF can say it.
fn spelled() -> serde_json::Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        },
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3 }, "merges": ["a b"],
        },
    })
}

#[test]
fn what_is_written_is_what_is_read() {
    let q8 = Grid::Int { bits: 8, symmetric: true, span: Span::Group(32), scale: DType::F16 };
    let scales = (1..=8u8).map(|i| f32::from(i) / 4.0).collect();
    let codes = (0..8 * 32).map(|i| (i % 251) as u8 as i8).collect();
    let params = Params::Flat { scales, zeros: Vec::new() };
    let q = Quantized { grid: q8, shape: [8, 32], codes, params };
    let placed = |name: &str, shape: &[usize], stored| Placed {
        name: name.into(),
        shape: shape.to_vec(),
        stored,
        used: Use::Model,
    };
    let [table, query] = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"];
    let weights = [
        placed(table, &[4, 2], Stored::Dense(DType::F32)),
        placed(query, &[8, 32], Stored::On(q8)),
    ];
    let config = json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "vocab_size": 4, "rope_theta": 10000.0, "bos_token_id": 0,
    });
    let (config, tokenizer) = (config.as_object().unwrap(), spelled().to_string());
    let spec = arch::imagine(config, DType::F32).unwrap().model;
    let texts = Texts { tokenizer: Some(tokenizer.into_bytes()), ..Texts::default() };
    let model = Described {
        config,
        model: &spec,
        tied: true,
        dtype: None,
        texts: Some(&texts),
        name: None,
        shard_bytes: None,
    };
    let format = Format::named("gguf").unwrap();
    let layout = format.container.layout(format, &model, &weights).unwrap();
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(checkpoint::disk::System));
    let sink = Sink::create_on(disk, dir.path(), layout).unwrap();
    sink.put_values(table, 0, &Tensor::from_f32(vec![4, 2], &[0.5; 8]).unwrap()).unwrap();
    for rows in [3..8, 0..3] {
        let part = q.cut(rows.clone(), 0..32).unwrap();
        sink.put_codes(query, rows.start, &part).unwrap();
        assert_eq!(sink.read(query, rows).unwrap(), Rows::On(part));
    }
    sink.finish().unwrap();
    let opened = Checkpoint::open(&dir.path().join("model.gguf")).unwrap();
    for (key, value) in config {
        assert_eq!(&opened.config()[key], value, "{key}");
    }
    assert_eq!(opened.quantized_rows(query, 0..8).unwrap(), Some(q));
    assert_eq!(opened.read_rows(table, 0..4).unwrap().to_f32().unwrap(), [0.5; 8]);
    let read: serde_json::Value =
        serde_json::from_slice(&opened.tokenizer().unwrap().unwrap()).unwrap();
    assert_eq!(read, spelled());
}
