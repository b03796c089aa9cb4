//! Configurations and stored tensors in, programs and refusals out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
mod describe;
mod goldens;
mod inert;
mod printed;
mod programs;
mod refusals;
mod rope;
