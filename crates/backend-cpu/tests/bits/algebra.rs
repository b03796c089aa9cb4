//! Gram matrices, factors of inverses and rank updates give the plain versions' bits.

#![expect(clippy::single_range_in_vec_init, reason = "a sequence is a range of rows")]

use crate::common::{Noise, cpus, equal, on_threads, upload};
use backend::{Algebra, Backend, RankUpdate, Reference};
use backend_cpu::Cpu;
use std::ops::Range;

const SIZES: [usize; 7] = [1, 3, 31, 33, 65, 172, 300];

/// Runs `op` on every CPU with one thread and with three; it must give what the reference does.
fn everywhere(what: &str, op: impl Fn(&dyn Backend) -> Vec<f32> + Sync) {
    let want = op(&Reference);
    for cpu in cpus() {
        for threads in [1, 3] {
            let got = on_threads(threads, || op(&cpu));
            equal(&format!("{what}, {}, {threads} threads", cpu.isa().name()), &got, &want);
        }
    }
}

#[test]
fn gram_matrices() {
    let mut noise = Noise(31);
    let sequences: [&[Range<usize>]; 6] = [
        &[0..1],
        &[0..255],
        &[0..256, 300..557],
        &[20..620],
        &[5..5, 600..620, 0..513, 100..101],
        &[],
    ];
    for width in SIZES {
        let (x, before) = (noise.values(620 * width), noise.values(width * width));
        for sequences in sequences {
            everywhere(&format!("{width} columns, {sequences:?}"), |backend| {
                // What lies above the diagonal is not touched: all of the matrix is compared.
                let mut sum = upload(backend, width, &before);
                backend
                    .algebra()
                    .unwrap()
                    .gram(&upload(backend, width, &x), sequences, &mut sum)
                    .unwrap();
                backend.download(sum).unwrap()
            });
        }
    }
}

#[test]
fn gram_matrices_of_many_pieces() {
    // More than are packed at a time.
    let mut noise = Noise(32);
    let (rows, width) = (256 * 70 + 9, 200);
    let x = noise.values(rows * width);
    everywhere("many pieces", |backend| {
        let mut sum = backend.zeros(width, width).unwrap();
        backend
            .algebra()
            .unwrap()
            .gram(&upload(backend, width, &x), &[0..9000, 9000..rows], &mut sum)
            .unwrap();
        backend.download(sum).unwrap()
    });
}

/// `A A^T + I / 10`, above the diagonal what is not to be read.
fn definite(noise: &mut Noise, n: usize) -> Vec<f64> {
    let a: Vec<f64> = noise.values(n * 20).into_iter().map(f64::from).collect();
    let mut h = vec![f64::NAN; n * n];
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..20).map(|k| a[i * 20 + k] * a[j * 20 + k]).sum();
            h[i * n + j] = dot + if i == j { 0.1 } else { 0.0 };
        }
    }
    h
}

/// A factor's bits, as one value for every NaN; nothing if there is none.
fn factored(backend: &dyn Backend, h: &[f64], n: usize) -> Option<Vec<u64>> {
    let mut matrix = h.to_vec();
    let definite = backend.algebra().unwrap().inverse_factor(&mut matrix, n).unwrap();
    definite.then(|| matrix.iter().map(|x| x.to_bits()).collect())
}

#[test]
fn factors_of_inverses() {
    let mut noise = Noise(33);
    for n in [0, 2, 127, 128, 129, 256, 417].into_iter().chain(SIZES) {
        let h = definite(&mut noise, n);
        let want = factored(&Reference, &h, n);
        assert!(want.is_some(), "n = {n}");
        for cpu in cpus() {
            for threads in [1, 3] {
                let got = on_threads(threads, || factored(&cpu, &h, n));
                assert!(got == want, "n = {n}, {}, {threads} threads", cpu.isa().name());
            }
        }
    }
}

#[test]
fn matrices_without_a_factor() {
    let mut noise = Noise(34);
    for n in [1, 33, 300] {
        let good = definite(&mut noise, n);
        for bad in [-1.0, 0.0, f64::NAN, f64::INFINITY] {
            for at in [0, n * n - 1, n / 2 * (n + 1)] {
                let mut h = good.clone();
                h[at] = bad;
                for cpu in cpus() {
                    assert!(factored(&cpu, &h, n).is_none(), "n = {n}: {bad} at {at}");
                }
            }
        }
    }
}

#[test]
fn rank_updates() {
    let mut noise = Noise(35);
    for (case, rows) in SIZES.into_iter().chain([40, 12, 129]).enumerate() {
        for depth in [1, 17, 128, 255, 256] {
            let width = SIZES[(case + depth) % 7] + 5;
            let all = [0..width, 3..width, 1..width - 3, width / 2..width, 2..2];
            let columns = all[(case + depth / 2) % 5].clone();
            let (c, a) = (noise.values(rows * width), noise.values(rows * depth));
            let b = noise.values(depth * columns.len());
            everywhere(&format!("{rows} rows, {depth} deep, {columns:?} of {width}"), |backend| {
                let mut c = upload(backend, width, &c);
                let args = RankUpdate { columns: columns.clone(), a: &a, b: &b, depth };
                backend.algebra().unwrap().rank_update(&mut c, &args).unwrap();
                // What is read of it is some columns of all rows.
                let some = backend.algebra().unwrap().columns(&c, columns.clone()).unwrap();
                let all = backend.download(c).unwrap();
                let rows = all.chunks(width).flat_map(|row| &row[columns.clone()]);
                assert!(rows.copied().eq(some));
                all
            });
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_errors() {
    let cpu = Cpu::new();
    let x = upload(&cpu, 2, &[1.0; 6]);
    let gram = |sequences: &[Range<usize>], size| {
        let mut sum = cpu.zeros(size, 2).unwrap();
        cpu.gram(&x, sequences, &mut sum).map_err(|e| e.to_string())
    };
    assert_eq!(gram(&[0..3, 1..2], 2), Ok(()));
    let message = "internal: rule of the cpu backend broken: sequences are rows";
    assert_eq!(gram(&[0..3, 1..4], 2).unwrap_err(), message);
    assert!(gram(&[Range { start: 2, end: 1 }], 2).is_err());
    assert!(gram(&[], 3).is_err());
    let mut sum = cpu.zeros(2, 2).unwrap();
    assert!(cpu.gram(&upload(&Reference, 2, &[1.0; 6]), &[], &mut sum).is_err());
    assert!(cpu.gram(&x, &[], &mut Reference.zeros(2, 2).unwrap()).is_err());
    assert!(cpu.columns(&x, 1..3).is_err() && cpu.columns(&x, Range { start: 2, end: 1 }).is_err());

    for n in [1, 3, usize::MAX] {
        assert!(cpu.inverse_factor(&mut [1.0; 4], n).is_err(), "{n}");
    }

    let update = |width, columns: Range<usize>, [a, b, depth]: [usize; 3]| {
        let (a, b) = (&vec![1.0; a][..], &vec![1.0; b][..]);
        let mut c = cpu.zeros(3, width).unwrap();
        cpu.rank_update(&mut c, &RankUpdate { columns, a, b, depth }).is_ok()
    };
    assert!(update(4, 1..3, [15, 10, 5]));
    assert!(update(4, 3..3, [15, 0, 5]));
    assert!(!update(4, 1..5, [15, 20, 5]));
    assert!(!update(4, Range { start: 3, end: 1 }, [15, 10, 5]));
    assert!(!update(4, 1..3, [15, 11, 5]));
    assert!(!update(4, 1..3, [15, 15, 5]));
    assert!(!update(4, 1..3, [16, 10, 5]));
    assert!(!update(4, 1..3, [10, 10, 5]));
    assert!(!update(4, 1..3, [0, 0, 0]));
    assert!(!update(4, 1..3, [3 * 257, 2 * 257, 257]));
}
