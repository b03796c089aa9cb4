//! Spreads numbered tasks over the threads of the current pool, the next free thread taking the
//! next task: cores are shared with others, so no thread is dealt a fixed share.
#![expect(unsafe_code, reason = "threads write disjoint parts of one output")]

use crate::team::Team;
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
    if Team::run(&work) {
        return;
    }
    rayon::scope(|scope| {
        (1..threads).for_each(|_| scope.spawn(|_| work()));
        work();
    });
}

/// Runs `task` for each run of `size` elements of `values` (the last may be shorter) and its index.
pub(crate) fn chunks<E: Send>(
    values: &mut [E],
    size: usize,
    task: impl Fn(usize, &mut [E]) + Sync,
) {
    let (len, size) = (values.len(), size.max(1));
    let output = Output::new(values);
    run(
        len.div_ceil(size),
        || (),
        |(), index| {
            let begin = index * size;
            // SAFETY: the chunk lies within the values, and this task alone has it.
            let chunk = unsafe {
                std::slice::from_raw_parts_mut(output.start().add(begin), size.min(len - begin))
            };
            task(index, chunk);
        },
    );
}

/// An output that several tasks write, each its own elements.
pub(crate) struct Output<E = f32>(*mut E);

impl<E> Clone for Output<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Output<E> {}

// SAFETY: the pointer is only written through, by tasks whose elements are disjoint, while the
// borrow it was made from is held by the function that started them.
unsafe impl<E: Send> Send for Output<E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for Output<E> {}

impl<E> Output<E> {
    /// The start of `values`, which must outlive the tasks.
    pub(crate) fn new(values: &mut [E]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// The first element.
    pub(crate) fn start(self) -> *mut E {
        self.0
    }
}
