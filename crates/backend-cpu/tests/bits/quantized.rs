//! Linears over integer weights give the reference's bits: integer sums are equal on every
//! instruction set, whatever the sizes, groups, zero points and scales.

use crate::common::{Noise, cpus, equal, on_threads, same_bits, upload};
use backend::{Backend, BackendError, BackendExt, Buffer, DeviceWeight, Linear};
use ir::{Grid, Params, Quantized, Span};
use tensor::DType;

fn weight(noise: &mut Noise, [out, width]: [usize; 2], grid: Grid) -> Quantized {
    let symmetric = grid.is_symmetric();
    let (low, high) = grid.codes();
    let mut code = || (low + (noise.word() % (high - low + 1) as u32) as i32) as i8;
    let codes = (0..out * width).map(|_| code()).collect();
    let scales = out * grid.span().groups(width);
    let zeros = if symmetric { Vec::new() } else { (0..scales).map(|_| code()).collect() };
    let mut scale = || grid.stored_scale(noise.value().abs() * 0.1 + 1e-3);
    let scales = (0..scales).map(|_| scale()).collect();
    Quantized { grid, shape: [out, width], codes, params: Params::Flat { scales, zeros } }
}

fn grid(bits: u8, symmetric: bool, span: Span, scale: DType) -> Grid {
    Grid::Int { bits, symmetric, span, scale }
}

fn linear(
    backend: &dyn Backend,
    x: &Buffer,
    weight: &DeviceWeight,
    bias: Option<&DeviceWeight>,
) -> Result<Buffer, BackendError> {
    backend.linear(&Linear { input: x, weight, bias, decode: 0 })
}

fn run(backend: &dyn Backend, x: &[f32], weight: &Quantized) -> Buffer {
    let prepared = backend.prepare_quantized("w", weight.clone()).unwrap();
    linear(backend, &upload(backend, weight.shape[1], x), &prepared, None).unwrap()
}

#[test]
fn odd_sizes_groups_bits_and_scales() {
    let mut noise = Noise(81);
    let spans = [Span::Channel, Span::Group(32), Span::Group(128), Span::Group(64)];
    let odd = [Span::Group(7), Span::Group(100), Span::Group(200), Span::Group(1000)];
    let scales = [DType::BF16, DType::F16, DType::F32];
    for case in 0..160 {
        let span = if case % 5 < 4 { spans[case % 4] } else { odd[case / 5 % 4] };
        let bits = [4, 8, 4, 8, 2, 3, 5, 7][case % 8];
        let grid = grid(bits, case % 3 != 0, span, scales[case % 7 % 3]);
        let shape = [noise.within(1..100), noise.within(1..400)];
        let weight = weight(&mut noise, shape, grid);
        let rows = [1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 25, 30][case % 12];
        let x = noise.values(rows * shape[1]);
        same_bits(&format!("{rows} rows, {shape:?}, {grid}"), |backend| run(backend, &x, &weight));
    }
}

#[test]
fn the_largest_sums_do_not_saturate() {
    for (bits, code) in [(8, -128i8), (8, 127), (4, -8), (4, 7)] {
        for symmetric in [true, false] {
            let grid = grid(bits, symmetric, Span::Group(128), DType::F32);
            let (low, high) = grid.codes();
            let zero = if code < 0 { high } else { low } as i8;
            let weight = Quantized {
                grid,
                shape: [40, 256],
                codes: vec![code; 40 * 256],
                params: Params::Flat {
                    scales: vec![1.0; 80],
                    zeros: if symmetric { Vec::new() } else { vec![zero; 80] },
                },
            };
            for sign in [1.0, -1.0] {
                let x = vec![127.0 * sign; 256 * 3];
                let zero = if symmetric { 0.0 } else { f32::from(zero) };
                let expected = (f32::from(code) - zero) * 127.0 * sign * 256.0;
                for cpu in cpus() {
                    let got = cpu.download(run(&cpu, &x, &weight)).unwrap();
                    equal(cpu.isa().name(), &got, &vec![expected; got.len()]);
                }
            }
        }
    }
}

#[test]
fn a_row_without_numbers_stays_alone_and_is_seen() {
    let mut noise = Noise(82);
    let grid = grid(4, true, Span::Group(32), DType::BF16);
    let weight = weight(&mut noise, [33, 96], grid);
    let mut x = noise.values(5 * 96);
    (x[96 + 3], x[2 * 96 + 95]) = (f32::NAN, f32::NEG_INFINITY);
    x[4 * 96..].fill(0.0);
    same_bits("NaN", |backend| run(backend, &x, &weight));
    let cpu = backend_cpu::Cpu::new();
    let y = cpu.download(run(&cpu, &x, &weight)).unwrap();
    assert!(y[33..3 * 33].iter().all(|y| y.is_nan()));
    assert!(y[..33].iter().chain(&y[3 * 33..]).all(|y| y.is_finite()));
    assert!(y[4 * 33..].iter().all(|&y| y == 0.0));
}

#[test]
fn neither_threads_nor_the_batch_change_a_row() {
    let mut noise = Noise(83);
    let weight = weight(&mut noise, [200, 320], grid(4, false, Span::Group(128), DType::F16));
    let bias = noise.weight(DType::F32, &[200]);
    let x = noise.values(300 * 320);
    for cpu in cpus() {
        let (prepared, bias) = (
            cpu.prepare_quantized("w", weight.clone()).unwrap(),
            cpu.prepare_dense(bias.clone()).unwrap(),
        );
        let on = |threads, x: &[f32]| {
            let x = upload(&cpu, 320, x);
            let y = on_threads(threads, || linear(&cpu, &x, &prepared, Some(&bias)).unwrap());
            cpu.download(y).unwrap()
        };
        let all = on(1, &x);
        equal("3 threads", &on(3, &x), &all);
        for rows in [0..1, 7..11, 17..36, 299..300] {
            let alone = on(2, &x[rows.start * 320..rows.end * 320]);
            equal("some rows", &alone, &all[rows.start * 200..rows.end * 200]);
        }
    }
}

#[test]
fn rounding_costs_little_and_what_is_no_weight_is_refused() {
    let mut noise = Noise(84);
    let good = weight(&mut noise, [64, 256], grid(8, true, Span::Channel, DType::F32));
    let x: Vec<f32> = noise.values(256).iter().map(|x| x.clamp(-1.0, 1.0)).collect();
    let cpu = backend_cpu::Cpu::new();
    let y = cpu.download(run(&cpu, &x, &good)).unwrap();
    for (row, y) in good.dequantize().chunks_exact(256).zip(y) {
        let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        let size: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        assert!((f64::from(y) - exact).abs() < size * 0.05, "{y} {exact}");
    }
    let flat = |count, zeros| Params::Flat { scales: vec![1.0; count], zeros: vec![0; zeros] };
    let count = good.scales().len();
    for broken in [
        Quantized { params: flat(63, good.zeros().len()), ..good.clone() },
        Quantized { codes: vec![0; 7], ..good.clone() },
        Quantized { params: flat(count, 2), ..good.clone() },
        Quantized { shape: [0, 256], ..good.clone() },
        Quantized { shape: [usize::MAX, 256], ..good },
    ] {
        assert!(cpu.prepare_quantized("w", broken).is_err());
    }
}

#[test]
fn what_outliers_hide_is_computed_too() {
    let mut noise = Noise(95);
    for (bits, span) in [(4, Span::Group(128)), (8, Span::Channel), (4, Span::Group(32))] {
        let weight = weight(&mut noise, [70, 300], grid(bits, bits == 8, span, DType::F32));
        // Rows with an outlier in one block, in none, and in all.
        let mut x = noise.values(7 * 300);
        for (row, column) in [(1, 5), (3, 299), (4, 0), (4, 130), (4, 260), (6, 128)] {
            x[row * 300 + column] = 700.0;
        }
        same_bits(&format!("{bits} bits"), |backend| run(backend, &x, &weight));
        let cpu = backend_cpu::Cpu::new();
        let y = cpu.download(run(&cpu, &x, &weight)).unwrap();
        let exact = weight.dequantize();
        for (x, y) in x.chunks_exact(300).zip(y.chunks_exact(70)) {
            let others = x.iter().filter(|x| **x != 700.0).map(|x| f64::from(*x).powi(2));
            let others = others.sum::<f64>().sqrt();
            for (w, y) in exact.chunks_exact(300).zip(y) {
                let sum: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let size: f64 = w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                assert!((f64::from(*y) - sum).abs() < size * others * 0.005, "{y} {sum}");
            }
        }
    }
}

#[test]
fn linears_of_one_input_are_the_same_together_and_awake() {
    let mut noise = Noise(91);
    let grids = [
        grid(4, true, Span::Group(128), DType::BF16),
        grid(8, true, Span::Channel, DType::F32),
        grid(4, false, Span::Group(32), DType::F16),
        grid(4, true, Span::Group(128), DType::BF16),
    ];
    for rows in [0, 1, 5, 30] {
        let width = noise.within(1..400);
        let x = noise.values(rows * width);
        let weights: Vec<Quantized> = grids
            .iter()
            .map(|&grid| {
                let out = noise.within(1..100);
                weight(&mut noise, [out, width], grid)
            })
            .collect();
        for (place, alone) in weights.iter().enumerate() {
            let reference = run(&backend::Reference, &x, alone);
            let expected = backend::Reference.download(reference).unwrap();
            for cpu in cpus() {
                on_threads(3, || {
                    let prepare = |w: &Quantized| cpu.prepare_quantized("w", w.clone()).unwrap();
                    let prepared: Vec<DeviceWeight> = weights.iter().map(prepare).collect();
                    let input = upload(&cpu, width, &x);
                    let linear = |weight| Linear { input: &input, weight, bias: None, decode: 0 };
                    let all: Vec<Linear<'_>> = prepared.iter().map(linear).collect();
                    let mut outputs = Vec::new();
                    cpu.awake(&mut || outputs = cpu.linears(&all).unwrap());
                    let output = cpu.download(outputs.swap_remove(place)).unwrap();
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(
                        bits(&output),
                        bits(&expected),
                        "{rows} rows, {width} wide, {place}"
                    );
                });
            }
        }
    }
}
