//! Memory of steps, cut from chunks that are kept. Which address is given depends on what is in use and
//! on nothing else, so a step that does what an earlier one did finds the same addresses: its launches
//! are the same to the byte, and can be replayed.

use crate::device::{Device, DeviceError, Later, Launch, Mark, Product, Recorded, Replay};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a piece begins at a multiple of.
const ALIGNMENT: usize = 256;

/// The first chunk; each is twice the one before, up to [`LARGEST`].
const SMALLEST: usize = 1 << 20;

/// The largest chunk, unless more is asked for at once.
const LARGEST: usize = 256 << 20;

/// A device over another: memory comes from chunks, all else from the other.
pub(crate) struct Pool {
    inner: Arc<dyn Device>,
    chunks: Mutex<Chunks>,
}

#[derive(Default)]
struct Chunks {
    /// Begin and size of each.
    all: Vec<(u64, usize)>,
    /// What is free: begin and size, neighbours joined within a chunk.
    free: BTreeMap<u64, usize>,
    used: BTreeMap<u64, usize>,
}

impl Pool {
    pub(crate) fn new(inner: Arc<dyn Device>) -> Self {
        Self { inner, chunks: Mutex::default() }
    }
}

impl Chunks {
    /// The free piece of the lowest address that is large enough.
    fn take(&mut self, bytes: usize) -> Option<u64> {
        let (&at, &size) = self.free.iter().find(|(_, size)| **size >= bytes)?;
        self.free.remove(&at);
        if size > bytes {
            self.free.insert(at + bytes as u64, size - bytes);
        }
        self.used.insert(at, bytes);
        Some(at)
    }

    fn add(&mut self, at: u64, bytes: usize) {
        self.all.push((at, bytes));
        self.free.insert(at, bytes);
    }

    /// Takes the chunks out that nobody uses.
    fn take_idle(&mut self) -> Vec<u64> {
        let free = &mut self.free;
        let idle = self.all.extract_if(.., |(at, bytes)| {
            let whole = free.get(at).is_some_and(|size| size == bytes);
            whole && free.remove(at).is_some()
        });
        idle.map(|(at, _)| at).collect()
    }

    fn give_back(&mut self, at: u64) {
        let Some(bytes) = self.used.remove(&at) else { return };
        let (mut begin, mut size) = (at, bytes);
        let is_start = |at: u64| self.all.iter().any(|(begin, _)| *begin == at);
        let after = at + bytes as u64;
        // Chunks that happen to touch are two allocations all the same.
        if !is_start(after)
            && let Some(more) = self.free.remove(&after)
        {
            size += more;
        }
        let before = self.free.range(..at).next_back().map(|(&at, &size)| (at, size));
        if let Some((before, less)) = before
            && before + less as u64 == at
            && !is_start(at)
        {
            (begin, size) = (before, size + less);
        }
        self.free.insert(begin, size);
    }
}

impl Device for Pool {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        let bytes = bytes.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = chunks.take(bytes) {
            return Ok(at);
        }
        let last = chunks.all.last().map_or(SMALLEST / 2, |(_, bytes)| *bytes);
        let chunk = (2 * last).min(LARGEST).max(bytes);
        if chunk > LARGEST {
            // A chunk of its own: one that grew too small must not stay beside it.
            chunks.take_idle().into_iter().for_each(|at| self.inner.free(at));
        }
        // Where a whole chunk does not fit, what is needed may.
        let (at, chunk) = match self.inner.allocate(chunk) {
            Ok(at) => (at, chunk),
            Err(_) => (self.inner.allocate(bytes)?, bytes),
        };
        chunks.add(at, chunk);
        chunks.take(bytes).ok_or(DeviceError::Memory { needed: bytes as u64, free: 0 })
    }

    fn free(&self, at: u64) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).give_back(at);
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(to, from)
    }

    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(from, to)
    }

    fn read_later(&self, from: u64, bytes: usize) -> Result<Later, DeviceError> {
        self.inner.read_later(from, bytes)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.inner.copy(to, from, bytes)
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        self.inner.clear(at, bytes)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.inner.launch(launch)
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
        self.inner.mark()
    }

    fn wait_for(&self, mark: &Mark) -> Result<(), DeviceError> {
        self.inner.wait_for(mark)
    }

    fn sum_all(
        &self,
        devices: &[&dyn Device],
        places: &[[u64; 2]],
        count: usize,
    ) -> Result<bool, DeviceError> {
        self.inner.sum_all(devices, places, count)
    }

    fn has_wgmma(&self) -> bool {
        self.inner.has_wgmma()
    }

    fn has_library(&self) -> bool {
        self.inner.has_library()
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.inner.multiply(product)
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.inner.finish()
    }

    fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.take_idle().into_iter().for_each(|at| self.inner.free(at));
        self.inner.memory()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let chunks = self.chunks.get_mut().unwrap_or_else(PoisonError::into_inner);
        chunks.all.iter().for_each(|(at, _)| self.inner.free(*at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_depend_on_what_is_in_use_alone() {
        let mut chunks = Chunks::default();
        chunks.add(4096, 1024);
        chunks.add(4096 + 1024, 1024);
        let all: Vec<u64> = (0..8).map(|_| chunks.take(256).unwrap()).collect();
        assert_eq!(all, (0..8).map(|i| 4096 + 256 * i).collect::<Vec<u64>>());
        assert_eq!(chunks.take(256), None);
        // In whatever order they are given back.
        for i in [3, 1, 6, 0, 2, 7, 5, 4] {
            chunks.give_back(all[i]);
        }
        assert_eq!(chunks.free, BTreeMap::from([(4096, 1024), (4096 + 1024, 1024)]));
        assert_eq!(chunks.take(1025), None, "two chunks are not one");
        assert_eq!(
            [chunks.take(768), chunks.take(512), chunks.take(256)],
            [Some(4096), Some(4096 + 1024), Some(4096 + 768)]
        );
        chunks.give_back(12345);
        assert_eq!(chunks.used.len(), 3);
        assert_eq!(chunks.take_idle(), [0; 0], "both chunks are in use");
        chunks.give_back(4096 + 1024);
        assert_eq!(chunks.take_idle(), [4096 + 1024]);
        assert_eq!((chunks.all.len(), chunks.take(768)), (1, None));
    }
}
