//! The intermediate representation: a decoder layer is a [`Block`], a straight-line program of a
//! few op kinds and the weights it names.
//!
//! Front ends (`arch`) emit blocks, [`verify`] checks them, the interpreter (`backend`) runs them,
//! passes rewrite them. Nothing here knows a file layout, a device or a model family.

mod block;
mod grid;
mod held;
mod inventory;
mod model;
mod op;
mod print;
mod source;
mod verify;

pub use block::{Block, BlockId, Spec, Value, Weight, WeightId};
pub use grid::{Grid, Quantized, Span};
pub use held::held_elements;
pub use inventory::Inventory;
pub use model::ModelSpec;
pub use op::{Activation, Heads, Op, Rope};
pub use source::{ReadError, Source};
pub use verify::{Verified, VerifyError, verify};
