//! `optimize doctor`: what machine this is, its devices, what they can do, and whether they do it right.

use crate::args::Doctor;
use crate::bench::rates;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::{Code, Failure};
use crate::fold::fold;
use crate::host::Host;
use crate::output::print;
use ::bench::Machine;
use backend_cpu::{Cpu, Isa, Trial};
use serde_json::{Value, json};
use std::iter::once;
#[cfg(feature = "cuda")]
use std::sync::Arc;

pub(crate) fn run(args: &Doctor) -> Result<(), Failure> {
    let devices = Devices::open(&args.common, Wanted::Cpu, Sums::Ours)?;
    let host = Host::of(&args.common, devices.pool.current_num_threads());
    let (machine, tried) =
        devices.pool.install(|| (devices.cpu_machine(), Tried::all(devices.cpu.isa())));
    let mut all = vec![cpu(machine?, &host, &tried)];
    let missing = gpus(&mut all);
    let wrong: usize = all.iter().map(|device| device.wrong.len()).sum();
    if args.common.json {
        let mut report = host.json();
        report["instruction_sets"] = tried.iter().map(Tried::json).collect();
        report["devices"] = all.iter().map(Examined::json).collect();
        report["no_gpu"] = json!(missing);
        print(&format!("{report:#}"))?;
    } else {
        let mut text = host.text() + "\n";
        all.iter().for_each(|device| text.push_str(&device.text()));
        if let Some(missing) = missing {
            text.push_str(&fold("gpu", &missing));
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

/// The trials of an instruction set.
struct Tried {
    isa: Isa,
    /// Whether it is the one that computes.
    used: bool,
    trials: Vec<Trial>,
}

impl Tried {
    /// Those of every instruction set that this machine has, the one that computes first.
    fn all(used: Isa) -> Vec<Self> {
        let others = Isa::ALL.into_iter().filter(|isa| *isa != used);
        let tried = |isa| {
            let cpu = Cpu::with_isa(isa)?;
            Some(Self { isa, used: isa == used, trials: cpu.trials() })
        };
        once(used).chain(others).filter_map(tried).collect()
    }

    fn right(&self) -> usize {
        self.trials.iter().filter(|trial| trial.wrong.is_none()).count()
    }

    fn words(&self) -> String {
        let used = if self.used { ", which computes" } else { "" };
        let (right, all, words) = (self.right(), self.trials.len(), words(self.isa));
        format!("{right} of {all} kernels right with {words}{used}")
    }

    fn json(&self) -> Value {
        json!({
            "name": self.isa.name(),
            "used": self.used,
            "tried": self.trials.len(),
            "right": self.right(),
        })
    }
}

/// An instruction set as people call it.
fn words(isa: Isa) -> &'static str {
    match isa {
        Isa::Avx512Bf16 => "AVX-512, VNNI and BF16",
        Isa::Avx512Vnni => "AVX-512 and VNNI",
        Isa::Avx512 => "AVX-512",
        Isa::Avx2 => "AVX2 and FMA",
        Isa::NeonI8mm => "NEON and I8MM",
        Isa::NeonDot => "NEON and dot products",
        Isa::Neon => "NEON",
        Isa::Portable => "portable code",
    }
}

/// The CPU, from what was measured and tried.
fn cpu(machine: Machine, host: &Host, tried: &[Tried]) -> Examined {
    let count = |of: fn(&Tried) -> usize| tried.iter().map(of).sum();
    let wrong = tried.iter().flat_map(|one| {
        let wrong = one.trials.iter().filter_map(|t| Some((&t.name, t.wrong.as_ref()?)));
        wrong.map(|(name, why)| format!("{name}, with {}: {why}", words(one.isa)))
    });
    Examined {
        place: "cpu".into(),
        name: format!("{}, {} threads", host.processor, host.threads),
        machine: Some(machine),
        tried: count(|one| one.trials.len()),
        right: count(Tried::right),
        said: tried.iter().map(Tried::words).collect(),
        wrong: wrong.collect(),
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
    /// The same in words, a line each.
    said: Vec<String>,
    /// What is said of the others, and of whatever else it failed at.
    wrong: Vec<String>,
}

impl Examined {
    fn text(&self) -> String {
        let mut text = fold(&self.place, &self.name);
        if let Some(machine) = &self.machine {
            text.push_str(&fold("", &rates(machine)));
        }
        self.said.iter().for_each(|said| text.push_str(&fold("", said)));
        self.wrong.iter().for_each(|wrong| text.push_str(&fold("", &format!("wrong: {wrong}"))));
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
            "right": self.right,
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
                let (name, machine, said) = (error.to_string(), None, Vec::new());
                let (tried, right, wrong) = (0, 0, Vec::new());
                all.push(Examined { place, name, machine, tried, right, said, wrong });
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
    let said = vec![format!("{right} of {tried} kernels and wrappers right")];
    Examined { place, name, machine, tried, right, said, wrong }
}

#[cfg(not(feature = "cuda"))]
fn gpus(_: &mut Vec<Examined>) -> Option<String> {
    Some("no CUDA: this optimize was built without it".into())
}
