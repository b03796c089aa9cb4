//! Weights stored as `qweight`, by GPTQ and AWQ: against what GPTQModel itself packed
//! (`tests/interop/make_qweight_goldens.py`, GPTQModel 7.7.0), against what is written here, and
//! against what should not be read.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::{
    Checkpoint, Codec, Described, Format, Grain, Layout, Placed, Planned, SHARD_BYTES, Sink, Slice,
    Stored, Use, disk,
};
use ir::{Grid, Params, Quantized, Source, Span};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::{Bytes, DType, Tensor};

fn codec(format: &str, grid: Grid, shape: [usize; 2]) -> &'static dyn Codec {
    Format::named(format).unwrap().codec(grid, shape).unwrap()
}

fn golden() -> Vec<u8> {
    let path = "../../tests/fixtures/qweight/codec.safetensors";
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Columns of a tensor.
fn columns(of: &Tensor, those: Range<usize>) -> Tensor {
    let (&width, before) = of.shape().split_last().unwrap();
    let each = of.dtype().bits() / 8;
    let rows = of.bytes().chunks_exact((width * each).max(1));
    let bytes: Vec<u8> =
        rows.flat_map(|row| row[those.start * each..those.end * each].to_vec()).collect();
    let shape = before.iter().copied().chain([those.len()]).collect();
    Tensor::new(of.dtype(), shape, Bytes::from_slice(&bytes)).unwrap()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
}

/// All of a weight, encoded.
fn encoded(codec: &dyn Codec, q: &Quantized) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut parts = BTreeMap::new();
    let at = Slice { rows: 0..q.shape[0], shape: q.shape };
    let done = codec.encode("x.weight", q, &at, &mut |part, first, bytes| {
        assert_eq!(first, 0);
        parts.insert(part.strip_prefix("x.").unwrap().to_owned(), bytes.to_vec());
        Ok(())
    });
    done.map(|()| parts).map_err(|e| e.to_string())
}

#[test]
fn bytes_are_those_of_gptqmodel() {
    let file = golden();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let names = golden.names();
    let cases: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".codes")).collect();
    assert_eq!(cases.len(), 19, "2, 3, 4 and 8 bits in four ways, and three of AWQ");
    for case in cases {
        let get = |part: &str| golden.tensor(&format!("{case}.{part}")).unwrap();
        let words: Vec<&str> = case.split('-').collect();
        let (symmetric, channel) = (words[2] == "sym", words[3] == "channel");
        let span = match (channel, words.get(4)) {
            (true, _) => Span::Channel,
            (_, Some(_)) => Span::Scattered(32),
            _ => Span::Group(32),
        };
        let bits = words[1].parse().unwrap();
        let grid = Grid::Int { bits, symmetric, span, scale: DType::F16 };
        let codes = get("codes");
        let shape = [codes.shape()[0], codes.shape()[1]];
        let bytes = |part: &str| get(part).data().iter().map(|&b| b.cast_signed()).collect();
        // `scales` lie as they are stored, [groups, out].
        let stored = get("scales");
        let groups = stored.shape()[0];
        let values = halves(stored.data());
        let scales =
            (0..shape[0] * groups).map(|i| values[i % groups * shape[0] + i / groups]).collect();
        let zeros = if symmetric { vec![] } else { bytes("zeros") };
        let order = get("groups");
        let order: Arc<[u32]> =
            order.data().as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        let params = match span {
            Span::Scattered(_) => Params::Scattered { scales, zeros, groups: order },
            _ => Params::Flat { scales, zeros },
        };
        let q = Quantized { grid, shape, codes: bytes("codes"), params };
        assert_eq!(
            q.dequantize(),
            halves(get("dense").data()),
            "{case}: what GPTQModel takes the bytes for"
        );
        let versions = match words[0] {
            "awq" => &[("awq", "qzeros")][..],
            _ => &[("gptq", "qzeros_v1"), ("gptq_v2", "qzeros")],
        };
        for (format, qzeros) in versions {
            let codec = codec(format, grid, shape);
            let ours = encoded(codec, &q).unwrap();
            assert_eq!(ours.len(), if *format == "awq" { 3 } else { 4 });
            for (part, bytes) in &ours {
                let theirs = get(if part == "qzeros" { qzeros } else { part });
                assert_eq!(bytes, theirs.data(), "{case} as {format}: {part}");
            }
            for rows in [0..32, 0..1, 31..32, 7..20, 5..5] {
                let get = |part: &str, those: Range<usize>| {
                    let part = part.strip_prefix("x.").unwrap();
                    let theirs = get(if part == "qzeros" { qzeros } else { part });
                    let dtype = DType::parse(&format!("{:?}", theirs.dtype())).unwrap();
                    let bytes = Bytes::from_slice(theirs.data());
                    let whole = Tensor::new(dtype, theirs.shape().to_vec(), bytes).unwrap();
                    Ok(columns(&whole, those))
                };
                let at = Slice { rows: rows.clone(), shape };
                let read = codec.decode("x.weight", grid, &at, &get).unwrap();
                assert_eq!(read, q.cut(rows, 0..shape[1]).unwrap(), "{case} as {format}");
            }
        }
    }
}

/// A matrix on a grid, of codes that differ.
fn matrix(grid: Grid, [out, width]: [usize; 2]) -> Quantized {
    let (low, high) = grid.codes();
    let code = |i: usize| (low + (i * 7 % (high - low + 1) as usize) as i32) as i8;
    let units = out * grid.units(width);
    let scales: Vec<f32> = (0..units).map(|i| (i + 1) as f32 / 1024.0).collect();
    // No zero point is the least, which the first version of GPTQ does not hold.
    let zeros: Vec<i8> = match grid.is_symmetric() {
        true => vec![],
        false => (0..units).map(|i| code(i * 3 + 1).max(low as i8 + 1)).collect(),
    };
    let params = match grid {
        Grid::Int { span: Span::Scattered(size), .. } => {
            let groups = (0..width).map(|column| ((width - 1 - column) / size) as u32).collect();
            Params::Scattered { scales, zeros, groups }
        }
        _ => Params::Flat { scales, zeros },
    };
    let codes = (0..out * width).map(code).collect();
    Quantized { grid, shape: [out, width], codes, params }
}

fn int(bits: u8, symmetric: bool, span: Span) -> Grid {
    Grid::Int { bits, symmetric, span, scale: DType::F16 }
}

/// Where everything goes.
fn layout(format: &str, placed: &[Placed]) -> Result<Layout, String> {
    let format = Format::named(format).unwrap();
    let config = Map::new();
    let llama = json!({
        "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 4,
    });
    let spec = arch::imagine(llama.as_object().unwrap(), DType::F32).unwrap().model;
    let model = Described {
        config: &config,
        model: &spec,
        tied: false,
        dtype: None,
        texts: None,
        name: None,
        shard_bytes: None,
    };
    format.container.layout(format, &model, placed).map_err(|e| e.to_string())
}

/// A folder in a format: linears of a layer on grids, `o_proj` dense.
fn write(format: &str, weights: &[(&str, &Quantized)], dir: &Path) -> Result<(), String> {
    let format = Format::named(format).unwrap();
    let mut placed: Vec<Placed> = weights
        .iter()
        .map(|(name, q)| Placed {
            name: (*name).into(),
            shape: q.shape.to_vec(),
            stored: Stored::On(q.grid),
            used: Use::Model,
        })
        .collect();
    placed.push(Placed {
        name: DENSE.into(),
        shape: vec![2, 4],
        stored: Stored::Dense(DType::F16),
        used: Use::Model,
    });
    let layout = layout(format.name, &placed)?;
    for file in layout.manifest() {
        fs::write(dir.join(&file.name), &file.bytes).unwrap();
    }
    let sink = Sink::create_on(Arc::new(disk::System), dir, layout).unwrap();
    let dense = Tensor::new(DType::F16, vec![2, 4], Bytes::from_slice(&[0; 16])).unwrap();
    sink.put_values(DENSE, 0, &dense).unwrap();
    for (name, q) in weights {
        let [out, width] = q.shape;
        // In two parts, the second first, as tables are written.
        for rows in [32..out, 0..32] {
            let part = q.cut(rows.clone(), 0..width).unwrap();
            sink.put_codes(name, rows.start, &part).map_err(|e| e.to_string())?;
        }
        let checkpoint::Rows::On(read) = sink.read(name, 31..34).unwrap() else { panic!() };
        assert_eq!(read, q.cut(31..34, 0..width).unwrap());
    }
    sink.finish().unwrap();
    Ok(())
}

const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const DENSE: &str = "model.layers.0.self_attn.o_proj.weight";

fn said(dir: &Path) -> Value {
    let config: Value =
        serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["quantization_config"].clone()
}

#[test]
fn folders_are_read_as_they_were_written() {
    let shape = [64, 96];
    for format in ["gptq", "gptq_v2", "awq", "int-quantized", "compressed-tensors"] {
        let orders: &[Span] = match format {
            "gptq" | "gptq_v2" => &[Span::Channel, Span::Group(32), Span::Scattered(32)],
            _ => &[Span::Channel, Span::Group(32)],
        };
        let widths: &[u8] = match format {
            "awq" => &[4],
            "int-quantized" => &[8],
            "compressed-tensors" => &[2, 3, 4, 5, 6, 7, 8],
            _ => &[2, 3, 4, 8],
        };
        for (&span, &bits) in orders.iter().flat_map(|o| widths.iter().map(move |b| (o, b))) {
            for symmetric in [true, false] {
                let dir = tempfile::tempdir().unwrap();
                let q = matrix(int(bits, symmetric, span), shape);
                write(format, &[(QUERY, &q), (DOWN, &q)], dir.path()).unwrap();
                let opened = Checkpoint::open(dir.path()).unwrap();
                assert!(opened.quantization().is_some());
                assert_eq!(opened.tensors().len(), 3, "{format}");
                let read = opened.quantized_rows(DOWN, 0..64).unwrap().unwrap();
                assert_eq!(read.dequantize(), q.dequantize(), "{format} {}", q.grid);
                // AWQ stores zero points of symmetric weights too.
                if format != "awq" || !symmetric {
                    assert_eq!(read, q, "{format}");
                }
                let rows = opened.read_rows(QUERY, 33..60).unwrap();
                assert_eq!(rows.f32s().unwrap(), &q.dequantize()[33 * 96..60 * 96]);
                assert_eq!(opened.read_rows(DENSE, 0..2).unwrap().dtype(), DType::F16);
                let parts: u64 = opened.stored().iter().map(|t| t.bytes()).sum();
                let whole: u64 = opened.tensors().iter().map(|t| t.bytes()).sum();
                assert_eq!(parts, whole, "every stored byte is some weight's");
            }
        }
    }
}

#[test]
fn configurations_are_said_as_readers_look_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let (four, eight) = (int(4, true, Span::Group(32)), int(8, true, Span::Channel));
    let (q, other) = (matrix(four, [64, 96]), matrix(eight, [64, 96]));
    let gate = "model.layers.0.mlp.gate_proj.weight";
    let up = "model.layers.0.mlp.up_proj.weight";
    let weights = [(QUERY, &q), (DOWN, &q), ("model.x.weight", &q), (gate, &other), (up, &other)];
    write("gptq", &weights, dir.path()).unwrap();
    let expected = json!({
        "bits": 4,
        "group_size": 32,
        "desc_act": false,
        "sym": true,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "lm_head": false,
        "dynamic": {
            "-:^model\\.layers\\.0\\.self_attn\\.o_proj$": {},
            "+:^model\\.layers\\.0\\.mlp\\.gate_proj$":
                { "bits": 8, "group_size": -1, "desc_act": false, "sym": true },
            "+:^model\\.layers\\.0\\.mlp\\.gate_up_proj$":
                { "bits": 8, "group_size": -1, "desc_act": false, "sym": true },
            "+:^model\\.layers\\.0\\.mlp\\.up_proj$":
                { "bits": 8, "group_size": -1, "desc_act": false, "sym": true },
        },
        "modules_in_block_to_quantize": [[
            "model.layers.0.mlp.down_proj",
            "model.layers.0.mlp.gate_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.0.self_attn.q_proj",
            "model.x",
        ]],
    });
    assert_eq!(said(dir.path()), expected);
    let beside = fs::read(dir.path().join("quantize_config.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&beside).unwrap(), expected);
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(opened.tensor(up).unwrap().grid, Some(eight));
    assert_eq!(opened.quantized_rows(gate, 0..64).unwrap(), Some(other));

    let dir = tempfile::tempdir().unwrap();
    write("awq", &[(QUERY, &q)], dir.path()).unwrap();
    let expected = json!({
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": ["model.layers.0.self_attn.o_proj"],
        "lm_head": false,
        "dynamic": { "-:^model\\.layers\\.0\\.self_attn\\.o_proj$": {} },
    });
    assert_eq!(said(dir.path()), expected);
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_name() {
    let refuse = |format: &str, grid, shape| {
        let error = Format::named(format).unwrap().codec(grid, shape).err().unwrap();
        assert!(!error.is_internal(), "{error}");
        error.to_string()
    };
    let group = |bits, size| int(bits, true, Span::Group(size));
    for (format, grid, shape, rule) in [
        ("gptq", group(5, 32), [64, 96], "5 bits: gptq holds 2, 3, 4 and 8"),
        ("gptq_v2", group(4, 32), [33, 96], "33 x 96: gptq_v2 packs 32 rows and columns"),
        ("gptq", group(4, 4), [64, 172], "64 x 172: gptq packs 32 rows and columns"),
        ("gptq", group(4, 48), [64, 96], "groups of 48: readers of gptq take 16, 32"),
        ("awq", group(8, 32), [64, 96], "8 bits: awq holds 4"),
        ("awq", int(4, true, Span::Scattered(32)), [64, 96], "awq has no act-order; write gptq"),
        ("awq", group(4, 32), [60, 96], "60 x 96: awq packs 8 rows"),
        ("int-quantized", group(4, 32), [64, 96], "4 bits: int-quantized stores bytes"),
        ("int-quantized", int(8, true, Span::Scattered(32)), [64, 96], "no act-order any more"),
        ("compressed-tensors", int(4, true, Span::Scattered(32)), [64, 96], "write gptq"),
    ] {
        let said = refuse(format, grid, shape);
        assert!(said.contains(rule), "{rule:?}: {said}");
    }
    let float = Grid::Int { bits: 4, symmetric: true, span: Span::Channel, scale: DType::F32 };
    for format in ["gptq", "gptq_v2", "awq"] {
        assert!(refuse(format, float, [64, 96]).contains("scales of F32"), "{format}");
        assert_eq!(Format::named(format).unwrap().scales, Some(DType::F16));
        let half = int(4, true, Span::Channel);
        let codec = codec(format, half, [64, 96]);
        assert!(matches!(codec.holds(half, [64, 96]), Ok(Grain::Columns(_))));
    }
    // The least zero point is 0, stored as -1.
    let mut q = matrix(int(4, false, Span::Group(32)), [64, 96]);
    let Params::Flat { zeros, .. } = &mut q.params else { panic!() };
    zeros[5] = -8;
    let error = encoded(codec("gptq", q.grid, q.shape), &q).unwrap_err();
    assert!(
        error.contains("the zero point [1, 2] is 0") && error.contains("write gptq_v2"),
        "{error}"
    );
    assert!(encoded(codec("gptq_v2", q.grid, q.shape), &q).is_ok());
    assert!(encoded(codec("awq", q.grid, q.shape), &q).is_ok());
    let dir = tempfile::tempdir().unwrap();
    let wide = matrix(int(4, true, Span::Channel), [64, 96]);
    let q = matrix(group(4, 32), [64, 96]);
    let error = write("awq", &[(QUERY, &q), (DOWN, &wide)], dir.path()).unwrap_err();
    assert!(error.contains("awq has one size for all"), "{error}");
}

/// An embedding is written on the grid of all linears, and read.
#[test]
fn embeddings_are_packed_beside_linears_on_the_same_grid() {
    let placed = |name: &str, grid, used| Placed {
        name: name.into(),
        shape: vec![64, 96],
        stored: Stored::On(grid),
        used,
    };
    let (four, eight) = (int(4, true, Span::Group(32)), int(8, true, Span::Group(32)));
    let said = |format: &str, table, linear| {
        let table = placed("model.embed_tokens.weight", table, Use::Embedding);
        let weights = [table, placed(QUERY, linear, Use::Model)];
        layout(format, &weights).map(|layout| {
            let config: Value = serde_json::from_slice(&layout.manifest()[0].bytes).unwrap();
            config["quantization_config"].clone()
        })
    };
    let one = said("compressed-tensors", four, four).unwrap();
    assert_eq!(one["config_groups"]["group_0"]["targets"], json!(["Linear", "Embedding"]));
    assert_eq!(one["dequantize"], true);
    for (format, table, linear, rule) in [
        ("compressed-tensors", eight, four, "all on the same grid"),
        ("int-quantized", eight, eight, "only in compressed-tensors' packed form"),
        ("gptq", four, four, "no reader of gptq takes on a grid"),
        ("awq", four, four, "no reader of awq takes on a grid"),
    ] {
        let error = said(format, table, linear).unwrap_err();
        assert!(error.contains("model.embed_tokens.weight") && error.contains(rule), "{error}");
    }
}

/// A folder of `x` (GPTQ, asymmetric in groups of 32, 64 x 96) that can be changed.
struct Folder {
    config: Value,
    tensors: Vec<(Planned, Vec<u8>)>,
}

impl Folder {
    fn new(format: &str, q: &Quantized) -> Self {
        let codec = codec(format, q.grid, q.shape);
        let bytes = encoded(codec, q).unwrap();
        let parts = codec.parts("x.weight", q.grid, q.shape).unwrap();
        let of = |part: &Planned| bytes[part.name.strip_prefix("x.").unwrap()].clone();
        let tensors = parts.into_iter().map(|part| (part.clone(), of(&part))).collect();
        let config = match format {
            "awq" => json!({
                "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true,
                "version": "GEMM",
            }),
            _ => json!({
                "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true,
                "sym": false, "checkpoint_format": format,
            }),
        };
        Self { config: json!({ "quantization_config": config }), tensors }
    }

    fn set(&mut self, key: &str, value: Value) {
        self.config["quantization_config"][key] = value;
    }

    fn drop(&mut self, key: &str) {
        self.config["quantization_config"].as_object_mut().unwrap().shift_remove(key);
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|t| t.0.name != name);
    }

    fn put(&mut self, name: &str, dtype: DType, shape: &[usize]) {
        self.remove(name);
        let bytes = dtype.bytes_of(shape).unwrap();
        self.tensors.push((Planned::new(name, dtype, shape), vec![0; bytes]));
    }

    fn bytes(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.tensors.iter_mut().find(|t| t.0.name == name).unwrap().1
    }

    fn write(&self, dir: &Path) {
        let planned = self.tensors.iter().map(|t| t.0.clone()).collect();
        let sink = Sink::create(dir, planned, SHARD_BYTES).unwrap();
        self.tensors.iter().for_each(|(t, bytes)| sink.put(&t.name, bytes).unwrap());
        sink.finish().unwrap();
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
    }
}

/// Opens a changed folder and reads all of `x`.
fn read(format: &str, q: &Quantized, change: &dyn Fn(&mut Folder)) -> Result<Quantized, String> {
    let (dir, mut folder) = (tempfile::tempdir().unwrap(), Folder::new(format, q));
    change(&mut folder);
    folder.write(dir.path());
    let said = |e: checkpoint::Error| {
        assert!(!e.is_machine() && !e.is_internal(), "{e}");
        e.to_string()
    };
    let opened = Checkpoint::open(dir.path()).map_err(said)?;
    let whole = opened.quantized_rows("x.weight", 0..q.shape[0]).map_err(said)?;
    Ok(whole.unwrap())
}

type Change = fn(&mut Folder);

fn four() -> Quantized {
    matrix(int(4, false, Span::Group(32)), [64, 96])
}

#[test]
fn what_configurations_may_say_besides() {
    let accepted: &[Change] = &[
        |f| f.set("desc_act", false.into()),
        |f| f.drop("desc_act"),
        |f| f.set("format", "GPTQ".into()),
        |f| f.drop("checkpoint_format"),
        |f| f.set("meta", json!({ "quantizer": ["gptqmodel:7.7.0"] })),
        |f| f.set("damp_percent", 0.1.into()),
        |f| f.set("dynamic", json!({ "-:.*o_proj": {}, "+:y": { "bits": 8 } })),
        |f| f.set("dynamic", json!({ "x$": { "mse": 2.0 } })),
        |f| {
            f.set("bits", 8.into());
            f.set("dynamic", json!({ "x": { "bits": 4 } }));
        },
        |f| f.set("dynamic", Value::Null),
        |f| f.set("is_marlin_format", false.into()),
        |f| {
            f.set("desc_act", false.into());
            f.remove("x.g_idx");
        },
        |f| f.put("dense.scales", DType::F16, &[3]),
    ];
    for (i, change) in accepted.iter().enumerate() {
        let found = read("gptq", &four(), change).unwrap_or_else(|e| panic!("{i}: {e}"));
        assert_eq!(found, four(), "{i}");
    }
    let awq: &[Change] = &[
        |f| f.set("modules_to_not_convert", json!(["lm_head"])),
        |f| {
            f.drop("bits");
            f.drop("group_size");
            f.set("w_bit", 4.into());
            f.set("q_group_size", 32.into());
        },
        |f| f.set("backend", "autoawq".into()),
        |f| f.set("do_fuse", false.into()),
    ];
    for (i, change) in awq.iter().enumerate() {
        let found = read("awq", &four(), change).unwrap_or_else(|e| panic!("{i}: {e}"));
        assert_eq!(found, four(), "{i}");
    }
}

#[test]
fn configurations_are_found_in_the_older_files_too() {
    for (format, file) in [("gptq", "quantize_config.json"), ("awq", "quant_config.json")] {
        let (dir, mut folder) = (tempfile::tempdir().unwrap(), Folder::new(format, &four()));
        folder.drop("quant_method");
        let said = folder.config["quantization_config"].take();
        folder.config = json!({});
        folder.write(dir.path());
        fs::write(dir.path().join(file), said.to_string()).unwrap();
        let opened = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(opened.quantized_rows("x.weight", 0..64).unwrap(), Some(four()), "{file}");
        // Beside weights that are not packed it says nothing.
        let dir = tempfile::tempdir().unwrap();
        folder.tensors.clear();
        folder.put("x.weight", DType::F16, &[64, 96]);
        folder.write(dir.path());
        fs::write(dir.path().join(file), said.to_string()).unwrap();
        assert!(Checkpoint::open(dir.path()).unwrap().quantization().is_none());
    }
}

/// What the message says, and how to make it.
const REFUSED: &[(&str, Change)] = &[
    ("\"bits\" = \"5\" is not supported: 2, 3, 4 and 8", |f| f.set("bits", 5.into())),
    ("\"bits\" = \"260\"", |f| f.set("bits", 260.into())),
    ("bits is missing", |f| f.drop("bits")),
    ("\"group_size\" = \"0\"", |f| f.set("group_size", 0.into())),
    ("\"group_size\" = \"-2\"", |f| f.set("group_size", (-2).into())),
    ("group_size is missing", |f| f.drop("group_size")),
    ("sym is missing", |f| f.drop("sym")),
    ("\"sym\" = \"1\"", |f| f.set("sym", 1.into())),
    ("gptq or gptq_v2 is read", |f| f.set("checkpoint_format", "marlin".into())),
    ("another key says another format", |f| f.set("format", "gptq_v2".into())),
    ("\"pack_dtype\"", |f| f.set("pack_dtype", "int8".into())),
    ("\"adapter\"", |f| f.set("adapter", json!({ "name": "lora" }))),
    ("\"surprise\"", |f| f.set("surprise", 1.into())),
    ("dynamic.\"+:(\": is no regular expression", |f| f.set("dynamic", json!({ "+:(": {} }))),
    ("dynamic.\"(?=x)\": is no regular expression", |f| f.set("dynamic", json!({ "(?=x)": {} }))),
    ("dynamic.\"x\": \"bits\"", |f| f.set("dynamic", json!({ "x": { "bits": 7 } }))),
    ("dynamic.\"x\": \"odd\"", |f| f.set("dynamic", json!({ "x": { "odd": 1 } }))),
    ("dynamic is an object", |f| f.set("dynamic", json!([]))),
    ("dynamic of quantization_config excludes it", |f| f.set("dynamic", json!({ "-:x": {} }))),
    ("\"x.weight\": is packed, but \"x.scales\" is missing", |f| f.remove("x.scales")),
    ("\"x.weight\": is packed, but \"x.qzeros\" is missing", |f| f.remove("x.qzeros")),
    ("\"x.g_idx\" is missing", |f| f.remove("x.g_idx")),
    ("\"x.g_idx\": is stored, but \"x.qweight\" is not", |f| {
        f.put("y.qweight", DType::I32, &[12, 64]);
        f.put("y.scales", DType::F16, &[3, 64]);
        f.put("y.qzeros", DType::I32, &[3, 8]);
        f.remove("x.qweight");
        f.set("desc_act", false.into());
    }),
    ("*.qweight\": no tensor of this name", |f| f.remove("x.qweight")),
    ("is stored, and \"x.qweight\" too", |f| f.put("x.weight", DType::F16, &[64, 96])),
    ("\"x.qweight\": is I32 [12, 32], expected I32 [12, 64]", |f| {
        f.put("x.qweight", DType::I32, &[12, 32]);
    }),
    ("\"x.qweight\": is U32", |f| f.put("x.qweight", DType::U32, &[12, 64])),
    ("no matrix has such", |f| f.put("x.qweight", DType::I32, &[])),
    ("has no elements", |f| f.put("x.qweight", DType::I32, &[0, 64])),
    ("\"x.scales\": is F16 [2, 64], expected F16 [3, 64]", |f| {
        f.put("x.scales", DType::F16, &[2, 64]);
    }),
    ("no matrix has such", |f| f.put("x.scales", DType::F16, &[3])),
    ("scales of F64", |f| f.put("x.scales", DType::F64, &[3, 64])),
    ("\"x.qzeros\": is I32 [3, 7], expected I32 [3, 8]", |f| {
        f.put("x.qzeros", DType::I32, &[3, 7]);
    }),
    ("cannot be divided into groups of 64", |f| f.set("group_size", 64.into())),
    ("expected I32 [6, 8]", |f| f.set("group_size", 16.into())),
    ("\"x.g_idx\": is I32 [95], expected I32 [96]", |f| f.put("x.g_idx", DType::I32, &[95])),
    ("\"x.g_idx\": column 0 is of group 3, of 3", |f| f.bytes("x.g_idx")[0] = 3),
    ("column 1 is of group -1", |f| f.bytes("x.g_idx")[4..8].fill(255)),
    ("group 0 has 31 columns, and must have 32", |f| f.bytes("x.g_idx")[0] = 1),
    ("but desc_act is false", |f| {
        f.bytes("x.g_idx")[0] = 1;
        f.bytes("x.g_idx")[32 * 4] = 0;
        f.set("desc_act", false.into());
    }),
    ("x.scales\": the scale [0, 1] is NaN", |f| {
        f.bytes("x.scales")[128..130].fill(255);
    }),
    ("the zero point [0, 0] is stored as the largest code, less 1", |f| {
        f.bytes("x.qzeros")[0] |= 15;
    }),
    ("is not the middle of the codes, but sym is true", |f| f.set("sym", true.into())),
];

#[test]
fn what_is_not_as_it_must_be_is_refused_by_name() {
    for (rule, change) in REFUSED {
        let error = read("gptq", &four(), change).expect_err(rule);
        assert!(error.contains(rule), "{rule:?}: {error}");
    }
    let awq: &[(&str, Change)] = &[
        ("\"version\" = \"\\\"gemv\\\"\" is not supported: gemm is read", |f| {
            f.set("version", "gemv".into());
        }),
        ("AWQ is read with 4 bits", |f| f.set("bits", 8.into())),
        ("AWQ is read with 4 bits in order", |f| f.set("desc_act", true.into())),
        ("zero_point is missing", |f| f.drop("zero_point")),
        ("is not 8, but zero_point is false", |f| f.set("zero_point", false.into())),
        ("only what AutoAWQ calls", |f| f.set("backend", "llm-awq".into())),
        ("\"do_fuse\"", |f| f.set("do_fuse", true.into())),
        ("expected I32 [96, 8]", |f| f.put("x.qweight", DType::I32, &[96, 7])),
        ("expected I32 [2, 8]", |f| f.put("x.qweight", DType::I32, &[64, 8])),
    ];
    for (rule, change) in awq {
        let error = read("awq", &four(), change).expect_err(rule);
        assert!(error.contains(rule), "{rule:?}: {error}");
    }
}

/// Scales may be negative in such files, and mean what they say.
#[test]
fn negative_scales_are_read_and_written() {
    let mut q = four();
    let Params::Flat { scales, .. } = &mut q.params else { panic!() };
    scales.iter_mut().step_by(2).for_each(|scale| *scale = -*scale);
    for format in ["gptq", "gptq_v2", "awq"] {
        assert_eq!(read(format, &q, &|_| {}).unwrap(), q, "{format}");
    }
}
