//! The same input and recipe give the same bytes. One in thirteen of the combinations is run here,
//! but of those with portable kernels one a job;
//! all of them are run by `cargo run --release -p tests --example determinism`.

use tests::matrix::{JOBS, Under, all, check};

/// With no factor in common with the lists of the matrix, so that each value meets every other.
const STRIDE: usize = 13;

#[test]
fn a_job_gives_the_same_bytes_under_anything() {
    let mut runs = 0;
    for (offset, job) in JOBS.iter().enumerate() {
        let (slow, quick): (Vec<_>, Vec<_>) = all().into_iter().partition(Under::is_portable);
        let quick = quick.into_iter().skip(offset).step_by(STRIDE);
        runs += check(job, quick.chain(slow.into_iter().nth(5 * offset)));
    }
    println!("{runs} runs of {} jobs", JOBS.len());
    assert!(runs >= 80, "{runs}");
}

#[test]
fn twenty_runs_give_the_same_bytes() {
    let under = all()[0];
    assert_eq!(check(JOBS[0], std::iter::repeat_n(under, 20)), 20);
}
