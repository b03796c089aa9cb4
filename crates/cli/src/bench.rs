//! `optimize bench`: how fast a model is here, and how fast the machine would let it be.

use crate::args::bench::Bench;
use crate::args::serve::{Serving, Speculate};
use crate::eval::read;
use crate::failure::{Code, Failure};
use crate::model::device;
use crate::output::{print, remark, size};
use crate::serve::Served;
use ::bench::{Machine, Spread, Summary, Workload};
use backend_cpu::Cpu;
use runtime::Cost;
use serde_json::{Value, json};
use std::fmt::Write;

/// Requests of the phases that are measured alone; the first is not counted.
const ALONE: usize = 4;

pub(crate) fn run(args: &Bench) -> Result<(), Failure> {
    let workload = workload(args)?;
    let (cpu, pool) = device(&args.common)?;
    pool.install(|| {
        let short = || Failure::new(Code::Machine, anyhow::Error::msg("memory is short"));
        let machine = ::bench::measure(&Probe(&cpu)).ok_or_else(short)?;
        let mut models = vec![measure(args, &args.model, &args.serving, &cpu, &workload)?];
        if let Some(baseline) = &args.baseline {
            // The draft is the other model's.
            let plain = Serving { draft: None, speculate: Speculate::Off, ..args.serving.clone() };
            models.push(measure(args, baseline, &plain, &cpu, &workload)?);
        }
        if args.common.json {
            let models: Vec<Value> = models.iter().map(|m| m.json(args, &machine)).collect();
            return print(&format!(
                "{:#}",
                json!({ "machine": machine_json(&machine), "models": models })
            ));
        }
        print(&table(args, &machine, &models))
    })
}

/// The work of a [`::bench::Probe`], by our own kernels.
struct Probe<'a>(&'a Cpu);

impl ::bench::Probe for Probe<'_> {
    fn read(&self, words: &[u64]) -> u64 {
        self.0.read(words)
    }

    fn f32(&self, rounds: usize) -> f64 {
        self.0.multiply_f32(rounds)
    }

    fn int8(&self, rounds: usize) -> f64 {
        self.0.multiply_int8(rounds)
    }
}

fn workload(args: &Bench) -> Result<Workload, Failure> {
    let (count, prompt, output) = (args.requests, args.prompt.max(1), args.output.max(1));
    Ok(match (&args.trace, args.rate) {
        (Some(path), _) => {
            let trace = ::bench::trace(&read(path)?, count);
            let trace = trace.map_err(|error| Failure::refused(format!("{path:?}: {error}")))?;
            trace.stretched(args.stretch.unwrap_or(1.0))
        }
        (None, Some(rate)) => Workload::poisson(rate, count, prompt, output, 0),
        (None, None) => Workload::closed(args.concurrency.unwrap_or(8), count, prompt, output),
    })
}

/// What was measured of a model.
struct Measured {
    model: String,
    cost: Cost,
    /// Bytes of keys and values a token.
    token: u64,
    /// Whether linears multiply integers.
    integers: bool,
    /// One request at a time.
    alone: Summary,
    load: Summary,
    stats: engine::Stats,
}

fn measure(
    args: &Bench,
    model: &str,
    serving: &Serving,
    cpu: &Cpu,
    workload: &Workload,
) -> Result<Measured, Failure> {
    let users = args.concurrency.unwrap_or(8).max(1);
    let served = Served::open_for(model, serving, &args.common, users)?;
    let checkpoint = &served.opened.checkpoint;
    let stored = |name: &str| checkpoint.tensor(name).map_or(0, checkpoint::TensorInfo::bytes);
    let cost = Cost::new(&served.opened.spec, stored);
    let integers = !serving.exact && checkpoint.tensors().iter().any(|t| t.grid.is_some());
    let token = served.kv_token();
    served.load(cpu, |answerer| {
        let one = Workload::closed(1, ALONE, args.prompt.max(1), args.output.max(2));
        remark_unless(args, "measuring one request at a time");
        let alone = answerer.drive(&one)?;
        remark_unless(args, "measuring the workload");
        let load = answerer.drive(workload)?;
        Ok(Measured {
            model: model.into(),
            cost,
            token,
            integers,
            alone: Summary::new(alone.get(1..).unwrap_or_default(), None),
            load: Summary::new(&load, args.slo),
            stats: answerer.stats(),
        })
    })
}

fn remark_unless(args: &Bench, what: &str) {
    if !args.common.quiet {
        remark(what);
    }
}

impl Measured {
    /// Tokens a second of a prompt alone, and the share of the machine's peak that it keeps busy.
    fn prefill(&self, args: &Bench, machine: &Machine) -> [f64; 2] {
        let seconds = self.alone.ttft.percentile(50.0);
        let peak = if self.integers { machine.int8 } else { machine.f32 };
        let ops = self.cost.prefill(args.prompt as u64) as f64;
        [args.prompt as f64 / seconds, ops / seconds / peak]
    }

    /// Tokens a second of one sequence, bytes a token, and the share of the machine's bandwidth.
    fn decode(&self, args: &Bench, machine: &Machine) -> [f64; 3] {
        let seconds = self.alone.tpot.percentile(50.0);
        let seen = (args.prompt + args.output / 2) as f64;
        let bytes = self.cost.weights as f64 + self.token as f64 * seen;
        [1.0 / seconds, bytes, bytes / seconds / machine.read]
    }

    fn json(&self, args: &Bench, machine: &Machine) -> Value {
        let [prefill, mfu] = self.prefill(args, machine);
        let [decode, bytes, mbu] = self.decode(args, machine);
        json!({
            "model": self.model,
            "prefill": { "tokens": args.prompt, "tokens_per_second": prefill, "mfu": mfu,
                "peak": if self.integers { "int8" } else { "f32" } },
            "decode": { "tokens_per_second": decode, "bytes_per_token": bytes, "mbu": mbu },
            "alone": self.alone.json(),
            "workload": self.load.json(),
            "cost_per_million_tokens": self.price(args),
            "kwh_per_million_tokens": self.energy(args),
            "engine": { "steps": self.stats.steps, "preemptions": self.stats.preemptions,
                "prefix_hit_rate": self.stats.cached as f64 / self.stats.prompt.max(1) as f64,
                "accepted_by_place": self.stats.drafted },
        })
    }

    /// Of a million generated tokens.
    fn price(&self, args: &Bench) -> Option<f64> {
        args.price.map(|price| price / 3600.0 * 1e6 / self.load.throughput())
    }

    fn energy(&self, args: &Bench) -> Option<f64> {
        args.watts.map(|watts| watts / 3.6e6 * 1e6 / self.load.throughput())
    }
}

fn machine_json(machine: &Machine) -> Value {
    json!({
        "read_bytes_per_second": machine.read,
        "f32_operations_per_second": machine.f32,
        "int8_operations_per_second": machine.int8,
        "threads": rayon::current_num_threads(),
    })
}

fn table(args: &Bench, machine: &Machine, models: &[Measured]) -> String {
    let mut text = format!(
        "machine   {:.1} GB/s read, {:.0} GFLOP/s f32, {:.0} GOP/s int8, {} threads\n",
        machine.read / 1e9,
        machine.f32 / 1e9,
        machine.int8 / 1e9,
        rayon::current_num_threads()
    );
    for model in models {
        // Writing to a string does not fail.
        let _ = write_model(&mut text, args, machine, model);
    }
    text
}

fn write_model(
    text: &mut String,
    args: &Bench,
    machine: &Machine,
    model: &Measured,
) -> std::fmt::Result {
    let [prefill, mfu] = model.prefill(args, machine);
    let [decode, bytes, mbu] = model.decode(args, machine);
    let peak = if model.integers { "int8" } else { "f32" };
    writeln!(text, "\n{}", model.model)?;
    writeln!(
        text,
        "prefill   {prefill:.0} tokens/s of a prompt of {}: {:.0} % of the {peak} peak",
        args.prompt,
        mfu * 100.0
    )?;
    writeln!(
        text,
        "decode    {decode:.1} tokens/s, one sequence: {} a token, {:.0} % of the read bandwidth",
        size(bytes as u64),
        mbu * 100.0
    )?;
    let load = &model.load;
    writeln!(
        text,
        "workload  {} requests in {:.1} s: {:.1} generated tokens/s, {:.1} with prompts",
        load.requests,
        load.seconds,
        load.throughput(),
        (load.prompt + load.output) as f64 / load.seconds
    )?;
    writeln!(text, "ms           mean      p50      p90      p99")?;
    for (name, spread) in
        [("TTFT", &load.ttft), ("  queue", &load.queue), ("TPOT", &load.tpot), ("ITL", &load.itl)]
    {
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
    Ok(())
}

fn spread_line(name: &str, spread: &Spread) -> String {
    let ms = |x: f64| format!("{:9.1}", x * 1e3);
    let all =
        [spread.mean(), spread.percentile(50.0), spread.percentile(90.0), spread.percentile(99.0)];
    format!("{name:<8}{}", all.map(ms).concat())
}
