//! Folders whose weights compressed-tensors packed, read as if they were dense.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::pack_quantized::encode;
use checkpoint::{Checkpoint, Planned, SHARD_BYTES, Sink, quantization_config};
use ir::{Grid, IntGrid, Params, Quantized, ReadError, Source, Span};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tensor::DType;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pack").join(name)
}

#[test]
fn weights_read_as_transformers_reads_them() {
    for folder in ["mixed", "asymmetric"] {
        let folder = fixture(folder);
        let opened = Checkpoint::open(&folder).unwrap();
        assert!(!opened.config().contains_key("quantization_config"));
        assert_eq!(opened.quantization().unwrap()["quant_method"], "compressed-tensors");
        let beside = "\"golden.safetensors\" is ignored: it is not part of the checkpoint";
        assert_eq!(opened.warnings(), [beside]);
        let file = fs::read(folder.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&file).unwrap();
        let mut packed = 0;
        for info in opened.tensors() {
            assert!(!info.name.contains("weight_"), "{}", info.name);
            let Some(grid) = info.grid else { continue };
            packed += 1;
            let theirs = golden.tensor(&info.name).unwrap();
            assert_eq!((info.dtype, &info.shape[..]), (DType::F32, theirs.shape()));
            let (height, row) = (info.shape[0], info.shape[1] * 4);
            for (from, to) in [(0, height), (0, 1), (7, 9), (height - 3, height), (5, 5)] {
                let read = opened.read_rows(&info.name, from..to).unwrap();
                assert_eq!(read.bytes(), &theirs.data()[from * row..to * row], "{}", info.name);
                assert_eq!((read.dtype(), read.shape()), (DType::F32, &[to - from, row / 4][..]));
                let codes = opened.quantized_rows(&info.name, from..to).unwrap().unwrap();
                assert_eq!(codes.grid, grid);
                assert_eq!(read.f32s().unwrap(), codes.dequantize());
            }
            let error = opened.read_rows(&info.name, 1..height + 1).unwrap_err();
            assert!(matches!(error, ReadError::Input(_)), "{error}");
        }
        assert_eq!(packed, 7);
        let q = opened.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
        let IntGrid { bits, symmetric, span, .. } = q.grid.unwrap().int().unwrap();
        assert_eq!((bits, span), (4, Span::Group(8)));
        // Codes, scales, zero points where there are some, and the shape.
        let zeros = if symmetric { 0 } else { 4 * 2 * 2 };
        assert_eq!(q.bytes(), 4 * 16 * 2 + 4 * 16 * 2 + zeros + 16);
        let physical: u64 = opened.stored().iter().map(|t| t.bytes()).sum();
        let logical: u64 = opened.tensors().iter().map(|t| t.bytes()).sum();
        assert_eq!(physical, logical);
        assert_eq!(opened.files()[0].tensors, opened.stored().len());
        assert!(opened.read_rows("model.layers.0.mlp.up_proj.weight_packed", 0..1).is_err());
        assert!(opened.quantized_rows("lm_head.weight", 0..1).unwrap().is_none());
        assert_eq!(opened.read_rows("lm_head.weight", 0..31).unwrap().shape(), [31, 16]);
    }
}

type Tensors = Vec<(Planned, Vec<u8>)>;

/// A configuration and tensors: `a` and `b` packed (5 x 24, asymmetric), `head` dense.
struct Folder {
    config: Value,
    tensors: Tensors,
}

fn weight() -> Quantized {
    let code = |i: i8| i % 8;
    Quantized {
        grid: Grid::Int { bits: 4, symmetric: false, span: Span::Group(12), scale: DType::BF16 },
        shape: [10, 24],
        codes: (0..120).chain(0..120).map(code).collect(),
        params: Params::Flat {
            scales: (1..21).map(|i: u8| f32::from(i) / 4.0).collect(),
            zeros: (0..20).map(|i| code(i) - 7).collect(),
        },
    }
}

impl Folder {
    fn new() -> Self {
        let grid = weight().grid;
        let said = quantization_config(&[("a.weight", grid), ("b.weight", grid)], &["head.weight"]);
        let mut tensors: Tensors = Vec::new();
        for name in ["a.weight", "b.weight"] {
            tensors.extend(encode(name, &weight()).unwrap());
        }
        tensors.push((Planned::new("head.weight", DType::F32, [2]), vec![0; 8]));
        Self { config: json!({ "quantization_config": said.unwrap() }), tensors }
    }

    fn write(&self, dir: &Path) {
        let planned = self.tensors.iter().map(|t| t.0.clone()).collect();
        let sink = Sink::create(dir, planned, SHARD_BYTES).unwrap();
        self.tensors.iter().for_each(|(t, bytes)| sink.put(&t.name, bytes).unwrap());
        sink.finish().unwrap();
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|t| t.0.name != name);
    }

    fn put(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: Vec<u8>) {
        self.remove(name);
        self.tensors.push((Planned::new(name, dtype, shape), bytes));
    }

    /// The group of the weights, or one of the keys above it.
    fn at(&mut self, pointer: &str) -> &mut Value {
        self.config.pointer_mut(&format!("/quantization_config{pointer}")).unwrap()
    }

    fn set(&mut self, pointer: &str, key: &str, value: Value) {
        self.at(pointer)[key] = value;
    }

    fn weights(&mut self, key: &str, value: Value) {
        self.set("/config_groups/group_0/weights", key, value);
    }

    /// A second group, of other width.
    fn second(&mut self, targets: Value) {
        let mut group = self.at("/config_groups/group_0").clone();
        group["targets"] = targets;
        group["weights"]["num_bits"] = 8.into();
        self.set("/config_groups", "group_1", group);
    }
}

fn open(change: &dyn Fn(&mut Folder)) -> Result<Checkpoint, String> {
    let (dir, mut folder) = (tempfile::tempdir().unwrap(), Folder::new());
    change(&mut folder);
    folder.write(dir.path());
    Checkpoint::open(dir.path()).map_err(|e| {
        assert!(!e.is_machine() && !e.is_internal(), "{e}");
        e.to_string()
    })
}

#[test]
fn what_is_written_here_is_read_here() {
    let opened = open(&|_| {}).unwrap();
    let read = opened.read_rows("b.weight", 0..10).unwrap();
    assert_eq!(read.f32s().unwrap(), weight().dequantize());
    assert_eq!(opened.quantized_rows("b.weight", 0..10).unwrap().unwrap(), weight());
}

type Change = fn(&mut Folder);

/// What changes nothing.
const ACCEPTED: &[(&str, Change)] = &[
    ("mixed-precision", |f| f.set("", "format", "mixed-precision".into())),
    ("no format of the group", |f| {
        f.set("/config_groups/group_0", "format", Value::Null);
    }),
    ("status of older writers", |f| f.set("", "quantization_status", "frozen".into())),
    ("no ignore", |f| f.set("", "ignore", Value::Null)),
    ("dense", |f| f.set("", "sparsity_config", json!({ "format": "dense" }))),
    ("static order", |f| f.weights("actorder", "weight".into())),
    ("an order that changes nothing", |f| {
        f.weights("actorder", "group".into());
        let order = || (0..24u32).flat_map(|column| (column / 12).to_le_bytes()).collect();
        f.put("a.weight_g_idx", DType::I32, &[24], order());
        f.put("b.weight_g_idx", DType::I32, &[24], order());
    }),
    ("inferred strategy", |f| f.weights("strategy", Value::Null)),
    ("patterns", |f| {
        f.set("/config_groups/group_0", "targets", json!(["re:.*a$", "re:.*b$"]));
    }),
    ("the shapes decide between patterns", |f| {
        f.set("/config_groups/group_0", "targets", json!(["re:a"]));
        f.second(json!(["re:b"]));
    }),
    ("a name wins over a class", |f| {
        f.set("/config_groups/group_0", "targets", json!(["a", "b"]));
        f.second(json!(["Linear"]));
    }),
    ("two patterns for one thing", |f| {
        let group = f.at("/config_groups/group_0").clone();
        f.set("/config_groups", "group_1", group);
    }),
];

#[test]
fn what_a_configuration_may_say_besides() {
    for (name, change) in ACCEPTED {
        let opened = open(change).unwrap_or_else(|e| panic!("{name}: {e}"));
        let read = opened.read_rows("a.weight", 3..10).unwrap();
        assert_eq!(read.f32s().unwrap(), &weight().dequantize()[3 * 24..], "{name}");
    }
}

/// What the message says of a configuration, and how to make it.
const REFUSED: &[(&str, Change)] = &[
    ("\"format\" = \"\\\"float-quantized\\\"\"", |f| f.set("", "format", "float-quantized".into())),
    ("\"format\" = \"null\"", |f| f.set("", "format", Value::Null)),
    ("config_groups.\"group_0\": \"format\"", |f| {
        f.set("/config_groups/group_0", "format", "naive-quantized".into());
    }),
    ("\"kv_cache_scheme\"", |f| f.set("", "kv_cache_scheme", json!({ "num_bits": 8 }))),
    ("\"sparsity_config\"", |f| f.set("", "sparsity_config", json!({ "format": "2:4" }))),
    ("\"transform_config\"", |f| f.set("", "transform_config", json!({ "R1": {} }))),
    ("\"quantization_status\"", |f| f.set("", "quantization_status", "initialized".into())),
    ("\"surprise\" = \"1\" is not supported: the key is not known", |f| {
        f.set("", "surprise", 1.into())
    }),
    ("\"a\\u{202e}\"", |f| f.set("", "a\u{202e}", 1.into())),
    ("config_groups is empty", |f| f.set("", "config_groups", json!({}))),
    ("config_groups is an object, found an array", |f| f.set("", "config_groups", json!([]))),
    ("presets by name", |f| f.set("", "config_groups", json!({ "W4A16": ["Linear"] }))),
    ("ignore is an array of strings", |f| f.set("", "ignore", json!([1]))),
    ("\"input_activations\"", |f| {
        f.set("/config_groups/group_0", "input_activations", json!({ "num_bits": 8 }));
    }),
    ("\"output_activations\"", |f| {
        f.set("/config_groups/group_0", "output_activations", json!({ "num_bits": 8 }));
    }),
    ("targets is missing", |f| f.set("/config_groups/group_0", "targets", json!([]))),
    ("weights is an object, found null", |f| {
        f.set("/config_groups/group_0", "weights", Value::Null);
    }),
    ("\"type\" = \"\\\"float\\\"\"", |f| f.weights("type", "float".into())),
    ("\"num_bits\" = \"1\"", |f| f.weights("num_bits", 1.into())),
    ("\"num_bits\" = \"9\"", |f| f.weights("num_bits", 9.into())),
    ("\"num_bits\" = \"260\"", |f| f.weights("num_bits", 260.into())),
    ("\"num_bits\" = \"4.0\"", |f| f.weights("num_bits", 4.0.into())),
    ("\"symmetric\" = \"null\"", |f| f.weights("symmetric", Value::Null)),
    ("\"strategy\" = \"\\\"tensor\\\"\"", |f| f.weights("strategy", "tensor".into())),
    ("\"group_size\" = \"0\"", |f| f.weights("group_size", 0.into())),
    ("\"group_size\" = \"-1\"", |f| f.weights("group_size", (-1).into())),
    ("\"group_size\" = \"12\"", |f| f.weights("strategy", "channel".into())),
    ("\"dynamic\" = \"true\"", |f| f.weights("dynamic", true.into())),
    ("\"actorder\" = \"\\\"odd\\\"\"", |f| f.weights("actorder", "odd".into())),
    ("\"block_structure\"", |f| f.weights("block_structure", json!([1, 2]))),
    ("\"zp_dtype\"", |f| f.weights("zp_dtype", "torch.float8_e4m3fn".into())),
    ("\"rotation\"", |f| f.weights("rotation", 1.into())),
    ("version is \"0.16.9\": weights of 3 bits", |f| {
        f.weights("num_bits", 3.into());
        f.set("", "version", "0.16.9".into());
    }),
    ("version is \"\": weights of 5 bits", |f| {
        f.weights("num_bits", 5.into());
        f.set("", "version", Value::Null);
    }),
];

#[test]
fn configurations_that_are_not_supported_are_refused_by_name() {
    for (rule, change) in REFUSED {
        let error = open(change).expect_err(rule);
        assert!(error.contains("config.json\": quantization_config: "), "{error}");
        assert!(error.contains(rule) && error.is_ascii(), "{rule:?}: {error}");
    }
}

/// What the message says of the tensors, and how to make them.
const BROKEN: &[(&str, Change)] = &[
    ("\"a.weight\": is packed, but \"a.weight_scale\" is missing", |f| f.remove("a.weight_scale")),
    ("\"a.weight\": is packed, but \"a.weight_shape\" is missing", |f| f.remove("a.weight_shape")),
    ("\"a.weight\": \"a.weight_zero_point\" is missing", |f| f.remove("a.weight_zero_point")),
    ("\"a.weight_scale\": is stored, but \"a.weight_packed\" is not", |f| {
        f.remove("a.weight_packed")
    }),
    ("\"a.weight\": is stored, and \"a.weight_packed\" too", |f| {
        f.put("a.weight", DType::F32, &[1], vec![0; 4]);
    }),
    ("\"a.weight\": is packed, but its group is int-quantized", |f| {
        f.set("/config_groups/group_0", "format", "int-quantized".into());
    }),
    ("\"a.weight\": is I8, but its group is not int-quantized", |f| {
        f.remove("a.weight_packed");
        f.put("a.weight", DType::I8, &[10, 24], vec![0; 240]);
        f.put("a.weight_zero_point", DType::I8, &[10, 2], vec![0; 20]);
    }),
    ("\"a.weight\": \"a.weight_g_idx\" is missing", |f| f.weights("actorder", "group".into())),
    ("\"a.weight_g_idx\": group 0 has 24 columns, and must have 12", |f| {
        f.weights("actorder", "group".into());
        f.put("a.weight_g_idx", DType::I32, &[24], vec![0; 96]);
    }),
    ("weight_g_idx is stored", |f| f.put("a.weight_g_idx", DType::I32, &[24], vec![0; 96])),
    ("\"c.weight_g_idx\": is stored, but", |f| {
        f.put("c.weight_g_idx", DType::I32, &[1], vec![0; 4])
    }),
    ("\"a.weight_packed\": is U32 [10, 3], expected I32 [10, 3]", |f| {
        f.put("a.weight_packed", DType::U32, &[10, 3], vec![0; 120]);
    }),
    ("\"a.weight_packed\": is I32 [10, 2], expected I32 [10, 3]", |f| {
        f.put("a.weight_packed", DType::I32, &[10, 2], vec![0; 80]);
    }),
    ("\"a.weight_packed\": is I32 [30], expected I32 [10, 3]", |f| {
        f.put("a.weight_packed", DType::I32, &[30], vec![0; 120]);
    }),
    ("scales of F64", |f| f.put("a.weight_scale", DType::F64, &[10, 2], vec![0; 160])),
    ("\"a.weight_scale\": is BF16 [10, 1], expected BF16 [10, 2]", |f| {
        f.put("a.weight_scale", DType::BF16, &[10, 1], vec![0; 20]);
    }),
    ("\"a.weight_zero_point\": is I32 [1, 2], expected I32 [2, 2]", |f| {
        f.put("a.weight_zero_point", DType::I32, &[1, 2], vec![0; 8]);
    }),
    ("\"a.weight_shape\": is I32 [2], expected I64 [2]", |f| {
        f.put("a.weight_shape", DType::I32, &[2], vec![0; 8]);
    }),
    ("\"a.weight_shape\": is I64 [3], expected I64 [2]", |f| {
        f.put("a.weight_shape", DType::I64, &[3], vec![0; 24]);
    }),
    ("expected I32 [11, 3]", |f| shape(f, [11, 24])),
    ("cannot be divided into groups of 12", |f| shape(f, [10, 25])),
    ("has no elements", |f| shape(f, [0, 24])),
    ("[18446744073709551615, 24], overflows", |f| shape(f, [u64::MAX, 24])),
    ("overflows", |f| shape(f, [1 << 32, 1 << 32])),
    ("expected I32 [10, 6]", |f| f.weights("num_bits", 8.into())),
    ("is stored, but its group is symmetric", |f| f.weights("symmetric", true.into())),
    ("is packed, but quantization_config.ignore names it", |f| f.set("", "ignore", json!(["a"]))),
    ("\"head.weight\": is stored dense, but", |f| {
        f.set("", "ignore", json!([]));
        f.set("/config_groups/group_0", "targets", json!(["a", "b", "head"]));
    }),
    ("\"b.weight\": is packed, but no group", |f| {
        f.set("/config_groups/group_0", "targets", json!(["a"]));
    }),
    ("two groups of quantization_config name it", |f| {
        f.set("/config_groups/group_0", "targets", json!(["a", "b"]));
        f.second(json!(["a"]));
    }),
    ("no group of quantization_config fits", |f| {
        f.second(json!(["Linear"]));
        f.weights("group_size", 6.into());
    }),
    ("\"*.weight_packed\": no tensor of this name", |f| {
        f.tensors.retain(|t| t.0.name == "head.weight");
    }),
];

#[test]
fn tensors_that_are_not_as_the_configuration_says_are_refused() {
    for (rule, change) in BROKEN {
        let error = open(change).expect_err(rule);
        assert!(error.contains(rule), "{rule:?}: {error}");
    }
}

fn shape(folder: &mut Folder, [out, width]: [u64; 2]) {
    let bytes = [out.to_le_bytes(), width.to_le_bytes()].concat();
    folder.put("a.weight_shape", DType::I64, &[2], bytes);
}

/// Older versions of compressed-tensors put columns into groups where they do not lie.
#[test]
fn act_order_is_read() {
    let groups: Vec<u32> = (0..24).map(|column| (column + 1) % 2).collect();
    let stored: Vec<u8> = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
    let opened = open(&|f| {
        f.weights("actorder", "group".into());
        f.put("a.weight_g_idx", DType::I32, &[24], stored.clone());
        f.put("b.weight_g_idx", DType::I32, &[24], stored.clone());
    });
    let opened = opened.unwrap();
    let q = opened.quantized_rows("a.weight", 0..10).unwrap().unwrap();
    assert_eq!(q.groups(), Some(&groups[..]));
    assert_eq!(q.grid.int(), None, "whoever computes on integers takes the dense weight");
    let (plain, values) = (weight(), q.dequantize());
    for (i, value) in values.iter().enumerate() {
        let at = i / 24 * 2 + groups[i % 24] as usize;
        let zero = f32::from(plain.zeros()[at]);
        assert_eq!(*value, (f32::from(plain.codes[i]) - zero) * plain.scales()[at]);
    }
    assert_eq!(opened.read_rows("a.weight", 3..7).unwrap().f32s().unwrap(), &values[72..168]);
}

#[test]
fn scales_that_are_not_finite_are_refused_when_they_are_read() {
    for bits in [0x7f80u16, 0xff80, 0x7fc0] {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new();
        let mut scales = folder.tensors[1].1.clone();
        assert_eq!(folder.tensors[1].0.name, "a.weight_scale");
        scales[7 * 4 + 2..8 * 4].copy_from_slice(&bits.to_le_bytes());
        folder.put("a.weight_scale", DType::BF16, &[10, 2], scales);
        folder.write(dir.path());
        let opened = Checkpoint::open(dir.path()).unwrap();
        assert!(opened.read_rows("a.weight", 0..7).is_ok());
        assert!(opened.read_rows("a.weight", 8..10).is_ok());
        for rows in [0..10, 7..8, 6..9] {
            match opened.read_rows("a.weight", rows) {
                Err(ReadError::Input(e)) => {
                    assert!(e.contains("\"a.weight_scale\": the scale [7, 1] is"), "{e}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// What is not ours is left for others to refuse.
#[test]
fn other_methods_stay_in_the_configuration() {
    for said in [json!({ "quant_method": "bitsandbytes" }), json!({}), json!(null), json!("x")] {
        let (dir, mut folder) = (tempfile::tempdir().unwrap(), Folder::new());
        folder.config = json!({ "quantization_config": said });
        folder.write(dir.path());
        let opened = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(opened.config()["quantization_config"], said);
        assert!(opened.quantization().is_none());
        assert_eq!(opened.tensors(), opened.stored());
    }
}
