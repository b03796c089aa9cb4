//! The intermediate representation: a decoder layer is a [`Block`], a straight-line program of a
//! few op kinds and the weights it names.
//!
//! Front ends (`arch`) emit blocks, [`verify`] checks them, the interpreter (`backend`) runs them,
//! passes rewrite them. Nothing here knows a file layout, a device or a model family.

mod block;
mod block_kind;
mod cache;
mod codebook;
mod grid;
mod held;
mod inventory;
mod model;
mod op;
mod parse;
mod print;
mod quantized;
mod role;
mod rotary;
mod source;
mod verify;
mod view;

pub use block::{Block, BlockId, Spec, Value, Weight, WeightId};
pub use block_kind::{BlockForm, BlockKind, Inner, Outer};
pub use cache::{Cache, CacheId, Keep};
pub use codebook::Codebook;
pub use grid::{Grid, IntGrid, Span};
pub use held::held_elements;
pub use inventory::Inventory;
pub use model::ModelSpec;
pub use op::{Activation, Expert, Heads, Op, Rope};
pub use parse::ParseError;
pub use quantized::{Params, Quantized, Step};
pub use role::{Input, Matrix, Projection, Role};
pub use rotary::{Linear, Llama3, Rotary, Scaling, Yarn};
pub use source::{ReadError, Source};
pub use verify::{Verified, VerifyError, verify, verify_caches};
pub use view::{RowMap, View};
