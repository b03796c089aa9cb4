//! The time that a workload runs in.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Seconds since some start.
pub trait Clock {
    /// What the time is.
    fn now(&self) -> f64;

    /// Returns when it is `at`; at once if that is past, or the clock is stopped.
    fn wait(&self, at: f64);

    /// Ends what runs by this clock, by whoever else runs by it.
    fn stop(&self);

    /// Whether somebody has stopped it.
    fn is_stopped(&self) -> bool;
}

/// The clock on the wall.
#[derive(Debug)]
pub struct Wall {
    begun: Instant,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Wall {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self { begun: Instant::now(), stopped: Mutex::new(false), changed: Condvar::new() }
    }

    fn stopped(&self) -> MutexGuard<'_, bool> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for Wall {
    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn wait(&self, at: f64) {
        let left = Duration::try_from_secs_f64((at - self.now()).max(0.0));
        let (stopped, left) = (self.stopped(), left.unwrap_or(Duration::MAX));
        drop(self.changed.wait_timeout_while(stopped, left, |stopped| !*stopped));
    }

    fn stop(&self) {
        *self.stopped() = true;
        self.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        *self.stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_let_go_by_a_stop_and_by_the_time() {
        let clock = Wall::start();
        clock.wait(0.02);
        assert!(clock.now() >= 0.02 && !clock.is_stopped());
        std::thread::scope(|scope| {
            // No time is too far off to be waited for.
            scope.spawn(|| clock.wait(1e300));
            clock.stop();
        });
        clock.wait(1e300);
        assert!(clock.is_stopped());
    }
}
