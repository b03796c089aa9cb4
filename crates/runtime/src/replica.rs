//! Copies of a model that work at the same time.

use rayon::ThreadPool;
use std::panic::resume_unwind;

/// What `work` makes of each of `replicas`, all at the same time, each on a thread and among the threads
/// of its own; in order, when all have ended.
pub fn together<'d, R: Send, T: Send, E: Send>(
    replicas: impl IntoIterator<Item = (&'d ThreadPool, R)>,
    work: impl Fn(usize, R) -> Result<T, E> + Sync,
) -> Vec<Result<T, E>> {
    let work = &work;
    std::thread::scope(|scope| {
        let begin = |(index, (pool, replica)): (usize, (&'d ThreadPool, R))| {
            scope.spawn(move || pool.install(|| work(index, replica)))
        };
        let threads: Vec<_> = replicas.into_iter().enumerate().map(begin).collect();
        // A panic ends here as it would have without a thread.
        let done =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|p| resume_unwind(p)));
        done.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::ThreadPoolBuilder;

    #[test]
    fn each_works_among_its_own_threads_and_all_end_before_one_fails() {
        let pool = |n| ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let pools = [pool(1), pool(2), pool(3)];
        let done = together(pools.iter().zip(["a", "b", "c"]), |index, name| {
            if name == "a" { Err(name) } else { Ok((index, rayon::current_num_threads())) }
        });
        assert_eq!(done, [Err("a"), Ok((1, 2)), Ok((2, 3))]);
    }
}
