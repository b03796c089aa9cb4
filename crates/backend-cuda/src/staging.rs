//! Pinned memory that everything written to a GPU goes through: a copy from other memory may wait for
//! all that was asked for before, and on some machines reads it only then.
#![expect(unsafe_code, reason = "the driver is C")]

use crate::flight::Flight;
use cudarc::driver::{result, sys};

/// Bytes of a buffer.
const BYTES: usize = 8 << 20;

/// Buffers: one is filled while the others are copied.
const BUFFERS: usize = 3;

/// Where copies begin in a buffer.
const ALIGNMENT: usize = 256;

/// Buffers that take turns. Small writes share one.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    buffers: Vec<Flight>,
    /// The buffer that is filled now, and how far.
    current: usize,
    filled: usize,
}

impl Staging {
    /// Copies to the device; `from` may change when this returns. All calls are of one stream and one
    /// context, which is current.
    ///
    /// # Safety
    /// `to` has room for it.
    pub(crate) unsafe fn write(
        &mut self,
        context: sys::CUcontext,
        stream: sys::CUstream,
        mut to: u64,
        mut from: &[u8],
    ) -> Result<(), result::DriverError> {
        while !from.is_empty() {
            self.make_room(context, stream)?;
            let Some(buffer) = self.buffers.get(self.current) else { return Ok(()) };
            let (part, rest) = from.split_at(from.len().min(BYTES - self.filled));
            // SAFETY: the part lies within the buffer, behind what is under way; the buffer is filled
            // again only after the event that is recorded once it is full.
            unsafe {
                let at = buffer.host.cast::<u8>().add(self.filled);
                std::ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                result::memcpy_htod_async(to, std::slice::from_raw_parts(at, part.len()), stream)?;
            }
            self.filled += part.len().next_multiple_of(ALIGNMENT);
            to += part.len() as u64;
            from = rest;
        }
        Ok(())
    }

    /// Turns to the next buffer if this one is full, once what was copied from that one is done.
    fn make_room(
        &mut self,
        context: sys::CUcontext,
        stream: sys::CUstream,
    ) -> Result<(), result::DriverError> {
        if self.filled >= BYTES
            && let Some(full) = self.buffers.get(self.current)
        {
            // SAFETY: both are of the context.
            unsafe { result::event::record(full.event, stream) }?;
            self.current = (self.current + 1) % BUFFERS;
            self.filled = 0;
        }
        match self.buffers.get(self.current) {
            // SAFETY: an event that was never recorded has passed.
            Some(next) if self.filled == 0 => unsafe { result::event::synchronize(next.event) },
            Some(_) => Ok(()),
            None => Flight::new(context, BYTES).map(|made| self.buffers.push(made)),
        }
    }

    /// Gives the buffers back, while the context lives.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
