//! What was measured, as text and as JSON.

use super::session::{Gain, Measured, Profile, Speculation, StepCost};
use crate::args::bench::Bench;
use crate::device::Devices;
use crate::failure::Failure;
use crate::fold::fold;
use crate::host;
use crate::output::size;
use ::bench::{Machine, Roof, Spread, Tally};
use serde_json::{Value, json};
use std::fmt::{Result, Write};

/// What work is held against.
pub(crate) struct Ceilings {
    /// The first device's: one request at a time.
    one: Machine,
    /// Those of all devices together: the load.
    all: Machine,
    /// The CPU's threads of both.
    threads: [usize; 2],
    /// Whether they are not the same.
    differ: bool,
}

impl Ceilings {
    /// Measures what `one`, which was measured, does not say.
    pub(crate) fn of(one: Machine, replicas: &[Devices]) -> std::result::Result<Self, Failure> {
        let differ = replicas.iter().flat_map(|replica| replica.places.all()).count() > 1;
        let all = if differ { Devices::together(replicas)? } else { one };
        let threads = [&replicas[..replicas.len().min(1)], replicas].map(Devices::threads);
        Ok(Self { one, all, threads, differ })
    }
}

/// Everything.
pub(crate) fn json(args: &Bench, words: &str, ceilings: &Ceilings, measured: &[Measured]) -> Value {
    let models: Vec<Value> = measured.iter().map(|m| model_json(args, ceilings, m)).collect();
    let machine_json = |machine: &Machine, threads: usize| {
        json!({
            "processor": host::processor(),
            "read_bytes_per_second": machine.read,
            "f32_operations_per_second": machine.f32,
            "bf16_operations_per_second": machine.bf16,
            "int8_operations_per_second": machine.int8,
            "threads": threads,
        })
    };
    let [one, all] = ceilings.threads;
    let against = Ratios::of(args, measured).map(|ratios| ratios.json());
    json!({
        "workload": words,
        "machine": machine_json(&ceilings.all, all),
        "first_device": machine_json(&ceilings.one, one),
        "models": models,
        "against_baseline": against,
    })
}

/// The first model's figures over the second's.
struct Ratios {
    decode: [f64; 2],
    prefill: f64,
    /// The median under the workload.
    ttft: f64,
    size: f64,
}

impl Ratios {
    fn of(args: &Bench, models: &[Measured]) -> Option<Self> {
        let [model, baseline] = models else { return None };
        let both = |of: &dyn Fn(&Measured) -> f64| [of(model), of(baseline)];
        let over = |of: &dyn Fn(&Measured) -> f64| of(model) / of(baseline);
        Some(Self {
            decode: both(&|m| 1.0 / m.decode(args).seconds),
            prefill: over(&|m| 1.0 / m.prefill(args).seconds),
            ttft: over(&|m| m.load.ttft.percentile(50.0)),
            size: over(&|m| m.bytes as f64),
        })
    }

    fn json(&self) -> Value {
        json!({
            "decode": self.decode[0] / self.decode[1],
            "prefill": self.prefill,
            "ttft_p50": self.ttft,
            "bytes": self.size,
        })
    }

    /// The one line that most want to know.
    fn line(&self) -> String {
        let [ours, theirs] = self.decode;
        format!(
            "decode {} against {} tokens/s, {} x; prefill {} x, TTFT {} x, size {} x",
            digits(ours, 3),
            digits(theirs, 3),
            digits(ours / theirs, 2),
            digits(self.prefill, 2),
            digits(self.ttft, 2),
            digits(self.size, 2)
        )
    }
}

/// A number of so many digits, and all of those before the point.
fn digits(value: f64, digits: i32) -> String {
    let before = value.abs().log10().floor();
    let after = if before.is_finite() { (digits - 1 - before as i32).clamp(0, 9) } else { 0 };
    format!("{value:.0$}", after as usize)
}

/// `93 %`, or `cache` above what memory allows, with so many digits after the point.
pub(super) fn bandwidth_share(share: f64, digits: usize) -> String {
    if share > 1.0 { "cache".into() } else { format!("{:.digits$} %", 100.0 * share) }
}

fn model_json(args: &Bench, ceilings: &Ceilings, model: &Measured) -> Value {
    let machine = &ceilings.one;
    let (prefill, decode) = (model.prefill(args), model.decode(args));
    let mut prefill_json = tally_json(&prefill, machine);
    prefill_json["tokens"] = json!(args.prompt());
    prefill_json["tokens_per_second"] = json!(args.prompt() as f64 / prefill.seconds);
    let mut decode_json = tally_json(&decode, machine);
    decode_json["tokens_per_second"] = json!(1.0 / decode.seconds);
    decode_json["bytes_per_token"] = json!(decode.bytes);
    let sweep = model.sweep.iter().map(|(users, summary)| {
        let mut row = summary.json();
        row["concurrency"] = json!(users);
        row
    });
    let prefills = model.prefills.iter().map(|(how, summary)| {
        let mut row = summary.json();
        row["prefill"] = json!(how.name());
        row
    });
    let replicas = model
        .replicas
        .iter()
        .map(|(device, requests)| json!({ "device": device, "requests": requests }));
    let mut workload = model.load.json();
    let roof = Roof::new(&model.whole(), &ceilings.all);
    workload["mfu"] = json!(roof.mfu);
    workload["mbu"] = json!(roof.mbu);
    workload["bound"] = json!(roof.bound.map(::bench::Bound::name));
    workload["from_cache"] = json!(roof.from_cache());
    let stats = &model.stats;
    json!({
        "model": model.model,
        "bytes": model.bytes,
        "prefill": prefill_json,
        "decode": decode_json,
        "alone": model.alone.json(),
        "workload": workload,
        "replicas": replicas.collect::<Vec<Value>>(),
        "prefills": prefills.collect::<Vec<Value>>(),
        "sweep": sweep.collect::<Vec<Value>>(),
        "speculation": model.speculation.as_ref().map(speculation_json),
        "profile": profile_json(&model.profile, machine),
        "cost_per_million_tokens": model.price(args),
        "kwh_per_million_tokens": model.energy(args),
        "engine": { "steps": stats.steps, "preemptions": stats.preemptions,
            "prefix_hit_rate": stats.cached as f64 / stats.prompt.max(1) as f64,
            "accepted_by_place": stats.drafted },
    })
}

fn tally_json(tally: &Tally, machine: &Machine) -> Value {
    let roof = Roof::new(tally, machine);
    json!({
        "seconds": tally.seconds,
        "bytes": tally.bytes,
        "float_operations": tally.floats,
        "integer_operations": tally.integers,
        "bound": roof.bound.map(::bench::Bound::name),
        "mfu": roof.mfu,
        "mbu": roof.mbu,
        "from_cache": roof.from_cache(),
    })
}

fn speculation_json(speculation: &Speculation) -> Value {
    let gain = |gain: &Gain| {
        json!({
            "decode_speedup": gain.decode,
            "predicted_speedup": gain.predicted,
            "throughput_speedup": gain.whole,
            "tokens_per_verification": gain.length,
        })
    };
    json!({
        "acceptance": speculation.acceptance,
        "alone": gain(&speculation.alone),
        "workload": gain(&speculation.load),
        "accepted_by_place": speculation.places,
        "steps": speculation.steps.iter().map(step_json).collect::<Vec<Value>>(),
        "same_text": true,
    })
}

fn step_json(step: &StepCost) -> Value {
    json!({
        "positions": step.positions,
        "seconds": step.ran,
        "seconds_by_cost_table": step.table,
    })
}

/// An object a phase; null if nothing was profiled.
fn profile_json(profile: &[Profile], machine: &Machine) -> Value {
    let mut phases = serde_json::Map::new();
    for phase in profile {
        let kinds = phase.kinds.iter().map(|(kind, tally)| {
            let mut row = tally_json(tally, machine);
            row["kind"] = json!(kind.name());
            row
        });
        let kinds: Vec<Value> = kinds.collect();
        phases.insert(phase.phase.name().into(), json!({ "steps": phase.steps, "ops": kinds }));
    }
    if phases.is_empty() { Value::Null } else { phases.into() }
}

/// The same for people.
pub(crate) fn table(args: &Bench, words: &str, ceilings: &Ceilings, models: &[Measured]) -> String {
    let [one, all] = ceilings.threads;
    let mut text = fold("machine", &format!("{}, {all} threads", host::processor()));
    text += &fold("", &rates(&ceilings.all));
    if ceilings.differ {
        text += &fold("first", &format!("{}; {one} threads", rates(&ceilings.one)));
        text += &fold("", "what prefill and decode have");
    }
    text += &fold("workload", words);
    for model in models {
        // Writing to a string does not fail.
        let _ = write_model(&mut text, args, ceilings, model);
    }
    if let Some(ratios) = Ratios::of(args, models) {
        text += &format!("\n{}\n", ratios.line());
    }
    text
}

/// `70.1 GB/s read, 540 GFLOP/s f32`, and so on.
pub(crate) fn rates(machine: &Machine) -> String {
    let float = match machine.bf16 {
        // A GPU's linears all multiply on tensor cores.
        Some(bf16) if bf16 == machine.f32 => format!("{:.0} GFLOP/s bf16", bf16 / 1e9),
        Some(bf16) => {
            format!("{:.0} GFLOP/s f32, {:.0} GFLOP/s bf16", machine.f32 / 1e9, bf16 / 1e9)
        }
        None => format!("{:.0} GFLOP/s f32", machine.f32 / 1e9),
    };
    format!("{:.1} GB/s read, {float}, {:.0} GOP/s int8", machine.read / 1e9, machine.int8 / 1e9)
}

fn write_model(text: &mut String, args: &Bench, ceilings: &Ceilings, model: &Measured) -> Result {
    let machine = &ceilings.one;
    writeln!(text, "\n{}, {}", model.model, size(model.bytes))?;
    writeln!(text, "            tokens/s  bound         MFU    MBU")?;
    let tally = model.prefill(args);
    let tokens = args.prompt();
    let of = format!("a prompt of {tokens} alone");
    writeln!(
        text,
        "{}",
        roof_line("prefill", tokens as f64 / tally.seconds, &tally, machine, &of)
    )?;
    let tally = model.decode(args);
    let of = format!("one sequence, {} a token", size(tally.bytes as u64));
    writeln!(text, "{}", roof_line("decode", 1.0 / tally.seconds, &tally, machine, &of))?;
    let load = &model.load;
    let of = format!("{} requests in {:.1} s", load.requests, load.seconds);
    let (rate, all) = (load.throughput(), &ceilings.all);
    writeln!(text, "{}", roof_line("load", rate, &model.whole(), all, &of))?;
    write_load(text, model)?;
    writeln!(text, "ms               mean       p50       p90       p99")?;
    writeln!(text, "{}", spread_line("TTFT", &load.ttft))?;
    if let Some(tokenize) = load.tokenize.some() {
        writeln!(text, "{}", spread_line("  tokenize", tokenize))?;
    }
    for (name, spread) in [
        ("  queue", &load.queue),
        ("  prefill", &load.prefill),
        ("TPOT", &load.tpot),
        ("ITL", &load.itl),
    ] {
        writeln!(text, "{}", spread_line(name, spread))?;
    }
    if let Some(goodput) = load.goodput {
        writeln!(text, "goodput   {goodput:.3} requests/s within the limits")?;
    }
    if let Some(price) = model.price(args) {
        writeln!(text, "cost      {price:.3} a million generated tokens")?;
    }
    if let Some(energy) = model.energy(args) {
        writeln!(text, "energy    {energy:.3} kWh a million generated tokens")?;
    }
    if let Some(speculation) = &model.speculation {
        write_speculation(text, speculation)?;
    }
    write_prefills(text, model)?;
    write_sweep(text, model)?;
    model.profile.iter().try_for_each(|profile| write_profile(text, profile, machine))
}

fn write_load(text: &mut String, model: &Measured) -> Result {
    if let [_, _, ..] = model.replicas[..] {
        let dealt =
            |(device, requests): &(String, usize)| format!("{requests} requests on {device}");
        let dealt: Vec<String> = model.replicas.iter().map(dealt).collect();
        text.push_str(&fold("replicas", &format!("{}: {}", dealt.len(), dealt.join(", "))));
    }
    let load = &model.load;
    let all = (load.prompt + load.output) as f64 / load.seconds;
    writeln!(text, "          {all:>10.1}  with prompts")
}

/// A rate, what bounds it, and its shares of what the machine allows.
fn roof_line(name: &str, rate: f64, tally: &Tally, machine: &Machine, of: &str) -> String {
    let roof = Roof::new(tally, machine);
    let bound = roof.bound.map_or("-", ::bench::Bound::name);
    let (mfu, mbu) = (100.0 * roof.mfu, bandwidth_share(roof.mbu, 0));
    format!("{name:<10}{rate:>10.1}  {bound:<9} {mfu:>5.0} % {mbu:>6}  {of}")
}

fn spread_line(name: &str, spread: &Spread) -> String {
    let ms = |x: f64| format!("{:10.1}", x * 1e3);
    let all =
        [spread.mean(), spread.percentile(50.0), spread.percentile(90.0), spread.percentile(99.0)];
    format!("{name:<11}{}", all.map(ms).concat())
}

fn write_speculation(text: &mut String, speculation: &Speculation) -> Result {
    writeln!(
        text,
        "\nspeculation at an acceptance of {} a token; the text is the same",
        speculation.acceptance
    )?;
    for (name, gain) in [("alone", &speculation.alone), ("workload", &speculation.load)] {
        let length = match gain.length {
            length if length.is_finite() => format!("{length:.2} tokens a verification"),
            _ => "no draft pays".into(),
        };
        let gain = format!(
            "{:.2} x plain decoding, {:.2} x predicted by the costs; {:.2} x the throughput; {length}",
            gain.decode, gain.predicted, gain.whole
        );
        text.push_str(&fold(name, &gain));
    }
    let share = |&(offered, stood): &(u64, u64)| match offered {
        0 => "-".into(),
        _ => format!("{:.0} %", 100.0 * stood as f64 / offered as f64),
    };
    let places: Vec<String> = speculation.places.iter().map(share).collect();
    text.push_str(&fold("accepted", &format!("by place: {}", places.join(", "))));
    let ms = |step: &StepCost| {
        format!("{}: {:.1} ({:.1})", step.positions, step.ran * 1e3, step.table * 1e3)
    };
    let steps: Vec<String> = speculation.steps.iter().map(ms).collect();
    let steps = format!("by its positions (by the table of costs): {}", steps.join(", "));
    text.push_str(&fold("ms a step", &steps));
    Ok(())
}

fn write_prefills(text: &mut String, model: &Measured) -> Result {
    let [_, _, ..] = model.prefills[..] else { return Ok(()) };
    writeln!(text, "\nprefill   tokens/s   TTFT p50   TTFT p99    ITL p50    ITL p99  (ms)")?;
    for (how, summary) in &model.prefills {
        let latencies = [
            ms(&summary.ttft, 50.0),
            ms(&summary.ttft, 99.0),
            ms(&summary.itl, 50.0),
            ms(&summary.itl, 99.0),
        ];
        writeln!(text, "{:<8}{:>10.1}{}", how.name(), summary.throughput(), latencies.concat())?;
    }
    Ok(())
}

fn ms(spread: &Spread, percent: f64) -> String {
    format!("{:11.1}", spread.percentile(percent) * 1e3)
}

fn write_sweep(text: &mut String, model: &Measured) -> Result {
    if model.sweep.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nat once   tokens/s   TTFT p50   TTFT p99   TPOT p50   TPOT p99  (ms)")?;
    for (users, summary) in &model.sweep {
        let latencies = [
            ms(&summary.ttft, 50.0),
            ms(&summary.ttft, 99.0),
            ms(&summary.tpot, 50.0),
            ms(&summary.tpot, 99.0),
        ];
        writeln!(text, "{users:>7}{:>11.1}{}", summary.throughput(), latencies.concat())?;
    }
    Ok(())
}

fn write_profile(text: &mut String, profile: &Profile, machine: &Machine) -> Result {
    let steps = profile.steps.max(1) as f64;
    let total: f64 = profile.kinds.iter().map(|(_, tally)| tally.seconds).sum();
    writeln!(
        text,
        "\n{:<9}ms a step   share        MB    MFLOP      MOP  bound        MFU    MBU",
        profile.phase.name()
    )?;
    for (kind, tally) in &profile.kinds {
        let roof = Roof::new(tally, machine);
        writeln!(
            text,
            "{:<8} {:9.3} {:5.1} % {:>9} {:>8} {:>8}  {:<9} {:4.0} % {:>6}",
            kind.name(),
            tally.seconds / steps * 1e3,
            100.0 * tally.seconds / total,
            digits(tally.bytes / steps / 1e6, 4),
            digits(tally.floats / steps / 1e6, 4),
            digits(tally.integers / steps / 1e6, 4),
            roof.bound.map_or("-", ::bench::Bound::name),
            roof.mfu * 100.0,
            bandwidth_share(roof.mbu, 0)
        )?;
    }
    Ok(())
}
