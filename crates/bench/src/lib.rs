//! Measures a runtime: workloads with their arrivals, the clock, latencies as their users see them,
//! and what the machine would allow.

mod drive;
mod machine;
mod metrics;
mod workload;

pub use drive::{DriveError, Record, drive};
pub use machine::{Machine, Probe, measure};
pub use metrics::{Limits, Spread, Summary};
pub use workload::{Arrival, Arrivals, Workload, WorkloadError, trace};
