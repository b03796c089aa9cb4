//! What rewrites weights: fits of a grid to given values, solvers that choose codes, the passes
//! built from them, and the recipes that are built in.

pub mod factor;
pub mod fit;
pub mod gptq;
mod pattern;
mod quantize;
mod recipe;
pub mod rtn;
mod solve;

pub use recipe::{builtin, meant, modules, names, passes, resolved, text, unmatched};
