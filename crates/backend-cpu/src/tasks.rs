//! Spreads numbered tasks over the threads of the current pool, the next free thread taking the
//! next task: cores are shared with others, so no thread is dealt a fixed share.
#![expect(unsafe_code, reason = "threads write disjoint parts of one output")]

use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `task` for `0..count`, each thread with its own scratch.
pub(crate) fn run<S>(
    count: usize,
    scratch: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, usize) + Sync,
) {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut scratch = scratch();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            task(&mut scratch, index);
        }
    };
    let threads = rayon::current_num_threads().min(count);
    if threads < 2 {
        return work();
    }
    rayon::scope(|scope| {
        (1..threads).for_each(|_| scope.spawn(|_| work()));
        work();
    });
}

/// An output that several tasks write, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Output(*mut f32);

// SAFETY: the pointer is only written through, by tasks whose elements are disjoint, while the
// borrow it was made from is held by the function that started them.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// The start of `values`, which must outlive the tasks.
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// The first element.
    pub(crate) fn start(self) -> *mut f32 {
        self.0
    }
}
