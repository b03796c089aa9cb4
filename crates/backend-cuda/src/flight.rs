//! Moments of a stream, and pinned memory that copies are under way to and from.
#![expect(unsafe_code, reason = "the driver is C")]

use crate::device::DeviceError;
use crate::driver::driver;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// An event of a stream.
pub(crate) struct Moment {
    context: sys::CUcontext,
    pub(crate) event: sys::CUevent,
}

// SAFETY: the handles may be used from any thread.
unsafe impl Send for Moment {}
// SAFETY: as above.
unsafe impl Sync for Moment {}

impl Moment {
    pub(crate) fn new(context: sys::CUcontext) -> Result<Self, result::DriverError> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        Ok(Self { context, event })
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // SAFETY: who waits for it took what it says; what fails here has failed before.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::event::destroy(self.event);
        }
    }
}

/// Pinned memory that a copy is under way to or from, and the event after it.
#[derive(Debug)]
pub(crate) struct Flight {
    context: sys::CUcontext,
    pub(crate) host: *mut c_void,
    pub(crate) bytes: usize,
    pub(crate) event: sys::CUevent,
}

// SAFETY: the handles may be used from any thread, and the memory is nobody else's.
unsafe impl Send for Flight {}

impl Flight {
    pub(crate) fn new(context: sys::CUcontext, bytes: usize) -> Result<Self, result::DriverError> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: the context is current; the memory is zeroed below and freed when this is dropped.
        let host = unsafe { result::malloc_host(bytes.max(1), 0) };
        let host = match host {
            Ok(host) => host,
            Err(error) => {
                // SAFETY: just made, and nobody waits for it.
                let _ = unsafe { result::event::destroy(event) };
                return Err(error);
            }
        };
        // SAFETY: as large as was asked for.
        unsafe { host.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { context, host, bytes, event })
    }

    /// The first bytes, once the copy is done.
    pub(crate) fn land(&self, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        // SAFETY: the context outlives every buffer of it; the copy is done once the event is.
        unsafe {
            result::ctx::set_current(self.context).map_err(driver)?;
            result::event::synchronize(self.event).map_err(driver)?;
            Ok(std::slice::from_raw_parts(self.host.cast::<u8>(), bytes.min(self.bytes)).to_vec())
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // SAFETY: nothing uses them once the event has passed; what fails here has failed before.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::event::synchronize(self.event);
            let _ = result::free_host(self.host);
            let _ = result::event::destroy(self.event);
        }
    }
}
