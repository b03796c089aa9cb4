//! Every op of the CPU backend gives the reference's bits, with each instruction set that this
//! machine has.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod algebra;
mod attend;
mod common;
mod elements;
mod linear;
mod paged;
mod quantized;
