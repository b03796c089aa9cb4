//! Linears and embeddings give the reference's bits, whatever the instruction set, the dtype, the
//! shape, the number of threads and the rest of the batch.

use crate::common::{DTYPES, Noise, cpus, equal, on_threads, same_bits, upload};
use backend::{Backend, BackendExt, Embed, Linear, Reference};
use backend_cpu::Cpu;
use ir::Weight;
use tensor::DType;

fn linear(backend: &dyn Backend, x: &[f32], w: &Weight, b: Option<&Weight>) -> backend::Buffer {
    let input = upload(backend, w.spec.shape[1], x);
    let weight = backend.prepare_dense(w.clone()).unwrap();
    let bias = b.map(|b| backend.prepare_dense(b.clone()).unwrap());
    backend
        .linear(&Linear { input: &input, weight: &weight, bias: bias.as_ref(), decode: 0 })
        .unwrap()
}

#[test]
fn linears_of_odd_shapes() {
    let mut noise = Noise(1);
    let depths = [1, 2, 31, 100, 255, 256, 257, 300, 511, 512, 513, 600];
    let outs = [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 160, 290];
    for case in 0..150 {
        let rows = match case % 15 {
            0 => noise.within(230..500),
            _ => noise.within(1..41),
        };
        let inputs = depths[noise.within(0..depths.len())];
        let out = outs[noise.within(0..outs.len())];
        let w = noise.weight(DTYPES[case % 3], &[out, inputs]);
        let b = (case % 2 == 0).then(|| noise.weight(DTYPES[case / 3 % 3], &[out]));
        let x = noise.values(rows * inputs);
        let what = format!("{rows} rows, {inputs} to {out}, {}", w.spec.dtype);
        same_bits(&what, |backend| linear(backend, &x, &w, b.as_ref()));
    }
}

#[test]
fn every_number_of_rows() {
    let mut noise = Noise(2);
    for dtype in DTYPES {
        let w = noise.weight(dtype, &[161, 260]);
        for rows in 0..40 {
            let x = noise.values(rows * 260);
            same_bits(&format!("{rows} rows, {dtype}"), |backend| linear(backend, &x, &w, None));
        }
    }
}

#[test]
fn sums_that_vanish_are_positive_zeros() {
    // Products that underflow to -0 in every piece: adding pieces to zero makes them 0.
    let mut noise = Noise(3);
    for rows in [1, 5, 30] {
        let x = vec![-1e-30; rows * 300];
        let mut w = noise.weight(DType::F32, &[40, 300]);
        w.tensor = tensor::Tensor::from_f32(vec![40, 300], &[1e-30; 40 * 300]).unwrap();
        let got = linear(&Cpu::new(), &x, &w, None);
        let got = Cpu::new().download(got).unwrap();
        assert!(got.iter().all(|y| y.to_bits() == 0));
        same_bits("vanishing sums", |backend| linear(backend, &x, &w, None));
    }
}

#[test]
fn infinities_and_nans_stay_in_their_row() {
    let mut noise = Noise(4);
    let w = noise.weight(DType::BF16, &[70, 300]);
    let mut x = noise.values(20 * 300);
    x[7 * 300 + 3] = f32::INFINITY;
    x[9 * 300 + 299] = f32::NAN;
    same_bits("infinities", |backend| linear(backend, &x, &w, None));
}

#[test]
fn neither_threads_nor_the_batch_change_a_row() {
    let mut noise = Noise(5);
    let w = noise.weight(DType::BF16, &[530, 700]);
    let x = noise.values(300 * 700);
    for cpu in cpus() {
        let all = cpu.download(linear(&cpu, &x, &w, None)).unwrap();
        for threads in [1, 2, 3] {
            let got = on_threads(threads, || cpu.download(linear(&cpu, &x, &w, None)).unwrap());
            equal(&format!("{threads} threads"), &got, &all);
        }
        for rows in [0..1, 5..6, 17..20, 100..130, 299..300] {
            let part = linear(&cpu, &x[rows.start * 700..rows.end * 700], &w, None);
            let got = cpu.download(part).unwrap();
            equal(&format!("rows {rows:?}"), &got, &all[rows.start * 530..rows.end * 530]);
        }
    }
}

#[test]
fn embeddings_gather_from_slices() {
    let mut noise = Noise(6);
    for (n, hidden) in [(1, 1), (33, 40), (100, 17), (64, 300)] {
        for dtype in DTYPES {
            let w = noise.weight(dtype, &[n, hidden]);
            let tokens: Vec<u32> = (0..50).map(|_| noise.within(0..n + 40) as u32).collect();
            let before = noise.values(tokens.len() * hidden);
            same_bits(&format!("{n} of {hidden}, {dtype}"), |backend| {
                let mut out = upload(backend, hidden, &before);
                let weight = backend.prepare_dense(w.clone()).unwrap();
                backend
                    .embed(&Embed { tokens: &tokens, weight: &weight, first: 20 }, &mut out)
                    .unwrap();
                out
            });
        }
    }
}

#[test]
fn dtypes_that_are_not_computed_with_are_refused() {
    let mut noise = Noise(7);
    let mut weight = noise.weight(DType::F32, &[2, 2]);
    weight.tensor = tensor::Tensor::new(DType::I32, vec![2, 2], tensor::Bytes::zeroed(16)).unwrap();
    weight.spec.dtype = DType::I32;
    let message = Cpu::new().prepare_dense(weight).unwrap_err().to_string();
    assert_eq!(message, "tensor \"w\": dtype I32 is F32, F16 or BF16");
    for shape in [vec![0, 4], vec![4, 0], vec![1, 2, 3], vec![]] {
        let weight = noise.weight(DType::F32, &shape);
        assert!(Cpu::new().prepare_dense(weight).is_err(), "{shape:?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let mut noise = Noise(8);
    let cpu = Cpu::new();
    let weight = cpu.prepare_dense(noise.weight(DType::F32, &[3, 4])).unwrap();
    let bias = cpu.prepare_dense(noise.weight(DType::F32, &[2])).unwrap();
    let (narrow, wide) = (upload(&cpu, 3, &[0.0; 6]), upload(&cpu, 4, &[0.0; 8]));
    assert!(
        cpu.linear(&Linear { input: &narrow, weight: &weight, bias: None, decode: 0 }).is_err()
    );
    assert!(
        cpu.linear(&Linear { input: &wide, weight: &weight, bias: Some(&bias), decode: 0 })
            .is_err()
    );
    assert!(cpu.linear(&Linear { input: &wide, weight: &bias, bias: None, decode: 0 }).is_err());
    let foreign = upload(&Reference, 4, &[0.0; 8]);
    assert!(
        cpu.linear(&Linear { input: &foreign, weight: &weight, bias: None, decode: 0 }).is_err()
    );
}
