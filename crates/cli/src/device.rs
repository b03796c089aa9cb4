//! Where a command computes.

use crate::args::{Common, Place, Places};
use crate::failure::{Code, Failure};
use crate::output::remark;
use ::bench::Machine;
use backend::{Backend, Sharded};
use backend_cpu::{Cpu, Isa};
#[cfg(feature = "cuda")]
use backend_cuda::{Cuda, Driver, NoDriver};
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// The devices of a command, in the order of a model's layers, and the CPU's threads.
pub(crate) struct Devices {
    pub(crate) cpu: Cpu,
    pub(crate) pool: rayon::ThreadPool,
    places: Vec<Vec<Place>>,
    #[cfg(feature = "cuda")]
    gpus: Vec<(usize, Cuda)>,
}

/// What computes a range of layers.
pub(crate) enum Joined<'d> {
    One(&'d dyn Backend),
    Several(Sharded<'d>),
}

impl Joined<'_> {
    pub(crate) fn backend(&self) -> &dyn Backend {
        match self {
            Self::One(backend) => *backend,
            Self::Several(sharded) => sharded,
        }
    }
}

/// What a GPU reads to be measured: far more than its caches hold.
#[cfg(feature = "cuda")]
pub(crate) const GPU_BYTES: usize = 2 << 30;

/// Rounds of products, some milliseconds.
#[cfg(feature = "cuda")]
pub(crate) const GPU_ROUNDS: u32 = 1 << 14;

/// What a command is about, where `--device` does not say on which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A GPU if there is one.
    Fastest,
    /// The same bytes on every machine.
    Cpu,
}

/// Which sums a GPU may make in an order that is not ours, or not always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    /// Those of long prompts may be a library's: for what is served.
    Any,
    /// All are ours: for what is compared with a later run.
    Ours,
    /// And none depends on how a prompt is cut.
    Invariant,
}

impl Sums {
    /// Of what is served.
    pub(crate) fn of(invariant: bool) -> Self {
        if invariant { Self::Invariant } else { Self::Any }
    }
}

impl Devices {
    /// Opens what `--device` names, or what is there.
    pub(crate) fn open(common: &Common, wanted: Wanted, sums: Sums) -> Result<Self, Failure> {
        let cpu = match &common.isa {
            None => Cpu::new(),
            Some(name) => Isa::parse(name)
                .and_then(Cpu::with_isa)
                .ok_or_else(|| Failure::refused(format!("no instruction set {name:?} here")))?,
        };
        let threads = common.threads.map_or(0, usize::from);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| Failure::new(Code::Machine, error))?;
        let places = match &common.device {
            Some(Places(places)) if !places.is_empty() => places.clone(),
            None if wanted == Wanted::Cpu => vec![vec![Place::Cpu]],
            _ => vec![vec![fastest(common.quiet)]],
        };
        #[cfg(feature = "cuda")]
        let (places, gpus) = match gpus(&places, sums) {
            // What was found and not asked for is not insisted on.
            Err(failure) if common.device.as_ref().is_none_or(|Places(asked)| asked.is_empty()) => {
                if !common.quiet {
                    remark(&format!("warning: {}; computing on the CPU", failure.error));
                }
                (vec![vec![Place::Cpu]], Vec::new())
            }
            gpus => (places, gpus?),
        };
        #[cfg(not(feature = "cuda"))]
        {
            let _ = sums;
            if places.iter().flatten().any(|place| matches!(place, Place::Cuda(_))) {
                return Err(Failure::refused("this optimize was built without the feature cuda"));
            }
        }
        Ok(Self {
            cpu,
            pool,
            places,
            #[cfg(feature = "cuda")]
            gpus,
        })
    }

    /// The device of the first layers, which is that of everything that has no layers.
    pub(crate) fn backend(&self) -> &dyn Backend {
        self.places.first().and_then(|stage| stage.first()).map_or(&self.cpu, |p| self.place(*p))
    }

    /// The devices of a model's layers, in order.
    pub(crate) fn stages(&self) -> Vec<Joined<'_>> {
        let stage = |stage: &Vec<Place>| match &stage[..] {
            [one] => Joined::One(self.place(*one)),
            all => Joined::Several(Sharded::new(all.iter().map(|p| self.place(*p)).collect())),
        };
        self.places.iter().map(stage).collect()
    }

    fn place(&self, place: Place) -> &dyn Backend {
        match place {
            Place::Cpu => &self.cpu,
            #[cfg(feature = "cuda")]
            Place::Cuda(index) => self.gpu(index).map_or(&self.cpu, |gpu| gpu as &dyn Backend),
            #[cfg(not(feature = "cuda"))]
            Place::Cuda(_) => &self.cpu,
        }
    }

    /// What the first device can do, measured.
    pub(crate) fn machine(&self) -> Result<Machine, Failure> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.first_gpu() {
            let rates = gpu.rates(GPU_BYTES, GPU_ROUNDS).map_err(calibration::EvalError::from)?;
            // Linears multiply on tensor cores, whatever the weights are.
            let (read, bf16, int8) = (rates.read, rates.bf16, rates.int8);
            return Ok(Machine { read, f32: bf16, bf16: Some(bf16), int8 });
        }
        self.cpu_machine()
    }

    /// What the CPU can do, measured.
    pub(crate) fn cpu_machine(&self) -> Result<Machine, Failure> {
        let short = || Failure::new(Code::Machine, anyhow::Error::msg("memory is short"));
        ::bench::measure(&Probe(&self.cpu)).ok_or_else(short)
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, index: usize) -> Option<&Cuda> {
        self.gpus.iter().find(|(of, _)| *of == index).map(|(_, gpu)| gpu)
    }

    /// The GPU of the first layers, if that is one.
    #[cfg(feature = "cuda")]
    pub(crate) fn first_gpu(&self) -> Option<&Cuda> {
        match self.places.first().and_then(|stage| stage.first()) {
            Some(Place::Cuda(index)) => self.gpu(*index),
            _ => None,
        }
    }
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

    fn bf16(&self, rounds: usize) -> Option<f64> {
        self.0.multiply_bf16(rounds)
    }

    fn int8(&self, rounds: usize) -> f64 {
        self.0.multiply_int8(rounds)
    }
}

/// The first GPU, or the CPU; says why where there is a driver that cannot be used.
#[cfg(feature = "cuda")]
fn fastest(quiet: bool) -> Place {
    match Driver::probe(0) {
        Ok(()) => Place::Cuda(0),
        Err(NoDriver::Missing | NoDriver::NoDevice { .. }) => Place::Cpu,
        Err(error) => {
            if !quiet {
                remark(&format!("{error}; computing on the CPU"));
            }
            Place::Cpu
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn fastest(_: bool) -> Place {
    let _ = remark;
    Place::Cpu
}

/// Every GPU of `places`, opened once.
#[cfg(feature = "cuda")]
fn gpus(places: &[Vec<Place>], sums: Sums) -> Result<Vec<(usize, Cuda)>, Failure> {
    let mut gpus: Vec<(usize, Cuda)> = Vec::new();
    for place in places.iter().flatten() {
        let &Place::Cuda(index) = place else { continue };
        if gpus.iter().any(|(of, _)| *of == index) {
            continue;
        }
        let driver = Driver::open(index).map_err(|error| {
            Failure::refused(error.to_string()).with_hint("--device cpu computes on the CPU")
        })?;
        let gpu = Cuda::new(Arc::new(driver), sums == Sums::Invariant);
        let gpu = gpu.with_wgmma().map_err(calibration::EvalError::from)?;
        let gpu = if sums == Sums::Any { gpu.with_library() } else { gpu };
        let wrong = gpu.wrong().map_err(calibration::EvalError::from)?;
        if let Some(first) = wrong.first() {
            let message = format!("cuda:{index} does not compute what it must: {}", first.name);
            return Err(Failure::new(Code::Machine, anyhow::Error::msg(message))
                .with_hint("optimize doctor says more; --device cpu computes on the CPU"));
        }
        gpus.push((index, gpu));
    }
    Ok(gpus)
}
