//! Fits of GGUF's blocks: nothing that is chosen cannot be stored, a search is never worse than none,
//! and importance moves error to where it counts less.

use ir::{BlockKind, Grid, Params, Quantized, Span};
use passes::fit::Range;
use passes::rtn::rtn;
use tensor::DType;

/// Values in `-1..1`, most of them small, as trained weights are.
fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next().powi(3)).collect()
}

/// What the columns of a row count.
fn importance() -> Vec<f32> {
    (0..256).map(|i| if i % 5 == 0 { 30.0 } else { 1.0 }).collect()
}

fn nearest(weights: &[f32], kind: BlockKind, range: Range, by: Option<&[f32]>) -> Quantized {
    let width = 256;
    rtn(weights, [weights.len() / width, width], Grid::Block(kind), range, by)
}

/// The squared error of columns, weighed.
fn error(weights: &[f32], q: &Quantized, by: Option<&[f32]>) -> f64 {
    let each = weights.iter().zip(q.dequantize()).enumerate();
    each.map(|(i, (w, v))| f64::from(w - v).powi(2) * by.map_or(1.0, |by| f64::from(by[i % 256])))
        .sum()
}

#[test]
fn a_search_is_better_than_none() {
    let weights = noise(1, 16 * 256);
    for kind in BlockKind::written() {
        let of = |range| error(&weights, &nearest(&weights, kind, range, None), None);
        let (plain, searched) = (of(Range::MinMax), of(Range::MeanSquare));
        assert!(searched < 0.97 * plain, "{kind:?}: {searched} {plain}");
        assert_eq!(of(Range::Extreme), searched, "{kind:?}");
    }
}

#[test]
fn importance_moves_the_error_to_where_it_counts_less() {
    let weights = noise(2, 16 * 256);
    let by = importance();
    for kind in BlockKind::written() {
        let even = nearest(&weights, kind, Range::MeanSquare, Some(&by));
        let weighed = nearest(&weights, kind, Range::Weighted, Some(&by));
        let of = |q: &Quantized| error(&weights, q, Some(&by));
        assert!(of(&weighed) < 0.95 * of(&even), "{kind:?}: {} {}", of(&weighed), of(&even));
        // Without any, a weighted fit is one of least squares.
        assert_eq!(nearest(&weights, kind, Range::Weighted, None), even, "{kind:?}");
    }
}

#[test]
fn whatever_the_weights_the_blocks_can_hold_what_is_chosen() {
    let mut rows: Vec<Vec<f32>> = [0.0, -0.0, 1.0, -1.0, 1e-45, -3e-8, 65504.0, 1e30, f32::MAX]
        .map(|x| vec![x; 256])
        .to_vec();
    rows.push((0..256).map(|i| if i == 7 { 1e30 } else { 1e-30 }).collect());
    rows.push((0..256).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect());
    rows.push((0..256).map(|i| 5.0 + i as f32 / 256.0).collect());
    rows.push((0..256).map(|i| -5.0 - i as f32 / 256.0).collect());
    rows.push([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0].repeat(64));
    let zeros = vec![0.0; 256];
    for kind in BlockKind::written() {
        let form = kind.form();
        for range in [Range::MinMax, Range::MeanSquare, Range::Weighted] {
            for weights in &rows {
                let q = nearest(weights, kind, range, Some(&zeros));
                let what = format!("{} {range:?} {:?}", form.name, &weights[..8]);
                assert!(q.is_whole(), "{what}");
                let (low, high) = q.grid.codes();
                assert!(q.codes.iter().all(|&c| (low..=high).contains(&i32::from(c))), "{what}");
                let Params::Nested { scales, mins, outer_scales, outer_mins } = &q.params else {
                    panic!("{what}: not nested")
                };
                let stored = |x: &f32| x.is_finite() && q.grid.stored_scale(*x) == *x;
                assert!(outer_scales.iter().chain(outer_mins).all(stored), "{what}");
                let most = (1u32 << form.min_bits.unwrap_or(0)) - 1;
                assert!(mins.iter().all(|&min| u32::from(min) <= most), "{what}");
                let (low, high) = form.scale.codes();
                assert!(scales.iter().all(|&s| (low..=high).contains(&i16::from(s))), "{what}");
            }
        }
    }
}

/// What one value is, or one value and zero, blocks hold as closely as their scales are stored.
#[test]
fn constants_are_kept() {
    for value in [0.0f32, 0.5, -0.5, 3.0, -0.05] {
        for kind in BlockKind::written() {
            let weights = vec![value; 256];
            let q = nearest(&weights, kind, Range::MeanSquare, None);
            let most = q.dequantize().iter().map(|v| (v - value).abs()).fold(0.0, f32::max);
            let within = match kind {
                // A power of two times 1, 1.5, 2, 3, 4 or 6.
                BlockKind::Mxfp4 => 0.2,
                // A scale of three bits, and fewer the smaller it is.
                BlockKind::Nvfp4 => 0.07,
                _ => 2e-3,
            };
            assert!(most <= value.abs() * within, "{kind:?} {value}: off by {most}");
        }
    }
    let weights = [0.0, 0.25].repeat(128);
    let q = nearest(&weights, BlockKind::Q4K, Range::MeanSquare, None);
    assert!(error(&weights, &q, None).sqrt() < 16.0 * 0.25 * 2e-3);
}

/// The relative squared errors of ggml's quantizer on the same noise, without and with importance:
/// `tests/interop/gguf_errors.py`, llama.cpp of xllamacpp 2026.10.11549.
const GGML: [(BlockKind, [f64; 2]); 11] = [
    (BlockKind::Q4_1, [7.440947e-3, 3.659884e-3]),
    (BlockKind::Q5_1, [1.679628e-3, 8.525616e-4]),
    (BlockKind::Q2K, [1.325429e-1, 3.946619e-2]),
    (BlockKind::Q3K, [1.958213e-2, 1.283214e-2]),
    (BlockKind::Q4K, [5.349653e-3, 3.745213e-3]),
    (BlockKind::Q5K, [1.433052e-3, 1.009748e-3]),
    (BlockKind::Q6K, [3.099038e-4, 2.481532e-4]),
    (BlockKind::Iq4Nl, [5.192724e-3, 3.888794e-3]),
    (BlockKind::Iq4Xs, [5.278738e-3, 3.985197e-3]),
    (BlockKind::Mxfp4, [1.942211e-2, 1.797633e-2]),
    (BlockKind::Nvfp4, [8.771165e-3, 1.005439e-2]),
];

/// Likewise of the types that are plain integers, by their bits.
const SIMPLE: [(u8, [f64; 2]); 3] = [
    (4, [6.635279e-3, 4.641167e-3]),
    (5, [1.601777e-3, 1.187339e-3]),
    (8, [2.841754e-5, 3.108403e-5]),
];

#[test]
fn simple_blocks_are_those_of_ggml() {
    let weights = noise(3, 16 * 256);
    let square: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
    let by = importance();
    for (bits, theirs) in SIMPLE {
        let grid = Grid::Int { bits, symmetric: true, span: Span::Group(32), scale: DType::F16 };
        let of = |range, by| error(&weights, &rtn(&weights, [16, 256], grid, range, by), by);
        let ours = of(Range::Extreme, None) / square;
        assert_eq!(format!("{ours:.6e}"), format!("{:.6e}", theirs[0]), "{bits} bits");
        let each = weights.iter().enumerate();
        let square: f64 = each.map(|(i, &w)| f64::from(w).powi(2) * f64::from(by[i % 256])).sum();
        let ours = of(Range::Weighted, Some(&by[..])) / square;
        println!("{bits} bits: ours {ours:.4e}, ggml {:.4e}", theirs[1]);
        assert!(ours <= theirs[1] * (1.0 + 1e-6), "{bits} bits: {ours}, ggml {}", theirs[1]);
        // What lies further from zero than the rest is a code, of eight bits and of fewer; zeros are zeros.
        let mut row = vec![0.25f32; 64];
        (row[3], row[40]) = (-2.0, 1e9);
        row[32..40].fill(0.0);
        let q = rtn(&row, [1, 64], grid, Range::Extreme, None);
        let (values, half) = (q.dequantize(), 2f32.powi(-11));
        assert!((values[3] / -2.0 - 1.0).abs() <= half && values[33] == 0.0, "{bits} bits");
        assert!(q.scales().iter().all(|scale| scale.is_finite()));
        let zeros = rtn(&[0.0; 32], [1, 32], grid, Range::Extreme, None);
        assert_eq!((zeros.scales()[0], zeros.codes), (0.0, vec![0; 32]));
    }
}

#[test]
fn errors_are_no_larger_than_those_of_ggml() {
    let weights = noise(3, 16 * 256);
    let zeros = nearest(&vec![0.0; weights.len()], BlockKind::Q4K, Range::MinMax, None);
    let by = importance();
    for (kind, theirs) in GGML {
        for (by, theirs) in [None, Some(&by[..])].into_iter().zip(theirs) {
            let q = nearest(&weights, kind, Range::Weighted, by);
            let ours = error(&weights, &q, by) / error(&weights, &zeros, by);
            println!("{kind:?} {}: ours {ours:.4e}, ggml {theirs:.4e}", by.is_some());
            assert!(ours <= theirs, "{kind:?}, importance {}: {ours} {theirs}", by.is_some());
        }
    }
}
