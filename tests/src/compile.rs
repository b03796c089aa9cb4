//! Compiles in this process, on any backend.

use backend::Backend;
use backend_cpu::Cpu;
use calibration::{Sequence, Target};
use checkpoint::Checkpoint;
use compiler::{
    Claim, CompileError, Compiled, Decisions, Destination, Job, Pass, Plan, Text, Tokens, compile,
};
use ir::Source;
use std::path::Path;

/// A text in windows, of which the first are for calibration and the next is for measuring.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// The text's tokens.
    pub ids: &'a [u32],
    /// Windows for calibration.
    pub samples: usize,
    /// Tokens of a window.
    pub length: usize,
}

/// Compiles `model` to int4 at `out`. Gives the numerics class of the report.
///
/// # Panics
/// If it does not compile.
pub fn int4(model: &Path, out: &Path, backend: &dyn Backend, windows: Windows<'_>) -> String {
    let checkpoint = Checkpoint::open(model).expect("it compiles and runs");
    let job = Int4 { checkpoint: &checkpoint, source: &checkpoint, passes: Vec::new(), windows };
    job.compile(out, backend).expect("it compiles and runs")
}

/// A compilation to int4.
pub struct Int4<'a> {
    /// What is compiled.
    pub checkpoint: &'a Checkpoint,
    /// Where its weights are read.
    pub source: &'a dyn Source,
    /// Passes beside those of the recipe.
    pub passes: Vec<Box<dyn Pass>>,
    /// The text.
    pub windows: Windows<'a>,
}

impl Int4<'_> {
    /// Compiles it to `out`. Gives the numerics class of the report.
    ///
    /// # Errors
    /// As [`compile`].
    ///
    /// # Panics
    /// If it cannot be planned.
    pub fn compile(self, out: &Path, backend: &dyn Backend) -> Result<String, CompileError> {
        let Self { checkpoint, source, passes, windows } = self;
        let Windows { ids, samples, length } = windows;
        let spec = arch::load(checkpoint.config(), checkpoint).expect("it compiles and runs").model;
        let recipe = passes::builtin("int4").expect("it compiles and runs");
        let mut pipeline = passes::pipeline(&recipe).expect("it compiles and runs");
        pipeline.passes.extend(passes);
        let mut all = ids.chunks_exact(length).map(<[u32]>::to_vec);
        let sample: Vec<Vec<u32>> = all.by_ref().take(samples).collect();
        let held_out: Vec<Vec<u32>> = all.take(1).collect();
        let tokens = Tokens { calibration: samples * length, held_out: length, longest: length };
        let plan = Plan::new(&spec, &pipeline, tokens).expect("it compiles and runs");
        let job = Job {
            checkpoint,
            model: calibration::Model { spec: &spec, source },
            ignored_keys: &[],
            recipe: &recipe,
            pipeline: &pipeline,
            plan: &plan,
            backend,
            samples: Text { from: "test", sequences: &sample },
            held_out: Text { from: "test", sequences: &held_out },
            activations: u64::MAX,
            decisions: &Decisions::default(),
            allow_zero: false,
            dump: None,
        };
        let destination =
            Destination::claim(out, Claim::new(checkpoint.folder())).expect("it compiles and runs");
        let Compiled::Made(made) = compile(&job, destination, &mut |_| {})? else {
            panic!("there was nothing in its place");
        };
        let numerics = made.report.numerics.clone();
        made.publish("{}\n")?;
        Ok(numerics)
    }
}

/// The perplexity of an artifact by the CPU's exact path, in windows of 256.
///
/// # Panics
/// If it does not run.
pub fn perplexity(folder: &Path, ids: &[u32]) -> f64 {
    let checkpoint = Checkpoint::open(folder).expect("it compiles and runs");
    let spec = arch::load(checkpoint.config(), &checkpoint).expect("it compiles and runs").model;
    let model = calibration::Model { spec: &spec, source: &checkpoint };
    let sequence = |ids: &[u32]| Sequence {
        tokens: ids.to_vec(),
        targets: (1..ids.len()).map(|i| Target { position: i, token: ids[i] }).collect(),
    };
    let sequences: Vec<Sequence> = ids.chunks(256).map(sequence).collect();
    let scored =
        calibration::score(&Cpu::new(), &[model.exact()], &sequences[..], usize::MAX, &mut |_| {})
            .expect("it compiles and runs");
    let logprobs: Vec<f64> = scored[0].iter().map(|scored| scored.logprob).collect();
    (-logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp()
}
