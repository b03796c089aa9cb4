//! Copies of a model that answer a workload together.

use crate::device::Devices;
use crate::failure::Failure;
use crate::serve::Answerer;
use std::panic::resume_unwind;

/// A loaded model on devices of its own.
pub(crate) struct Replica<'m> {
    pub(crate) devices: &'m Devices,
    pub(crate) answerer: Answerer<'m>,
}

/// What `work` makes of each of `replicas`, all at the same time, each on a thread and among the threads
/// of its own. A failure says whose it is; it comes when all have ended.
pub(crate) fn together<'d, R: Send, T: Send>(
    replicas: impl IntoIterator<Item = (&'d Devices, R)>,
    work: impl Fn(usize, R) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let work = &work;
    std::thread::scope(|scope| {
        let begin = |(index, (devices, replica)): (usize, (&'d Devices, R))| {
            let done = move || devices.pool.install(|| work(index, replica));
            scope.spawn(move || done().map_err(|failure| devices.named(failure)))
        };
        let threads: Vec<_> = replicas.into_iter().enumerate().map(begin).collect();
        // A panic ends here as it would have without a thread.
        let done =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|p| resume_unwind(p)));
        done.collect()
    })
}
