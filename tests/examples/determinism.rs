//! Runs every job of the determinism matrix under every combination of threads, memory, locale,
//! kernels and folder, 20 times under the first, and says how many runs gave the same bytes; or only
//! the job of a number.
//!
//! ```text
//! cargo run --release -p tests --example determinism [JOB]
//! ```

#![expect(clippy::print_stdout, reason = "it is a command")]

use tests::matrix::{JOBS, all, check};

fn main() {
    let mut runs = 0;
    let one = std::env::args().nth(1).and_then(|n| n.parse::<usize>().ok());
    for (_, job) in JOBS.iter().enumerate().filter(|(i, _)| one.is_none_or(|n| n == *i)) {
        let first = all()[0];
        let done = check(job, std::iter::repeat_n(first, 20).chain(all()));
        println!("{done:4} runs, one hash: {job:?}");
        runs += done;
    }
    println!("{runs} runs, one hash a job");
}
