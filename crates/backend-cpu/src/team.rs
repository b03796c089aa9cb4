//! Threads that stay awake between the ops of a step.
//!
//! A step of one token is some three hundred ops of a few microseconds each, and to wake a thread
//! takes as long as such an op. So for the length of a step the other threads of the pool watch one
//! word and take part in whatever is announced there; between steps they sleep as the pool has them.
#![expect(unsafe_code, reason = "a borrowed closure is shared with threads that outlive no call")]

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Set in the state while work may be joined.
const OPEN: u64 = 1 << 32;

/// Looks at the state before a thread offers its core to others.
const LOOKS: u32 = 1 << 14;

thread_local! {
    /// The team that this thread leads.
    static LED: Cell<*const Team> = const { Cell::new(std::ptr::null()) };
}

type Work<'a> = dyn Fn() + Sync + 'a;

/// Threads that wait for work of one leader.
pub(crate) struct Team {
    /// Threads inside the work (32 bits), [`OPEN`], and how often there was work.
    state: AtomicU64,
    work: UnsafeCell<Option<*const Work<'static>>>,
    ended: AtomicBool,
    panicked: AtomicBool,
}

// SAFETY: `work` is written by the leader alone, while the state says that nobody is inside and
// nobody may enter; it is read only by threads that have entered.
unsafe impl Sync for Team {}

impl Team {
    /// Runs `steps` on this thread as the leader of a team of the current pool's other threads.
    pub(crate) fn lead(steps: &mut dyn FnMut()) {
        let others = rayon::current_num_threads() - 1;
        if others == 0 || !LED.get().is_null() {
            return steps();
        }
        let team = Self {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            ended: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        };
        rayon::in_place_scope(|scope| {
            (0..others).for_each(|_| scope.spawn(|_| team.follow()));
            LED.set(&raw const team);
            let _end = Guard(|| {
                LED.set(std::ptr::null());
                team.ended.store(true, Ordering::Relaxed);
            });
            steps();
        });
    }

    /// Runs `work` on this thread and on every thread of the team it leads that comes in time;
    /// returns when all have left it. `false`, and nothing is done, if it leads none.
    pub(crate) fn run(work: &Work<'_>) -> bool {
        // SAFETY: the pointer is set only while `lead`, which holds the team, runs on this thread.
        let Some(team) = (unsafe { LED.get().as_ref() }) else { return false };
        let work: *const Work<'_> = work;
        // SAFETY: only the lifetime changes; the work is let go of before this function returns.
        let work = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        // SAFETY: nobody is inside, and nobody may enter: see `close`.
        unsafe { *team.work.get() = Some(work) };
        let before = team.state.load(Ordering::Relaxed);
        team.state.store((before & !(OPEN | (OPEN - 1))) + 2 * OPEN + OPEN, Ordering::Release);
        {
            let _close = Guard(|| team.close());
            // SAFETY: the caller's reference is valid.
            unsafe { (*work)() };
        }
        assert!(!team.panicked.load(Ordering::Relaxed), "a task panicked on another thread");
        true
    }

    /// Lets nobody in any more, and waits until all have left.
    fn close(&self) {
        let mut inside = self.state.fetch_and(!OPEN, Ordering::AcqRel) & (OPEN - 1);
        let mut looks = 0;
        while inside > 0 {
            wait(&mut looks);
            inside = self.state.load(Ordering::Acquire) & (OPEN - 1);
        }
    }

    /// Takes part in the leader's work until there is no more.
    fn follow(&self) {
        let (mut done, mut looks) = (0, 0);
        while !self.ended.load(Ordering::Relaxed) {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN == 0 || state / OPEN == done {
                wait(&mut looks);
                continue;
            }
            let (come, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
            if self.state.compare_exchange_weak(state, state + 1, come, relaxed).is_err() {
                continue;
            }
            (done, looks) = (state / OPEN, 0);
            let _leave = Guard(|| _ = self.state.fetch_sub(1, Ordering::Release));
            // SAFETY: this thread is inside, so the leader has not let go of its work.
            let work = AssertUnwindSafe(|| unsafe { (*self.work.get()).map(|work| (*work)()) });
            if catch_unwind(work).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Passes a moment; after many, others may have the core.
fn wait(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Calls its function when it is dropped, on a panic too.
struct Guard<F: FnMut()>(F);

impl<F: FnMut()> Drop for Guard<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_task_of_every_round_is_done_once() {
        for threads in [1, 2, 5] {
            let total = AtomicUsize::new(0);
            pool(threads).install(|| {
                Team::lead(&mut || {
                    for round in 0..2000 {
                        let seen: Vec<AtomicUsize> = (0..7).map(|_| AtomicUsize::new(0)).collect();
                        crate::tasks::run(
                            7,
                            || (),
                            |(), i| {
                                seen[i].fetch_add(round + 1, Ordering::Relaxed);
                            },
                        );
                        assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == round + 1));
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
            assert_eq!(total.into_inner(), 2000);
        }
    }

    #[test]
    fn a_panic_comes_back_to_the_leader_and_ends_the_team() {
        let pool = pool(3);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.install(|| {
                Team::lead(&mut || {
                    crate::tasks::run(64, || (), |(), i| assert!(i != 40, "task 40"));
                });
            });
        }));
        assert!(caught.is_err());
        let done = AtomicUsize::new(0);
        pool.install(|| {
            Team::lead(&mut || {
                crate::tasks::run(
                    64,
                    || (),
                    |(), _| {
                        done.fetch_add(1, Ordering::Relaxed);
                    },
                );
            });
        });
        assert_eq!(done.into_inner(), 64);
    }
}
