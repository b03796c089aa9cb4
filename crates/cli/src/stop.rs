//! What is said when a signal ends the main job: where the same command goes on.

use crate::output::remark;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How far the work is, for whoever asks at any moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position(Arc<[AtomicUsize; 2]>);

impl Position {
    /// So many blocks of so many are finished.
    pub(crate) fn set(&self, done: usize, total: usize) {
        self.0[0].store(done, Ordering::Relaxed);
        self.0[1].store(total, Ordering::Relaxed);
    }

    /// What is lost by a stop, and what is not.
    fn words(&self) -> String {
        let [done, total] = [0, 1].map(|i| self.0[i].load(Ordering::Relaxed));
        match done {
            0 => "stopped: nothing was finished yet".into(),
            _ if done >= total => {
                "stopped: all blocks are finished; the same command goes on by measuring".into()
            }
            _ => format!("stopped: the same command goes on from block {} of {total}", done + 1),
        }
    }
}

/// From now on a signal that ends the program has it say first where it is. Where the system has
/// no such thing, it ends all the same.
pub(crate) fn say_where(position: &Position) {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    let position = position.clone();
    // It goes with the process.
    std::thread::spawn(move || {
        for signal in signals.forever() {
            remark(&format!("\n{}", position.words()));
            if emulate_default_handler(signal).is_err() {
                std::process::abort();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_a_journal_holds() {
        let position = Position::default();
        assert_eq!(position.words(), "stopped: nothing was finished yet");
        position.set(2, 8);
        assert!(position.words().ends_with("goes on from block 3 of 8"));
        position.set(8, 8);
        assert!(position.words().ends_with("goes on by measuring"));
    }
}
