//! What the values of a block take while it runs, by its program.

use crate::{Block, Op, Spec, Value, WeightId};

/// Freed vectors that a backend keeps for the next ones, as `backend-cpu` does.
const KEPT: usize = 8;

/// The most elements a row has, in values that are alive and in vectors that are kept to be used again,
/// when many rows go through `block` again and again.
pub fn held_elements(block: &Block<Spec>) -> u64 {
    let mut pool = Pool::default();
    // What the first time leaves behind is there the second time.
    (0..2).map(|_| pool.run(block)).max().unwrap_or(0)
}

/// Vectors of so many elements a row.
#[derive(Default)]
struct Pool {
    free: Vec<u64>,
    held: u64,
    most: u64,
}

impl Pool {
    fn run(&mut self, block: &Block<Spec>) -> u64 {
        let width = |weight: WeightId| {
            block.weights.get(weight.0 as usize).map_or(0, |spec| spec.shape[0] as u64)
        };
        let hidden = block.weights.first().map_or(0, |spec| spec.shape[0] as u64);
        let last = |value: Value| block.uses(value).last();
        // Of each value: its width, and the vector that it is in.
        let mut values: Vec<(u64, Option<u64>)> = vec![(hidden, Some(self.take(hidden)))];
        for (index, op) in block.ops.iter().enumerate() {
            let inputs = op.inputs();
            let first = inputs.first().map_or(0, |value| value.0 as usize);
            let wide = match *op {
                Op::Linear { weight, .. } => width(weight),
                _ => values[first].0,
            };
            let in_place = matches!(op, Op::Rope { .. } | Op::Activate { .. } | Op::Scale { .. })
                || matches!(op, Op::Mul { .. } | Op::Add { .. });
            if let Op::Experts { experts, .. } = op {
                // An expert may be given all rows: those, its gate and up projections, its result.
                let ffn = experts.iter().map(|expert| width(expert.gate)).max().unwrap_or(0);
                let inside = [wide, ffn, ffn, wide].map(|wide| self.take(wide));
                inside.into_iter().for_each(|vector| self.give(vector));
            }
            let dies = |value: &Value| last(*value) == Some(index);
            let vector =
                match values[first].1.take_if(|_| in_place && inputs.first().is_some_and(dies)) {
                    Some(vector) => vector,
                    None => self.take(wide),
                };
            values.push((wide, Some(vector)));
            for value in inputs.iter().filter(|value| dies(value)) {
                if let Some(vector) = values[value.0 as usize].1.take() {
                    self.give(vector);
                }
            }
        }
        values.iter_mut().filter_map(|(_, vector)| vector.take()).for_each(|v| self.give(v));
        self.most
    }

    fn take(&mut self, wide: u64) -> u64 {
        let fits = |vector: &u64| *vector >= wide && vector / 2 <= wide;
        let all = self.free.iter().enumerate().filter(|(_, vector)| fits(vector));
        if let Some((index, _)) = all.min_by_key(|(_, vector)| **vector) {
            return self.free.swap_remove(index);
        }
        self.held += wide;
        self.most = self.most.max(self.held);
        wide
    }

    fn give(&mut self, vector: u64) {
        self.free.push(vector);
        if self.free.len() > KEPT {
            self.held -= self.free.remove(0);
        }
    }
}
