//! Linears over weights on grids give the reference's bits: integer sums are equal on every
//! instruction set, whatever the sizes, groups, zero points, minima and scales.

use crate::common::{Noise, cpus, equal, on_threads, same_bits, upload};
use backend::{Backend, BackendError, BackendExt, Buffer, DeviceWeight, Embed, Linear};
use ir::{BlockKind, Grid, Params, Quantized, Span};
use tensor::DType;

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
        let weight = noise.quantized(grid, shape);
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
    let weight = noise.quantized(grid, [33, 96]);
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
    let weight = noise.quantized(grid(4, false, Span::Group(128), DType::F16), [200, 320]);
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
    let good = noise.quantized(grid(8, true, Span::Channel, DType::F32), [64, 256]);
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
        let weight = noise.quantized(grid(bits, bits == 8, span, DType::F32), [70, 300]);
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
                noise.quantized(grid, [out, width])
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

/// Every block of GGUF that is no plain integer grid: unlike rows, few and many, and outliers among them.
#[test]
fn every_block_of_gguf() {
    let mut noise = Noise(101);
    for (case, kind) in (0..6).flat_map(|case| BlockKind::ALL.map(|kind| (case, kind))) {
        let block = kind.form().block;
        let shape = [noise.within(1..100), block * noise.within(1..1 + 1024 / block)];
        let weight = noise.quantized(Grid::Block(kind), shape);
        let rows = [1, 2, 5, 8, 13, 30][case];
        let mut x = noise.values(rows * shape[1]);
        if case % 2 == 0 {
            x[shape[1] - 1] = 700.0;
        }
        let name = kind.form().name;
        same_bits(&format!("{rows} rows, {shape:?}, {name}"), |backend| run(backend, &x, &weight));
    }
}

/// Integers of scales and minima at their ends, codes and activations too: sums stay whole.
#[test]
fn the_largest_sums_of_blocks_are_whole() {
    for kind in BlockKind::ALL {
        let (form, grid) = (kind.form(), Grid::Block(kind));
        let whole = Noise(102).quantized(grid, [40, 512]);
        let (low, high) = grid.codes();
        let (least, most) = form.scale.codes();
        let ends =
            [low, high].into_iter().flat_map(|code| [least, most].map(|scale| (code, scale)));
        for (code, inner) in ends {
            let mut weight = whole.clone();
            weight.codes.fill(code as i8);
            let Params::Nested { scales, mins, outer_scales, outer_mins } = &mut weight.params
            else {
                panic!("blocks have nested scales")
            };
            scales.fill(inner as i8);
            mins.fill(((1u32 << form.min_bits.unwrap_or(0)) - 1) as u8);
            outer_scales.fill(1.0);
            outer_mins.fill(1.0);
            for sign in [1.0, -1.0] {
                let x = vec![127.0 * sign; 512 * 3];
                let values = &weight.dequantize()[..512];
                let expected: f64 =
                    values.iter().map(|w| f64::from(*w) * 127.0 * sign as f64).sum();
                same_bits(form.name, |backend| run(backend, &x, &weight));
                let cpu = backend_cpu::Cpu::new();
                let y = cpu.download(run(&cpu, &x, &weight)).unwrap();
                assert!(
                    (f64::from(y[0]) - expected).abs() <= expected.abs() * 1e-6,
                    "{}",
                    form.name
                );
            }
        }
    }
}

/// What is computed is what the weights stand for, but for the rounding of activations.
#[test]
fn blocks_are_computed_with_as_what_they_stand_for() {
    let mut noise = Noise(103);
    for kind in BlockKind::ALL {
        let weight = noise.quantized(Grid::Block(kind), [64, 512]);
        let x: Vec<f32> = noise.values(512).iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let cpu = backend_cpu::Cpu::new();
        let y = cpu.download(run(&cpu, &x, &weight)).unwrap();
        for (row, y) in weight.dequantize().chunks_exact(512).zip(y) {
            let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let size: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            assert!((f64::from(y) - exact).abs() < size * 0.02, "{kind:?}: {y} {exact}");
        }
    }
}

/// Rows of a table are selected with the values that every reader of the format computes.
#[test]
fn rows_of_a_table_on_a_grid_are_its_values() {
    let mut noise = Noise(104);
    let ints = [
        (grid(8, true, Span::Channel, DType::F32), 100),
        (grid(4, false, Span::Group(7), DType::BF16), 100),
        (grid(5, true, Span::Group(32), DType::F16), 96),
        (grid(3, true, Span::Group(128), DType::F16), 300),
    ];
    let blocks = BlockKind::ALL.map(|kind| (Grid::Block(kind), 512));
    for (grid, width) in ints.into_iter().chain(blocks) {
        let table = noise.quantized(grid, [45, width]);
        let gathered = |backend: &dyn Backend| {
            let weight = &backend.prepare_quantized("w", table.clone()).unwrap();
            let mut out = backend.zeros(5, width).unwrap();
            // One that is not of the slice is left alone.
            let tokens = [100, 144, 99, 131, 145];
            backend.embed(&Embed { tokens: &tokens, weight, first: 100 }, &mut out).unwrap();
            out
        };
        same_bits(&format!("{grid}"), gathered);
        let cpu = backend_cpu::Cpu::new();
        let (y, values) = (cpu.download(gathered(&cpu)).unwrap(), table.dequantize());
        for (row, index) in [(0, Some(0)), (1, Some(44)), (2, None), (3, Some(31)), (4, None)] {
            let got = &y[row * width..(row + 1) * width];
            let zeros = vec![0.0; width];
            equal(
                "a row",
                got,
                index.map_or(&zeros, |i: usize| &values[i * width..(i + 1) * width]),
            );
        }
    }
}
