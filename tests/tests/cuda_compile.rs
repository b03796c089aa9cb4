//! The compiler on the CUDA kernels, emulated: the same bytes twice, and as good as the CPU's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend_cpu::Cpu;
use backend_cuda::Cuda;
use checkpoint::Checkpoint;
use cuda_emulator::{Emulated, Order};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use tests::agreement::kernels;
use tests::bench::{files, same};
use tests::compile::{Windows, int4, perplexity};

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
    let of = Windows { ids: &ids, samples: SAMPLES, length: LENGTH };
    assert_eq!(int4(&model, &at("cpu"), &Cpu::new(), of), "default");
    assert_eq!(int4(&model, &at("first"), &cuda(Order::Forward), of), "cuda");
    assert_eq!(int4(&model, &at("second"), &cuda(Order::Random(5)), of), "cuda");
    same(&files(&at("first")), &files(&at("second")), "two runs on a GPU");
    let held_out = &ids[(SAMPLES + 1) * LENGTH..];
    let [cpu, gpu] = ["cpu", "first"].map(|name| perplexity(&at(name), held_out));
    println!("perplexity {cpu:.4} by the CPU's artifact, {gpu:.4} by the GPU's");
    assert!((gpu / cpu - 1.0).abs() < 0.01, "{cpu} {gpu}");
}
