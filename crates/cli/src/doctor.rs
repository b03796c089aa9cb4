//! `optimize doctor`: the devices of this machine, what they can do, and whether they do it right.

use crate::args::Doctor;
use crate::device::{Devices, Sums, Wanted};
use crate::failure::{Code, Failure};
use crate::output::print;
use ::bench::Machine;
use serde_json::{Value, json};

pub(crate) fn run(args: &Doctor) -> Result<(), Failure> {
    let devices = Devices::open(&args.common, Wanted::Cpu, Sums::Ours)?;
    let machine = devices.pool.install(|| devices.cpu_machine())?;
    let threads = devices.pool.current_num_threads();
    let name = format!("{:?}, {threads} threads", devices.cpu.isa());
    let mut all =
        vec![Examined { place: "cpu".into(), name, machine, wrong: Vec::new(), tried: 0 }];
    let missing = gpus(&mut all)?;
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
            let message = format!("{wrong} kernels do not give what they must");
            Err(Failure::new(Code::Machine, anyhow::Error::msg(message))
                .with_hint("--device cpu computes without them; please report it"))
        }
    }
}

/// A device, measured and tried.
struct Examined {
    place: String,
    name: String,
    machine: Machine,
    /// Trials, and what is said of those that failed.
    tried: usize,
    wrong: Vec<String>,
}

impl Examined {
    fn text(&self) -> String {
        let Machine { read, f32, bf16, int8 } = self.machine;
        let float = match bf16 {
            Some(bf16) if bf16 == f32 => format!("{:.0} GFLOP/s bf16", bf16 / 1e9),
            Some(bf16) => {
                format!("{:.0} GFLOP/s f32, {:.0} GFLOP/s bf16", f32 / 1e9, bf16 / 1e9)
            }
            None => format!("{:.0} GFLOP/s f32", f32 / 1e9),
        };
        let mut text = format!("{:<12}{}\n", self.place, self.name);
        let (read, int8) = (read / 1e9, int8 / 1e9);
        text.push_str(&format!("            {read:.1} GB/s read, {float}, {int8:.0} GOP/s int8\n"));
        if self.tried > 0 {
            let right = self.tried - self.wrong.len();
            let tried = self.tried;
            text.push_str(&format!("            {right} of {tried} kernels and wrappers right\n"));
        }
        self.wrong.iter().for_each(|wrong| text.push_str(&format!("            wrong: {wrong}\n")));
        text
    }

    fn json(&self) -> Value {
        json!({
            "device": self.place,
            "name": self.name,
            "read_bytes_per_second": self.machine.read,
            "f32_operations_per_second": self.machine.f32,
            "bf16_operations_per_second": self.machine.bf16,
            "int8_operations_per_second": self.machine.int8,
            "tried": self.tried,
            "wrong": self.wrong,
        })
    }
}

/// Adds every GPU; says why there is none.
#[cfg(feature = "cuda")]
fn gpus(all: &mut Vec<Examined>) -> Result<Option<String>, Failure> {
    use backend::Backend;
    use backend_cuda::{Cuda, Driver, NoDriver};
    use std::sync::Arc;
    for index in 0.. {
        let driver = match Driver::open(index) {
            Ok(driver) => driver,
            Err(NoDriver::NoDevice { .. }) if index > 0 => break,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let failed = |error| Failure::from(calibration::EvalError::from(error));
        let gpu = Cuda::new(Arc::new(driver), false).with_wgmma().map_err(failed)?.with_library();
        let rates = gpu.rates(crate::device::GPU_BYTES, crate::device::GPU_ROUNDS);
        let rates = rates.map_err(failed)?;
        let trials = gpu.trials().map_err(failed)?;
        let wrong = trials.iter().filter(|trial| !trial.passed());
        let wrong = wrong.map(|t| format!("{}: {:.1e}, not {:.1e}", t.name, t.error, t.allowed));
        let (read, f32, int8) = (rates.read, rates.bf16, rates.int8);
        all.push(Examined {
            place: format!("cuda:{index}"),
            name: match gpu.numerics() {
                class if class.ends_with("cublaslt") => {
                    format!("{}, cuBLASLt", gpu.device().describe())
                }
                _ => gpu.device().describe(),
            },
            machine: Machine { read, f32, bf16: Some(f32), int8 },
            tried: trials.len(),
            wrong: wrong.collect(),
        });
    }
    Ok(None)
}

#[cfg(not(feature = "cuda"))]
fn gpus(_: &mut Vec<Examined>) -> Result<Option<String>, Failure> {
    Ok(Some("no CUDA: this optimize was built without it".into()))
}
