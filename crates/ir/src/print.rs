//! The printed form of a block, one line an op: what `inspect` and the goldens show.

use crate::block::{Block, Spec, WeightId};
use crate::op::Op;
use std::fmt;

impl fmt::Display for Block<Spec> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.id)?;
        for (i, op) in self.ops.iter().enumerate() {
            write!(f, "  %{} = {}", i + 1, op.name())?;
            for value in op.inputs() {
                write!(f, " %{}", value.0)?;
            }
            for id in op.weights() {
                f.write_str(" ")?;
                self.write_weight(f, id)?;
            }
            write_parameters(f, op)?;
            f.write_str("\n")?;
        }
        Ok(())
    }
}

impl Block<Spec> {
    fn write_weight(&self, f: &mut fmt::Formatter<'_>, id: WeightId) -> fmt::Result {
        match self.weights.get(id.0 as usize) {
            Some(w) => write!(f, "{}:{}{:?}", w.tensor, w.dtype, w.shape),
            None => write!(f, "w{}", id.0),
        }
    }
}

fn write_parameters(f: &mut fmt::Formatter<'_>, op: &Op) -> fmt::Result {
    match op {
        Op::Norm { eps, .. } => write!(f, " eps={eps:e}"),
        Op::Rope { head_dim, rope, .. } => {
            let (first, last) = (rope.inv_freq.first(), rope.inv_freq.last());
            let ends = [first, last].map(|x| x.copied().unwrap_or_default());
            write!(f, " head_dim={head_dim} rotary={}", rope.inv_freq.len() * 2)?;
            write!(f, " inv_freq={:e}..{:e}", ends[0], ends[1])?;
            write!(f, " magnitude={}", rope.magnitude)
        }
        Op::Attend { heads, scale, window, .. } => {
            write!(f, " heads={}/{}x{} scale={scale}", heads.query, heads.kv, heads.dim)?;
            window.map_or(Ok(()), |w| write!(f, " window={w}"))
        }
        Op::Activate { kind, .. } => write!(f, " {kind:?}"),
        Op::Scale { by, .. } => write!(f, " by={by:e}"),
        Op::Route { top, normalized, .. } => write!(f, " top={top} normalized={normalized}"),
        Op::Experts { kind, .. } => write!(f, " {kind:?}"),
        Op::Embed { .. } | Op::Linear { .. } | Op::Mul { .. } | Op::Add { .. } => Ok(()),
    }
}
