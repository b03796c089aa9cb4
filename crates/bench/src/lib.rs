//! Measures a runtime: workloads with their arrivals, the clock, latencies as their users see them,
//! and what the machine would allow.

mod batching;
mod clock;
mod deal;
mod drive;
mod kernels;
mod machine;
mod metrics;
mod noise;
mod oracle;
mod plot;
mod profile;
mod roof;
mod synthetic;
mod trace;
mod watch;
mod workload;

pub use batching::Batching;
pub use clock::{Clock, Wall};
pub use deal::Deal;
pub use drive::{Asked, Drive, DriveError, Record, in_order};
pub use kernels::{Scale, Timed, kernels};
pub use machine::{Machine, Probe, READ_BYTES, measure};
pub use metrics::{Limits, Spread, Summary};
pub use oracle::{Oracle, first_difference};
pub use plot::{Compared, Drawn, Header, Point, comparison, page};
pub use profile::{Kind, Phase, Profiled, Tally};
pub use roof::{Bound, Roof};
pub use synthetic::{Synthetic, SyntheticGrid};
pub use trace::{Trace, TraceError};
pub use watch::{Decoding, Pace, Watched};
pub use workload::{Arrival, Arrivals, SHARED_BLOCK, Workload};
