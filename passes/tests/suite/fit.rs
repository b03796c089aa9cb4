//! Fits against compressed-tensors, and against every value a group can hold.

use ir::{Grid, Span};
use passes::fit::{Fit, Range};
use passes::integers::{Integers, Params};
use tensor::DType;

fn fit(grid: Grid, range: Range, group: &[f32]) -> Params {
    Integers { grid, range }.fit(group, None)
}

fn grid(bits: u8, symmetric: bool, scale: DType) -> Grid {
    Grid::Int { bits, symmetric, span: Span::Channel, scale }
}

/// `calculate_qparams` of compressed-tensors 0.20 in float32: scale = max |w| / ((max - min) / 2),
/// or (max w - min w) / (max - min) with a zero point.
#[test]
fn scales_are_those_of_compressed_tensors() {
    let group = [-0.75f32, 0.5, 0.25, -0.125];
    for (bits, symmetric, scale, zero) in [
        (4, true, 0.1, 0),
        (8, true, 0.75 / 127.5, 0),
        (4, false, 1.25 / 15.0, 1),
        (8, false, 1.25 / 255.0, 25),
    ] {
        let params = fit(grid(bits, symmetric, DType::F32), Range::MinMax, &group);
        assert!((params.scale - scale).abs() < 1e-8, "{bits} {symmetric}: {}", params.scale);
        assert_eq!(params.zero, zero, "{bits} {symmetric}");
    }
}

#[test]
fn ties_go_to_even_and_nothing_leaves_the_range() {
    let params = fit(grid(4, true, DType::F32), Range::MinMax, &[7.5, -7.5]);
    assert_eq!(params.scale, 1.0);
    for (x, code) in
        [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (7.5, 7), (-7.5, -8), (0.49, 0)]
    {
        assert_eq!(params.code(x), code, "{x}");
    }
    for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-45] {
        assert!((-8..=7).contains(&params.code(x)), "{x}");
    }
}

#[test]
fn any_group_gets_a_sound_scale() {
    let groups: [&[f32]; 8] = [
        &[],
        &[0.0, -0.0],
        &[1e-45, -1e-45],
        &[1e-38, 3e-39],
        &[f32::MAX, -f32::MAX],
        &[65504.0 * 100.0],
        &[-1.0],
        &[1e-8, 1.0],
    ];
    for group in groups {
        for bits in 2..=8 {
            for (symmetric, range) in
                [(true, Range::MinMax), (false, Range::MinMax), (true, Range::MeanSquare)]
            {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let grid = grid(bits, symmetric, dtype);
                    let params = fit(grid, range, group);
                    let what = format!("{group:?} on {grid}: {params:?}");
                    assert!(params.scale.is_finite() && params.scale > 0.0, "{what}");
                    assert_eq!(grid.stored_scale(params.scale), params.scale, "{what}");
                    let (low, high) = grid.codes();
                    for &x in group {
                        let code = params.code(x);
                        assert!((low..=high).contains(&code), "{what}: {code}");
                        assert!(params.value(code).is_finite() || x.abs() > 1e38, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_mean_square_fit_is_never_worse() {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut better = 0;
    for _ in 0..50 {
        // A few values far out, as trained weights have.
        let group: Vec<f32> = (0..128).map(|_| next().powi(5)).collect();
        let grid = grid(4, true, DType::BF16);
        let error = |range| {
            let params = fit(grid, range, &group);
            group.iter().map(|&x| f64::from(x - params.value(params.code(x))).powi(2)).sum::<f64>()
        };
        let (min_max, square) = (error(Range::MinMax), error(Range::MeanSquare));
        assert!(square <= min_max, "{square} {min_max}");
        better += usize::from(square < min_max);
    }
    assert!(better > 25, "better only {better} times of 50");
}
