//! The compiler on the CUDA kernels, emulated: the same bytes twice, and as good as the CPU's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend::Backend;
use backend_cpu::Cpu;
use backend_cuda::Cuda;
use calibration::{Sequence, Target};
use checkpoint::Checkpoint;
use compiler::{Claim, Compiled, Destination, Job, Plan, Tensors, Text, Tokens, compile};
use cuda_emulator::{Emulated, Order};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use tests::agreement::kernels;
use tests::bench::{files, same};

const SAMPLES: usize = 8;
const LENGTH: usize = 128;

/// What the model says itself: text that it knows.
fn tokens(model: &Path) -> Vec<u32> {
    let text: String = (0..6)
        .map(|seed| {
            let (model, seed) = (model.to_string_lossy().into_owned(), seed.to_string());
            let args = ["run", &model, "One day", "--temperature", "1", "--seed", &seed, "--quiet"];
            let ran =
                tests::run(&[&args[..], &["--max-tokens", "400", "--device", "cpu"]].concat());
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            String::from_utf8(ran.stdout).unwrap()
        })
        .collect();
    let tokenizer = Checkpoint::open(model).unwrap().tokenizer().unwrap().unwrap();
    text::Tokenizer::from_bytes(&tokenizer).unwrap().encode(&text).unwrap()
}

fn run(model: &Path, out: &Path, backend: &dyn Backend, ids: &[u32]) -> String {
    let checkpoint = Checkpoint::open(model).unwrap();
    let spec = arch::load(checkpoint.config(), &Tensors(&checkpoint)).unwrap().model;
    let recipe = passes::builtin("int4").unwrap();
    let passes = passes::passes(&recipe).unwrap();
    let mut all = ids.chunks_exact(LENGTH).map(<[u32]>::to_vec);
    let samples: Vec<Vec<u32>> = all.by_ref().take(SAMPLES).collect();
    let held_out: Vec<Vec<u32>> = all.take(1).collect();
    let tokens = Tokens { calibration: SAMPLES * LENGTH, held_out: LENGTH };
    let plan = Plan::new(&spec, &recipe, &passes, tokens).unwrap();
    let job = Job {
        checkpoint: &checkpoint,
        model: calibration::Model { spec: &spec, source: &checkpoint },
        ignored_keys: &[],
        recipe: &recipe,
        passes: &passes,
        plan: &plan,
        backend,
        samples: Text { from: "test", sequences: &samples },
        held_out: Text { from: "test", sequences: &held_out },
        activations: u64::MAX,
    };
    let destination = Destination::claim(out, Claim::new(checkpoint.folder())).unwrap();
    let Compiled::Made(made) = compile(&job, destination, &mut |_| {}).unwrap() else {
        panic!("there was nothing in its place");
    };
    let numerics = made.report.numerics.clone();
    made.publish("{}\n").unwrap();
    numerics
}

/// The perplexity of an artifact by the CPU's exact path.
fn perplexity(folder: &Path, ids: &[u32]) -> f64 {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let spec = arch::load(checkpoint.config(), &Tensors(&checkpoint)).unwrap().model;
    let model = calibration::Model { spec: &spec, source: &checkpoint };
    let sequence = |ids: &[u32]| Sequence {
        tokens: ids.to_vec(),
        targets: (1..ids.len()).map(|i| Target { position: i, token: ids[i] }).collect(),
    };
    let sequences: Vec<Sequence> = ids.chunks(256).map(sequence).collect();
    let scored =
        calibration::score(&Cpu::new(), &[model.exact()], &sequences, &mut |_| {}).unwrap();
    let logprobs: Vec<f64> = scored[0].iter().map(|scored| scored.logprob).collect();
    (-logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp()
}

#[test]
fn the_compiler_gives_the_same_bytes_twice_and_what_the_cpu_s_is_worth() {
    let Some(library) = kernels(Path::new(env!("CARGO_TARGET_TMPDIR"))) else {
        let _ = writeln!(std::io::stderr(), "skipped: the compiler on CUDA: there is no g++");
        return;
    };
    let library = Box::leak(Box::new(library));
    let cuda = |order| Cuda::new(Arc::new(Emulated::new(library, order, true)), false);
    let dir = tests::bench::folder();
    let model = tests::root().join("tests/models/stories260k");
    let ids = tokens(&model);
    assert!(ids.len() > (SAMPLES + 4) * LENGTH, "{} tokens", ids.len());
    let at = |name: &str| dir.path().join(name);
    assert_eq!(run(&model, &at("cpu"), &Cpu::new(), &ids), "default");
    assert_eq!(run(&model, &at("first"), &cuda(Order::Forward), &ids), "cuda");
    assert_eq!(run(&model, &at("second"), &cuda(Order::Random(5)), &ids), "cuda");
    same(&files(&at("first")), &files(&at("second")), "two runs on a GPU");
    let held_out = &ids[(SAMPLES + 1) * LENGTH..];
    let [cpu, gpu] = ["cpu", "first"].map(|name| perplexity(&at(name), held_out));
    println!("perplexity {cpu:.4} by the CPU's artifact, {gpu:.4} by the GPU's");
    assert!((gpu / cpu - 1.0).abs() < 0.01, "{cpu} {gpu}");
}
