//! Fits, solvers and passes, each on a block or less: never through the program.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod awq;
mod block;
mod blocks;
mod fit;
mod gguf;
mod gptq;
mod noise;
mod survey;
