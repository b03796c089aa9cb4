//! Where a weight comes from when it is laid out for a device: memory, or a source that is read by rows.

use crate::{BackendError, computed_with};
use ir::{Grid, Quantized, Source, Spec, Weight};
use rayon::prelude::*;
use std::ops::Range;

/// A weight on its way to a device.
pub enum Incoming<'a> {
    /// It is in memory.
    Memory(Whole<'a>),
    /// It is stored, and read by rows, so that a device that can lays it out as it is read.
    Stored {
        /// Where it is stored.
        source: &'a dyn Source,
        /// Which it is.
        spec: &'a Spec,
        /// Whether one on a grid is computed with as that, with activations rounded to integers, rather than
        /// as the floats that it stands for.
        integers: bool,
    },
}

/// A weight in memory.
pub enum Whole<'a> {
    /// Floats.
    Dense(Weight),
    /// Codes of a grid.
    On {
        /// Its name in errors.
        tensor: &'a str,
        /// The codes and what scales them.
        codes: Quantized,
    },
}

/// Codes that one thread reads of a large weight.
const PART: usize = 1 << 23;

impl<'a> Incoming<'a> {
    /// All of it in memory. A large one on a grid is read by several threads: beside the whole there is
    /// only a part a thread.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn whole(self) -> Result<Whole<'a>, BackendError> {
        let (source, spec, integers) = match self {
            Self::Memory(whole) => return Ok(whole),
            Self::Stored { source, spec, integers } => (source, spec, integers),
        };
        let rows = spec.shape.first().copied().unwrap_or(0);
        if integers && let Some(codes) = read_codes(source, spec, rows)? {
            return Ok(Whole::On { tensor: &spec.tensor, codes });
        }
        let tensor = source.read_view(&spec.at, 0..rows)?;
        Ok(Whole::Dense(Weight { spec: spec.clone(), tensor }))
    }

    /// The grid that it is computed with on; `None` if as floats.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn grid(&self) -> Result<Option<Grid>, BackendError> {
        match self {
            Self::Memory(Whole::On { codes, .. }) => Ok(Some(codes.grid)),
            Self::Stored { source, spec, integers: true } => {
                let rows = spec.shape.first().copied().unwrap_or(0);
                let first = source.read_view_quantized(&spec.at, 0..rows.min(1))?;
                Ok(first.map(|first| first.grid).filter(|grid| computed_with(*grid)))
            }
            _ => Ok(None),
        }
    }
}

impl From<Weight> for Incoming<'_> {
    fn from(weight: Weight) -> Self {
        Self::Memory(Whole::Dense(weight))
    }
}

/// The codes of a weight on a grid; `None` if it is dense, or served as if it were.
fn read_codes(
    source: &dyn Source,
    spec: &Spec,
    rows: usize,
) -> Result<Option<Quantized>, BackendError> {
    let read = |rows: Range<usize>| source.read_view_quantized(&spec.at, rows);
    if read(0..rows.min(1))?.is_none_or(|first| !computed_with(first.grid)) {
        return Ok(None);
    }
    let width = spec.shape.get(1).copied().unwrap_or(1).max(1);
    let step = (PART / width).next_multiple_of(32).max(32);
    let parts: Vec<usize> = (0..rows).step_by(step).collect();
    let mut whole: Option<Quantized> = None;
    for some in parts.chunks(rayon::current_num_threads()) {
        let some = some.par_iter().map(|&first| read(first..rows.min(first + step)));
        for part in some.collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
            match &mut whole {
                None => whole.insert(part).reserve_rows(rows),
                Some(whole) => whole.append(&part),
            }
        }
    }
    Ok(whole)
}
