//! Attention over pages gives the reference's bits, in whatever order blocks lie and however a
//! sequence is cut into spans; with unrounded pages those of attention over whole sequences.

use crate::common::{Noise, cpus, equal, upload};
use backend::{Attend, AttendPaged, Backend, KV_BLOCK, KvDType, Reference, Span};
use ir::Heads;

struct Case {
    heads: Heads,
    window: Option<u32>,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    /// `[rows, ..]` of all the sequences, one after the other.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// The blocks of each sequence.
    tables: Vec<Vec<u32>>,
    blocks: usize,
}

impl Case {
    fn new(noise: &mut Noise, heads: Heads, window: Option<u32>, lengths: &[usize]) -> Self {
        let rows = lengths.iter().sum::<usize>();
        let (q, k, v) = (
            noise.values(rows * heads.query * heads.dim),
            noise.values(rows * heads.kv * heads.dim),
            noise.values(rows * heads.kv * heads.dim),
        );
        let needed: usize = lengths.iter().map(|n| n.div_ceil(KV_BLOCK)).sum();
        let mut free: Vec<u32> = (0..needed as u32 + 3).collect();
        let tables = lengths.iter().map(|n| {
            let take = |_| free.swap_remove(noise.within(0..free.len()));
            (0..n.div_ceil(KV_BLOCK)).map(take).collect()
        });
        let tables = tables.collect();
        let lengths = lengths.to_vec();
        Self { heads, window, lengths, q, k, v, tables, blocks: needed + 3 }
    }

    /// Computes every sequence in steps, `cut` says how many tokens of each the next one has.
    fn run(
        &self,
        backend: &dyn Backend,
        dtype: KvDType,
        mut cut: impl FnMut() -> usize,
    ) -> Vec<f32> {
        let heads = self.heads;
        let cache = backend.kv_cache(heads, dtype, self.blocks).unwrap();
        let firsts: Vec<usize> =
            (0..self.lengths.len()).map(|i| self.lengths[..i].iter().sum()).collect();
        let mut done = vec![0; self.lengths.len()];
        let mut out = vec![0.0; self.q.len()];
        while done != self.lengths {
            let (mut spans, mut rows) = (Vec::new(), Vec::new());
            for (index, done) in done.iter_mut().enumerate() {
                let count = cut().min(self.lengths[index] - *done);
                let begin = rows.len();
                rows.extend((0..count).map(|i| firsts[index] + *done + i));
                let mut blocks = self.tables[index].clone();
                let seen = Span::first_seen(self.window, *done) / KV_BLOCK;
                blocks[..seen].fill(u32::MAX);
                spans.push((begin..begin + count, *done, blocks));
                *done += count;
            }
            let spans: Vec<Span<'_>> = spans
                .iter()
                .map(|(rows, start, blocks)| Span { rows: rows.clone(), start: *start, blocks })
                .collect();
            let gather = |x: &[f32], heads: usize| {
                let width = heads * self.heads.dim;
                let rows = rows.iter().flat_map(|r| x[r * width..(r + 1) * width].to_vec());
                upload(backend, width, &rows.collect::<Vec<f32>>())
            };
            let args = AttendPaged {
                q: &gather(&self.q, heads.query),
                k: &gather(&self.k, heads.kv),
                v: &gather(&self.v, heads.kv),
                heads,
                scale: 1.0 / (heads.dim as f32).sqrt(),
                window: self.window,
                spans: &spans,
            };
            let result = backend.attend_paged(&args, &cache).unwrap();
            let result = backend.download(result).unwrap();
            let width = heads.query * heads.dim;
            for (row, values) in rows.iter().zip(result.chunks_exact(width)) {
                out[row * width..(row + 1) * width].copy_from_slice(values);
            }
        }
        out
    }

    /// Whole sequences, without a cache.
    fn whole(&self) -> Vec<f32> {
        let heads = self.heads;
        let mut end = 0;
        let sequences = self.lengths.iter().map(|n| {
            end += n;
            end - n..end
        });
        let args = Attend {
            q: &upload(&Reference, heads.query * heads.dim, &self.q),
            k: &upload(&Reference, heads.kv * heads.dim, &self.k),
            v: &upload(&Reference, heads.kv * heads.dim, &self.v),
            heads,
            scale: 1.0 / (heads.dim as f32).sqrt(),
            window: self.window,
            sequences: &sequences.collect::<Vec<_>>(),
        };
        Reference.download(Reference.attend(&args).unwrap()).unwrap()
    }
}

#[test]
fn blocks_spans_windows_and_kinds_of_storage() {
    let mut noise = Noise(71);
    let lengths: [&[usize]; 4] = [&[1, 40], &[130, 3], &[300], &[17, 200, 33]];
    for case in 0..48 {
        let kv = noise.within(1..4);
        let query = kv * noise.within(1..8);
        let dim = [4, 8, 16, 31, 48, 64, 128, 80][case % 8];
        let window = match case % 3 {
            0 => None,
            _ => Some([1, 3, 17, 64, 127, 128, 129, 200][noise.within(0..8)]),
        };
        let heads = Heads { query, kv, dim };
        let case = Case::new(&mut noise, heads, window, lengths[case / 12]);
        for dtype in [KvDType::F32, KvDType::Bf16, KvDType::Int8] {
            let what = format!("{heads:?} {window:?} {:?} {}", case.lengths, dtype.name());
            let want = case.run(&Reference, dtype, || usize::MAX);
            if dtype == KvDType::F32 {
                equal(&what, &want, &case.whole());
            }
            for cpu in cpus() {
                let what = format!("{what}, {}", cpu.isa().name());
                equal(&what, &case.run(&cpu, dtype, || usize::MAX), &want);
                let cut = || noise.within(0..30);
                equal(&format!("{what}, in pieces"), &case.run(&cpu, dtype, cut), &want);
            }
        }
    }
}

#[test]
fn decoding_reads_what_prefill_wrote() {
    let mut noise = Noise(72);
    let case = Case::new(&mut noise, Heads { query: 16, kv: 8, dim: 128 }, None, &[150, 260]);
    for dtype in [KvDType::Bf16, KvDType::Int8] {
        let want = case.run(&Reference, dtype, || usize::MAX);
        for cpu in cpus() {
            let mut first = 2;
            let cut = || {
                first = usize::saturating_sub(first, 1);
                if first > 0 { 128 } else { 1 }
            };
            equal(cpu.isa().name(), &case.run(&cpu, dtype, cut), &want);
        }
    }
}

#[test]
fn a_sequence_without_numbers_leaves_others_alone() {
    let mut noise = Noise(73);
    let heads = Heads { query: 4, kv: 2, dim: 16 };
    let mut case = Case::new(&mut noise, heads, None, &[40, 50]);
    let good = case.run(&Reference, KvDType::Bf16, || 7);
    (case.k[5], case.v[9]) = (f32::NAN, f32::INFINITY);
    for dtype in [KvDType::Bf16, KvDType::Int8] {
        let want = case.run(&Reference, dtype, || 7);
        assert!(want[..64].iter().any(|x| !x.is_finite()));
        assert!(want[40 * 64..].iter().all(|x| x.is_finite()));
        for cpu in cpus() {
            equal(cpu.isa().name(), &case.run(&cpu, dtype, || 7), &want);
        }
    }
    let again = case.run(&Reference, KvDType::Bf16, || 7);
    equal("the other", &again[40 * 64..], &good[40 * 64..]);
}

#[test]
fn tables_that_do_not_fit_are_errors() {
    let heads = Heads { query: 2, kv: 1, dim: 8 };
    for cpu in cpus() {
        let cache = cpu.kv_cache(heads, KvDType::Bf16, 2).unwrap();
        let (q, kv) = (upload(&cpu, 16, &[0.5; 48]), upload(&cpu, 8, &[0.5; 24]));
        let attend = |spans: &[Span<'_>], window| {
            let (q, k, v, scale) = (&q, &kv, &kv, 1.0);
            cpu.attend_paged(&AttendPaged { q, k, v, heads, scale, window, spans }, &cache).is_ok()
        };
        let span = |start, blocks| Span { rows: 0..3, start, blocks };
        assert!(attend(&[span(0, &[1])], None));
        assert!(attend(&[span(14, &[1, 0])], None));
        assert!(!attend(&[span(14, &[1])], None));
        assert!(!attend(&[span(0, &[2])], None));
        assert!(!attend(&[span(16, &[9, 0])], None));
        assert!(attend(&[span(16, &[9, 0])], Some(1)));
        assert!(!attend(&[span(0, &[1]), span(0, &[0])], None));
        assert!(!attend(&[Span { rows: 2..4, start: 0, blocks: &[1] }], None));
    }
}
