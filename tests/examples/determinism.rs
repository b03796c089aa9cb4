//! Runs every job of the determinism matrix under every combination of threads, memory, locale,
//! kernels and folder, 20 times under the first, and says how many runs gave the same bytes.
//!
//! ```text
//! cargo run --release -p tests --example determinism
//! ```

#![expect(clippy::print_stdout, reason = "it is a command")]

use tests::matrix::{JOBS, all, check};

fn main() {
    let mut runs = 0;
    for job in JOBS {
        let first = all()[0];
        let done = check(job, std::iter::repeat_n(first, 20).chain(all()));
        println!("{done:4} runs, one hash: {job:?}");
        runs += done;
    }
    println!("{runs} runs of {} jobs: one hash a job", JOBS.len());
}
