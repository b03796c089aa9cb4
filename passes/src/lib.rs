//! What rewrites weights: fits of a grid to given values, solvers that choose codes, and the passes
//! built from them.

pub mod fit;
