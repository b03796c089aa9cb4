//! Attention against the plain reference: few rows and many, norms and rotations on the way.

use crate::common::{
    Noise, checked, close, dense, emulated, hopper, hopper_checked, invariant, library, upload,
};
use backend::{
    Attend, AttendPaged, Backend, Buffer, DeviceWeight, KV_BLOCK, KvCache, KvDType, Reference,
    Rope, RopeTable, Span,
};
use backend_cuda::Cuda;
use cuda_emulator::{Check, Emulated, Order};
use ir::Heads;
use std::sync::Arc;

const SHAPES: [Heads; 6] = [
    Heads { query: 4, kv: 2, dim: 8 },
    Heads { query: 3, kv: 3, dim: 64 },
    Heads { query: 8, kv: 2, dim: 80 },
    Heads { query: 20, kv: 1, dim: 128 },
    Heads { query: 4, kv: 2, dim: 256 },
    Heads { query: 2, kv: 1, dim: 144 },
];

/// A sequence in steps of `chunks` rows, its blocks scattered over the cache.
struct Case {
    heads: Heads,
    dtype: KvDType,
    window: Option<u32>,
    norms: bool,
    /// The position of the first row; what is before it is zeros.
    start: usize,
    chunks: Vec<usize>,
}

/// A backend with a cache and the weights of the heads' norms.
struct Side<'b> {
    backend: &'b dyn Backend,
    cache: KvCache,
    norm: DeviceWeight,
    table: RopeTable,
}

const BLOCKS: usize = 1104;

impl<'b> Side<'b> {
    fn new(backend: &'b dyn Backend, case: &Case) -> Self {
        let Heads { dim, .. } = case.heads;
        let cache = backend.kv_cache(case.heads, case.dtype, BLOCKS).unwrap();
        let norm = dense(backend, &[dim], &Noise::new(9).values(dim));
        let inv_freq = (0..dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
        let table = RopeTable::new(&ir::Rope { inv_freq, magnitude: 1.0 }, 9000);
        Self { backend, cache, norm, table }
    }

    /// Rows as the program leaves them before attention.
    fn heads(&self, case: &Case, x: &[f32], heads: usize, spans: &[Span<'_>]) -> Buffer {
        let mut buffer = upload(self.backend, heads * case.heads.dim, x);
        if case.norms {
            buffer = self.backend.norm(&buffer, &self.norm, 1e-6).unwrap();
        }
        let rows: Vec<_> = spans.iter().map(|span| span.rows.clone()).collect();
        let starts: Vec<_> = spans.iter().map(|span| span.start).collect();
        let (sequences, starts) = (&rows[..], &starts[..]);
        let args = Rope { head_dim: case.heads.dim, table: &self.table, sequences, starts };
        self.backend.rope(&args, &mut buffer).unwrap();
        buffer
    }

    fn step(&self, case: &Case, [q, k, v]: [&[f32]; 3], spans: &[Span<'_>]) -> Vec<f32> {
        let Case { heads, window, .. } = *case;
        let q = self.heads(case, q, heads.query, spans);
        let k = self.heads(case, k, heads.kv, spans);
        let v = upload(self.backend, heads.kv * heads.dim, v);
        let scale = (heads.dim as f32).sqrt().recip();
        let args = AttendPaged { q: &q, k: &k, v: &v, heads, scale, window, spans };
        self.backend.download(self.backend.attend_paged(&args, &self.cache).unwrap()).unwrap()
    }
}

/// Block `i` of a sequence.
fn scattered(sequence: usize, i: usize) -> u32 {
    ((i * 2 + sequence) * 37 % BLOCKS) as u32
}

fn run(backend: &dyn Backend, case: &Case) {
    let (ours, reference) = (Side::new(backend, case), Side::new(&Reference, case));
    let Heads { query, kv, dim } = case.heads;
    let mut noise = Noise::new(dim as u64);
    let tables: Vec<Vec<u32>> =
        (0..2).map(|s| (0..BLOCKS / 2).map(|i| scattered(s, i)).collect()).collect();
    let (mut start, mut step) = (case.start, 0);
    for &rows in &case.chunks {
        // A second sequence decodes beside it, one row a step.
        let spans = [
            Span { rows: 0..1, start: step, blocks: &tables[1] },
            Span { rows: 1..1 + rows, start, blocks: &tables[0] },
        ];
        let mut values = |heads: usize| noise.values((rows + 1) * heads * dim);
        let (q, k, v) = (values(query), values(kv), values(kv));
        let got = ours.step(case, [&q, &k, &v], &spans);
        let want = reference.step(case, [&q, &k, &v], &spans);
        let what = format!("{:?} {:?} {:?} at {start}", case.heads, case.dtype, case.window);
        close(&what, &got, &want, 1.5e-2);
        (start, step) = (start + rows, step + 1);
    }
}

fn case(heads: Heads, dtype: KvDType, window: Option<u32>, chunks: &[usize]) -> Case {
    Case { heads, dtype, window, norms: heads.dim != 80, start: 0, chunks: chunks.to_vec() }
}

#[test]
fn rows_and_tiles_are_close_to_the_reference() {
    emulated("rows_and_tiles_are_close_to_the_reference", |cuda| {
        for heads in SHAPES {
            for dtype in [KvDType::Bf16, KvDType::Int8] {
                run(cuda, &case(heads, dtype, None, &[5, 1, 70, 3, 1, 16]));
                run(cuda, &case(heads, dtype, Some(24), &[40, 1, 33, 1, 2]));
            }
        }
    });
}

#[test]
fn long_sequences_have_several_splits() {
    emulated("long_sequences_have_several_splits", |cuda| {
        for heads in &SHAPES[..2] {
            run(cuda, &case(*heads, KvDType::Bf16, None, &[250, 3, 4, 1, 20, 1]));
            run(cuda, &case(*heads, KvDType::Int8, Some(260), &[300, 1, 7, 1]));
        }
    });
}

#[test]
fn long_prompts_by_warpgroups() {
    hopper("long_prompts_by_warpgroups", |cuda| {
        for heads in SHAPES {
            for dtype in [KvDType::Bf16, KvDType::Int8] {
                run(cuda, &case(heads, dtype, None, &[150, 1, 17, 70, 3]));
                run(cuda, &case(heads, dtype, Some(50), &[40, 1, 190, 20]));
            }
        }
    });
}

#[test]
fn warpgroups_attend_to_what_is_their_own() {
    hopper_checked("warpgroups_attend_to_what_is_their_own", |cuda| {
        for dtype in [KvDType::Bf16, KvDType::Int8] {
            run(cuda, &case(SHAPES[0], dtype, None, &[70, 1, 18]));
            run(cuda, &case(SHAPES[2], dtype, Some(10), &[18, 1]));
        }
    });
}

/// The last of their blocks merges eight splits; more are merged by a launch of their own.
#[test]
fn many_splits_are_merged_apart() {
    emulated("many_splits_are_merged_apart", |cuda| {
        for heads in [SHAPES[0], SHAPES[4]] {
            for window in [None, Some(300)] {
                let start = 8 * 256 - 3;
                run(cuda, &Case { start, ..case(heads, KvDType::Bf16, window, &[2, 1, 1, 4]) });
            }
        }
    });
}

/// Sixteen are merged side by side: here more, with something to see in every third.
#[test]
fn a_sequence_of_very_many_splits() {
    emulated("a_sequence_of_very_many_splits", |cuda| {
        for (heads, window) in [(SHAPES[0], None), (SHAPES[4], Some(8000))] {
            let case = case(heads, KvDType::Bf16, window, &[]);
            let (ours, reference) = (Side::new(cuda, &case), Side::new(&Reference, &case));
            let blocks: Vec<u32> = (0..BLOCKS / 2).map(|i| scattered(0, i)).collect();
            let mut noise = Noise::new(6);
            for split in (0..34).step_by(3) {
                let mut values = |heads: usize| noise.values(2 * heads * case.heads.dim);
                let (q, k, v) = (values(heads.query), values(heads.kv), values(heads.kv));
                let spans =
                    [Span { rows: 0..2, start: split * 256 + 255 - split, blocks: &blocks }];
                let got = ours.step(&case, [&q, &k, &v], &spans);
                let want = reference.step(&case, [&q, &k, &v], &spans);
                close(&format!("{heads:?}, {split}"), &got, &want, 1.5e-2);
            }
        }
    });
}

#[test]
fn attention_touches_only_what_is_its_own() {
    checked("attention_touches_only_what_is_its_own", |cuda| {
        for dtype in [KvDType::Bf16, KvDType::Int8] {
            run(cuda, &case(SHAPES[0], dtype, None, &[3, 1, 18, 1]));
            run(cuda, &case(SHAPES[2], dtype, Some(10), &[18, 1]));
            run(cuda, &case(SHAPES[4], dtype, None, &[17, 1]));
            for start in [2 * 256 - 1, 17 * 256 - 1] {
                run(cuda, &Case { start, ..case(SHAPES[0], dtype, None, &[1, 2]) });
            }
        }
    });
}

/// What stands in blocks before they are a sequence's is nobody's business, NaN included.
#[test]
fn what_others_left_in_a_block_is_not_seen() {
    emulated("what_others_left_in_a_block_is_not_seen", |cuda| {
        for dtype in [KvDType::Bf16, KvDType::Int8] {
            let case = case(SHAPES[1], dtype, None, &[]);
            let side = Side::new(cuda, &case);
            let Heads { query, kv, dim } = case.heads;
            let bad = |heads: usize| vec![f32::NAN; 32 * heads * dim];
            let spans = [Span { rows: 0..32, start: 0, blocks: &[3, 4] }];
            side.step(&case, [&bad(query), &bad(kv), &bad(kv)], &spans);
            for rows in [2, 20] {
                let mut noise = Noise::new(1);
                let mut values = |heads: usize| noise.values(rows * heads * dim);
                let (q, k, v) = (values(query), values(kv), values(kv));
                let spans = [Span { rows: 0..rows, start: 0, blocks: &[4, 3] }];
                let got = side.step(&case, [&q, &k, &v], &spans);
                assert!(got.iter().all(|x| x.is_finite()), "{dtype:?}, {rows} rows");
            }
        }
    });
}

/// Whole sequences, as calibration runs them.
#[test]
fn whole_sequences() {
    emulated("whole_sequences", |cuda| {
        for heads in SHAPES {
            let mut noise = Noise::new(3);
            let sequences = [0..20, 20..21, 21..90];
            let mut values = |n: usize| noise.values(90 * n * heads.dim);
            let (q, k, v) = (values(heads.query), values(heads.kv), values(heads.kv));
            let scale = (heads.dim as f32).sqrt().recip();
            let run = |backend: &dyn Backend, window| {
                let q = upload(backend, heads.query * heads.dim, &q);
                let (k, v) = (
                    upload(backend, heads.kv * heads.dim, &k),
                    upload(backend, heads.kv * heads.dim, &v),
                );
                let (q, k, v, sequences) = (&q, &k, &v, &sequences[..]);
                let args = Attend { q, k, v, heads, scale, window, sequences };
                backend.download(backend.attend(&args).unwrap()).unwrap()
            };
            for window in [None, Some(17)] {
                close(&format!("{heads:?}"), &run(cuda, window), &run(&Reference, window), 1.5e-2);
            }
        }
    });
}

/// A row's attention has the same bits alone, beside its own drafts and beside others.
#[test]
fn rows_that_decode_do_not_see_what_is_beside_them() {
    emulated("rows_that_decode_do_not_see_what_is_beside_them", |cuda| {
        for dtype in [KvDType::Bf16, KvDType::Int8] {
            let case = case(SHAPES[2], dtype, None, &[]);
            let Heads { query, kv, dim } = case.heads;
            let mut noise = Noise::new(2);
            let rows = 300;
            let mut values = |heads: usize| noise.values(rows * heads * dim);
            let (q, k, v) = (values(query), values(kv), values(kv));
            let blocks: Vec<u32> = (0..20).map(|i| scattered(0, i)).collect();
            let take = |x: &[f32], heads: usize, of: std::ops::Range<usize>| {
                x[of.start * heads * dim..of.end * heads * dim].to_vec()
            };
            let run = |steps: &[usize]| {
                let (side, mut start, mut out) = (Side::new(cuda, &case), 0, Vec::new());
                for &count in steps {
                    let of = start..start + count;
                    let parts = [
                        take(&q, query, of.clone()),
                        take(&k, kv, of.clone()),
                        take(&v, kv, of.clone()),
                    ];
                    let spans = [Span { rows: 0..count, start, blocks: &blocks }];
                    out.extend(side.step(&case, parts.each_ref().map(|x| &x[..]), &spans));
                    start += count;
                }
                out
            };
            let prompt = 250;
            let alone = run(&[prompt, 1, 1, 1, 1, 1, 1, 1, 1]);
            assert_eq!(run(&[prompt, 5, 3]), alone, "{dtype:?}");
            assert_eq!(run(&[prompt, 1, 7]), alone, "{dtype:?}");
            // And tiles are cut at positions, not where a chunk begins.
            assert_eq!(run(&[100, 150, 8]), alone, "{dtype:?}");
        }
    });
}

#[test]
fn invariant_rows_do_not_depend_on_chunks() {
    invariant("invariant_rows_do_not_depend_on_chunks", |cuda| {
        let case = case(SHAPES[0], KvDType::Bf16, None, &[]);
        let Heads { query, kv, dim } = case.heads;
        let mut noise = Noise::new(4);
        let rows = 90;
        let mut values = |heads: usize| noise.values(rows * heads * dim);
        let (q, k, v) = (values(query), values(kv), values(kv));
        let blocks: Vec<u32> = (0..rows.div_ceil(KV_BLOCK) as u32).collect();
        let run = |steps: &[usize]| {
            let (side, mut start, mut out) = (Side::new(cuda, &case), 0, Vec::new());
            for &count in steps {
                let of = |x: &[f32], heads: usize| {
                    x[start * heads * dim..(start + count) * heads * dim].to_vec()
                };
                let parts = [of(&q, query), of(&k, kv), of(&v, kv)];
                let spans = [Span { rows: 0..count, start, blocks: &blocks }];
                out.extend(side.step(&case, parts.each_ref().map(|x| &x[..]), &spans));
                start += count;
            }
            out
        };
        let whole = run(&[90]);
        assert_eq!(run(&[1; 90]), whole);
        assert_eq!(run(&[50, 3, 37]), whole);
    });
}

/// A step of a row that decodes at `start` and, where there are some, `rows` of a prompt from `prompt` on.
fn beside(cuda: &Cuda, case: &Case, start: usize, prompt: usize, rows: usize) -> Vec<f32> {
    let tables: Vec<Vec<u32>> =
        (0..2).map(|s| (0..BLOCKS / 2).map(|i| scattered(s, i)).collect()).collect();
    let Heads { query, kv, dim } = case.heads;
    let mut noise = Noise::new(5);
    let mut values = |heads: usize| noise.values((1 + rows) * heads * dim);
    let (q, k, v) = (values(query), values(kv), values(kv));
    let spans = [
        Span { rows: 0..1, start, blocks: &tables[1] },
        Span { rows: 1..1 + rows, start: prompt, blocks: &tables[0] },
    ];
    let spans = if rows == 0 { &spans[..1] } else { &spans[..] };
    Side::new(cuda, case).step(case, [&q, &k, &v], spans)
}

/// What splits come to is kept of the rows that have some, not of a prompt's, and seldom asks for more.
#[test]
fn a_long_sequence_beside_a_prompt_needs_little() {
    let name = "a_long_sequence_beside_a_prompt_needs_little";
    let Some(library) = library(name, Check::Barriers) else { return };
    let device = Arc::new(Emulated::new(library, Order::Forward, true).metered());
    let cuda = Cuda::new(Arc::clone(&device) as _, false);
    let case = case(SHAPES[0], KvDType::Bf16, None, &[]);
    let asked = |start, rows| {
        device.asked();
        beside(&cuda, &case, start, 0, rows);
        device.asked()
    };
    // Counters are made once.
    asked(0, 150);
    let (short, long) = (asked(100, 150), asked(2000, 150));
    // Four heads of one row, eight splits, and heads of 64 with a maximum and a sum.
    let written = 4 * 8 * (2 + 64) * 4;
    assert!(long - short <= 2 * written, "{short} bytes, then {long}");
    assert_eq!(long - short, asked(2000, 0) - asked(100, 0), "what is beside it adds nothing");
    for start in [2047, 2048, 2100] {
        assert_eq!(asked(start, 150), long, "at {start}");
    }
    // Four splits to seven.
    assert_eq!(asked(1700, 150), asked(800, 150));
}

/// Rows have the same bits in however many launches they are, and whoever merges their splits.
#[test]
fn launches_of_few_rows_may_be_cut_anywhere() {
    let name = "launches_of_few_rows_may_be_cut_anywhere";
    let Some(library) = library(name, Check::Barriers) else { return };
    for (heads, window) in [(SHAPES[0], None), (SHAPES[3], None), (SHAPES[4], Some(300))] {
        for dtype in [KvDType::Bf16, KvDType::Int8] {
            let case = case(heads, dtype, window, &[]);
            // Three splits, which blocks merge, and nine, which a launch does.
            for start in [600, 2100] {
                let run = |room: Option<usize>| {
                    let device = Arc::new(Emulated::new(library, Order::Random(2), false));
                    let cuda = Cuda::new(device, true);
                    let cuda = match room {
                        Some(bytes) => cuda.with_splits_room(bytes),
                        None => cuda,
                    };
                    beside(&cuda, &case, start, 240, 40)
                };
                let whole = run(None);
                for room in [1, 40_000] {
                    assert!(run(Some(room)) == whole, "{heads:?} {dtype:?}, {room} bytes");
                }
            }
        }
    }
}

#[test]
fn what_the_kernels_do_not_have_is_refused() {
    emulated("what_the_kernels_do_not_have_is_refused", |cuda| {
        let error = cuda.kv_cache(SHAPES[0], KvDType::F32, 4).unwrap_err();
        assert!(error.to_string().contains("bf16 or int8"), "{error}");
        let wide = Heads { query: 1, kv: 1, dim: 320 };
        let error = cuda.kv_cache(wide, KvDType::Bf16, 4).unwrap_err();
        assert!(error.to_string().contains("320"), "{error}");
    });
}
