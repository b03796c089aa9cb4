//! What a step of decoding costs the host where a GPU computes: everything but the GPU, on a device
//! that does nothing, and takes so many microseconds for each graph.
//!
//!     cargo run --release -p tests --example cuda_host -- [SHAPE] [ROWS] [MICROSECONDS] [behind]
//!
//! `behind` draws with a penalty, for which the next step cannot be launched before the last is read.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an experiment")]

use backend::KvDType;
use backend_cuda::{Cuda, Device, DeviceError, Later, Launch, Recorded, Replay};
use bench::{Synthetic, SyntheticGrid};
use engine::{Engine, Executor, Options, Request};
use runtime::{KvPlan, KvRoom, Model, Runner, Settings};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Gives out addresses, and does nothing.
struct Nothing {
    next: AtomicU64,
    launches: Arc<AtomicU64>,
    queue: Arc<Queue>,
}

/// When everything that was started is done.
struct Queue {
    takes: Duration,
    end: Mutex<Instant>,
}

impl Queue {
    fn start(&self) {
        let mut end = self.end.lock().unwrap();
        *end = Instant::now().max(*end) + self.takes;
    }

    fn wait(end: Instant) {
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    }
}

struct Again(Arc<Queue>);

impl Replay for Again {
    fn run(&self) -> Result<(), DeviceError> {
        self.0.start();
        Ok(())
    }
}

impl Device for Nothing {
    fn describe(&self) -> String {
        "nothing".into()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        Ok(self.next.fetch_add(bytes.next_multiple_of(256) as u64, Ordering::Relaxed) + (1 << 20))
    }

    fn free(&self, _: u64) {}

    fn write(&self, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read(&self, _: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        Queue::wait(*self.queue.end.lock().unwrap());
        to.fill(0);
        Ok(())
    }

    fn read_later(&self, _: u64, bytes: usize) -> Result<Later, DeviceError> {
        let end = *self.queue.end.lock().unwrap();
        Ok(Box::new(move || {
            Queue::wait(end);
            Ok(vec![0; bytes])
        }))
    }

    fn copy(&self, _: u64, _: u64, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn clear(&self, _: u64, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn launch(&self, _: &Launch<'_>) -> Result<(), DeviceError> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn record(&self, launches: &[Recorded]) -> Result<Box<dyn Replay>, DeviceError> {
        println!("a graph of {} launches", launches.len());
        Ok(Box::new(Again(Arc::clone(&self.queue))))
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        Ok((1 << 40, 1 << 40))
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let shape = args.first().map_or("qwen3-0.6b", |shape| shape);
    let rows: usize = args.get(1).map_or(1, |rows| rows.parse().unwrap());
    let takes = args.get(2).map_or(0, |us| us.parse().unwrap());
    let behind = args.get(3).is_some_and(|word| word == "behind");
    let noise = Synthetic::new(shape, SyntheticGrid::Int4, 0).unwrap();
    let spec = arch::load(noise.config(), noise.tensors()).unwrap().model;
    let end = Mutex::new(Instant::now());
    let queue = Arc::new(Queue { takes: Duration::from_micros(takes), end });
    let device = Nothing { next: AtomicU64::new(0), launches: Arc::default(), queue };
    let launches = Arc::clone(&device.launches);
    let cuda = Cuda::new(Arc::new(device), false);
    let model = Model::on(&cuda, &noise, &spec, false).unwrap();
    let plan = KvPlan::new(&spec, KvDType::Bf16, &KvRoom::new(8 << 30, 4 * rows)).unwrap();
    let mut runner = Runner::new(&[&cuda], &model, plan, &Settings::default()).unwrap();
    let mut engine = Engine::new(runner.limits(), Options::default());
    for _ in 0..rows {
        let mut request = Request::new(vec![1; 16], 400);
        request.sampling.presence_penalty = if behind { 1e-9 } else { 0.0 };
        engine.add(request).unwrap();
    }
    let (mut events, mut times, before) =
        (Vec::new(), Vec::new(), launches.load(Ordering::Relaxed));
    while !engine.is_idle() {
        let begun = Instant::now();
        engine.step(&mut runner, None, &mut events).unwrap();
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        events.clear();
    }
    times.sort_by(f64::total_cmp);
    let launched = launches.load(Ordering::Relaxed) - before;
    println!(
        "{shape}, {rows} rows: {:.0} us a step (p90 {:.0}), {launched} launches outside of graphs in {} \
         steps, {} replays, {} ahead",
        times[times.len() / 2],
        times[times.len() * 9 / 10],
        times.len(),
        cuda.replayed(),
        runner.ran_ahead()
    );
}
