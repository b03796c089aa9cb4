//! Work against what the machine allows.

use crate::machine::Machine;
use crate::profile::Tally;

/// What keeps work from being faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Reading memory.
    Bandwidth,
    /// Reading, faster than memory allows: what is read lies in a cache.
    Cache,
}

impl Bound {
    /// How reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Bandwidth => "bandwidth",
            Self::Cache => "cache",
        }
    }
}

/// Work under the roofs of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// What bounds it; `None` if it neither reads nor computes.
    pub bound: Option<Bound>,
    /// The share of its time that its operations would take at the peak.
    pub mfu: f64,
    /// The share of its time that its bytes would take at the read bandwidth. Above 1 where they
    /// come from a cache.
    pub mbu: f64,
}

impl Roof {
    /// Of `tally`, on `machine`.
    pub fn new(tally: &Tally, machine: &Machine) -> Self {
        let compute = tally.floats / machine.f32 + tally.integers / machine.int8;
        let read = tally.bytes / machine.read;
        let bound = match () {
            () if compute >= read => Bound::Compute,
            () if read > tally.seconds => Bound::Cache,
            () => Bound::Bandwidth,
        };
        let any = compute > 0.0 || read > 0.0;
        let (mfu, mbu) = (compute / tally.seconds, read / tally.seconds);
        Self { bound: any.then_some(bound), mfu, mbu }
    }

    /// Whether it read faster than memory allows, so that its bytes cannot have come from there.
    pub fn from_cache(&self) -> bool {
        self.mbu > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_reading_and_computing_bounds() {
        let machine = Machine { read: 10.0, f32: 100.0, bf16: None, int8: 1000.0 };
        let tally = Tally { seconds: 2.0, bytes: 8.0, floats: 25.0, integers: 250.0 };
        let roof = Roof::new(&tally, &machine);
        assert_eq!(roof, Roof { bound: Some(Bound::Bandwidth), mfu: 0.25, mbu: 0.4 });
        let roof = Roof::new(&Tally { bytes: 2.0, ..tally }, &machine);
        assert_eq!(roof.bound, Some(Bound::Compute));
        let cached = Roof::new(&Tally { bytes: 21.0, ..tally }, &machine);
        assert_eq!((cached.bound, cached.from_cache()), (Some(Bound::Cache), true));
        assert!(!Roof::new(&Tally { bytes: 20.0, ..tally }, &machine).from_cache());
        let rest = Tally { seconds: 1.0, ..Tally::default() };
        assert_eq!(Roof::new(&rest, &machine).bound, None);
    }
}
