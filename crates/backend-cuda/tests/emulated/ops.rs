//! The other ops against the plain reference: rows, statistics of logits, algebra.

use crate::common::{Noise, checked, close, dense, emulated, upload};
use backend::{
    Backend, Buffer, DivergenceRow, Draws, Embed, Fold, RankUpdate, Reference, Rope, RopeTable,
    SoftmaxRow,
};
use backend_cuda::Cuda;
use engine::{Change, Kind, SHORTLIST, Wish};
use ir::Activation;

fn rows(backend: &dyn Backend, count: usize, width: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut noise = Noise::new((count * width) as u64);
    let (x, y) = (noise.values(count * width), noise.values(count * width));
    let whole = dense(backend, &[width], &noise.values(width));
    let head = dense(backend, &[width / 4], &noise.values(width / 4));
    let buffer = |x: &[f32]| upload(backend, width, x);
    let read = |buffer: Buffer| backend.download(buffer).unwrap();
    let mut all = vec![
        ("norm of rows", read(backend.norm(&buffer(&x), &whole, 1e-5).unwrap())),
        ("norm of heads", read(backend.norm(&buffer(&x), &head, 1e-5).unwrap())),
    ];
    let mut sum = buffer(&x);
    let before = backend.copy(&sum).unwrap();
    backend.add(&mut sum, &buffer(&y)).unwrap();
    all.push(("add", read(sum)));
    all.push(("a copy of what is changed", read(before)));
    let mut product = buffer(&x);
    backend.mul(&mut product, &buffer(&y)).unwrap();
    all.push(("mul", read(product)));
    let mut gate = buffer(&x);
    backend.activate(Activation::Silu, &mut gate).unwrap();
    all.push(("silu", read(backend.copy(&gate).unwrap())));
    backend.mul(&mut gate, &buffer(&y)).unwrap();
    all.push(("silu and mul", read(gate)));
    let inv_freq = (0..width / 8).map(|i| 0.8f32.powi(i as i32)).collect();
    let table = RopeTable::new(&ir::Rope { inv_freq, magnitude: 1.2 }, 64);
    let mut turned = backend.norm(&buffer(&x), &head, 1e-5).unwrap();
    let sequences = [0..count / 2, count / 2..count];
    let (sequences, starts) = (&sequences[..], &[7, 0][..]);
    backend
        .rope(&Rope { head_dim: width / 4, table: &table, sequences, starts }, &mut turned)
        .unwrap();
    all.push(("norm and rope", read(turned)));
    all
}

fn same_rows(cuda: &Cuda, count: usize, width: usize) {
    for ((name, got), (_, want)) in
        rows(cuda, count, width).into_iter().zip(rows(&Reference, count, width))
    {
        // What a linear reads is a bf16.
        let allowed = if matches!(name, "norm of rows" | "silu and mul") { 4e-3 } else { 1e-5 };
        close(&format!("{name}, {count} x {width}"), &got, &want, allowed);
    }
}

#[test]
fn rows_are_those_of_the_reference() {
    emulated("rows_are_those_of_the_reference", |cuda| {
        for (count, width) in [(1, 64), (3, 200), (9, 1032)] {
            same_rows(cuda, count, width);
        }
    });
}

#[test]
fn rows_touch_only_what_is_theirs() {
    checked("rows_touch_only_what_is_theirs", |cuda| same_rows(cuda, 3, 72));
}

/// Norms of sums that are made on the way, as wide as what threads hold at once, and wider.
fn same_norms(cuda: &Cuda, widths: &[usize]) {
    for &width in widths {
        let mut noise = Noise::new(width as u64);
        let (x, y) = (noise.values(3 * width), noise.values(3 * width));
        let weight = noise.values(width);
        let run = |backend: &dyn Backend, rows: std::ops::Range<usize>| {
            let cut = |x: &[f32]| upload(backend, width, &x[rows.start * width..rows.end * width]);
            let weight = dense(backend, &[width], &weight);
            let mut sum = cut(&x);
            backend.add(&mut sum, &cut(&y)).unwrap();
            let norm = backend.norm(&sum, &weight, 1e-5).unwrap();
            [norm, sum].map(|buffer| backend.download(buffer).unwrap())
        };
        let (got, want) = (run(cuda, 0..3), run(&Reference, 0..3));
        close(&format!("norm of a sum of {width}"), &got[0], &want[0], 4e-3);
        assert_eq!(got[1], want[1], "sum of {width}");
        // Whatever rows there are beside it.
        assert_eq!(run(cuda, 1..2), got.map(|all| all[width..2 * width].to_vec()));
    }
}

#[test]
fn norms_of_every_width() {
    emulated("norms_of_every_width", |cuda| {
        same_norms(cuda, &[1, 70, 2048, 2049, 4096, 4100, 8191, 8192, 8193]);
    });
}

#[test]
fn norms_touch_only_what_is_theirs() {
    checked("norms_touch_only_what_is_theirs", |cuda| same_norms(cuda, &[70, 2050, 4097, 8195]));
}

#[test]
fn embeddings_are_gathered_by_slices() {
    emulated("embeddings_are_gathered_by_slices", |cuda| {
        let (vocab, width) = (50, 72);
        let table = Noise::new(1).bf16(vocab * width);
        let tokens = [0, 49, 17, 30, 17, 1000];
        let mut out = upload(cuda, width, &vec![0.5; tokens.len() * width]);
        for (first, end) in [(0, 20), (20, 50)] {
            let slice = &table[first * width..end * width];
            let weight = dense(cuda, &[end - first, width], slice);
            let args = Embed { tokens: &tokens, weight: &weight, first: first as u32 };
            cuda.embed(&args, &mut out).unwrap();
        }
        let got = cuda.download(out).unwrap();
        for (row, &token) in got.chunks(width).zip(&tokens) {
            match table.get(token as usize * width..(token as usize + 1) * width) {
                Some(want) => assert_eq!(row, want),
                None => assert!(row.iter().all(|&x| x == 0.5)),
            }
        }
    });
}

#[test]
fn statistics_of_logits_fold_as_the_reference() {
    emulated("statistics_of_logits_fold_as_the_reference", |cuda| {
        let (count, width) = (3, 1000);
        let mut noise = Noise::new(8);
        let mut logits =
            || -> Vec<f32> { noise.values(count * width).iter().map(|x| x * 9.0).collect() };
        let (mut p, q) = (logits(), logits());
        // The first of equals counts.
        (p[700], p[900]) = (20.0, 20.0);
        let fold = |backend: &dyn Backend| {
            let mut soft: Vec<_> = [5, 999, 400].map(SoftmaxRow::new).to_vec();
            let mut pairs: Vec<_> = [5, 999, 400].map(DivergenceRow::new).to_vec();
            for (first, end) in [(0, 300), (300, 301), (301, 1000)] {
                let cut = |x: &[f32]| -> Vec<f32> {
                    x.chunks(width).flat_map(|row| row[first..end].to_vec()).collect()
                };
                let (p, q) = (
                    upload(backend, end - first, &cut(&p)),
                    upload(backend, end - first, &cut(&q)),
                );
                backend.fold(first as u32, Fold::Softmax { logits: &p, rows: &mut soft }).unwrap();
                backend
                    .fold(first as u32, Fold::Divergence { logits: [&p, &q], rows: &mut pairs })
                    .unwrap();
            }
            (soft, pairs)
        };
        let ((soft, pairs), (want_soft, want_pairs)) = (fold(cuda), fold(&Reference));
        for (got, want) in soft
            .iter()
            .zip(&want_soft)
            .chain(pairs.iter().map(|p| &p.q).zip(want_pairs.iter().map(|p| &p.q)))
        {
            assert_eq!(
                (got.max, got.best, got.target_logit),
                (want.max, want.best, want.target_logit)
            );
            assert!((got.logprob() - want.logprob()).abs() < 1e-4);
        }
        for (got, want) in pairs.iter().zip(&want_pairs) {
            assert!(
                (got.divergence() - want.divergence()).abs() < 1e-4 * want.divergence().max(1.0)
            );
        }
    });
}

fn algebra(cuda: &Cuda, sizes: &[usize]) {
    for &n in sizes {
        let mut noise = Noise::new(n as u64);
        let x = noise.values(3 * n * n);
        let rows = 3 * n;
        let sequences = [1..rows / 2, rows / 2..rows / 2 + 1, rows / 2 + 1..rows];
        let gram = |backend: &dyn Backend| {
            let mut sum = upload(backend, n, &vec![0.25; n * n]);
            // A copy is of what it was.
            let before = backend.copy(&sum).unwrap();
            backend.algebra().unwrap().gram(&upload(backend, n, &x), &sequences, &mut sum).unwrap();
            assert_eq!(backend.download(before).unwrap(), vec![0.25; n * n]);
            backend.download(sum).unwrap()
        };
        let sum = gram(&Reference);
        assert_eq!(gram(cuda), sum, "gram of {n}");
        let mut h: Vec<f64> = sum.iter().map(|&x| f64::from(x) / n as f64).collect();
        (0..n).for_each(|i| h[i * n + i] += 0.1);
        let factor = |backend: &dyn Backend, mut h: Vec<f64>| {
            let done = backend.algebra().unwrap().inverse_factor(&mut h, n).unwrap();
            done.then(|| h.into_iter().map(f64::to_bits).collect::<Vec<_>>())
        };
        assert!(factor(cuda, h.clone()).is_some_and(|u| Some(u) == factor(&Reference, h.clone())));
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            let mut h = h.clone();
            h[n / 2 * n + n / 2] = bad;
            assert!(factor(cuda, h).is_none(), "{bad} in {n}");
        }
        let (rows, depth, columns) = (5 + n / 2, n.min(100), n / 3..n);
        let (a, b) = (noise.values(rows * depth), noise.values(depth * columns.len()));
        let c = noise.values(rows * n);
        let update = |backend: &dyn Backend| {
            let mut c = upload(backend, n, &c);
            let args = RankUpdate { columns: columns.clone(), a: &a, b: &b, depth };
            backend.algebra().unwrap().rank_update(&mut c, &args).unwrap();
            let some = backend.algebra().unwrap().columns(&c, 1.min(n - 1)..n).unwrap();
            [backend.download(c).unwrap(), some]
        };
        assert_eq!(update(cuda), update(&Reference), "update of {n}");
    }
}

/// The compiler's sums have the bits of the CPU's.
#[test]
fn algebra_is_the_default_class() {
    emulated("algebra_is_the_default_class", |cuda| algebra(cuda, &[1, 33, 150]));
}

#[test]
fn algebra_touches_only_what_is_its_own() {
    checked("algebra_touches_only_what_is_its_own", |cuda| algebra(cuda, &[40, 140]));
}

/// What `optimize doctor` runs on a GPU passes on the emulator, and finds a device that is wrong.
#[test]
fn the_doctors_trials_pass() {
    emulated("the_doctors_trials_pass", |cuda| {
        assert_eq!(cuda.wrong().unwrap(), []);
        let (trials, failed) = cuda.trials();
        assert_eq!(failed, [""; 0]);
        assert!(trials.len() > 50);
        for trial in trials {
            assert!(trial.passed(), "{trial:?}");
        }
    });
}

#[test]
fn rates_are_measured() {
    checked("rates_are_measured", |cuda| {
        let rates = cuda.rates(1 << 14, 1).unwrap();
        assert!(rates.read > 0.0 && rates.bf16 > 0.0 && rates.int8 > 0.0);
    });
}

/// That draws by a shortlist are the reference sampler's is tested with the engine, in `tests`.
#[test]
fn shortlists_touch_only_what_is_theirs() {
    checked("shortlists_touch_only_what_is_theirs", |cuda| {
        let width = 700;
        let logits = Noise::new(11).values(3 * width);
        let buffer = upload(cuda, width, &logits);
        let change = Change { token: 699, bias: Some(9.0), ..Change::default() };
        let seek = |of| Wish {
            of,
            key: 5,
            temperature: 0.7,
            min_score: -3.0,
            share: 0.6,
            repetition: 1.0,
            frequency: 0.0,
            presence: 0.0,
            changes: vec![change],
            logprobs: Some(3),
        };
        let rows = [Kind::Best, Kind::NearWinner, Kind::Largest].map(seek);
        let found = cuda.seek(&buffer, &rows).unwrap().found().unwrap();
        for (found, row) in found.iter().zip(logits.chunks(width)) {
            assert_eq!(found.best, (699, row[699] + 9.0));
            assert_eq!(found.originals, [row[699]]);
            assert_eq!(found.raw_list.as_ref().map(Vec::len), Some(3));
        }
        assert_eq!(found[2].list.as_ref().map(Vec::len), Some(64));
    });
}

/// Every token at least as likely as the one of the given rank, by id; `None` if they do not fit.
fn most_likely(row: &[f32], rank: usize) -> Option<Vec<(u32, f32)>> {
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let least = sorted[rank.min(row.len()) - 1];
    let all: Vec<_> = (0..).zip(row.iter().copied()).filter(|(_, x)| *x >= least).collect();
    (all.len() <= SHORTLIST).then_some(all)
}

/// What is found in a row does not depend on where it begins in memory.
fn same_shortlists(cuda: &Cuda, width: usize) {
    let none = f32::NEG_INFINITY;
    let mut noise = Noise::new(width as u64);
    let mut rows: Vec<Vec<f32>> = (0..7).map(|_| noise.values(width)).collect();
    // Equals, next to nothing but what cannot come, nothing else, a few that can, and no number at the end.
    rows[1].iter_mut().for_each(|x| *x = (*x * 300.0).round());
    rows[2].iter_mut().skip(1).for_each(|x| *x = none);
    rows[3].fill(none);
    rows[4].iter_mut().step_by(3).for_each(|x| *x *= -0.0);
    rows[5][width - 1] = [f32::NAN, f32::INFINITY][width % 2];
    rows[6].sort_by(|a, b| b.total_cmp(a));
    let of = [Kind::Largest, Kind::NearWinner, Kind::Best];
    let seek = |row: usize| Wish {
        of: of[row % 3],
        key: 7,
        temperature: 0.2,
        min_score: -3.0,
        share: 0.8,
        repetition: 1.0,
        frequency: 0.0,
        presence: 0.0,
        changes: Vec::new(),
        logprobs: Some(5),
    };
    let find = |rows: &[Vec<f32>], wishes: &[Wish]| {
        let buffer = upload(cuda, width, &rows.concat());
        cuda.seek(&buffer, wishes).unwrap().found().unwrap()
    };
    let found = find(&rows, &[0, 1, 2, 3, 4, 5, 6].map(seek));
    for (i, (found, row)) in found.iter().zip(&rows).enumerate() {
        // As text, where no number is what it is.
        let alone = &find(&rows[i..=i], &[seek(i)])[0];
        assert_eq!(format!("{alone:?}"), format!("{found:?}"), "row {i} of {width}");
        assert_eq!(found.bad, i == 5);
        if found.bad {
            continue;
        }
        let best = (0..width).rev().max_by(|&a, &b| row[a].partial_cmp(&row[b]).unwrap()).unwrap();
        assert_eq!(found.best, (best as u32, row[best]));
        assert_eq!(found.raw_list, most_likely(row, 5), "row {i} of {width}");
        if of[i % 3] == Kind::Largest && row[best] != none {
            assert_eq!(found.list, most_likely(row, SHORTLIST), "row {i} of {width}");
        }
        let sum: f64 = row.iter().map(|x| f64::from(x - row[best]).exp()).sum();
        let near = (f64::from(found.raw.1) - sum).abs() <= 1e-5 * sum;
        assert!(near || row[best] == none, "{} is not {sum}", found.raw.1);
    }
}

#[test]
fn shortlists_are_those_of_any_row() {
    emulated("shortlists_are_those_of_any_row", |cuda| {
        for width in [1, 6, 63, 64, 4099, 16_384, 40_001] {
            same_shortlists(cuda, width);
        }
    });
}
