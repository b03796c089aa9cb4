//! What rewrites weights: fits of a grid to given values, solvers that choose codes, the passes
//! built from them, and the recipes that are built in.

pub mod awq;
pub mod blocks;
pub mod extremes;
pub mod factor;
pub mod fit;
pub mod fold;
pub mod gptq;
pub mod importance;
pub mod integers;
mod mix;
mod pattern;
mod quadratic;
mod recipe;
pub mod rtn;
mod rule;
mod sensitivity;
mod solve;
mod unit;

pub use recipe::{
    builtin, decided, meant, mixes, modules, names, pipeline, resolved, text, unmatched,
};
pub use rule::grid_name;
