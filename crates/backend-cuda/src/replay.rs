//! Launches that are held back until something else is asked of the device, and then started together;
//! as a CUDA graph if the same launches, to the byte, were started before. So a step of decoding costs
//! the host one start, and what is replayed is what would have been launched.

use crate::device::{Device, DeviceError, Later, Launch, Mark, Product, Recorded, Replay};
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// Fewer launches are not worth a graph.
const LEAST: usize = 8;

/// Lists that are remembered; the one that was not needed for longest makes room.
const REMEMBERED: usize = 48;

/// A device over another, which holds launches back.
pub(crate) struct Replaying {
    /// Before the device: graphs go before what they run on.
    state: Mutex<State>,
    inner: Arc<dyn Device>,
}

#[derive(Default)]
struct State {
    pending: Vec<Recorded>,
    /// Why launches were not started, where nobody could be told.
    failed: Option<DeviceError>,
    /// The one that was needed last is last.
    remembered: Vec<Remembered>,
    replayed: u64,
}

struct Remembered {
    launches: Vec<Recorded>,
    graph: Option<Box<dyn Replay>>,
    /// Whether a graph was asked for: what there was no room for is not asked for at every step.
    tried: bool,
}

impl Replaying {
    pub(crate) fn new(inner: Arc<dyn Device>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Starts what was held back.
    fn flush(&self) -> Result<(), DeviceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let launches = std::mem::take(&mut state.pending);
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        if launches.len() < LEAST {
            return launches.iter().try_for_each(|launch| self.inner.launch(&launch.borrow()));
        }
        let known = state.remembered.iter().position(|known| known.launches == launches);
        match known.map(|at| state.remembered.remove(at)) {
            Some(mut known) => {
                if !known.tried {
                    known.tried = true;
                    // Where there is no room for a graph, it is done without.
                    known.graph = self.inner.record(&known.launches).ok();
                }
                let start = |launch: &Recorded| self.inner.launch(&launch.borrow());
                let ran = match &known.graph {
                    Some(graph) => graph.run(),
                    None => known.launches.iter().try_for_each(start),
                };
                state.remembered.push(known);
                state.replayed += 1;
                ran
            }
            None => {
                let ran =
                    launches.iter().try_for_each(|launch| self.inner.launch(&launch.borrow()));
                if state.remembered.len() == REMEMBERED {
                    state.remembered.remove(0);
                }
                state.remembered.push(Remembered { launches, graph: None, tried: false });
                ran
            }
        }
    }

    /// How often launches were replayed.
    pub(crate) fn replayed(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).replayed
    }
}

impl Device for Replaying {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.inner.allocate(bytes)
    }

    fn free(&self, at: u64) {
        // What fails is said by whatever is asked for next.
        if let Err(error) = self.flush() {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.failed.get_or_insert(error);
        }
        self.inner.free(at);
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.flush()?;
        self.inner.write(to, from)
    }

    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.flush()?;
        self.inner.read(from, to)
    }

    fn read_later(&self, from: u64, bytes: usize) -> Result<Later, DeviceError> {
        self.flush()?;
        self.inner.read_later(from, bytes)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.flush()?;
        self.inner.copy(to, from, bytes)
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.flush()?;
        self.inner.clear(at, bytes)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending.push(Recorded::of(launch));
        Ok(())
    }

    fn record(&self, launches: &[Recorded]) -> Result<Box<dyn Replay>, DeviceError> {
        self.inner.record(launches)
    }

    fn base(&self) -> Option<&dyn Any> {
        self.inner.base()
    }

    fn reaches(&self, other: &dyn Device) -> bool {
        self.inner.reaches(other)
    }

    fn mark(&self) -> Result<Mark, DeviceError> {
        self.flush()?;
        self.inner.mark()
    }

    fn wait_for(&self, mark: &Mark) -> Result<(), DeviceError> {
        self.flush()?;
        self.inner.wait_for(mark)
    }

    fn sum_all(
        &self,
        devices: &[&dyn Device],
        places: &[[u64; 2]],
        count: usize,
    ) -> Result<bool, DeviceError> {
        self.flush()?;
        self.inner.sum_all(devices, places, count)
    }

    fn has_wgmma(&self) -> bool {
        self.inner.has_wgmma()
    }

    fn has_library(&self) -> bool {
        self.inner.has_library()
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.flush()?;
        self.inner.multiply(product)
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.flush()?;
        self.inner.finish()
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.inner.memory()
    }
}
