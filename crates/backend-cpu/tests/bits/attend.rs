//! Attention gives the reference's bits over grouped heads, windows, several sequences and pieces.

use crate::common::{Noise, cpus, equal, on_threads, same_bits, upload};
use backend::{Attend, Backend};
use ir::Heads;
use std::ops::Range;

struct Case {
    heads: Heads,
    window: Option<u32>,
    sequences: Vec<Range<usize>>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(noise: &mut Noise, heads: Heads, window: Option<u32>, lengths: &[usize]) -> Self {
        let mut sequences = Vec::new();
        let mut rows = 0;
        for &length in lengths {
            sequences.push(rows..rows + length);
            rows += length;
        }
        let mut fill = |heads: usize, dim: usize| noise.values(rows * heads * dim);
        Self {
            q: fill(heads.query, heads.dim),
            k: fill(heads.kv, heads.dim),
            v: fill(heads.kv, heads.dim),
            heads,
            window,
            sequences,
        }
    }

    fn run(&self, backend: &dyn Backend) -> backend::Buffer {
        let heads = self.heads;
        let args = Attend {
            q: &upload(backend, heads.query * heads.dim, &self.q),
            k: &upload(backend, heads.kv * heads.dim, &self.k),
            v: &upload(backend, heads.kv * heads.dim, &self.v),
            heads,
            scale: 1.0 / (heads.dim as f32).sqrt(),
            window: self.window,
            sequences: &self.sequences,
        };
        backend.attend(&args).unwrap()
    }

    fn check(&self) {
        let what = format!("{:?} {:?} {:?}", self.heads, self.window, self.sequences);
        same_bits(&what, |backend| self.run(backend));
    }
}

#[test]
fn heads_windows_and_sequences() {
    let mut noise = Noise(11);
    let lengths: [&[usize]; 6] = [&[1], &[40], &[127, 1, 129], &[300], &[5, 0, 260], &[13, 200]];
    for case in 0..60 {
        let kv = noise.within(1..4);
        let query = kv * noise.within(1..5);
        let dim = [4, 6, 8, 16, 31, 32, 33, 48, 64, 80][case % 10];
        let window = match case % 3 {
            0 => None,
            _ => Some([1, 3, 17, 64, 127, 128, 129, 200][noise.within(0..8)]),
        };
        Case::new(&mut noise, Heads { query, kv, dim }, window, lengths[case / 10]).check();
    }
}

#[test]
fn large_heads_and_large_groups() {
    let mut noise = Noise(12);
    Case::new(&mut noise, Heads { query: 2, kv: 1, dim: 128 }, None, &[200]).check();
    Case::new(&mut noise, Heads { query: 1, kv: 1, dim: 256 }, Some(60), &[140]).check();
    Case::new(&mut noise, Heads { query: 1, kv: 1, dim: 300 }, None, &[140]).check();
    Case::new(&mut noise, Heads { query: 40, kv: 1, dim: 8 }, None, &[150]).check();
}

#[test]
fn large_scores_and_infinite_values() {
    let mut noise = Noise(13);
    let heads = Heads { query: 2, kv: 2, dim: 16 };
    let mut case = Case::new(&mut noise, heads, None, &[200]);
    case.q.iter_mut().for_each(|q| *q *= 40.0);
    case.check();
    // A value that later rows see must not leak into earlier ones, nor a key that has no number.
    case.v[150 * 32 + 5] = f32::INFINITY;
    case.k[160 * 32 + 20] = f32::NAN;
    case.check();
    let cpu = backend_cpu::Cpu::new();
    let out = cpu.download(case.run(&cpu)).unwrap();
    assert!(out[..150 * 32].iter().all(|x| x.is_finite()));
    case.window = Some(10);
    case.check();
}

#[test]
fn rows_of_no_sequence_are_zero() {
    let mut noise = Noise(14);
    let mut case = Case::new(&mut noise, Heads { query: 2, kv: 1, dim: 8 }, None, &[50]);
    case.sequences = vec![30..44, 3..20];
    case.check();
}

#[test]
fn neither_threads_nor_other_sequences_change_a_row() {
    let mut noise = Noise(15);
    let heads = Heads { query: 6, kv: 2, dim: 24 };
    let case = Case::new(&mut noise, heads, None, &[150, 7, 300]);
    for cpu in cpus() {
        let all = cpu.download(case.run(&cpu)).unwrap();
        for threads in [1, 2, 3] {
            let got = on_threads(threads, || cpu.download(case.run(&cpu)).unwrap());
            equal(&format!("{threads} threads"), &got, &all);
        }
        for sequence in &case.sequences {
            let cut = |x: &[f32], heads: usize| {
                x[sequence.start * heads * 24..sequence.end * heads * 24].to_vec()
            };
            let alone = Case {
                q: cut(&case.q, 6),
                k: cut(&case.k, 2),
                v: cut(&case.v, 2),
                sequences: std::iter::once(0..sequence.len()).collect(),
                ..case
            };
            let got = cpu.download(alone.run(&cpu)).unwrap();
            equal("one sequence", &got, &cut(&all, 6));
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_errors() {
    let mut noise = Noise(16);
    let cpu = backend_cpu::Cpu::new();
    let good = Case::new(&mut noise, Heads { query: 2, kv: 1, dim: 8 }, None, &[10]);
    let q = upload(&cpu, 16, &good.q);
    let (k, v) = (upload(&cpu, 8, &good.k), upload(&cpu, 8, &good.v));
    let attend = |heads, sequences: &[Range<usize>]| {
        let args = Attend { q: &q, k: &k, v: &v, heads, scale: 1.0, window: None, sequences };
        cpu.attend(&args).is_ok()
    };
    assert!(attend(good.heads, &[0..5, 5..10]));
    assert!(!attend(good.heads, &[0..5, 4..10]));
    assert!(!attend(good.heads, &[0..5, 5..11]));
    assert!(!attend(Heads { query: 2, kv: 2, dim: 8 }, &[]));
    assert!(!attend(Heads { query: 2, kv: 0, dim: 8 }, &[]));
}
