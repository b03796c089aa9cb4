//! The printed form of a block, one line an op: what `inspect`, dumps and the goldens show, and what is
//! parsed again ([`crate::parse`]).
//!
//! ```text
//! layer 0:
//!   %1 = norm %0 norm=model.layers.0.input_layernorm.weight:BF16[64] eps=1e-5
//!   %2 = linear %1 q=model.layers.0.self_attn.q_proj.weight:BF16[64, 64]
//!   %3 = rope %2 head_dim=4 rotary=4 inv_freq=1e0..1e-2 magnitude=1 @0
//!   @0 = 1e0 1e-2
//! ```
//!
//! `%0` is the input. A weight stands with its role where it is read first, after `#5:` if it is not the
//! next of the block's weights, and as `#5` where it is read again. One that is no stored tensor of its name
//! says where it lies: `up=a.up:F32[4, 8]@a.gate_up[3][4..]` ([`crate::View`]). What rotates stands below the ops, each
//! list of frequencies once.

use crate::block::{Block, Spec, WeightId};
use crate::op::{Op, Rope};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

impl fmt::Display for Block<Spec> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.id)?;
        let mut printed = Printed::default();
        for (i, op) in self.ops.iter().enumerate() {
            write!(f, "  %{} = {}", i + 1, op.name())?;
            for value in op.inputs() {
                write!(f, " %{}", value.0)?;
            }
            for id in op.weights() {
                f.write_str(" ")?;
                printed.weight(f, self, id)?;
            }
            printed.parameters(f, op)?;
            f.write_str("\n")?;
        }
        for (i, rope) in printed.ropes.iter().enumerate() {
            write!(f, "  @{i} =")?;
            rope.inv_freq.iter().try_for_each(|x| write!(f, " {x:e}"))?;
            f.write_str("\n")?;
        }
        Ok(())
    }
}

/// Whether a name can stand without quotes.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    !name.is_empty() && name.bytes().all(plain)
}

/// A name, in quotes if it needs them.
pub(crate) fn write_name(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    if is_plain(name) { f.write_str(name) } else { write!(f, "{name:?}") }
}

/// What has been printed of a block.
#[derive(Default)]
struct Printed<'a> {
    weights: HashSet<WeightId>,
    ropes: Vec<&'a Arc<Rope>>,
}

impl<'a> Printed<'a> {
    fn weight(
        &mut self,
        f: &mut fmt::Formatter<'_>,
        block: &Block<Spec>,
        id: WeightId,
    ) -> fmt::Result {
        let next = self.weights.len();
        let Some(w) = block.weight(id).filter(|_| self.weights.insert(id)) else {
            return write!(f, "#{}", id.0);
        };
        if id.0 as usize != next {
            write!(f, "#{}:", id.0)?;
        }
        write!(f, "{}=", w.role.to_string().replace(' ', "."))?;
        write_name(f, &w.tensor)?;
        write!(f, ":{}{:?}", w.dtype, w.shape)?;
        if w.is_alone() { Ok(()) } else { write!(f, "@{}", w.at) }
    }

    /// The number of a list of frequencies: that of the first that is the same.
    fn rope(&mut self, rope: &'a Arc<Rope>) -> usize {
        let known = self.ropes.iter().position(|known| known.inv_freq == rope.inv_freq);
        known.unwrap_or_else(|| {
            self.ropes.push(rope);
            self.ropes.len() - 1
        })
    }

    fn parameters(&mut self, f: &mut fmt::Formatter<'_>, op: &'a Op) -> fmt::Result {
        match op {
            Op::Norm { eps, .. } => write!(f, " eps={eps:e}"),
            Op::Rope { head_dim, rope, .. } => {
                let (first, last) = (rope.inv_freq.first(), rope.inv_freq.last());
                let ends = [first, last].map(|x| x.copied().unwrap_or_default());
                write!(f, " head_dim={head_dim} rotary={}", rope.inv_freq.len() * 2)?;
                write!(f, " inv_freq={:e}..{:e}", ends[0], ends[1])?;
                write!(f, " magnitude={} @{}", rope.magnitude, self.rope(rope))
            }
            Op::Attend { heads, scale, window, cache, .. } => {
                write!(f, " heads={}/{}x{} scale={scale}", heads.query, heads.kv, heads.dim)?;
                write!(f, " cache={}", cache.0)?;
                window.map_or(Ok(()), |w| write!(f, " window={w}"))
            }
            Op::Activate { kind, .. } => write!(f, " {kind:?}"),
            Op::Scale { by, .. } => write!(f, " by={by:e}"),
            Op::Route { top, normalized, .. } => write!(f, " top={top} normalized={normalized}"),
            Op::Experts { kind, .. } => write!(f, " {kind:?}"),
            Op::Embed { .. } | Op::Linear { .. } | Op::Mul { .. } | Op::Add { .. } => Ok(()),
        }
    }
}
