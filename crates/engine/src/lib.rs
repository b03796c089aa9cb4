//! The brain of the runtime: sequences, the KV pool, the scheduler, speculation and the sampler.
//!
//! No tensor, no I/O, no clock, no thread. A [`Step`] is plain data that says which tokens of which
//! sequences are computed and where their keys and values lie; an [`Executor`] runs it. Prefill, a
//! chunk of it, decode and the verification of a draft are one case: "compute tokens a..b of this
//! sequence".
//!
//! What a sequence says depends on its request alone. Not on what else is in a step, on chunk
//! sizes, preemptions, prefix hits or speculation: noise is keyed by (seed, position), and a draft
//! token is accepted only where it equals the token the model draws itself.

mod depth;
mod draft;
mod engine;
mod history;
mod job;
mod noise;
mod pool;
mod prefix;
mod request;
mod rules;
mod sampler;
mod schedule;
mod sequence;
mod shortlist;
mod speculate;
mod step;

pub use depth::{CostTable, Depth};
pub use draft::DraftModel;
pub use engine::{Engine, Event, Finish, Options, Stats};
pub use history::History;
pub use job::Job;
pub use pool::{BLOCK, GroupKind, KvBlock, KvPool, KvTable};
pub use request::{Refused, Request};
pub use rules::Rules;
pub use sampler::{SampleError, Scored};
pub use sampler::{Sampled, Scratch, sample, score};
pub use sequence::SeqId;
pub use shortlist::{Change, Found, Kind, SHORTLIST, Wish, settle, wish};
pub use speculate::{Ask, NGram, Speculator};
pub use step::{ExecError, Executor, Limits, Outputs, Row, RowOutput, Step, Stepper};

pub use request::Sampling;
