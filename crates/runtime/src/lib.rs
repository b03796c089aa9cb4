//! Runs the engine's steps: a whole model on a device, keys and values in pages, the same block
//! programs and the same interpreter as calibration.

mod ahead;
mod apart;
mod cost;
mod draw;
mod error;
mod host;
mod memory;
mod model;
mod runner;
mod stages;

pub use apart::{Apart, InPool, apart};
pub use cost::Cost;
pub use draw::{as_found, changes, seek};
pub use error::LoadError;
pub use host::{container_limit, free_memory};
pub use memory::KvPlan;
pub use model::Model;
pub use runner::{Runner, Settings};
pub use stages::stages;
