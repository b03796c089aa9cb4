//! Prefill and decode apart: two executors over one cache, one at prompts while the other decodes.

use engine::{Engine, Event, ExecError, Executor, Job, Limits, Outputs, Speculator, Step, Stepper};
use rayon::ThreadPool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// An executor that has threads of its own.
pub struct InPool<'a> {
    /// Computes the steps.
    pub executor: &'a mut (dyn Executor + Send),
    /// Its threads.
    pub pool: &'a ThreadPool,
}

/// Takes an engine of [`Engine::apart`] further: steps of prompts are computed by another executor
/// while rows decode here.
pub struct Apart<'a> {
    decode: &'a mut dyn Executor,
    jobs: SyncSender<Job>,
    landed: Receiver<Landed>,
    flying: bool,
}

/// A step of prompts that was computed.
struct Landed {
    job: Job,
    ran: Result<Outputs, ExecError>,
}

/// Runs `use_it` with prompts computed on a thread of their own.
pub fn apart<T>(
    mut prefill: InPool<'_>,
    decode: &mut dyn Executor,
    use_it: impl FnOnce(&mut Apart<'_>) -> T,
) -> T {
    let (jobs, inbox) = sync_channel::<Job>(1);
    let (outbox, landed) = sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for job in inbox {
                let mut outputs = Outputs::default();
                let ran = prefill.run(&job.step(), &mut outputs).map(|()| outputs);
                if outbox.send(Landed { job, ran }).is_err() {
                    break;
                }
            }
        });
        // The thread ends with its channel, which goes with this.
        use_it(&mut Apart { decode, jobs, landed, flying: false })
    })
}

impl Executor for InPool<'_> {
    fn limits(&self) -> Limits {
        self.executor.limits()
    }

    fn run(&mut self, step: &Step<'_>, out: &mut Outputs) -> Result<(), ExecError> {
        let Self { executor, pool } = self;
        pool.install(|| executor.run(step, out))
    }
}

impl Stepper for Apart<'_> {
    fn step(
        &mut self,
        engine: &mut Engine,
        mut speculator: Option<&mut dyn Speculator>,
        events: &mut Vec<Event>,
    ) -> Result<(), ExecError> {
        if self.flying
            && let Ok(landed) = self.landed.try_recv()
        {
            let speculator = speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
            self.land(landed, engine, speculator, events)?;
        }
        if !self.flying
            && let Some(job) = engine.begin()
        {
            self.jobs.send(job).map_err(|_| gone())?;
            self.flying = true;
        }
        let again = speculator.as_mut().map(|s| &mut **s as &mut dyn Speculator);
        // Where nothing decodes there is nothing to do but to wait.
        if !engine.step(self.decode, again, events)? && self.flying {
            let landed = self.landed.recv().map_err(|_| gone())?;
            self.land(landed, engine, speculator, events)?;
        }
        Ok(())
    }
}

impl Apart<'_> {
    fn land(
        &mut self,
        Landed { job, ran }: Landed,
        engine: &mut Engine,
        speculator: Option<&mut dyn Speculator>,
        events: &mut Vec<Event>,
    ) -> Result<(), ExecError> {
        self.flying = false;
        engine.end(&job, ran, speculator, events)
    }
}

/// The thread ends early only by a panic, which its scope passes on.
fn gone() -> ExecError {
    ExecError::Bug("the executor of prompts has ended".into())
}
