//! Where a command computes.

use crate::args::{Common, Place, Places};
use crate::failure::{Code, Failure};
use crate::memory::part_of_free;
use crate::output::remark;
use ::bench::{Machine, READ_BYTES};
use backend::Backend;
use backend_cpu::{Cpu, Isa};
#[cfg(feature = "cuda")]
use backend_cuda::{Cuda, Driver, NoDriver};
use rayon::{ThreadPool, ThreadPoolBuilder};
use runtime::{Joined, Placement};
use std::collections::BTreeSet;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// The devices of a model, in the order of its layers, and the CPU's threads.
pub(crate) struct Devices {
    pub(crate) cpu: Cpu,
    pub(crate) pool: ThreadPool,
    pub(crate) places: Places,
    /// Models on the device that most share, this one included.
    pub(crate) sharing: u64,
    /// Which replica of the model it is on, if there are several.
    pub(crate) replica: Option<String>,
    #[cfg(feature = "cuda")]
    gpus: Vec<(usize, Cuda)>,
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
        let ([] | [_]) = common.device[..] else {
            let message = "--device is given more than once, which makes replicas, and only bench \
                           measures those";
            return Err(Failure::refused(message)
                .with_hint("name the devices of one model together: --device cuda:0,cuda:1"));
        };
        let threads = common.threads.map_or(0, usize::from);
        Self::opened(common, common.device.first(), wanted, threads, sums)
    }

    /// Opens the devices of each replica: one a `--device`, or the one that is there. Threads are
    /// divided.
    pub(crate) fn replicas(common: &Common, sums: Sums) -> Result<Vec<Self>, Failure> {
        let count = common.device.len();
        if count < 2 {
            return Ok(vec![Self::open(common, Wanted::Fastest, sums)?]);
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = common.threads.map_or_else(cores, usize::from);
        let threads = (threads / count).max(1);
        let open = |places| Self::opened(common, Some(places), Wanted::Fastest, threads, sums);
        let mut all = common.device.iter().map(open).collect::<Result<Vec<Self>, Failure>>()?;
        let named: Vec<BTreeSet<Place>> =
            all.iter().map(|one| one.places.all().collect()).collect();
        for (index, one) in all.iter_mut().enumerate() {
            let sharing = |place| named.iter().filter(|named| named.contains(&place)).count();
            one.sharing = one.places.all().map(sharing).max().unwrap_or(1) as u64;
            one.replica = Some(format!("replica {} of {count}, on {}", index + 1, one.places));
        }
        Ok(all)
    }

    fn opened(
        common: &Common,
        asked: Option<&Places>,
        wanted: Wanted,
        threads: usize,
        sums: Sums,
    ) -> Result<Self, Failure> {
        let cpu = match &common.isa {
            None => Cpu::new(),
            Some(name) => Isa::parse(name)
                .and_then(Cpu::with_isa)
                .ok_or_else(|| Failure::refused(format!("no instruction set {name:?} here")))?,
        };
        let asked = asked.filter(|Places(stages)| !stages.is_empty());
        let places = match (asked, wanted) {
            (Some(places), _) => places.clone(),
            (None, Wanted::Cpu) if common.device.is_empty() => Places::one(Place::Cpu),
            (None, _) => Places::one(fastest(common.quiet)),
        };
        #[cfg(feature = "cuda")]
        let (places, gpus) = match gpus(&places, sums) {
            // What was found and not asked for is not insisted on.
            Err(failure) if asked.is_none() => {
                if !common.quiet {
                    remark(&format!("warning: {}; computing on the CPU", failure.error));
                }
                (Places::one(Place::Cpu), Vec::new())
            }
            gpus => (places, gpus?),
        };
        #[cfg(not(feature = "cuda"))]
        {
            let _ = sums;
            if places.all().any(|place| matches!(place, Place::Cuda(_))) {
                return Err(Failure::refused("this optimize was built without the feature cuda"));
            }
        }
        let (pool, sharing, replica) = (pool(threads)?, 1, None);
        Ok(Self {
            cpu,
            pool,
            places,
            sharing,
            replica,
            #[cfg(feature = "cuda")]
            gpus,
        })
    }

    /// Says of a failure on which replica it was.
    pub(crate) fn named(&self, failure: Failure) -> Failure {
        let Some(replica) = &self.replica else { return failure };
        Failure { error: failure.error.context(format!("{replica}, has failed")), ..failure }
    }

    /// The device of the first layers, which is that of everything that has no layers.
    pub(crate) fn backend(&self) -> &dyn Backend {
        self.places.all().next().map_or(&self.cpu, |place| self.place(place))
    }

    /// The devices of a model's layers, in order.
    pub(crate) fn placement(&self) -> Placement<'_> {
        let stage = |stage: &Vec<Place>| {
            Joined::new(stage.iter().map(|place| self.place(*place)).collect())
        };
        let stages = self.places.0.iter().filter_map(stage).collect();
        Placement { stages, sharing: self.sharing }
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
        self.measured(self.places.all().next().unwrap_or(Place::Cpu))
    }

    /// What the devices of all `replicas` can do together, each of them measured once.
    pub(crate) fn together(replicas: &[Self]) -> Result<Machine, Failure> {
        let pool = pool(Self::threads(replicas))?;
        let (mut seen, mut sum) = (BTreeSet::new(), None);
        for replica in replicas {
            for place in replica.places.all().filter(|place| seen.insert(*place)) {
                let machine = pool.install(|| replica.measured(place))?;
                sum = Some(sum.map_or(machine, |sum: Machine| sum.and(machine)));
            }
        }
        sum.ok_or_else(|| Failure::refused("no device is given"))
    }

    /// The threads of all `replicas`.
    pub(crate) fn threads(replicas: &[Self]) -> usize {
        replicas.iter().map(|replica| replica.pool.current_num_threads()).sum()
    }

    /// What one of the devices can do, measured.
    fn measured(&self, place: Place) -> Result<Machine, Failure> {
        match place {
            #[cfg(feature = "cuda")]
            Place::Cuda(index) if let Some(gpu) = self.gpu(index) => {
                let rates =
                    gpu.rates(GPU_BYTES, GPU_ROUNDS).map_err(calibration::EvalError::from)?;
                // Linears multiply on tensor cores, whatever the weights are.
                let (read, bf16, int8) = (rates.read, rates.bf16, rates.int8);
                Ok(Machine { read, f32: bf16, bf16: Some(bf16), int8 })
            }
            _ => self.cpu_machine(),
        }
    }

    /// What the CPU can do, measured.
    pub(crate) fn cpu_machine(&self) -> Result<Machine, Failure> {
        let short = || Failure::new(Code::Machine, anyhow::Error::msg("memory is short"));
        ::bench::measure(&Probe(&self.cpu), part_of_free(READ_BYTES)).ok_or_else(short)
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, index: usize) -> Option<&Cuda> {
        self.gpus.iter().find(|(of, _)| *of == index).map(|(_, gpu)| gpu)
    }
}

/// So many threads; 0 for one a core.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool, Failure> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Failure::new(Code::Machine, error))
}

/// The work of a [`::bench::Probe`], by our own kernels.
struct Probe<'a>(&'a Cpu);

impl ::bench::Probe for Probe<'_> {
    fn read(&self, words: &[u64], narrow: bool) -> u64 {
        self.0.read(words, narrow)
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
fn gpus(places: &Places, sums: Sums) -> Result<Vec<(usize, Cuda)>, Failure> {
    let mut gpus: Vec<(usize, Cuda)> = Vec::new();
    for place in places.all() {
        let Place::Cuda(index) = place else { continue };
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
