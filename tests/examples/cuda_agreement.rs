//! How far the CUDA kernels are from the CPU's exact path, teacher-forced on the first tokens of a text:
//!
//!     cargo run --release -p tests --example cuda_agreement -- emulated|hopper|cuda TOKENS TEXT MODEL...
//!
//! `emulated` runs them on the CPU, `hopper` those with `wgmma` too, `cuda` on the first GPU.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an experiment")]

use backend_cuda::{Cuda, Device, Driver};
use checkpoint::Checkpoint;
use cuda_emulator::{Emulated, Order};
use std::path::Path;
use std::sync::Arc;
use tests::agreement::{Agreement, kernels};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [place, count, text, models @ ..] = &args[..] else {
        panic!("emulated|hopper|cuda TOKENS TEXT MODEL...");
    };
    let device: Arc<dyn Device> = match place.as_str() {
        "cuda" => Arc::new(Driver::open(0).unwrap()),
        _ => {
            let library = kernels(&std::env::temp_dir()).expect("g++ is installed");
            let device = Emulated::new(Box::leak(Box::new(library)), Order::Forward, true);
            Arc::new(if place == "hopper" { device.with_wgmma() } else { device })
        }
    };
    let name = device.describe();
    let cuda = Cuda::new(device, false).with_wgmma().unwrap();
    println!("on {name}, {}", backend::Backend::numerics(&cuda));
    let text = std::fs::read_to_string(text).unwrap();
    for model in models {
        let checkpoint = Checkpoint::open(Path::new(model)).unwrap();
        let spec = arch::load(checkpoint.config(), &checkpoint).unwrap().model;
        let tokenizer = checkpoint.tokenizer().unwrap().unwrap();
        let ids = text::Tokenizer::from_bytes(&tokenizer).unwrap().encode(&text).unwrap();
        let ids = &ids[..ids.len().min(count.parse().unwrap())];
        let model_of = calibration::Model { spec: &spec, source: &checkpoint };
        println!("{model}: {}", Agreement::of(&model_of, &cuda, ids));
    }
}
