//! `optimize bench --kernels`: every kernel alone, against what the machine allows.

use super::report::bandwidth_share;
use super::subject::Subject;
use crate::args::bench::Bench;
use crate::device::Devices;
use crate::failure::Failure;
use crate::output::print;
use ::bench::{Machine, Scale, Timed};
use serde_json::{Value, json};

pub(super) fn run(
    args: &Bench,
    subject: &Subject,
    devices: &Devices,
    machine: &Machine,
) -> Result<(), Failure> {
    let layer = subject.spec().layers.first();
    let layer = layer.ok_or_else(|| Failure::refused("the model has no layers"))?;
    let (backend, numerics) = (devices.backend(), devices.backend().numerics());
    if !args.common.json {
        print(&format!("{}: kernels on {}", subject.name, backend.name()))?;
    }
    let mut told = Ok(());
    let mut each = |timed: &Timed| {
        if !args.common.json && told.is_ok() {
            told = print(&line(timed, machine, numerics));
        }
    };
    let all = ::bench::kernels(backend, layer, &Scale::default(), &mut each);
    let all = all.map_err(calibration::EvalError::from)?;
    told?;
    if !args.common.json {
        return Ok(());
    }
    let rows: Vec<Value> = all.iter().map(|k| row(k, machine, numerics)).collect();
    let report = json!({ "device": backend.name(), "model": subject.name, "kernels": rows });
    print(&format!("{report:#}"))
}

/// The shares of the machine's bandwidth and of its rate of the kernel's products.
fn shares(timed: &Timed, machine: &Machine, numerics: &str) -> [f64; 2] {
    let integers = numerics == "default" && timed.name.starts_with("linear int");
    let peak = match (integers, timed.name.starts_with("attention")) {
        (true, _) => machine.int8,
        (false, true) => machine.bf16.unwrap_or(machine.f32),
        (false, false) => machine.f32,
    };
    let rate = |work: f64, peak: f64| work / timed.seconds / peak;
    [rate(timed.bytes, machine.read), rate(timed.operations, peak)]
}

fn line(timed: &Timed, machine: &Machine, numerics: &str) -> String {
    let [bandwidth, compute] = shares(timed, machine, numerics);
    let time = 1e6 * timed.seconds;
    format!(
        "{}\n{time:>14.1} us {:>8.1} GB/s ({:>7}) {:>10.1} GFLOP/s ({:>5.1} %)",
        timed.name,
        timed.bytes / timed.seconds / 1e9,
        bandwidth_share(bandwidth, 1),
        timed.operations / timed.seconds / 1e9,
        100.0 * compute,
    )
}

fn row(timed: &Timed, machine: &Machine, numerics: &str) -> Value {
    let [bandwidth, compute] = shares(timed, machine, numerics);
    json!({
        "kernel": timed.name,
        "seconds": timed.seconds,
        "bytes": timed.bytes,
        "operations": timed.operations,
        "share_of_bandwidth": bandwidth,
        "from_cache": bandwidth > 1.0,
        "share_of_peak": compute,
    })
}
