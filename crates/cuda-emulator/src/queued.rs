//! An emulated device that does what it is asked for later, on a thread of its own, as a GPU does: so that
//! whoever reads too early, or does not wait for another device, is found out.

use crate::Emulated;
use backend_cuda::{Device, DeviceError, Later, Launch, Mark, Recorded, Replay};
use std::any::Any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A device with a queue.
pub struct Queued {
    inner: Arc<Emulated>,
    queue: Queue,
    worker: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce(&Emulated) -> Result<(), DeviceError> + Send>;

#[derive(Clone)]
struct Queue {
    jobs: Sender<Option<Job>>,
    /// What went wrong first; nothing is done after that.
    failed: Arc<Mutex<Option<String>>>,
}

/// A moment of the queue, and whether it has passed.
#[derive(Clone, Default)]
struct Moment(Arc<(Mutex<bool>, Condvar)>);

impl Moment {
    fn pass(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let passed = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(passed, |passed| !*passed));
    }
}

impl Queue {
    fn ask(&self, job: impl FnOnce(&Emulated) -> Result<(), DeviceError> + Send + 'static) {
        // The worker ends after everybody who asks.
        let _ = self.jobs.send(Some(Box::new(job)));
    }

    /// Waits for everything before.
    fn finish(&self) -> Result<(), DeviceError> {
        let moment = Moment::default();
        let passes = moment.clone();
        // Said even where nothing is done any more.
        let _ = self.jobs.send(Some(Box::new(move |_| {
            passes.pass();
            Ok(())
        })));
        moment.wait();
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(what) => Err(DeviceError::Driver { what: what.clone() }),
        }
    }
}

fn work(
    device: &Emulated,
    jobs: &Receiver<Option<Job>>,
    failed: &Mutex<Option<String>>,
    pace: u64,
) {
    let mut state = pace;
    while let Ok(Some(job)) = jobs.recv() {
        // Devices are never equally fast.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if state >> 60 == 0 {
            std::thread::sleep(Duration::from_micros(state >> 33 & 127));
        }
        // Whoever waits for something that follows a failure must not wait for ever.
        if let Err(error) = job(device) {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(error.to_string());
        }
    }
}

impl Queued {
    /// A queue before `device`; devices of another `pace` are in another order.
    pub fn new(device: Emulated, pace: u64) -> Self {
        let (jobs, taken) = channel();
        let (inner, failed) = (Arc::new(device), Arc::<Mutex<Option<String>>>::default());
        let (device, failures) = (Arc::clone(&inner), Arc::clone(&failed));
        let worker = std::thread::spawn(move || work(&device, &taken, &failures, pace));
        Self { inner, queue: Queue { jobs, failed }, worker: Some(worker) }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let _ = self.queue.jobs.send(None);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Device for Queued {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.inner.allocate(bytes)
    }

    fn free(&self, at: u64) {
        self.queue.ask(move |device| {
            device.free(at);
            Ok(())
        });
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        let from = from.to_vec();
        self.queue.ask(move |device| device.write(to, &from));
        Ok(())
    }

    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.queue.finish()?;
        self.inner.read(from, to)
    }

    fn read_later(&self, from: u64, bytes: usize) -> Result<Later, DeviceError> {
        let (moment, values) = (Moment::default(), Arc::<Mutex<Vec<u8>>>::default());
        let (passes, filled) = (moment.clone(), Arc::clone(&values));
        self.queue.ask(move |device| {
            let mut read = vec![0; bytes];
            let done = device.read(from, &mut read);
            *filled.lock().unwrap_or_else(PoisonError::into_inner) = read;
            passes.pass();
            done
        });
        let failed = Arc::clone(&self.queue.failed);
        Ok(Box::new(move || {
            moment.wait();
            match &*failed.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(what) => Err(DeviceError::Driver { what: what.clone() }),
                None => {
                    Ok(std::mem::take(&mut *values.lock().unwrap_or_else(PoisonError::into_inner)))
                }
            }
        }))
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.queue.ask(move |device| device.copy(to, from, bytes));
        Ok(())
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.queue.ask(move |device| device.clear(at, bytes));
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let launch = Recorded::of(launch);
        self.queue.ask(move |device| device.launch(&launch.borrow()));
        Ok(())
    }

    fn record(&self, launches: &[Recorded]) -> Result<Box<dyn Replay>, DeviceError> {
        Ok(Box::new(Tape { queue: self.queue.clone(), launches: launches.into() }))
    }

    fn base(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn reaches(&self, other: &dyn Device) -> bool {
        let other = other.base().and_then(|other| other.downcast_ref::<Self>());
        other.is_some_and(|other| self.inner.reaches(&*other.inner))
    }

    fn mark(&self) -> Result<Mark, DeviceError> {
        let moment = Moment::default();
        let passes = moment.clone();
        self.queue.ask(move |_| {
            passes.pass();
            Ok(())
        });
        Ok(Mark(Some(Box::new(moment))))
    }

    fn wait_for(&self, mark: &Mark) -> Result<(), DeviceError> {
        let moment = mark.0.as_ref().and_then(|moment| moment.downcast_ref::<Moment>());
        if let Some(moment) = moment.cloned() {
            self.queue.ask(move |_| {
                moment.wait();
                Ok(())
            });
        }
        Ok(())
    }

    fn is_checked(&self) -> bool {
        self.inner.is_checked()
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.queue.finish()
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.inner.memory()
    }
}

/// Launches that are asked for again.
struct Tape {
    queue: Queue,
    launches: Arc<[Recorded]>,
}

impl Replay for Tape {
    fn run(&self) -> Result<(), DeviceError> {
        let launches = Arc::clone(&self.launches);
        self.queue.ask(move |device| {
            launches.iter().try_for_each(|launch| device.launch(&launch.borrow()))
        });
        Ok(())
    }
}
