//! The kernels on the CPU, against the plain reference.
#![expect(clippy::unwrap_used, reason = "tests")]

mod attend;
mod common;
mod linear;
mod ops;
mod peers;
