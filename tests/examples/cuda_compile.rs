//! What an int4 artifact is worth that the compiler makes on the CUDA kernels, beside the CPU's:
//!
//!     cargo run --release -p tests --example cuda_compile -- emulated|cuda MODEL CALIBRATION-TEXT TEXT
//!
//! 64 samples of 256 tokens, perplexity of the first 20,480 tokens of TEXT; the kernels once as they are and
//! once with another order of sums.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an experiment")]

use backend::Backend;
use backend_cpu::Cpu;
use backend_cuda::{Cuda, Device, Driver};
use checkpoint::Checkpoint;
use cuda_emulator::{Emulated, Order};
use std::path::Path;
use std::sync::Arc;
use tests::agreement::kernels;
use tests::compile::{Windows, int4, perplexity};

const SAMPLES: usize = 64;
const LENGTH: usize = 256;
const SCORED: usize = 20_480;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [place, model, calibration, text] = &args[..] else {
        panic!("emulated|cuda MODEL CALIBRATION-TEXT TEXT");
    };
    let device: Arc<dyn Device> = match place.as_str() {
        "cuda" => Arc::new(Driver::open(0).unwrap()),
        _ => {
            let library = kernels(&std::env::temp_dir()).expect("g++ is installed");
            Arc::new(Emulated::new(Box::leak(Box::new(library)), Order::Forward, true))
        }
    };
    let model = Path::new(model);
    let tokenizer = Checkpoint::open(model).unwrap().tokenizer().unwrap().unwrap();
    let tokenizer = text::Tokenizer::from_bytes(&tokenizer).unwrap();
    let encode = |path| tokenizer.encode(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (samples, scored) = (encode(calibration), encode(text));
    let scored = &scored[..SCORED.min(scored.len())];
    let dir = tests::bench::folder();
    let backends: [(&str, Box<dyn Backend>); 3] = [
        ("cpu", Box::new(Cpu::new())),
        ("cuda", Box::new(Cuda::new(Arc::clone(&device), false))),
        ("cuda, another order", Box::new(Cuda::new(device, true))),
    ];
    let windows = Windows { ids: &samples, samples: SAMPLES, length: LENGTH };
    for (name, backend) in backends {
        let out = dir.path().join(name);
        let numerics = int4(model, &out, &*backend, windows);
        println!("{name}: perplexity {:.4} (numerics {numerics})", perplexity(&out, scored));
    }
}
