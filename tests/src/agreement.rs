//! What a device says of the next tokens, beside the CPU's exact path.

use backend::{Backend, KvDType};
use backend_cpu::Cpu;
use backend_cuda::FAMILIES;
use cuda_emulator::{BuildError, Check, Library};
use std::path::{Path, PathBuf};

/// Tokens that go through the model together.
const WINDOW: usize = 256;

/// A comparison, teacher-forced.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    count: usize,
    difference: f64,
    parted: usize,
    nll: [f64; 2],
    /// The largest lead of the exact first choice over the device's where they differ, in nats.
    pub margin: f64,
}

impl Agreement {
    /// Runs `ids` through `model` in windows, as served on `device` and exactly on the CPU.
    ///
    /// # Panics
    /// If either cannot run it.
    pub fn of(model: &calibration::Model<'_>, device: &dyn Backend, ids: &[u32]) -> Self {
        let (mut seen, cpu, vocab) = (Self::default(), Cpu::new(), model.spec.vocab);
        for ids in ids.chunks(WINDOW.min(model.spec.context)) {
            let logits = |backend: &dyn Backend, forward| {
                calibration::logits(backend, forward, ids).expect("the model runs")
            };
            let want = logits(&cpu, model.exact());
            let got = logits(device, model.served(KvDType::Bf16));
            let rows = want.chunks(vocab).zip(got.chunks(vocab));
            rows.zip(&ids[1..]).for_each(|((want, got), &next)| seen.compare(want, got, next));
        }
        seen
    }

    fn compare(&mut self, want: &[f32], got: &[f32], next: u32) {
        let best = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap_or(0);
        let logprob = |x: &[f32]| {
            let top = f64::from(x[best(x)]);
            let sum: f64 = x.iter().map(|&v| (f64::from(v) - top).exp()).sum();
            f64::from(x[next as usize]) - top - sum.ln()
        };
        let (exact, device) = (logprob(want), logprob(got));
        self.count += 1;
        self.difference += (exact - device).abs();
        self.nll[0] -= exact;
        self.nll[1] -= device;
        let (ours, theirs) = (best(got), best(want));
        if ours != theirs {
            self.parted += 1;
            self.margin = self.margin.max(f64::from(want[theirs] - want[ours]));
        }
    }

    /// The mean absolute difference of log-probabilities, in nats.
    pub fn mean(&self) -> f64 {
        self.difference / self.count as f64
    }

    /// The share of positions with another first choice.
    pub fn parted(&self) -> f64 {
        self.parted as f64 / self.count as f64
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [exact, device] = self.nll.map(|nll| (nll / self.count as f64).exp());
        write!(
            f,
            "{} tokens: mean difference {:.4} nat, another first choice at {:.2} % (margin at most \
             {:.3} nat), perplexity {exact:.4} -> {device:.4} ({:+.3} %)",
            self.count,
            self.mean(),
            100.0 * self.parted(),
            self.margin,
            100.0 * (device / exact - 1.0)
        )
    }
}

/// The CUDA kernels for the emulator, kept in `room`; `None` where there is no compiler.
///
/// # Panics
/// If they do not compile.
pub fn kernels(room: &Path) -> Option<Library> {
    let folder = crate::root().join("crates/backend-cuda/kernels");
    let sources: Vec<PathBuf> =
        FAMILIES.iter().map(|f| folder.join(f.name).with_extension("cu")).collect();
    match Library::build(&sources, &[folder], room, Check::Barriers) {
        Ok(library) => Some(library),
        Err(BuildError::NoCompiler) => None,
        Err(BuildError::Compile(what)) => panic!("{what}"),
    }
}
