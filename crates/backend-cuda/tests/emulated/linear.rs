//! Linears against the plain reference.

use crate::common::{
    Noise, checked, close, dense, emulated, hopper, hopper_checked, library, upload,
};
use backend::{Backend, BackendExt, Linear, Reference};
use backend_cuda::{Cuda, Device};
use cuda_emulator::{Check, Emulated, Order};
use ir::{Grid, Quantized, Span};
use std::sync::Arc;
use tensor::DType;

const GRIDS: [Grid; 7] = [
    int(4, true, Span::Group(128), DType::BF16),
    int(4, false, Span::Group(32), DType::F16),
    int(4, true, Span::Channel, DType::F32),
    int(3, false, Span::Group(64), DType::BF16),
    int(8, true, Span::Group(128), DType::BF16),
    int(8, false, Span::Group(32), DType::F16),
    int(8, true, Span::Channel, DType::F32),
];

const fn int(bits: u8, symmetric: bool, span: Span, scale: DType) -> Grid {
    Grid::Int { bits, symmetric, span, scale }
}

/// What `weight` makes of `x`, in double precision, and what its values are.
fn exact(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| -> f32 {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
    };
    x.chunks(width).flat_map(|x| w.chunks(width).map(move |w| dot(x, w))).collect()
}

fn linear(cuda: &dyn Backend, x: &[f32], weight: Quantized, decode: usize) -> Vec<f32> {
    let input = upload(cuda, weight.shape[1], x);
    let weight = cuda.prepare_quantized("w", weight).unwrap();
    let args = Linear { input: &input, weight: &weight, bias: None, decode };
    cuda.download(cuda.linear(&args).unwrap()).unwrap()
}

fn quantized_rows(cuda: &Cuda, rows: usize, out: usize, width: usize, decode: usize) {
    for (seed, grid) in GRIDS.into_iter().enumerate() {
        let mut noise = Noise::new(seed as u64);
        let weight = noise.quantized(grid, out, width);
        let x = noise.bf16(rows * width);
        let want = exact(&x, &weight.dequantize(), width);
        let got = linear(cuda, &x, weight, decode);
        // Tiles round scaled weights to bf16, int8 rounds activations.
        let allowed = if rows - decode > 16 { 1e-2 } else { 1e-5 };
        close(&format!("{rows} x {width} -> {out}, {grid}"), &got, &want, allowed);
    }
}

#[test]
fn few_rows_are_exact_but_for_the_order_of_sums() {
    emulated("few_rows_are_exact_but_for_the_order_of_sums", |cuda| {
        for (rows, out, width) in [(1, 40, 64), (3, 129, 200), (8, 16, 1000), (13, 50, 172)] {
            quantized_rows(cuda, rows, out, width, 0);
        }
        for (rows, decode) in [(20, 20), (33, 33), (70, 64)] {
            quantized_rows(cuda, rows, 70, 136, decode);
        }
    });
}

#[test]
fn many_rows_are_close() {
    emulated("many_rows_are_close", |cuda| {
        for (rows, out, width) in [(17, 200, 200), (140, 136, 320)] {
            quantized_rows(cuda, rows, out, width, 0);
        }
    });
}

#[test]
fn linears_touch_only_what_is_theirs() {
    checked("linears_touch_only_what_is_theirs", |cuda| {
        quantized_rows(cuda, 2, 20, 72, 0);
        quantized_rows(cuda, 36, 20, 136, 36);
        quantized_rows(cuda, 36, 20, 136, 0);
    });
}

#[test]
fn dense_weights_and_biases() {
    emulated("dense_weights_and_biases", |cuda| {
        for (rows, out, width) in [(1, 33, 65), (5, 16, 128), (40, 100, 200)] {
            let mut noise = Noise::new(rows as u64);
            let (x, w) = (noise.bf16(rows * width), noise.bf16(out * width));
            let b = noise.values(out);
            let mut want = exact(&x, &w, width);
            want.chunks_mut(out).for_each(|y| y.iter_mut().zip(&b).for_each(|(y, b)| *y += b));
            let input = upload(cuda, width, &x);
            let (weight, bias) = (dense(cuda, &[out, width], &w), dense(cuda, &[out], &b));
            let args = Linear { input: &input, weight: &weight, bias: Some(&bias), decode: 0 };
            let got = cuda.download(cuda.linear(&args).unwrap()).unwrap();
            close(&format!("{rows} x {width} -> {out}"), &got, &want, 1e-5);
        }
    });
}

#[test]
fn many_rows_by_warpgroups() {
    hopper("many_rows_by_warpgroups", |cuda| {
        for (rows, out, width) in [(129, 200, 200), (300, 136, 450)] {
            quantized_rows(cuda, rows, out, width, 0);
        }
        let (trials, failed) = cuda.trials();
        assert_eq!(failed, [""; 0]);
        let failed: Vec<_> = trials.iter().filter(|trial| !trial.passed()).collect();
        assert!(failed.is_empty() && trials.iter().any(|t| t.name == "wgmma"), "{failed:?}");
    });
}

#[test]
fn warpgroups_touch_only_what_is_theirs() {
    hopper_checked("warpgroups_touch_only_what_is_theirs", |cuda| {
        let mut noise = Noise::new(1);
        let (rows, out, width) = (140, 20, 200);
        let (weight, x) = (noise.quantized(GRIDS[1], out, width), noise.bf16(rows * width));
        let want = exact(&x, &weight.dequantize(), width);
        close("checked", &linear(cuda, &x, weight, 0), &want, 1e-2);
    });
}

/// A library multiplies weights that were unpacked with rows in the same order; few rows are ours.
#[test]
fn long_prompts_by_a_library() {
    let Some(library) = library("long_prompts_by_a_library", Check::Memory) else { return };
    let device = Arc::new(Emulated::new(library, Order::Reverse, true).with_library());
    let gpu = || Arc::clone(&device) as Arc<dyn Device>;
    let cuda = Cuda::new(gpu(), false).with_library();
    assert_eq!(cuda.numerics(), "cuda-cublaslt");
    assert_eq!(Cuda::new(gpu(), true).with_library().numerics(), "cuda");
    let faulty = Emulated::new(library, Order::Reverse, true).with_faulty_library();
    assert_eq!(Cuda::new(Arc::new(faulty), false).with_library().numerics(), "cuda");
    let tried = device.products();
    assert_eq!(tried, 1);
    for (rows, decode) in [(515, 0), (520, 5)] {
        quantized_rows(&cuda, rows, 20, 136, decode);
    }
    // Int8 goes to the integer kernel.
    assert_eq!(device.products() - tried, 2 * 4);
    let (rows, out, width) = (512, 33, 65);
    let mut noise = Noise::new(1);
    let (x, w, b) = (noise.bf16(rows * width), noise.bf16(out * width), noise.values(out));
    let mut want = exact(&x, &w, width);
    want.chunks_mut(out).for_each(|y| y.iter_mut().zip(&b).for_each(|(y, b)| *y += b));
    let input = upload(&cuda, width, &x);
    let (weight, bias) = (dense(&cuda, &[out, width], &w), dense(&cuda, &[out], &b));
    let args = Linear { input: &input, weight: &weight, bias: Some(&bias), decode: 0 };
    let got = cuda.download(cuda.linear(&args).unwrap()).unwrap();
    close("bf16 by a library", &got, &want, 1e-5);
}

/// Several weights of one input are one launch, whatever their kinds.
#[test]
fn linears_of_one_input() {
    emulated("linears_of_one_input", |cuda| {
        let width = 128;
        for rows in [4, 50] {
            let mut noise = Noise::new(rows as u64);
            let x = noise.bf16(rows * width);
            let weights: Vec<Quantized> = [0, 0, 4, 0, 1]
                .iter()
                .zip([96, 40, 24, 16, 8])
                .map(|(&grid, out)| noise.quantized(GRIDS[grid], out, width))
                .collect();
            let input = upload(cuda, width, &x);
            let prepared: Vec<_> =
                weights.iter().map(|w| cuda.prepare_quantized("w", w.clone()).unwrap()).collect();
            let all: Vec<_> = prepared
                .iter()
                .map(|weight| Linear { input: &input, weight, bias: None, decode: 0 })
                .collect();
            let outputs = cuda.linears(&all).unwrap();
            for (output, weight) in outputs.into_iter().zip(weights) {
                let alone = linear(cuda, &x, weight, 0);
                assert_eq!(cuda.download(output).unwrap(), alone);
            }
        }
    });
}

/// The integer path has the bits of the CPU's.
#[test]
fn int8_is_the_default_class() {
    emulated("int8_is_the_default_class", |cuda| {
        for (rows, out, width) in [(17, 70, 384), (65, 64, 172)] {
            for grid in &GRIDS[4..] {
                let mut noise = Noise::new(out as u64);
                let weight = noise.quantized(*grid, out, width);
                let mut x = noise.values(rows * width);
                // An outlier, so that there is a second run of codes; and rows of nothing.
                x[width + 3] = 300.0;
                x[..width].fill(0.0);
                let want = linear(&Reference, &x, weight.clone(), 0);
                let got = linear(cuda, &x, weight, 0);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&want), "{rows} x {width} -> {out}, {grid}");
            }
        }
    });
}

/// A row that decodes is the same alone, beside others and beside prompts.
#[test]
fn rows_that_decode_do_not_see_what_is_beside_them() {
    emulated("rows_that_decode_do_not_see_what_is_beside_them", |cuda| {
        let (out, width) = (72, 1100);
        let mut noise = Noise::new(5);
        let x = noise.bf16(150 * width);
        for grid in [GRIDS[0], GRIDS[1], GRIDS[4]] {
            let weight = noise.quantized(grid, out, width);
            let alone = linear(cuda, &x[..width], weight.clone(), 1);
            for (rows, decode) in [(2, 2), (9, 9), (20, 20), (40, 40), (70, 70), (140, 3)] {
                let all = linear(cuda, &x[..rows * width], weight.clone(), decode);
                assert_eq!(all[..out], alone, "{rows} rows, {decode} of them decoding");
            }
        }
    });
}

/// A row of a prompt is the same in any chunk that the same kernel takes.
#[test]
fn rows_of_prompts_do_not_see_what_is_beside_them() {
    emulated("rows_of_prompts_do_not_see_what_is_beside_them", |cuda| {
        let (out, width) = (72, 192);
        let mut noise = Noise::new(6);
        let x = noise.bf16(150 * width);
        for grid in [GRIDS[0], GRIDS[4]] {
            let weight = noise.quantized(grid, out, width);
            let all = linear(cuda, &x, weight.clone(), 0);
            let some = linear(cuda, &x[30 * width..60 * width], weight, 0);
            assert_eq!(all[30 * out..60 * out], some);
        }
    });
}
