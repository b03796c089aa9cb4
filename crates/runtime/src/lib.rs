//! Serving, but for arguments and sockets: a checkpoint is [`Opened`], [`Ready`] for where it is
//! computed (its budget of memory, its draft), loaded, and answers.
//!
//! [`Runner`] runs the engine's steps: a whole model on its devices, keys and values in pages, the same
//! block programs and the same interpreter as calibration.

mod ahead;
mod answer;
mod apart;
mod budget;
mod cost;
mod draw;
mod error;
mod generation;
mod host;
mod memory;
mod model;
mod opened;
mod placement;
mod prepare;
mod replica;
mod runner;
mod stages;

pub use answer::{Answer, Answerer, Listener, Question};
pub use apart::{Apart, InPool, apart};
pub use budget::Taken;
pub use cost::Cost;
pub use error::{AnswerError, GenerationError, LoadError, OpenError, ServeError};
pub use generation::{Generation, Overrides};
pub use host::{container_limit, free_memory, machine_memory, peak_memory};
pub use memory::{KvPlan, KvRoom};
pub use model::Model;
pub use opened::{Grids, Opened, Origin, configuration};
pub use placement::{Joined, Placement};
pub use prepare::{ModelAndDraft, Ready, Terms, foresee};
pub use replica::together;
pub use runner::{Runner, Settings};
pub use stages::stages;
