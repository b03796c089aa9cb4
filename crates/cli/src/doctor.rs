//! `optimize doctor`: the devices of this machine, what they can do, and whether they do it right.

use crate::args::Doctor;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::{Code, Failure};
use crate::output::print;
use ::bench::Machine;
use serde_json::{Value, json};
#[cfg(feature = "cuda")]
use std::sync::Arc;

pub(crate) fn run(args: &Doctor) -> Result<(), Failure> {
    let devices = Devices::open(&args.common, Wanted::Cpu, Sums::Ours)?;
    let machine = devices.pool.install(|| devices.cpu_machine())?;
    let threads = devices.pool.current_num_threads();
    let name = format!("{:?}, {threads} threads", devices.cpu.isa());
    let mut all = vec![Examined::new("cpu".into(), name, Some(machine))];
    let missing = gpus(&mut all);
    let wrong: usize = all.iter().map(|device| device.wrong.len()).sum();
    if args.common.json {
        let devices: Vec<Value> = all.iter().map(Examined::json).collect();
        print(&format!("{:#}", json!({ "devices": devices, "no_gpu": missing })))?;
    } else {
        let mut text: String = all.iter().map(Examined::text).collect();
        if let Some(missing) = missing {
            text.push_str(&format!("gpu         {missing}\n"));
        }
        print(text.trim_end())?;
    }
    match wrong {
        0 => Ok(()),
        _ => {
            let message = format!("{wrong} things do not work as they must");
            Err(Failure::new(Code::Machine, anyhow::Error::msg(message))
                .with_hint("--device cpu computes without them; please report it"))
        }
    }
}

/// A device, measured and tried.
struct Examined {
    place: String,
    name: String,
    /// `None` if it could not be measured.
    machine: Option<Machine>,
    /// Trials, and how many of them came out right.
    tried: usize,
    right: usize,
    /// What is said of the others, and of whatever else it failed at.
    wrong: Vec<String>,
}

impl Examined {
    /// One that is not tried.
    fn new(place: String, name: String, machine: Option<Machine>) -> Self {
        Self { place, name, machine, tried: 0, right: 0, wrong: Vec::new() }
    }

    fn text(&self) -> String {
        let mut text = format!("{:<12}{}\n", self.place, self.name);
        if let Some(Machine { read, f32, bf16, int8 }) = self.machine {
            let float = match bf16 {
                Some(bf16) if bf16 == f32 => format!("{:.0} GFLOP/s bf16", bf16 / 1e9),
                Some(bf16) => {
                    format!("{:.0} GFLOP/s f32, {:.0} GFLOP/s bf16", f32 / 1e9, bf16 / 1e9)
                }
                None => format!("{:.0} GFLOP/s f32", f32 / 1e9),
            };
            let (read, int8) = (read / 1e9, int8 / 1e9);
            let line = format!("            {read:.1} GB/s read, {float}, {int8:.0} GOP/s int8\n");
            text.push_str(&line);
        }
        if self.tried > 0 {
            let Self { right, tried, .. } = self;
            text.push_str(&format!("            {right} of {tried} kernels and wrappers right\n"));
        }
        self.wrong.iter().for_each(|wrong| text.push_str(&format!("            wrong: {wrong}\n")));
        text
    }

    fn json(&self) -> Value {
        json!({
            "device": self.place,
            "name": self.name,
            "read_bytes_per_second": self.machine.map(|machine| machine.read),
            "f32_operations_per_second": self.machine.map(|machine| machine.f32),
            "bf16_operations_per_second": self.machine.and_then(|machine| machine.bf16),
            "int8_operations_per_second": self.machine.map(|machine| machine.int8),
            "tried": self.tried,
            "wrong": self.wrong,
        })
    }
}

/// Adds every GPU; says why there is none.
#[cfg(feature = "cuda")]
fn gpus(all: &mut Vec<Examined>) -> Option<String> {
    use backend_cuda::{Driver, NoDriver};
    for index in 0.. {
        let place = format!("cuda:{index}");
        match Driver::open(index) {
            Ok(driver) => all.push(gpu(place, Arc::new(driver))),
            Err(NoDriver::NoDevice { .. }) if index > 0 => break,
            Err(error @ (NoDriver::Missing | NoDriver::Old { .. } | NoDriver::NoDevice { .. })) => {
                return Some(error.to_string());
            }
            // There may be others that can be used.
            Err(error) => {
                all.push(Examined::new(place, error.to_string(), None));
            }
        }
    }
    None
}

/// Measures a GPU and tries it; what it fails at is among what is wrong with it.
#[cfg(feature = "cuda")]
fn gpu(place: String, driver: Arc<backend_cuda::Driver>) -> Examined {
    use backend::Backend;
    let mut wrong = Vec::new();
    let mut name = backend_cuda::Device::describe(&*driver);
    let open = || backend_cuda::Cuda::new(Arc::clone(&driver) as _, false);
    let gpu = open().with_wgmma().unwrap_or_else(|error| {
        wrong.push(format!("wgmma: {error}"));
        open()
    });
    let gpu = gpu.with_library();
    if gpu.numerics().ends_with("cublaslt") {
        name.push_str(", cuBLASLt");
    }
    let rates = gpu.rates(crate::device::GPU_BYTES, crate::device::GPU_ROUNDS);
    let rates = rates.map_err(|error| wrong.push(format!("rates: {error}"))).ok();
    let (trials, failed) = gpu.trials();
    wrong.extend(failed);
    let missed = trials.iter().filter(|trial| !trial.passed());
    wrong.extend(missed.map(|t| format!("{}: {:.1e}, not {:.1e}", t.name, t.error, t.allowed)));
    let machine = rates.map(|rates| {
        let (read, f32, int8) = (rates.read, rates.bf16, rates.int8);
        Machine { read, f32, bf16: Some(f32), int8 }
    });
    let (tried, right) = (trials.len(), trials.iter().filter(|trial| trial.passed()).count());
    Examined { place, name, machine, tried, right, wrong }
}

#[cfg(not(feature = "cuda"))]
fn gpus(_: &mut Vec<Examined>) -> Option<String> {
    Some("no CUDA: this optimize was built without it".into())
}
