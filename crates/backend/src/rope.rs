//! Sines and cosines of every position, as transformers computes them: the angle is an `f32`
//! product, its sine and cosine are exact to the last bit or nearly so.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// Tables `[positions, rotary / 2]`.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    kept: Mutex<Vec<(usize, Arc<dyn Any + Send + Sync>)>>,
}

impl RopeTable {
    /// The tables of the first `positions` positions.
    pub fn new(rope: &ir::Rope, positions: usize) -> Self {
        let half = rope.inv_freq.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            for &frequency in &rope.inv_freq {
                let angle = f64::from(position as f32 * frequency);
                cos.push(libm::cos(angle) as f32 * rope.magnitude);
                sin.push(libm::sin(angle) as f32 * rope.magnitude);
            }
        }
        Self { cos, sin, half, kept: Mutex::default() }
    }

    /// Half the rotary elements of a head.
    pub fn half(&self) -> usize {
        self.half
    }

    /// What a device, known by `key`, keeps of the table; made by `upload` of all cosines and all sines
    /// when it is asked for first.
    ///
    /// # Errors
    /// Those of `upload`.
    pub fn kept<T: Any + Send + Sync, E>(
        &self,
        key: usize,
        upload: impl FnOnce(&[f32], &[f32]) -> Result<T, E>,
    ) -> Result<Arc<dyn Any + Send + Sync>, E> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = kept.iter().find(|(of, _)| *of == key) {
            return Ok(Arc::clone(known));
        }
        let made: Arc<dyn Any + Send + Sync> = Arc::new(upload(&self.cos, &self.sin)?);
        kept.push((key, Arc::clone(&made)));
        Ok(made)
    }

    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// The cosines and sines of `position`, `[rotary / 2]` each.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
