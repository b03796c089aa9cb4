//! The time that a workload runs in.

use std::time::{Duration, Instant};

/// Seconds since some start.
pub trait Clock {
    /// What the time is.
    fn now(&self) -> f64;

    /// Returns when it is `at`, at once if that is past.
    fn wait(&self, at: f64);
}

/// The clock on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Wall(Instant);

impl Wall {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Wall {
    fn now(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    fn wait(&self, at: f64) {
        std::thread::sleep(Duration::from_secs_f64((at - self.now()).max(0.0)));
    }
}
