//! Whole models on the CUDA kernels, which run emulated on the CPU: against the CPU backend's exact path
//! and against themselves in other company.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend::{Backend, Draws, Incoming, KvDType, Sharded, Whole};
use backend_cpu::Cpu;
use backend_cuda::Cuda;
use bench::{Arrival, Arrivals, Asked, Batching, Deal, Drive, Wall, Workload, in_order};
use checkpoint::Checkpoint;
use cuda_emulator::{Emulated, Library, Order, Queued};
use engine::{Engine, Event, Executor, NGram, Options, Request, Sampled, SeqId};
use ir::Op;
use runtime::{KvPlan, KvRoom, Model, Runner, Settings};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use tensor::DType;
use tests::agreement::{Agreement, kernels};

/// A GPU that is none; says so where it cannot be had.
fn cuda(test: &str, invariant: bool) -> Option<Cuda> {
    Some(Cuda::new(Arc::new(device(test)?), invariant))
}

/// The same with a queue that it works through on its own.
fn queued(test: &str, pace: u64) -> Option<Cuda> {
    Some(Cuda::new(Arc::new(Queued::new(device(test)?, pace)), false))
}

fn device(test: &str) -> Option<Emulated> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| kernels(Path::new(env!("CARGO_TARGET_TMPDIR"))));
    let Some(library) = library else {
        let _ = writeln!(std::io::stderr(), "skipped: {test}: there is no g++ for x86-64");
        return None;
    };
    Some(Emulated::new(library, Order::Forward, true))
}

fn open(folder: &Path) -> (Checkpoint, ir::ModelSpec) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;
    (checkpoint, spec)
}

fn stories() -> PathBuf {
    tests::root().join("tests/models/stories260k")
}

/// An artifact of stories260k, made by the program itself.
fn artifact(quant: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{quant}"));
    let (model, out_text) = (stories(), out.to_string_lossy().into_owned());
    let model = model.to_string_lossy().into_owned();
    let fixed = ["--method", "rtn", "--group-size", "32", "--no-gate", "--quiet", "--force"];
    let mut args = vec!["--quant", quant, &model, "-o", &out_text];
    args.extend(fixed);
    let ran = tests::run(&args);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    out
}

fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| (1 + i * i * 7 + i * 13) as u32 % vocab as u32).collect()
}

/// Every family's programs give what the exact path gives, within what bf16 leaves of tiny models of
/// noise; a wrong window or rotation changes all of it.
#[test]
fn families_are_close_to_the_exact_path() {
    let Some(cuda) = cuda("families_are_close_to_the_exact_path", false) else { return };
    let folder = tests::root().join("tests/fixtures/families");
    let folders: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    for folder in folders.iter().filter(|f| f.is_dir()) {
        let (checkpoint, spec) = open(folder);
        let model = calibration::Model { spec: &spec, source: &checkpoint };
        let ids = tokens(spec.context.min(40), spec.vocab);
        let run = |backend: &dyn Backend| calibration::logits(backend, model.exact(), &ids);
        if spec.blocks().any(|b| b.ops.iter().any(|op| matches!(op, Op::Experts { .. }))) {
            let said = run(&cuda).unwrap_err().to_string();
            assert!(said.contains("experts are computed on the CPU alone"), "{said}");
            continue;
        }
        let (got, want) = (run(&cuda).unwrap(), run(&Cpu::new()).unwrap());
        let size = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let error = size(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        let error = error / size(&mut want.iter().copied());
        let name = folder.file_name().unwrap().to_string_lossy();
        println!("{name:<32} {error:.1e} of the logits");
        assert!(error <= 0.04, "{name}: {error} of the logits");
    }
}

/// Teacher-forced, as a user asks by `eval`: what the device changes.
#[test]
fn log_probabilities_are_those_of_the_exact_path() {
    let Some(cuda) = cuda("log_probabilities_are_those_of_the_exact_path", false) else { return };
    // What the model says itself, so that its probabilities are those of use.
    let model = stories().to_string_lossy().into_owned();
    let fixed = ["run", &model, "Once upon a time", "--temperature", "1", "--max-tokens", "250"];
    let say = |seed: &str| {
        let ran = tests::run(&[&fixed[..], &["--seed", seed, "--quiet"]].concat());
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let text: String = ["1", "2", "3", "4"].map(say).concat();
    // What enters an int8 weight is rounded to int8, which a model of 64 columns feels.
    for (folder, parted) in [(stories(), 0.02), (artifact("int4"), 0.02), (artifact("int8"), 0.03)]
    {
        let (checkpoint, spec) = open(&folder);
        let tokenizer = text::Tokenizer::from_bytes(&checkpoint.tokenizer().unwrap().unwrap());
        let ids = tokenizer.unwrap().encode(&text).unwrap();
        let model = calibration::Model { spec: &spec, source: &checkpoint };
        let seen = Agreement::of(&model, &cuda, &ids[..768]);
        println!("{}: {seen}", folder.display());
        assert!(seen.mean() <= 0.03 && seen.parted() <= parted && seen.margin <= 0.5);
    }
}

fn serve(runner: &mut Runner<'_>, requests: &[Request], guess: bool) -> Vec<Vec<Sampled>> {
    let mut engine = Engine::new(runner.limits(), Options::default());
    let mut said: BTreeMap<SeqId, Vec<Sampled>> = BTreeMap::new();
    for request in requests {
        said.insert(engine.add(request.clone()).unwrap(), Vec::new());
    }
    let (mut events, mut ngram) = (Vec::new(), NGram::default());
    while !engine.is_idle() {
        let speculator = guess.then_some(&mut ngram as &mut dyn engine::Speculator);
        engine.step(runner, speculator, &mut events).unwrap();
        for event in events.drain(..) {
            if let Event::Token { seq, sampled } = event {
                said.get_mut(&seq).unwrap().push(sampled);
            }
        }
    }
    said.into_values().collect()
}

fn requests(vocab: usize) -> [Request; 3] {
    let request = |length: usize, seed: u64| Request {
        sampling: engine::Sampling { temperature: 0.8, seed, ..engine::Sampling::default() },
        logprobs: Some(2),
        ..Request::new(tokens(length, vocab), 12)
    };
    [request(5, 1), request(9, 2), request(14, 3)]
}

/// A request's text is its own: alone, in company, with drafts, and where the prefix is known.
#[test]
fn served_text_does_not_depend_on_company() {
    let Some(cuda) = cuda("served_text_does_not_depend_on_company", false) else { return };
    let (checkpoint, spec) = open(&artifact("int4"));
    let model = Model::on(&cuda, &checkpoint, &spec, false).unwrap();
    let plan = KvPlan::new(&spec, KvDType::Bf16, &KvRoom::new(8 << 20, 8)).unwrap();
    let mut runner = Runner::new(&[&cuda], &model, plan, &Settings::default()).unwrap();
    let requests = requests(spec.vocab);
    let alone: Vec<_> = requests
        .iter()
        .map(|r| serve(&mut runner, std::slice::from_ref(r), false).remove(0))
        .collect();
    assert!(alone.iter().all(|tokens| tokens.len() == 12));
    assert_eq!(serve(&mut runner, &requests, false), alone);
    assert_eq!(serve(&mut runner, &requests, true), alone);
    // Steps of decoding are one start each: all but the first of their kind.
    let before = cuda.replayed();
    assert_eq!(serve(&mut runner, &requests[..1], false), alone[..1]);
    let replayed = cuda.replayed() - before;
    assert!(replayed >= 9, "{replayed} of 11 steps were replayed");
    // And launched before their tokens were known, but where a page begins.
    let before = runner.ran_ahead();
    assert_eq!(serve(&mut runner, &requests[1..2], false), alone[1..2]);
    let ahead = runner.ran_ahead() - before;
    assert!((9..=11).contains(&ahead), "{ahead} of 11 steps were ahead");
}

/// Layers on two devices give what they give on one; layers on a GPU and the CPU are served too.
#[test]
fn layers_on_several_devices() {
    let Some(first) = cuda("layers_on_several_devices", false) else { return };
    let Some(second) = cuda("layers_on_several_devices", false) else { return };
    let (checkpoint, spec) = open(&artifact("int4"));
    let (layers, cpu) = (spec.layers.len(), Cpu::new());
    let say = |backends: &[&dyn Backend]| {
        let stages = runtime::stages(layers, 1 << 20, backends, Some(2));
        let model = Model::load(backends, stages, &checkpoint, &spec, false).unwrap();
        let plan = KvPlan::new(&spec, KvDType::Bf16, &KvRoom::new(8 << 20, 8)).unwrap();
        let mut runner = Runner::new(backends, &model, plan, &Settings::default()).unwrap();
        serve(&mut runner, &requests(spec.vocab), false)
    };
    let one = say(&[&first]);
    assert_eq!(say(&[&first, &second]), one);
    assert_eq!(say(&[&second, &first, &second]), one);
    let mixed = say(&[&first, &cpu]);
    assert!(mixed.iter().all(|tokens| tokens.len() == 12));
    assert_eq!(say(&[&cpu, &cpu]), say(&[&cpu]));
}

/// Whole models on two devices, each with an engine of its own, say together what one says.
#[test]
fn replicas_on_devices_of_their_own() {
    let cudas = [(); 2].map(|()| cuda("replicas_on_devices_of_their_own", false));
    let [Some(first), Some(second)] = &cudas else { return };
    let (checkpoint, spec) = open(&stories());
    let (checkpoint, spec) = (&checkpoint, &spec);
    let arrival = |i: usize| Arrival { at: 0.0, prompt: 3 + i % 4, output: 3 + i % 3 };
    let requests: Vec<Arrival> = (0..6).map(arrival).collect();
    let say = |cudas: &[&Cuda], arrivals| {
        let workload = Workload { arrivals, ..Workload::open(requests.clone()) };
        let deal = Mutex::new(Deal::new(&workload, cudas.len()));
        let (clock, dealer) = (&Wall::start(), &deal);
        let parts = std::thread::scope(|scope| {
            let drive = |(replica, &cuda): (usize, &&'_ Cuda)| {
                let model = Model::on(cuda, checkpoint, spec, false).unwrap();
                let plan = KvPlan::new(spec, KvDType::Bf16, &KvRoom::new(1 << 20, 4)).unwrap();
                let mut runner = Runner::new(&[cuda], &model, plan, &Settings::default()).unwrap();
                let mut engine = Engine::new(runner.limits(), Options::default());
                let drive = Drive {
                    engine: &mut engine,
                    stepper: &mut runner,
                    speculator: None,
                    batching: Batching::Continuous,
                    clock,
                    deal: dealer,
                    replica,
                };
                let ask = |index: usize, prompt, output| {
                    let request = Request::new(tokens(prompt + index, spec.vocab), output);
                    Ok(Asked { request, tokenize: None })
                };
                drive.run(ask).unwrap()
            };
            let threads: Vec<_> =
                cudas.iter().enumerate().map(|one| scope.spawn(move || drive(one))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let said = in_order(parts).into_iter().map(|record| record.output).collect::<Vec<_>>();
        (said, deal.into_inner().unwrap().dealt())
    };
    let (one, dealt) = say(&[first], Arrivals::Open);
    assert_eq!((one.len(), dealt), (6, vec![6]));
    let (open, dealt) = say(&[first, second], Arrivals::Open);
    assert_eq!((open, dealt), (one.clone(), vec![3, 3]));
    assert_eq!(say(&[second, first], Arrivals::Closed(3)).0, one);
}

/// Logits of several kinds: flat, peaked, with equals, with what cannot come.
fn logits(vocab: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let height = [0.5, 6.0, 30.0][seed as usize % 3];
    let mut all: Vec<f32> = (0..vocab).map(|_| (next() - 0.5) * height).collect();
    all[vocab / 3] = f32::NEG_INFINITY;
    if seed.is_multiple_of(4) {
        all.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 4.0);
    }
    all
}

/// What is drawn by what the device finds is what the reference sampler draws from all logits.
#[test]
fn draws_are_those_of_the_reference_sampler() {
    let Some(cuda) = cuda("draws_are_those_of_the_reference_sampler", false) else { return };
    let plain = engine::Sampling::default;
    let history: Vec<u32> = (0..40).map(|i| i * 77 % 3001).collect();
    let penalties = engine::Sampling {
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        logit_bias: vec![(77, 1.5), (9, f32::NEG_INFINITY)],
        ..plain()
    };
    let samplings = [
        plain(),
        penalties.clone(),
        engine::Sampling { temperature: 1.0, ..plain() },
        engine::Sampling { temperature: 0.3, min_p: 0.05, ..plain() },
        engine::Sampling { temperature: 2.0, ..penalties },
        engine::Sampling { temperature: 0.9, top_k: 40, top_p: 0.8, ..plain() },
        engine::Sampling { temperature: 1.5, top_k: 1, ..plain() },
        engine::Sampling { temperature: 1.0, top_p: 0.9, ..plain() },
        engine::Sampling { temperature: 0.7, top_p: 0.3, min_p: 0.01, ..plain() },
        engine::Sampling { temperature: 1.8, top_p: 0.999, ..plain() },
        engine::Sampling { temperature: 1.0, top_p: 5e-5, ..plain() },
    ];
    let (mut settled, mut all) = (0, 0);
    for seed in 0..24 {
        // Some are more than a block looks at together.
        let vocab = if seed % 5 == 4 { 20_003 } else { 3001 };
        let row = logits(vocab, seed);
        for sampling in &samplings {
            let sampling = engine::Sampling { seed, ..sampling.clone() };
            let logprobs = [None, Some(0), Some(5)][seed as usize % 3];
            let wish =
                engine::wish(engine::History::new(&history, 10), &sampling, logprobs).unwrap();
            let buffer = cuda.upload(vocab, row.clone()).unwrap();
            let wishes = std::slice::from_ref(&wish);
            let found = cuda.seek(&buffer, wishes).unwrap().found().unwrap().remove(0);
            assert_eq!(cuda.download(buffer).unwrap(), row, "logits are as they were");
            let mut scratch = engine::Scratch::default();
            let (mut row, history) = (row.clone(), engine::History::new(&history, 10));
            let want =
                engine::sample(&mut row, history, &sampling, logprobs, &mut scratch).unwrap();
            all += 1;
            let Some(got) = engine::settle(&found, &wish, &sampling, 40) else {
                continue;
            };
            let got = got.unwrap();
            settled += 1;
            assert_eq!(got.token, want.token, "{sampling:?} of logits {seed}");
            let (Some(got), Some(want)) = (got.scored, want.scored) else { continue };
            assert!((got.logprob - want.logprob).abs() < 1e-4);
            assert_eq!(got.top.len(), want.top.len());
            for (got, want) in got.top.iter().zip(&want.top) {
                assert!(got.0 == want.0 && (got.1 - want.1).abs() < 1e-4);
            }
        }
    }
    // Many equals do not fit in a list; then all logits are looked at.
    assert!(settled * 10 > all * 8, "{settled} of {all} were settled");
    let mut bad = logits(3001, 1);
    bad[5] = f32::NAN;
    let buffer = cuda.upload(3001, bad).unwrap();
    let wish = engine::wish(engine::History::new(&history, 10), &plain(), None).unwrap();
    let seeking = cuda.seek(&buffer, &[wish]).unwrap();
    let found = seeking.found().unwrap().remove(0);
    assert!(found.bad);
}

/// Every layer divided between devices: the sums of two halves differ from one sum in the last bits, and
/// what is said does not.
#[test]
fn layers_divided_between_devices() {
    let [Some(first), Some(second)] =
        [1, 2].map(|pace| queued("layers_divided_between_devices", pace))
    else {
        return;
    };
    let (checkpoint, spec) = open(&stories());
    let cpus = [Cpu::new(), Cpu::new()];
    let say = |backend: &dyn Backend| {
        let model = Model::on(backend, &checkpoint, &spec, false).unwrap();
        let plan = KvPlan::new(&spec, KvDType::Bf16, &KvRoom::new(8 << 20, 8)).unwrap();
        let mut runner = Runner::new(&[backend], &model, plan, &Settings::default()).unwrap();
        let greedy = Request::new(tokens(20, spec.vocab), 16);
        let said = serve(&mut runner, &[greedy, requests(spec.vocab)[2].clone()], false);
        said.into_iter().map(|all| all.iter().map(|t| t.token).collect()).collect::<Vec<Vec<u32>>>()
    };
    let cpu = Sharded::new(vec![&cpus[0], &cpus[1]]);
    assert_eq!(say(&cpu), say(&cpus[0]));
    let both = Sharded::new(vec![&first, &second]);
    assert_eq!(say(&both), say(&first));
    let mixed = Sharded::new(vec![&first, &cpus[0]]);
    assert_eq!(say(&mixed)[0].len(), 16);
    // Four key heads are not divided among three, and groups are not cut.
    let three = Sharded::new(vec![&cpus[0]; 3]);
    let error =
        three.kv_cache(ir::Heads { query: 8, kv: 4, dim: 8 }, KvDType::Bf16, 4).unwrap_err();
    assert!(error.to_string().contains("4 key heads"), "{error}");
    let grid =
        ir::Grid::Int { bits: 4, symmetric: true, span: ir::Span::Group(32), scale: DType::BF16 };
    let params = ir::Params::Flat { scales: vec![1.0; 2 * 3], zeros: Vec::new() };
    let codes = ir::Quantized { grid, shape: [2, 96], codes: vec![1; 2 * 96], params };
    let weight = Incoming::Memory(Whole::On { tensor: "down", codes });
    let error = cpu.prepare(weight, backend::Cut::Inputs).unwrap_err();
    assert!(error.to_string().contains("whole groups of 32"), "{error}");
}
