//! Where a model is computed.

use backend::{Backend, Sharded};

/// What computes a range of layers.
pub enum Joined<'d> {
    /// One device.
    One(&'d dyn Backend),
    /// Several that divide each layer, the first one first.
    Several {
        /// The first.
        first: &'d dyn Backend,
        /// How many there are.
        count: usize,
        /// All of them as one.
        sharded: Sharded<'d>,
    },
}

impl<'d> Joined<'d> {
    /// The devices as one; `None` without any.
    pub fn new(devices: Vec<&'d dyn Backend>) -> Option<Self> {
        match devices[..] {
            [] => None,
            [one] => Some(Self::One(one)),
            [first, ..] => {
                let count = devices.len();
                Some(Self::Several { first, count, sharded: Sharded::new(devices) })
            }
        }
    }

    /// The devices as one.
    pub fn backend(&self) -> &dyn Backend {
        match self {
            Self::One(backend) => *backend,
            Self::Several { sharded, .. } => sharded,
        }
    }

    /// The first of them.
    pub(crate) fn first(&self) -> &'d dyn Backend {
        match self {
            Self::One(first) | Self::Several { first, .. } => *first,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Several { count, .. } => *count,
        }
    }
}

/// The devices of a model, in the order of its layers.
pub struct Placement<'d> {
    /// What computes each range of layers.
    pub stages: Vec<Joined<'d>>,
    /// Models on the device that most share, this one included.
    pub sharing: u64,
}

impl Placement<'_> {
    /// A backend a stage.
    pub fn backends(&self) -> Vec<&dyn Backend> {
        self.stages.iter().map(Joined::backend).collect()
    }
}
