//! GGUF: blocks against what ggml makes of them (`tests/interop/make_gguf_goldens.py`, llama.cpp of
//! xllamacpp 2026.10.11549), and small models.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

mod gguf_file;

use checkpoint::gguf::GgufBlocks;
use checkpoint::gguf::header::{Header, HeaderError, Value, parse};
use checkpoint::{
    Checkpoint, Codec, Described, Error, Format, Grain, Placed, Rows, Sink, Slice, Stored, Texts,
    Use,
};
use gguf_file::{Writer, golden, open};
use ir::{Grid, ModelSpec, Params, Quantized, Source, Span};
use serde_json::json;
use std::ops::Range;
use std::sync::Arc;
use tensor::{Bytes, DType, Tensor};

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
            "ignore_merges": false, "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3 }, "merges": [["a", "b"]],
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

/// llama.cpp multiplies the products of a tensor by its scale, whatever the tensor's type is: so the values
/// are, and what is on a grid that has no place for the factor reads as dense.
#[test]
fn values_are_multiplied_by_the_scale_of_their_tensor() {
    let mut file = Writer::llama();
    // 64 elements, of which each is 1 (code 2, at scales of 1: 0x38 in UE4M3).
    let block: Vec<u8> = [&[0x38; 4][..], &[0x22; 32]].concat();
    file.raw("blk.0.attn_q_norm.weight", &[2], 0, &[0; 8]);
    let refused = open(tempfile::tempdir().unwrap().path(), &file.bytes()).map(drop).unwrap_err();
    assert!(refused.to_string().contains("attn_q_norm"), "{refused}");

    let mut file = Writer::llama();
    file.raw("output.weight", &[2, 64], 40, &[block.clone(), block].concat());
    file.raw("output.scale", &[1], 0, &(-0.5f32).to_le_bytes());
    file.raw("blk.0.attn_v.scale", &[1], 0, &3f32.to_le_bytes());
    file.raw("blk.0.attn_v.input_scale", &[1], 0, &7f32.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), &file.bytes()).unwrap();
    let read = |name: &str| opened.read_rows(name, 1..2).unwrap().to_f32().unwrap();
    let scaled: Vec<f32> = (8..16).map(|i| 3.0 * i as f32).collect();
    assert_eq!(read("model.layers.0.self_attn.v_proj.weight"), scaled);
    assert_eq!(read("lm_head.weight"), [-0.5; 64]);
    assert_eq!(opened.tensor("lm_head.weight").unwrap().grid, None);
    assert!(opened.quantized_rows("lm_head.weight", 0..1).unwrap().is_none());

    let damaged = [
        ("blk.0.attn_k.scale", vec![2], "has 2 numbers"),
        ("blk.1.attn_k.scale", vec![1], "\"blk.1.attn_k.weight\", which is not there"),
    ];
    for (name, shape, said) in damaged {
        let mut file = Writer::llama();
        let bytes: Vec<u8> = shape.iter().flat_map(|&n| vec![0; 4 * n]).collect();
        file.raw(name, &shape, 0, &bytes);
        let error = open(dir.path(), &file.bytes()).map(drop).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let mut file = Writer::llama();
    file.raw("blk.0.attn_k.scale", &[1], 0, &f32::NAN.to_le_bytes());
    let error = open(dir.path(), &file.bytes()).map(drop).unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_k.scale") && error.contains("NaN"), "{error}");
}

/// A mixture of three experts, those on 8 bits.
fn mixture() -> (serde_json::Map<String, serde_json::Value>, ModelSpec, Vec<Placed>) {
    let config = json!({
        "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3,
        "num_experts_per_tok": 2, "vocab_size": 4, "max_position_embeddings": 128,
    });
    let config = config.as_object().unwrap().clone();
    let spec = arch::imagine(&config, DType::F32).unwrap().model;
    let stored = |name: &str| match name.contains("experts") {
        true => Stored::On(Q8),
        false => Stored::Dense(DType::F32),
    };
    let weights = spec.tensors().into_iter().map(|spec| Placed {
        name: spec.tensor.clone(),
        shape: spec.shape.clone(),
        stored: stored(&spec.tensor),
        used: Use::Model,
    });
    let weights = weights.collect();
    (config, spec, weights)
}

const Q8: Grid = Grid::Int { bits: 8, symmetric: true, span: Span::Group(32), scale: DType::F16 };

fn described<'a>(
    config: &'a serde_json::Map<String, serde_json::Value>,
    model: &'a ModelSpec,
) -> Described<'a> {
    let (name, tied, dtype) = (Some("Some-8x7B-Instruct"), false, None);
    Described { config, model, tied, dtype, texts: None, name, shard_bytes: None }
}

fn codes(weight: &Placed, at: usize) -> Quantized {
    let [rows, width] = weight.matrix().unwrap();
    let codes = (0..rows * width).map(|i| (i * 7 + at * 31) as u8 as i8).collect();
    let scales = (0..rows * width / 32).map(|i| (1 + i % 8) as f32 / 4.0).collect();
    let params = Params::Flat { scales, zeros: Vec::new() };
    Quantized { grid: Q8, shape: [rows, width], codes, params }
}

/// The experts of a layer are one tensor.
#[test]
fn experts_lie_in_stacks() {
    let (config, spec, weights) = mixture();
    let format = Format::named("gguf").unwrap();
    let model = described(&config, &spec);
    let layout = format.container.layout(format, &model, &weights).unwrap();
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(checkpoint::disk::System));
    let sink = Sink::create_on(disk, dir.path(), layout).unwrap();
    for (at, weight) in weights.iter().enumerate() {
        if weight.stored != Stored::On(Q8) {
            let values = vec![0.25; weight.shape.iter().product()];
            let values = Tensor::from_f32(weight.shape.clone(), &values).unwrap();
            sink.put_values(&weight.name, 0, &values).unwrap();
            continue;
        }
        let all = codes(weight, at);
        for rows in [16..all.shape[0], 0..16] {
            let part = all.cut(rows.clone(), 0..all.shape[1]).unwrap();
            sink.put_codes(&weight.name, rows.start, &part).unwrap();
            assert_eq!(sink.read(&weight.name, rows).unwrap(), Rows::On(part));
        }
    }
    sink.finish().unwrap();
    let file = std::fs::read(dir.path().join("model.gguf")).unwrap();
    let said = header(&file).unwrap();
    let stack = said.entries.iter().find(|e| e.name == "blk.0.ffn_down_exps.weight").unwrap();
    assert_eq!(stack.shape, [3, 32, 64]);
    for (key, value) in
        [("name", "Some-8x7B-Instruct"), ("basename", "Some"), ("size_label", "3x11K")]
    {
        assert_eq!(said.keys[&format!("general.{key}")], Value::Text(value.into()));
    }
    assert_eq!(said.keys["general.file_type"], Value::Integer(7));
    let opened = Checkpoint::open(dir.path()).unwrap();
    for (at, weight) in weights.iter().enumerate().filter(|(_, w)| w.stored == Stored::On(Q8)) {
        let rows = 0..weight.shape[0];
        assert_eq!(opened.quantized_rows(&weight.name, rows).unwrap(), Some(codes(weight, at)));
    }
}

/// Old folders store what the keys say; nothing else is left out.
#[test]
fn stored_frequencies_are_left_out() {
    let container = Format::named("gguf").unwrap().container;
    assert!(container.leaves_out("model.layers.0.self_attn.rotary_emb.inv_freq"));
    assert!(!container.leaves_out("model.layers.0.self_attn.q_proj.weight"));
    let folder = Format::named("pack-quantized").unwrap().container;
    assert!(!folder.leaves_out("model.layers.0.self_attn.rotary_emb.inv_freq"));
}

#[test]
fn a_stack_has_one_type_and_all_experts() {
    let (config, spec, weights) = mixture();
    let (format, model) = (Format::named("gguf").unwrap(), described(&config, &spec));
    let refused = |weights: &[Placed]| {
        format.container.layout(format, &model, weights).map(drop).unwrap_err().to_string()
    };
    let name = "model.layers.0.block_sparse_moe.experts.1.w2.weight";
    let mut others = weights.clone();
    others.iter_mut().find(|w| w.name == name).unwrap().stored = Stored::Dense(DType::F32);
    let error = refused(&others);
    assert!(error.contains(name) && error.contains("one tensor of one type"), "{error}");
    others.retain(|weight| weight.name != name);
    let error = refused(&others);
    assert!(error.contains("ffn_down_exps") && error.contains("expert 1 is missing"), "{error}");
}
