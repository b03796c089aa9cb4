//! Faults that tests ask for: a stop at a named point, where the process waits to be killed, and a
//! call to the disk that fails.

use crate::args::Compile;
use crate::failure::Failure;
use crate::output::remark;
use checkpoint::disk::{Disk, DiskFile, System};
use ir::{Quantized, ReadError, Source};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tensor::Tensor;

/// The disk to write through: the system's, unless a fault was asked for.
pub(crate) fn disk(args: &Compile) -> Result<Arc<dyn Disk>, Failure> {
    if args.stop_at.is_none() && args.fail_at.is_none() {
        return Ok(Arc::new(System));
    }
    let stop = match &args.stop_at {
        None => None,
        Some(text) => {
            let (name, n) = text.split_once(':').unwrap_or((text, "1"));
            Some((name.to_string(), n.parse().map_err(|_| wrong(text))?))
        }
    };
    let fail = fault(args)?;
    let faults = Faults { stop, fail, stops: AtomicU64::new(0), calls: AtomicU64::new(0) };
    Ok(Arc::new(Faulty(Arc::new(faults))))
}

/// The source to read: the checkpoint, unless a read of it is to fail.
pub(crate) fn source<'a>(
    args: &Compile,
    source: &'a dyn Source,
) -> Result<impl Source + use<'a>, Failure> {
    let nth = fault(args)?.filter(|(fault, _)| *fault == Fault::Read).map(|(_, nth)| nth);
    Ok(FaultySource { source, nth, reads: AtomicU64::new(0) })
}

/// The fault that was asked for, and at which call.
fn fault(args: &Compile) -> Result<Option<(Fault, u64)>, Failure> {
    let Some(text) = &args.fail_at else { return Ok(None) };
    let (kind, n) = text.split_once(':').ok_or_else(|| wrong(text))?;
    let fault = match kind {
        "full" => Fault::Full,
        "io" => Fault::Io,
        "read" => Fault::Read,
        _ => return Err(wrong(text)),
    };
    Ok(Some((fault, n.parse().map_err(|_| wrong(text))?)))
}

fn wrong(text: &str) -> Failure {
    Failure::refused(format!("no such fault: {text:?}"))
}

/// A source one of whose reads fails.
struct FaultySource<'a> {
    source: &'a dyn Source,
    nth: Option<u64>,
    reads: AtomicU64,
}

impl FaultySource<'_> {
    fn count(&self, name: &str) -> Result<(), ReadError> {
        let n = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        if self.nth == Some(n) {
            return Err(ReadError::Machine(format!("tensor {name:?}: an injected I/O error")));
        }
        Ok(())
    }
}

impl Source for FaultySource<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError> {
        self.count(name)?;
        self.source.read_rows(name, rows)
    }

    fn read_quantized(
        &self,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Option<Quantized>, ReadError> {
        self.count(name)?;
        self.source.read_quantized(name, rows)
    }

    fn read_stacked(
        &self,
        name: &str,
        index: usize,
        rows: Range<usize>,
    ) -> Result<Tensor, ReadError> {
        self.count(name)?;
        self.source.read_stacked(name, index, rows)
    }
}

#[derive(Debug)]
struct Faults {
    /// At which point to stop, and the how manieth time it is reached.
    stop: Option<(String, u64)>,
    /// How the n-th call fails. From then on the disk stays full; an I/O error comes once.
    fail: Option<(Fault, u64)>,
    stops: AtomicU64,
    calls: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Full,
    Io,
    /// Of the source, not of the disk that is written to.
    Read,
}

/// What a call does: only one that needs room fails on a full disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Grows,
    Other,
}

impl Faults {
    fn call(&self, call: Call) -> io::Result<()> {
        let Some((fault, nth)) = self.fail else { return Ok(()) };
        let n = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        match fault {
            Fault::Full if n >= nth && call == Call::Grows => {
                Err(io::ErrorKind::StorageFull.into())
            }
            Fault::Io if n == nth => Err(io::Error::other("an injected I/O error")),
            _ => Ok(()),
        }
    }
}

/// The system's disk with faults.
#[derive(Debug)]
struct Faulty(Arc<Faults>);

impl Faulty {
    fn wrap(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile(file, self.0.clone()))
    }
}

impl Disk for Faulty {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.0.call(Call::Grows)?;
        System.make_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.call(Call::Grows)?;
        Ok(self.wrap(System.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.call(Call::Other)?;
        Ok(self.wrap(System.open(path)?))
    }

    fn edit(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.call(Call::Other)?;
        Ok(self.wrap(System.edit(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call(Call::Other)?;
        System.rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.0.call(Call::Other)?;
        System.exchange(one, other)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.call(Call::Other)?;
        System.remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.0.call(Call::Other)?;
        System.remove_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.0.call(Call::Other)?;
        System.sync_folder(path)
    }

    fn reached(&self, point: &'static str) {
        let Some((_, nth)) = self.0.stop.as_ref().filter(|(name, _)| name == point) else { return };
        if self.0.stops.fetch_add(1, Ordering::Relaxed) + 1 == *nth {
            remark(&format!("stopped at {point}"));
            loop {
                std::thread::park();
            }
        }
    }
}

#[derive(Debug)]
struct FaultyFile(Box<dyn DiskFile>, Arc<Faults>);

impl DiskFile for FaultyFile {
    fn bytes(&self) -> io::Result<u64> {
        self.1.call(Call::Other)?;
        self.0.bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.1.call(Call::Other)?;
        self.0.read_exact_at(buffer, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Err(fault) = self.1.call(Call::Grows) {
            // Half of it may have been written.
            self.0.write_all_at(&bytes[..bytes.len() / 2], at)?;
            return Err(fault);
        }
        self.0.write_all_at(bytes, at)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.1.call(Call::Grows)?;
        self.0.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.1.call(Call::Grows)?;
        self.0.sync()
    }
}
