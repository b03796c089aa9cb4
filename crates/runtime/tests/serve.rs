//! The runtime against the streamed forward, and against itself in other company: the same bits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend::KvDType;
use backend::numerics::inverse_rms;
use backend_cpu::Cpu;
use calibration::{Forward, Precision};
use checkpoint::Checkpoint;
use engine::{
    DraftModel, Engine, Event, Executor, Finish, NGram, Options, Request, Sampled, Sampling,
    Scratch, SeqId, Speculator, Stepper, score,
};
use ir::{Op, ReadError, Source, Value, View, WeightId};
use rayon::ThreadPoolBuilder;
use runtime::{InPool, KvPlan, KvRoom, Model, Runner, Settings, apart};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tensor::Tensor;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

struct Opened {
    checkpoint: Checkpoint,
    spec: ir::ModelSpec,
    cpu: Cpu,
}

impl Opened {
    fn new(folder: &Path) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;
        Self { checkpoint, spec, cpu: Cpu::new() }
    }

    fn stories() -> Self {
        Self::new(&tests().join("models/stories260k"))
    }

    fn model(&self) -> Model {
        Model::on(&self.cpu, &self.checkpoint, &self.spec, false).unwrap()
    }

    fn runner<'m>(&'m self, model: &'m Model, dtype: KvDType, blocks: u64) -> Runner<'m> {
        let token = KvPlan::new(&self.spec, dtype, &KvRoom::new(u64::MAX, 1)).unwrap().token;
        let room = KvRoom::new(token * 16 * blocks, usize::MAX);
        let plan = KvPlan::new(&self.spec, dtype, &room).unwrap();
        Runner::new(&[&self.cpu], model, plan, &Settings::default()).unwrap()
    }

    /// Logits `[tokens, vocab]` by the streamed forward, computed exactly.
    fn streamed(&self, tokens: &[u32]) -> Vec<f32> {
        self.streamed_as(Precision::Exact, tokens)
    }

    fn streamed_as(&self, precision: Precision, tokens: &[u32]) -> Vec<f32> {
        let model = calibration::Model { spec: &self.spec, source: &self.checkpoint };
        calibration::logits(&self.cpu, Forward { model, precision }, tokens).unwrap()
    }

    /// A sequence that fits the context.
    fn tokens(&self) -> Vec<u32> {
        let vocab = self.spec.vocab as u32;
        prompt(self.spec.context.min(90) - 8, 3).iter().map(|t| t % vocab).collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    tokens: Vec<Sampled>,
    prompt: Vec<(usize, f32)>,
    finish: Option<Finish>,
}

impl Said {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.token).collect()
    }
}

fn serve(
    runner: &mut Runner<'_>,
    requests: &[Request],
    options: &Options,
    speculator: Option<&mut dyn Speculator>,
) -> (Vec<Said>, engine::Stats) {
    let mut engine = Engine::new(runner.limits(), options.clone());
    let said = answers(&mut engine, runner, requests, speculator);
    (said, engine.stats())
}

/// What `engine` says to `requests`, `stepper` taking it further.
fn answers(
    engine: &mut Engine,
    stepper: &mut dyn Stepper,
    requests: &[Request],
    mut speculator: Option<&mut dyn Speculator>,
) -> Vec<Said> {
    let mut said: BTreeMap<SeqId, Said> = BTreeMap::new();
    for request in requests {
        said.insert(engine.add(request.clone()).unwrap(), Said::default());
    }
    let mut events = Vec::new();
    while !engine.is_idle() {
        let speculator = speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        stepper.step(engine, speculator, &mut events).unwrap();
        for event in events.drain(..) {
            match event {
                Event::Token { seq, sampled } => said.get_mut(&seq).unwrap().tokens.push(sampled),
                Event::Prompt { seq, position, scored } => {
                    said.get_mut(&seq).unwrap().prompt.push((position, scored.logprob));
                }
                Event::Started { .. } => {}
                Event::Finished { seq, finish } => {
                    said.get_mut(&seq).unwrap().finish = Some(finish)
                }
            }
        }
    }
    assert!(engine.pool().is_idle());
    said.into_values().collect()
}

fn prompt(n: usize, seed: u32) -> Vec<u32> {
    let next = |i: u32| i.wrapping_mul(2_654_435_761).wrapping_add(seed * 9_700_417) >> 7;
    std::iter::once(1).chain((1..n as u32).map(|i| 3 + next(i) % 500)).collect()
}

fn requests() -> Vec<Request> {
    let lengths = [1, 5, 16, 17, 40, 130, 33, 200];
    let shared = prompt(70, 9);
    let request = |(i, &n): (usize, &usize)| {
        let mut tokens = prompt(n, i as u32);
        if i % 3 == 2 {
            tokens = [&shared[..], &tokens[1..]].concat();
        }
        let sampling = Sampling {
            temperature: [0.0, 0.8, 1.2][i % 3],
            top_k: [0, 40][i % 2],
            top_p: [1.0, 0.95][i / 2 % 2],
            repetition_penalty: [1.0, 1.1][i / 3 % 2],
            seed: i as u64,
            ..Sampling::default()
        };
        let logprobs = Some(3);
        let prompt_logprobs = (i % 4 == 1).then_some(0);
        Request { sampling, logprobs, prompt_logprobs, ..Request::new(tokens, 30 + i) }
    };
    lengths.iter().enumerate().map(request).collect()
}

/// Checkpoints in a folder of fixtures.
fn fixtures(of: &str) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(tests().join("fixtures").join(of)).unwrap();
    let folders = folders.map(|e| e.unwrap().path());
    folders.filter(|folder| folder.is_dir()).collect()
}

#[test]
fn with_unrounded_keys_it_says_what_the_streamed_forward_says() {
    let mut folders = fixtures("families");
    folders.push(tests().join("models/stories260k"));
    for folder in folders {
        let opened = Opened::new(&folder);
        let model = opened.model();
        let mut runner = opened.runner(&model, KvDType::F32, 64);
        let vocab = opened.spec.vocab;
        let tokens = opened.tokens();
        let request = Request { prompt_logprobs: Some(0), ..Request::new(tokens.clone(), 8) };
        let (said, _) = serve(&mut runner, &[request], &Options::default(), None);
        let all = [&tokens[..], &said[0].ids()].concat();
        let logits = opened.streamed(&all);
        let mut rows = logits.chunks_exact(vocab);
        for &(position, logprob) in &said[0].prompt {
            let row = rows.next().unwrap();
            let alone = score(row, all[position], 0, &mut Scratch::default()).unwrap();
            assert_eq!(alone.logprob.to_bits(), logprob.to_bits(), "{folder:?}, {position}");
        }
        for (row, token) in rows.zip(said[0].ids()) {
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let best = row.iter().position(|&x| x == best).unwrap();
            assert_eq!(best as u32, token, "{folder:?}");
        }
    }
}

#[test]
fn the_streamed_forward_as_served_says_what_it_says() {
    let mut folders = fixtures("families");
    folders.extend(fixtures("pack"));
    folders.push(tests().join("models/stories260k"));
    let mut rounded = 0;
    for folder in folders {
        let opened = Opened::new(&folder);
        let (model, tokens, vocab) = (opened.model(), opened.tokens(), opened.spec.vocab);
        let exact = opened.streamed(&tokens);
        for dtype in [KvDType::F32, KvDType::Bf16, KvDType::Int8] {
            let mut runner = opened.runner(&model, dtype, 64);
            let request = Request { prompt_logprobs: Some(0), ..Request::new(tokens.clone(), 1) };
            let (said, _) = serve(&mut runner, &[request], &Options::default(), None);
            let logits = opened.streamed_as(Precision::Served(dtype), &tokens);
            assert_eq!(said[0].prompt.len(), tokens.len() - 1, "{folder:?}");
            for (&(position, logprob), row) in said[0].prompt.iter().zip(logits.chunks(vocab)) {
                let alone = score(row, tokens[position], 0, &mut Scratch::default()).unwrap();
                let place = format!("{folder:?}, {}, {position}", dtype.name());
                assert_eq!(alone.logprob.to_bits(), logprob.to_bits(), "{place}");
            }
            rounded += usize::from(logits != exact);
            // Only weights on a grid make unrounded keys differ.
            if dtype == KvDType::F32 {
                assert_eq!(logits != exact, folder.parent().unwrap().ends_with("pack"));
            }
        }
    }
    assert!(rounded > 50, "{rounded} of the forwards round");
}

/// A checkpoint whose rows of a table are changed as they are read.
struct Changed<'a> {
    source: &'a Checkpoint,
    table: &'a str,
    change: &'a (dyn Fn(&mut [f32]) + Sync),
}

impl Source for Changed<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError> {
        let Some(stored) = name.strip_prefix("changed ") else {
            return self.source.read_rows(name, rows);
        };
        let read = self.source.read_rows(stored, rows)?;
        assert_eq!(stored, self.table);
        let (shape, mut values) = (read.shape().to_vec(), read.to_f32().unwrap());
        values.chunks_exact_mut(shape[1]).for_each(self.change);
        Ok(Tensor::from_f32(shape, &values).unwrap())
    }
}

/// What an embedding does to the rows of its table, and a head before its projection, is computed as if
/// the table had been stored so: a factor, then a norm, as no family of today has them.
#[test]
fn the_ops_of_an_embedding_and_of_a_head_are_run() {
    let mut opened = Opened::stories();
    let norm = opened.spec.head.weights[0].clone();
    let table = opened.spec.table().unwrap().clone();
    let (embedding, head) = (&mut opened.spec.embedding, &mut opened.spec.head);
    embedding.ops.push(Op::Scale { input: Value(1), by: 3.25 });
    embedding.ops.push(Op::Norm { input: Value(2), weight: WeightId(1), eps: 1e-3 });
    embedding.weights.push(norm.clone());
    head.ops.insert(0, Op::Scale { input: Value::INPUT, by: 4.0 });
    let Op::Norm { input, .. } = &mut head.ops[1] else { panic!("a head begins with a norm") };
    *input = Value(1);
    let Op::Linear { input, .. } = &mut head.ops[2] else { panic!("a head ends in a linear") };
    *input = Value(2);
    ir::verify(embedding, 1).unwrap();
    ir::verify(head, opened.spec.hidden).unwrap();
    let tokens = opened.tokens();
    let ours = opened.streamed(&tokens);

    let weights = opened.checkpoint.read_rows(&norm.tensor, 0..norm.shape[0]).unwrap();
    let weights = weights.to_f32().unwrap();
    let change = |row: &mut [f32]| {
        row.iter_mut().for_each(|x| *x *= 3.25);
        let inverse = inverse_rms(row, 1e-3);
        row.iter_mut().zip(&weights).for_each(|(x, w)| *x = *x * inverse * w);
    };
    let plain = Opened::stories();
    let mut spec = plain.spec.clone();
    spec.embedding.weights[0].at = View::whole(format!("changed {}", table.tensor));
    let Op::Norm { eps, .. } = &mut spec.head.ops[0] else { panic!("a head begins with a norm") };
    // A norm forgets a factor, but for what is added to the mean square.
    *eps /= 16.0;
    let source = Changed { source: &plain.checkpoint, table: &table.tensor, change: &change };
    let model = calibration::Model { spec: &spec, source: &source };
    let theirs = calibration::logits(&plain.cpu, model.exact(), &tokens).unwrap();
    let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&ours), bits(&theirs));
    assert_ne!(ours, plain.streamed(&tokens));

    let loaded = opened.model();
    let mut runner = opened.runner(&loaded, KvDType::F32, 64);
    let request = Request { prompt_logprobs: Some(0), ..Request::new(tokens.clone(), 1) };
    let (said, _) = serve(&mut runner, &[request], &Options::default(), None);
    assert_eq!(said[0].prompt.len(), tokens.len() - 1);
    for (&(position, logprob), row) in said[0].prompt.iter().zip(ours.chunks(opened.spec.vocab)) {
        let alone = score(row, tokens[position], 0, &mut Scratch::default()).unwrap();
        assert_eq!(alone.logprob.to_bits(), logprob.to_bits(), "{position}");
    }
}

/// A sequence of the whole context in a cache that has blocks for a part of it, but for all that its
/// windows see at once.
#[test]
fn a_window_needs_no_blocks_for_what_has_left_it() {
    let opened = Opened::new(&tests().join("fixtures/families/mistral-window"));
    let model = opened.model();
    let tokens = opened.tokens();
    let requests = [Request { prompt_logprobs: Some(0), ..Request::new(tokens, 8) }];
    let mut roomy = opened.runner(&model, KvDType::F32, 64);
    let (expected, _) = serve(&mut roomy, &requests, &Options::default(), None);
    let settings = Settings { tokens: 16, rows: 1 };
    let block =
        16 * KvPlan::new(&opened.spec, KvDType::F32, &KvRoom::new(1 << 30, 1)).unwrap().token;
    let room = KvRoom { running: 1, step: 16, ..KvRoom::new(4 * block, 1) };
    let plan = KvPlan::new(&opened.spec, KvDType::F32, &room).unwrap();
    assert_eq!((plan.groups[0].1, plan.tokens), (4, opened.spec.context));
    let mut narrow = Runner::new(&[&opened.cpu], &model, plan, &settings).unwrap();
    assert_eq!(serve(&mut narrow, &requests, &Options::default(), None).0, expected);
}

/// What a source says of some tokens of a model, streamed and served.
fn said_of(opened: &Opened, spec: &ir::ModelSpec, source: &dyn Source) -> (Vec<u32>, Vec<Said>) {
    let (tokens, cpu) = (opened.tokens(), &opened.cpu);
    let model = calibration::Model { spec, source };
    let streamed = calibration::logits(cpu, model.exact(), &tokens).unwrap();
    let model = Model::on(cpu, source, spec, false).unwrap();
    let mut runner = opened.runner(&model, KvDType::F32, 64);
    let request = Request { prompt_logprobs: Some(0), ..Request::new(tokens, 4) };
    let (served, _) = serve(&mut runner, &[request], &Options::default(), None);
    (streamed.into_iter().map(f32::to_bits).collect(), served)
}

#[test]
fn experts_in_stacks_are_the_same_experts() {
    let [apart, stacked] = ["mixtral", "mixtral-stacked"]
        .map(|name| Opened::new(&tests().join("fixtures/families").join(name)));
    let up = stacked.spec.layers[1].weights.iter().find(|w| w.at.to_string().ends_with("[28..]"));
    assert_eq!(up.unwrap().at.to_string(), "model.layers.1.mlp.experts.gate_up_proj[0][28..]");
    assert_eq!(
        said_of(&apart, &apart.spec, &apart.checkpoint),
        said_of(&stacked, &stacked.spec, &stacked.checkpoint)
    );
}

/// A checkpoint whose matrices are also there as `turned NAME`, `[in, out]`.
struct Turned<'a>(&'a Opened);

impl Source for Turned<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError> {
        let Some(plain) = name.strip_prefix("turned ") else {
            return self.0.checkpoint.read_rows(name, rows);
        };
        let info = self.0.checkpoint.tensor(plain).unwrap();
        let &[out, inputs] = &info.shape[..] else { panic!("{plain} is a matrix") };
        let whole = self.0.checkpoint.read_rows(plain, 0..out)?.to_f32().unwrap();
        assert!(rows.end <= inputs);
        let element = |input: usize| (0..out).map(move |row| row * inputs + input);
        let values: Vec<f32> = rows.clone().flat_map(element).map(|at| whole[at]).collect();
        Ok(Tensor::from_f32(vec![rows.len(), out], &values).unwrap())
    }
}

#[test]
fn transposed_matrices_are_the_same_matrices() {
    let opened = Opened::new(&tests().join("fixtures/families/qwen2"));
    let mut spec = opened.spec.clone();
    for weight in spec.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
        let &[_, inputs] = &weight.shape[..] else { continue };
        let tensor = format!("turned {}", weight.tensor);
        weight.at = View { transposed: Some(inputs), ..View::whole(tensor) };
    }
    let plain = said_of(&opened, &opened.spec, &opened.checkpoint);
    assert_eq!(plain, said_of(&opened, &spec, &Turned(&opened)));
}

#[test]
fn its_greedy_text_is_the_streamed_forward_s() {
    let opened = Opened::stories();
    let model = opened.model();
    for dtype in [KvDType::Bf16, KvDType::Int8] {
        let mut runner = opened.runner(&model, dtype, 64);
        let request = Request::new(vec![1, 403, 407, 261, 378], 100);
        let one = std::slice::from_ref(&request);
        let (said, _) = serve(&mut runner, one, &Options::default(), None);
        let all = [&request.prompt[..], &said[0].ids()].concat();
        let logits = opened.streamed(&all);
        let rows = logits.chunks_exact(opened.spec.vocab).skip(4);
        let best = rows.map(|row| {
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().position(|&x| x == best).unwrap() as u32
        });
        let same = best.zip(said[0].ids()).take_while(|(a, b)| a == b).count();
        assert_eq!(same, 100, "{}", dtype.name());
    }
}

#[test]
fn company_chunks_preemption_prefixes_and_drafts_change_no_bit() {
    let opened = Opened::stories();
    let model = opened.model();
    let requests = requests();
    let alone: Vec<Said> = requests
        .iter()
        .flat_map(|request| {
            let mut runner = opened.runner(&model, KvDType::Bf16, 64);
            let one = std::slice::from_ref(request);
            serve(&mut runner, one, &Options::default(), None).0
        })
        .collect();
    assert!(alone.iter().all(|said| said.tokens.len() >= 30));
    let whole = Options::default();
    let chunks = Options { tokens: 23, chunk: 9, prefix_cache: true };
    let (mut preempted, mut cached, mut accepted) = (0, 0, 0);
    for (options, blocks) in [(&whole, 200), (&chunks, 200), (&chunks, 20), (&whole, 24)] {
        for kind in 0..3 {
            let mut runner = opened.runner(&model, KvDType::Bf16, blocks);
            let mut ngram = NGram { sizes: 1..4, reach: 500 };
            let mut draft = DraftModel::new(opened.runner(&model, KvDType::Int8, 40));
            let speculator: Option<&mut dyn Speculator> = match kind {
                0 => None,
                1 => Some(&mut ngram),
                _ => Some(&mut draft),
            };
            let (said, stats) = serve(&mut runner, &requests, options, speculator);
            assert_eq!(said, alone, "{options:?}, {blocks} blocks, speculator {kind}");
            assert!(draft.pool().is_idle());
            preempted += stats.preemptions;
            cached += stats.cached;
            accepted += stats.drafted.iter().map(|d| d.1).sum::<u64>();
        }
    }
    assert!(preempted > 0 && cached > 0 && accepted > 0, "{preempted} {cached} {accepted}");
}

#[test]
fn prompts_computed_apart_change_no_bit() {
    let opened = Opened::stories();
    let model = opened.model();
    let requests = requests();
    let threads = |n| ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let (mut computed, mut preempted) = (0, 0);
    for dtype in [KvDType::F32, KvDType::Bf16, KvDType::Int8] {
        let mut together = opened.runner(&model, dtype, 200);
        let (expected, _) = serve(&mut together, &requests, &Options::default(), None);
        for (blocks, prefill, decode) in [(200, 1, 1), (200, 2, 3), (20, 2, 1)] {
            let mut decoding = opened.runner(&model, dtype, blocks);
            let mut prompts = decoding.beside(&Settings { tokens: 48, rows: 3 });
            let options = Options { chunk: 30, ..Options::default() };
            let mut engine = Engine::apart(decoding.limits(), prompts.limits(), options);
            let (prefill, decode) = (threads(prefill), threads(decode));
            let prefill = InPool { executor: &mut prompts, pool: &prefill };
            let mut decode = InPool { executor: &mut decoding, pool: &decode };
            let mut ngram = NGram { sizes: 1..4, reach: 500 };
            let said = apart(prefill, &mut decode, |both| {
                answers(&mut engine, both, &requests, Some(&mut ngram))
            });
            assert_eq!(said, expected, "{}, {blocks} blocks", dtype.name());
            computed += engine.stats().computed;
            preempted += engine.stats().preemptions;
        }
    }
    assert!(computed > 0 && preempted > 0, "{computed} {preempted}");
}
