//! Sums of what several GPUs have, where they read each other's memory: in the order of the devices, so
//! that the result is one, and the same on all of them.

use crate::Cuda;
use crate::device::Memory;
use crate::rows::Rows;
use backend::{Backend, BackendError, Buffer, Peers};
use bytemuck::{Pod, Zeroable};
use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

/// Devices of a sum.
const MOST: usize = 8;

/// Up to so many bytes every device sums all; above that a part, which the others then read.
const WHOLE: usize = 1 << 20;

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct SumArgs {
    parts: [u64; MOST],
    out: u64,
    first: u64,
    count: u64,
    devices: u32,
    unused: u32,
}
// As the kernels have it.
const _: () = assert!(size_of::<SumArgs>() == 96);

/// The GPUs of a sum, and what each has.
struct Sum<'a> {
    all: Vec<&'a Cuda>,
    parts: Vec<Arc<Memory>>,
    count: usize,
}

impl Peers for Cuda {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn sum_among(
        &self,
        devices: &[&dyn Backend],
        parts: &[Buffer],
    ) -> Result<Option<Vec<Buffer>>, BackendError> {
        let all = devices.iter().map(|device| device.peers()?.as_any().downcast_ref::<Self>());
        let (Some(all), Some(first)) = (all.collect::<Option<Vec<_>>>(), parts.first()) else {
            return Ok(None);
        };
        let (rows, width) = (first.rows(), first.width());
        let same = parts.iter().all(|part| part.rows() == rows && part.width() == width);
        if !same || all.len() != parts.len() {
            return Err(BackendError::Internal("what is summed has one shape".into()));
        }
        if all.len() > MOST {
            return Ok(None);
        }
        let read = all.iter().zip(parts).map(|(cuda, part)| cuda.plain(part));
        let sum = Sum { parts: read.collect::<Result<_, _>>()?, count: rows * width, all };
        let room = |cuda: &&Self| cuda.room(sum.count * 4);
        let out = sum.all.iter().map(room).collect::<Result<Vec<_>, _>>()?;
        if sum.are_peers() {
            sum.by_reading(&out)?;
        } else if !sum.by_library(&out)? {
            return Ok(None);
        }
        Ok(Some(out.into_iter().map(|out| Buffer::new(rows, width, Rows::f32(out))).collect()))
    }
}

impl Cuda {
    /// Whether this GPU reads the memory of another; found out once.
    fn reaches(&self, other: &Self) -> bool {
        let key = Arc::as_ptr(&other.replaying) as usize;
        let mut known = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(key).or_insert_with(|| {
            self.device.reaches(&*other.device) && self.reads(other).unwrap_or(false)
        })
    }

    /// Whether what is written there is read here: some machines say that it is, and read something else.
    fn reads(&self, other: &Self) -> Result<bool, BackendError> {
        let pattern: Vec<f32> = (0..1024).map(|i| i as f32).collect();
        let (there, here) = (Memory::of(&other.steps, &pattern)?, self.room(4 * pattern.len())?);
        self.device.wait_for(&other.device.mark()?)?;
        self.sum_into(&here, &[there.at()], 0..pattern.len())?;
        let same = here.read::<f32>(pattern.len())? == pattern;
        other.device.wait_for(&self.device.mark()?)?;
        Ok(same)
    }

    fn sum_into(
        &self,
        out: &Memory,
        parts: &[u64],
        range: Range<usize>,
    ) -> Result<(), BackendError> {
        let mut args = SumArgs {
            out: out.at(),
            first: range.start as u64,
            count: range.len() as u64,
            devices: parts.len() as u32,
            ..SumArgs::default()
        };
        args.parts.iter_mut().zip(parts).for_each(|(to, part)| *to = *part);
        let blocks = range.len().div_ceil(4 * 256).min(1024) as u32;
        self.launch("sum_parts", [blocks, 1, 1], 256, 0, &args)
    }
}

impl Sum<'_> {
    fn are_peers(&self) -> bool {
        let pairs = self.all.iter().flat_map(|a| self.all.iter().map(move |b| (a, b)));
        // Every pair is asked: NCCL reads directly where there is a way, and memory must be open there.
        pairs.fold(true, |all, (a, b)| a.reaches(b) & all)
    }

    /// Every device sums what all have, or a part of it that the others then read.
    fn by_reading(&self, out: &[Memory]) -> Result<(), BackendError> {
        let parts: Vec<u64> = self.parts.iter().map(|part| part.at()).collect();
        self.meet()?;
        let devices = self.all.len();
        if devices <= 2 || self.count * 4 <= WHOLE {
            for (cuda, out) in self.all.iter().zip(out) {
                cuda.sum_into(out, &parts, 0..self.count)?;
            }
        } else {
            // In fours, as the kernel reads.
            let cut = |i: usize| match i == devices {
                true => self.count,
                false => self.count / 4 * i / devices * 4,
            };
            for (i, (cuda, out)) in self.all.iter().zip(out).enumerate() {
                cuda.sum_into(out, &parts, cut(i)..cut(i + 1))?;
            }
            self.meet()?;
            for (i, (cuda, own)) in self.all.iter().zip(out).enumerate() {
                for (j, other) in out.iter().enumerate().filter(|(j, _)| *j != i) {
                    cuda.sum_into(own, &[other.at()], cut(j)..cut(j + 1))?;
                }
            }
        }
        // Nobody gives back, or writes to, what another still reads.
        self.meet()
    }

    /// By NVIDIA's library, whose order of sums is its own.
    fn by_library(&self, out: &[Memory]) -> Result<bool, BackendError> {
        let Some(first) = self.all.first().filter(|_| !self.all.iter().any(|c| c.invariant)) else {
            return Ok(false);
        };
        // What was held back is started.
        self.all.iter().try_for_each(|cuda| cuda.device.mark().map(drop))?;
        let devices: Vec<_> = self.all.iter().map(|cuda| &*cuda.device).collect();
        let places = self.parts.iter().zip(out).map(|(part, out)| [part.at(), out.at()]);
        let places: Vec<[u64; 2]> = places.collect();
        Ok(first.device.sum_all(&devices, &places, self.count)?)
    }

    /// What is asked for next waits, on each device, for what was asked for on all.
    fn meet(&self) -> Result<(), BackendError> {
        let marks = self.all.iter().map(|cuda| cuda.device.mark());
        let marks = marks.collect::<Result<Vec<_>, _>>()?;
        for (i, cuda) in self.all.iter().enumerate() {
            for mark in marks.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, mark)| mark) {
                cuda.device.wait_for(mark)?;
            }
        }
        Ok(())
    }
}
