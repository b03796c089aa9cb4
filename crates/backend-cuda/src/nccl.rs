//! Sums among GPUs by NVIDIA's NCCL, where it is installed: for GPUs that cannot read each other's memory.
#![expect(unsafe_code, reason = "NCCL is C")]

use crate::device::DeviceError;
use cudarc::driver::sys::{CUdevice, CUstream};
use cudarc::nccl::sys::{ncclDataType_t, ncclRedOp_t};
use libloading::{Library, Symbol};
use std::ffi::{CStr, c_char, c_int, c_void};

/// What a distribution's package, and PyTorch's, call it.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

// The same in all of NCCL 2.
const FLOAT: c_int = ncclDataType_t::ncclFloat32 as c_int;
const SUM: c_int = ncclRedOp_t::ncclSum as c_int;

type Comm = *mut c_void;

/// One process's communicators of several GPUs.
#[derive(Debug)]
pub(crate) struct Group {
    /// Never unloaded: it may have threads.
    library: &'static Library,
    all: Vec<Comm>,
}

// SAFETY: communicators may be used from any thread, by one at a time; the lock around this sees to that.
unsafe impl Send for Group {}

impl Group {
    /// Of `devices`; `None` if there is no NCCL, or a GPU is named twice.
    ///
    /// # Errors
    /// What NCCL says.
    pub(crate) fn new(devices: &[CUdevice]) -> Result<Option<Self>, DeviceError> {
        Self::of(&NAMES, devices)
    }

    fn of(names: &[&str], devices: &[CUdevice]) -> Result<Option<Self>, DeviceError> {
        let twice = devices.iter().enumerate().any(|(i, device)| devices[..i].contains(device));
        // SAFETY: NCCL does nothing when it is loaded that could go wrong here.
        let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let (Some(library), false) = (library, twice) else { return Ok(None) };
        let library: &'static Library = Box::leak(Box::new(library));
        let mut group = Self { library, all: vec![std::ptr::null_mut(); devices.len()] };
        let count = devices.len() as c_int;
        let all = group.all.as_mut_ptr();
        // SAFETY: the type is that of nccl.h, and there are as many communicators as devices.
        let made = unsafe {
            type Init = unsafe extern "C" fn(*mut Comm, c_int, *const c_int) -> c_int;
            let init: Symbol<'_, Init> = group.symbol(b"ncclCommInitAll\0")?;
            init(all, count, devices.as_ptr())
        };
        if made != 0 {
            group.all.clear();
        }
        group.check(made)?;
        Ok(Some(group))
    }

    /// Sums `count` floats at the first of each device's places to the second, on its stream.
    ///
    /// # Errors
    /// What NCCL says.
    pub(crate) fn sum(
        &self,
        streams: &[CUstream],
        places: &[[u64; 2]],
        count: usize,
    ) -> Result<(), DeviceError> {
        type Group = unsafe extern "C" fn() -> c_int;
        type AllReduce = unsafe extern "C" fn(
            *const c_void,
            *mut c_void,
            usize,
            c_int,
            c_int,
            Comm,
            *mut c_void,
        ) -> c_int;
        // SAFETY: the types are those of nccl.h; callers sum within what they allocated.
        unsafe {
            let begin: Symbol<'_, Group> = self.symbol(b"ncclGroupStart\0")?;
            let end: Symbol<'_, Group> = self.symbol(b"ncclGroupEnd\0")?;
            let sum: Symbol<'_, AllReduce> = self.symbol(b"ncclAllReduce\0")?;
            self.check(begin())?;
            let mut calls = self.all.iter().zip(streams).zip(places);
            let asked = calls.try_for_each(|((comm, stream), [from, to])| {
                let (from, to) = (*from as *const c_void, *to as *mut c_void);
                self.check(sum(from, to, count, FLOAT, SUM, *comm, stream.cast()))
            });
            // A group that was begun is ended, whatever was said in it.
            let ended = self.check(end());
            asked.and(ended)
        }
    }

    /// A function of NCCL.
    ///
    /// # Safety
    /// `T` must be its type.
    unsafe fn symbol<T>(&self, name: &[u8]) -> Result<Symbol<'_, T>, DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.library.get(name) }
            .map_err(|error| DeviceError::Driver { what: format!("NCCL: {error}") })
    }

    fn check(&self, code: c_int) -> Result<(), DeviceError> {
        if code == 0 {
            return Ok(());
        }
        type Said = unsafe extern "C" fn(c_int) -> *const c_char;
        // SAFETY: the type is that of nccl.h; it gives a constant text.
        let text = unsafe {
            let said: Symbol<'_, Said> = self.symbol(b"ncclGetErrorString\0")?;
            let text = said(code);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let text = text.unwrap_or_else(|| format!("error {code}"));
        Err(DeviceError::Driver { what: format!("NCCL: {text}") })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        type Destroy = unsafe extern "C" fn(Comm) -> c_int;
        // SAFETY: the type is that of nccl.h; nobody uses the communicators any more. What fails here has
        // failed before.
        unsafe {
            if let Ok(destroy) = self.symbol::<Destroy>(b"ncclCommDestroy\0") {
                for comm in &self.all {
                    let _ = destroy(*comm);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    /// What of NCCL is called, on the host's memory: sums when a group ends, as the real one may.
    const FAKE: &str = r#"
        #include <cstddef>
        #include <vector>
        struct Call { const float *from; float *to; size_t count; void *stream; };
        static std::vector<Call> calls;
        static bool open = false;
        extern "C" {
        int ncclCommInitAll(void **comms, int count, const int *devices) {
            for (int i = 0; i < count; i++) {
                if (devices[i] > 7) return 4;
                comms[i] = new int(devices[i]);
            }
            return 0;
        }
        int ncclCommDestroy(void *comm) { delete (int *)comm; return 0; }
        int ncclGroupStart() { calls.clear(); open = true; return 0; }
        int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream) {
            if (!open || type != 7 || op != 0 || !comm || stream != (void *)(size_t)(100 + *(int *)comm)) return 5;
            calls.push_back({(const float *)from, (float *)to, count, stream});
            return 0;
        }
        int ncclGroupEnd() {
            open = false;
            for (Call &call : calls)
                for (size_t i = 0; i < call.count; i++) {
                    call.to[i] = 0;
                    for (Call &other : calls) call.to[i] += other.from[i];
                }
            return 0;
        }
        const char *ncclGetErrorString(int code) { return code == 4 ? "invalid argument" : "invalid usage"; }
        }
    "#;

    #[test]
    fn sums_are_asked_for_as_nccl_takes_them() {
        let Some((_folder, library)) = fake::library("sums by NCCL", FAKE) else { return };
        let names = ["no-such-library.so", library.to_str().unwrap()];
        assert!(Group::of(&names[..1], &[0, 1]).unwrap().is_none());
        assert!(Group::of(&names, &[1, 1]).unwrap().is_none(), "a GPU is named once");
        let error = Group::of(&names, &[0, 9]).unwrap_err();
        assert_eq!(error.to_string(), "the CUDA driver: NCCL: invalid argument");
        let group = Group::of(&names, &[3, 5]).unwrap().unwrap();
        let (parts, mut sums) = ([[1.0f32, 2.0], [10.0, 20.0]], [[0.0f32; 2]; 2]);
        let places: Vec<[u64; 2]> = parts
            .iter()
            .zip(&mut sums)
            .map(|(part, sum)| [part.as_ptr() as u64, sum.as_mut_ptr() as u64])
            .collect();
        let streams = [103usize, 105].map(|stream| stream as CUstream);
        group.sum(&streams, &places, 2).unwrap();
        assert_eq!(sums, [[11.0, 22.0]; 2]);
        let error = group.sum(&[streams[1], streams[0]], &places, 2).unwrap_err();
        assert!(error.to_string().contains("invalid usage"), "{error}");
    }
}
