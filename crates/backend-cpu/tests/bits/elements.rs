//! Norms, rotations, element-wise ops and the folding of logits give the reference's bits.

use crate::common::{DTYPES, Noise, cpus, on_threads, same_bits, upload};
use backend::{Backend, BackendExt, DivergenceRow, Fold, Reference, Rope, RopeTable, SoftmaxRow};

#[test]
fn norms_over_rows_and_heads() {
    let mut noise = Noise(21);
    for (case, (rows, heads, len)) in
        [(1, 1, 1), (3, 1, 5), (7, 4, 16), (2, 3, 100), (40, 1, 600), (300, 2, 128)]
            .iter()
            .enumerate()
    {
        let weight = noise.weight(DTYPES[case % 3], &[*len]);
        let x = noise.values(rows * heads * len);
        same_bits(&format!("{rows} rows of {heads} times {len}"), |backend| {
            let (input, w) =
                (upload(backend, heads * len, &x), backend.prepare_dense(weight.clone()));
            backend.norm(&input, &w.unwrap(), 1e-6).unwrap()
        });
    }
}

#[test]
fn rotations_whole_and_partial() {
    let mut noise = Noise(22);
    for (heads, dim, rotary) in [(1, 2, 2), (3, 8, 8), (2, 64, 32), (5, 80, 80), (4, 128, 128)] {
        let inv_freq = (0..rotary / 2).map(|i| 0.5f32.powi(i)).collect();
        let table = RopeTable::new(&ir::Rope { inv_freq, magnitude: 1.1 }, 400);
        let x = noise.values(420 * heads * dim);
        same_bits(&format!("{heads} heads of {dim}, {rotary} rotated"), |backend| {
            let mut buffer = upload(backend, heads * dim, &x);
            let sequences = &[0..400, 400..400, 401..420];
            let args = Rope { head_dim: dim, table: &table, sequences, starts: &[0, 7, 381] };
            backend.rope(&args, &mut buffer).unwrap();
            buffer
        });
    }
}

#[test]
fn element_wise_ops() {
    let mut noise = Noise(23);
    for n in [1, 7, 16, 100, 70_000] {
        let mut a = noise.values(n);
        let b = noise.values(n);
        a.iter_mut().zip(&b).for_each(|(a, b)| *a *= 1.0 + 100.0 * b.abs());
        for (i, x) in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0].iter().enumerate() {
            if n > 50 {
                a[i * 7] = *x;
            }
        }
        same_bits("silu", |backend| {
            let mut x = upload(backend, 1, &a);
            backend.activate(ir::Activation::Silu, &mut x).unwrap();
            x
        });
        same_bits("scale", |backend| {
            let mut x = upload(backend, 1, &a);
            backend.scale(-1.37, &mut x).unwrap();
            x
        });
        same_bits("mul", |backend| {
            let mut x = upload(backend, 1, &a);
            backend.mul(&mut x, &upload(backend, 1, &b)).unwrap();
            x
        });
        same_bits("add", |backend| {
            let mut x = upload(backend, 1, &a);
            backend.add(&mut x, &upload(backend, 1, &b)).unwrap();
            backend.copy(&x).unwrap()
        });
    }
}

fn folded(backend: &dyn Backend, p: &[f32], q: &[f32], slice: usize) -> Vec<DivergenceRow> {
    let (rows, vocab) = (9, p.len() / 9);
    let mut divergences: Vec<_> = (0..rows).map(|r| DivergenceRow::new(r * 17)).collect();
    let mut soft: Vec<_> = (0..rows).map(|r| SoftmaxRow::new(r * 17)).collect();
    for first in (0..vocab).step_by(slice) {
        let width = slice.min(vocab - first);
        let cut = |x: &[f32]| {
            let rows = x.chunks_exact(vocab).flat_map(|row| row[first..first + width].to_vec());
            upload(backend, width, &rows.collect::<Vec<f32>>())
        };
        let (p, q) = (cut(p), cut(q));
        backend
            .fold(first as u32, Fold::Divergence { logits: [&p, &q], rows: &mut divergences })
            .unwrap();
        backend.fold(first as u32, Fold::Softmax { logits: &p, rows: &mut soft }).unwrap();
    }
    for (soft, divergence) in soft.iter().zip(&divergences) {
        assert_eq!((soft.best, soft.max), (divergence.p.best, divergence.p.max));
        assert_eq!(soft.target_logit, divergence.p.target_logit);
    }
    divergences
}

#[test]
fn folds_of_logits() {
    let mut noise = Noise(24);
    let (p, q) = (noise.values(9 * 1000), noise.values(9 * 1000));
    for slice in [1, 33, 256, 1000] {
        let want = folded(&Reference, &p, &q, slice);
        for cpu in cpus() {
            for threads in [1, 3] {
                let got = on_threads(threads, || folded(&cpu, &p, &q, slice));
                assert_eq!(got, want, "slices of {slice}, {}", cpu.isa().name());
            }
        }
    }
}
