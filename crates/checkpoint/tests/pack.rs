//! The codec against what compressed-tensors itself made (`tests/interop/make_pack_goldens.py`),
//! and against itself for what has no golden.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::pack_quantized::{Rows, decode, encode, layout, zero_rows};
use checkpoint::quantization_config;
use ir::{Grid, IntGrid, Params, Quantized, Span};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::json;
use std::path::PathBuf;
use tensor::{Bytes, DType, Tensor};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pack")
}

fn grid(bits: u8, symmetric: bool, span: Span, scale: DType) -> Grid {
    Grid::Int { bits, symmetric, span, scale }
}

/// The grid of a case from its name, such as `int4-asym-g32-bf16`.
fn grid_of(case: &str) -> Grid {
    let parts: Vec<&str> = case.split('-').collect();
    let span = match parts[2].strip_prefix('g') {
        Some(size) => Span::Group(size.parse().unwrap()),
        None => Span::Channel,
    };
    let bits = parts[0].strip_prefix("int").unwrap().parse().unwrap();
    grid(bits, parts[1] == "sym", span, DType::parse(&parts[3].to_uppercase()).unwrap())
}

fn floats(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let count = bytes.len() * 8 / dtype.bits();
    Tensor::new(dtype, vec![count], Bytes::from_slice(bytes)).unwrap().to_f32().unwrap()
}

fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|&b| b as i8).collect()
}

/// Rows `rows` of what `encode` made.
fn part(q: &Quantized, stored: &[Vec<u8>], rows: std::ops::Range<usize>) -> Quantized {
    let IntGrid { bits, symmetric, .. } = q.grid.int().unwrap();
    let slice = |i: usize, of: usize, rows: std::ops::Range<usize>| {
        let row = stored[i].len() / of;
        &stored[i][rows.start * row..rows.end * row]
    };
    let [out, width] = q.shape;
    let words = (out * usize::from(bits)).div_ceil(32);
    let zeros = if symmetric { &[][..] } else { slice(2, words, zero_rows(bits, rows.clone())) };
    let (packed, scales) = (slice(0, out, rows.clone()), slice(1, out, rows.clone()));
    decode("x.weight", &Rows { grid: q.grid, rows, width, packed, scales, zeros, order: &[] })
        .unwrap()
}

#[test]
fn bytes_are_those_of_compressed_tensors() {
    let file = std::fs::read(fixtures().join("codec.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    let names = golden.names();
    let cases: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".codes")).collect();
    assert_eq!(cases.len(), 21, "4 and 8 bits, sym and asym, four spans; five other widths");
    for case in cases {
        let get = |part: &str| golden.tensor(&format!("{case}.{part}")).ok();
        let (codes, grid) = (get("codes").unwrap(), grid_of(case));
        let IntGrid { scale, symmetric, .. } = grid.int().unwrap();
        let q = Quantized {
            grid,
            shape: [codes.shape()[0], codes.shape()[1]],
            codes: signed(codes.data()),
            params: Params::Flat {
                scales: floats(scale, get("weight_scale").unwrap().data()),
                zeros: get("zeros").map_or(Vec::new(), |z| signed(z.data())),
            },
        };
        let encoded = encode(&format!("{case}.weight"), &q).unwrap();
        assert_eq!(encoded.len(), if symmetric { 3 } else { 4 }, "{case}");
        for (planned, bytes) in &encoded {
            let theirs = golden.tensor(&planned.name).unwrap();
            assert_eq!(theirs.dtype().to_string(), planned.dtype.name(), "{}", planned.name);
            assert_eq!(theirs.shape(), planned.shape, "{}", planned.name);
            assert_eq!(theirs.data(), bytes, "{}", planned.name);
        }
        assert_eq!(get("weight_zero_point").is_none(), symmetric, "{case}");
        let stored: Vec<Vec<u8>> = encoded.into_iter().map(|e| e.1).collect();
        let whole = part(&q, &stored, 0..q.shape[0]);
        assert_eq!(whole, q, "{case}");
        if let Some(dense) = get("dense") {
            assert_eq!(whole.dequantize(), floats(DType::F32, dense.data()), "{case}");
        }
    }
}

fn quantized() -> impl Strategy<Value = Quantized> {
    let span = prop_oneof![Just(None), (1..20usize).prop_map(Some)];
    let sizes = (2..=8u8, any::<bool>(), span, 1..70usize, 1..5usize);
    let dtypes = prop::sample::select(&[DType::F32, DType::F16, DType::BF16][..]);
    (sizes, dtypes).prop_flat_map(|((bits, symmetric, size, out, groups), scale)| {
        let span = size.map_or(Span::Channel, Span::Group);
        let (width, groups) = size.map_or((groups * 7, 1), |size| (size * groups, groups));
        let grid = grid(bits, symmetric, span, scale);
        let (low, high) = grid.codes();
        let code = || (low as i8)..=(high as i8);
        let zeros = if symmetric { 0 } else { out * groups };
        (
            prop::collection::vec(code(), out * width),
            prop::collection::vec(
                (-100.0..100.0f32).prop_map(move |s| grid.stored_scale(s)),
                out * groups,
            ),
            prop::collection::vec(code(), zeros),
        )
            .prop_map(move |(codes, scales, zeros)| Quantized {
                grid,
                shape: [out, width],
                codes,
                params: Params::Flat { scales, zeros },
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn any_rows_decode_to_what_was_encoded(
        q in quantized(),
        a in any::<prop::sample::Index>(),
        b in any::<prop::sample::Index>(),
    ) {
        let [out, width] = q.shape;
        let encoded = encode("x.weight", &q).unwrap();
        let planned: Vec<_> = encoded.iter().map(|e| e.0.clone()).collect();
        prop_assert_eq!(&planned, &layout("x.weight", q.shape, q.grid).unwrap());
        for (planned, bytes) in &encoded {
            prop_assert_eq!(planned.bytes(), Some(bytes.len() as u64));
        }
        let stored: Vec<Vec<u8>> = encoded.into_iter().map(|e| e.1).collect();
        let (a, b) = (a.index(out + 1), b.index(out + 1));
        let (from, to) = (a.min(b), a.max(b));
        let expected = q.cut(from..to, 0..width).unwrap();
        prop_assert_eq!(part(&q, &stored, from..to), expected);
    }
}

#[test]
fn what_cannot_be_laid_out_is_refused() {
    let g = |bits, span, scale| grid(bits, false, span, scale);
    for (tensor, shape, grid, rule) in [
        ("x.weight", [4, 96], g(4, Span::Group(64), DType::F16), "groups of 64"),
        ("x.weight", [4, 96], g(4, Span::Group(128), DType::F16), "groups of 128"),
        ("x.weight", [4, 96], g(4, Span::Group(0), DType::F16), "groups of 0"),
        ("x.weight", [4, 96], g(1, Span::Channel, DType::F16), "1 bits"),
        ("x.weight", [4, 96], g(9, Span::Channel, DType::F16), "9 bits"),
        ("x.weight", [4, 96], g(4, Span::Channel, DType::F64), "scales of F64"),
        ("x.weight", [0, 96], g(4, Span::Channel, DType::F16), "has no elements"),
        ("x.weight", [4, 0], g(4, Span::Channel, DType::F16), "has no elements"),
        ("x.weight", [usize::MAX, 2], g(4, Span::Channel, DType::F16), "overflows"),
        ("x.weight", [1, usize::MAX], g(4, Span::Channel, DType::F16), "overflows"),
        ("x.bias", [4, 96], g(4, Span::Channel, DType::F16), "is not named MODULE.weight"),
        (".weight", [4, 96], g(4, Span::Channel, DType::F16), "is not named MODULE.weight"),
    ] {
        let error = layout(tensor, shape, grid).unwrap_err();
        assert!(error.to_string().contains(rule) && !error.is_machine(), "{error}");
    }
}

fn flat(scale: f32, zeros: &[i8]) -> Params {
    Params::Flat { scales: vec![scale], zeros: zeros.to_vec() }
}

#[test]
fn what_is_not_on_the_grid_is_not_encoded() {
    let good = Quantized {
        grid: grid(4, false, Span::Channel, DType::F16),
        shape: [1, 2],
        codes: vec![-8, 7],
        params: flat(0.5, &[7]),
    };
    assert!(encode("x.weight", &good).is_ok());
    for (change, rule) in [
        (Quantized { codes: vec![8, 0], ..good.clone() }, "code 0 is 8, not in -8 to 7"),
        (Quantized { params: flat(0.5, &[-9]), ..good.clone() }, "zero point 0 is -9"),
        (
            Quantized { params: flat(0.5, &[]), ..good.clone() },
            "0 zero points, expected 2, 1 and 1",
        ),
        (Quantized { codes: vec![0], ..good.clone() }, "1 codes"),
        (Quantized { params: flat(0.1, &[7]), ..good.clone() }, "not a finite value of its dtype"),
        (Quantized { params: flat(f32::NAN, &[7]), ..good.clone() }, "not a finite value"),
        (Quantized { params: flat(f32::INFINITY, &[7]), ..good.clone() }, "not a finite value"),
        (Quantized { params: flat(1e9, &[7]), ..good.clone() }, "not a finite value"),
    ] {
        let error = encode("x.weight", &change).unwrap_err().to_string();
        assert!(error.contains(rule), "{error}");
    }
}

#[test]
fn hostile_rows_are_refused() {
    let grid = grid(4, false, Span::Channel, DType::F32);
    let (nan, good) = (f32::NAN.to_le_bytes(), 1f32.to_le_bytes());
    let try_decode = |rows, width, packed: &[u8], scales: &[u8], zeros: &[u8]| {
        decode("x.weight", &Rows { grid, rows, width, packed, scales, zeros, order: &[] })
            .map_err(|e| e.to_string())
    };
    assert!(try_decode(3..4, 8, &[0; 4], &good, &[0; 4]).is_ok());
    let error = try_decode(3..4, 8, &[0; 4], &nan, &[0; 4]).unwrap_err();
    assert_eq!(error, "tensor \"x.weight_scale\": the scale [3, 0] is NaN, not finite");
    for (packed, scales, zeros) in [
        (&[0; 5][..], &good[..], &[0; 4][..]),
        (&[0; 4], &good[..2], &[0; 4]),
        (&[0; 4], &good, &[0; 8]),
        (&[0; 4], &good, &[]),
    ] {
        let error = try_decode(3..4, 8, packed, scales, zeros).unwrap_err();
        assert!(error.contains("not as long as they must be"), "{error}");
    }
    let far = usize::MAX - 1..usize::MAX;
    for (rows, width) in [(0..usize::MAX, 8), (far, 8), (0..1, usize::MAX), (0..1, 0)] {
        assert!(try_decode(rows, width, &[0; 4], &good, &[0; 4]).is_err());
    }
}

/// The committed configurations, which transformers loads the same weights by.
#[test]
fn the_configuration_is_the_one_that_transformers_was_shown() {
    let linears = |names: &[&str], grid: Grid| -> Vec<(String, Grid)> {
        names.iter().map(|n| (format!("model.layers.0.{n}_proj.weight"), grid)).collect()
    };
    let attention = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"];
    let ffn = ["mlp.gate", "mlp.up", "mlp.down"];
    let scale = DType::F32;
    let mixed = [
        linears(&attention, grid(4, true, Span::Group(8), scale)),
        linears(&ffn, grid(8, true, Span::Channel, scale)),
    ];
    let one = [attention.as_slice(), &ffn].concat();
    let one = [linears(&one, grid(4, false, Span::Group(8), scale))];
    for (folder, packed) in [("mixed", mixed.concat()), ("asymmetric", one.concat())] {
        let packed: Vec<(&str, Grid)> = packed.iter().map(|(n, g)| (n.as_str(), *g)).collect();
        let found = quantization_config(&packed, &["lm_head.weight"]).unwrap();
        let path = fixtures().join(folder).join("quantization_config.json");
        let expected = std::fs::read_to_string(path).unwrap();
        assert_eq!(format!("{found:#}\n"), expected, "{folder}");
    }
    assert!(quantization_config(&[], &[]).is_err());
    let four = grid(4, true, Span::Channel, scale);
    let head = quantization_config(&[("a.weight", four), ("lm_head.weight", four)], &[]).unwrap();
    // vLLM 0.32.0 finds no head under "Linear" alone.
    assert_eq!(head["config_groups"]["group_0"]["targets"], json!(["Linear", "lm_head"]));
    assert!(quantization_config(&[("x", four)], &[]).is_err());
    assert!(quantization_config(&[("x.weight", four)], &["lm_head"]).is_err());
}
