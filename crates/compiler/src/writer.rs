//! One output that is being written: its files, what the report says of it, and what it holds.

use crate::CompileError;
use crate::dense::{check_finite, converted};
use crate::pass::PassError;
use crate::plan::{Choice, PlannedOutput, PlannedWeight};
use crate::report::WeightReport;
use crate::solver::{Outcome, Solved};
use checkpoint::{Rows, Sink};
use ir::{BlockId, Quantized};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tensor::Tensor;

/// One output that is being written.
pub(crate) struct Writer<'a> {
    pub(crate) planned: &'a PlannedOutput,
    pub(crate) sink: Sink,
    /// How its weights were put on grids, in order.
    pub(crate) weights: Vec<WeightReport>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(planned: &'a PlannedOutput, sink: Sink) -> Self {
        Self { planned, sink, weights: Vec::new() }
    }

    /// What becomes of the weights of the block of this index.
    pub(crate) fn block(&self, index: usize) -> &'a [PlannedWeight] {
        &self.planned.blocks[index].1
    }

    /// Writes weights that are on their grids; several at once.
    pub(crate) fn put_solved(
        &self,
        weights: &[PlannedWeight],
        solved: &[(usize, Solved)],
    ) -> Result<(), CompileError> {
        let put = |(index, solved): &(usize, Solved)| {
            self.put_codes(&weights[*index], &solved.quantized, 0)
        };
        solved.par_iter().map(put).collect::<Result<Vec<()>, _>>().map(drop)
    }

    /// Writes codes of some rows of a weight, from row `first` on.
    pub(crate) fn put_codes(
        &self,
        weight: &PlannedWeight,
        codes: &Quantized,
        first: usize,
    ) -> Result<(), CompileError> {
        check(&weight.name, codes)?;
        Ok(self.sink.put_codes(&weight.name, first, codes)?)
    }

    /// Writes some rows of a weight that stays dense, from row `first` on; nothing of another.
    pub(crate) fn put_dense(
        &self,
        weight: &PlannedWeight,
        tensor: &Tensor,
        first: usize,
    ) -> Result<(), CompileError> {
        let (name, stored) = (&weight.name, &weight.spec.tensor);
        match weight.choice {
            Choice::Dense(dtype) if dtype == tensor.dtype() => {
                check_finite(stored, tensor, first)?;
                Ok(self.sink.put_values(name, first, tensor)?)
            }
            Choice::Dense(dtype) => {
                let tensor = converted(stored, tensor.clone(), dtype, first)?;
                Ok(self.sink.put_values(name, first, &tensor)?)
            }
            _ => Ok(()),
        }
    }

    /// Notes how a weight was put on its grid.
    pub(crate) fn report(
        &mut self,
        block: BlockId,
        weight: &PlannedWeight,
        outcome: &Outcome,
    ) -> &WeightReport {
        let at = self.weights.len();
        self.weights.push(WeightReport {
            block: block.to_string(),
            tensor: weight.name.clone(),
            method: outcome.method.to_string(),
            grid: weight.grid().map(|g| g.to_string()).unwrap_or_default(),
            relative_error: outcome.weight.share(),
            output_error: outcome.output.map(|output| output.share()),
            rows: weight.spec.shape[0],
            fallback: outcome.fallback.clone(),
            notes: outcome.notes.clone(),
        });
        &self.weights[at]
    }

    /// What was written of a weight; `None` if another stands for it.
    pub(crate) fn read(&self, weight: &PlannedWeight) -> Result<Option<Rows>, CompileError> {
        match weight.choice {
            Choice::Shared => Ok(None),
            _ => Ok(Some(self.sink.read(&weight.name, 0..weight.spec.shape[0])?)),
        }
    }

    /// The names of the tensors that the weights of a block became, each once: experts may share one.
    pub(crate) fn names(&self, index: usize) -> Result<Vec<String>, CompileError> {
        let mut names = BTreeSet::new();
        for weight in self.block(index).iter().filter(|w| w.choice != Choice::Shared) {
            names.extend(self.sink.parts(&weight.name)?.iter().cloned());
        }
        Ok(names.into_iter().collect())
    }

    /// SHA-256 of tensors as the files have them.
    pub(crate) fn hashes(
        &self,
        names: &[String],
    ) -> Result<BTreeMap<String, String>, CompileError> {
        let hash = |name: &String| Ok((name.clone(), self.sink.hash(name)?));
        names.par_iter().map(hash).collect()
    }
}

/// Refuses codes of which some would not be numbers where they are read.
fn check(name: &str, codes: &Quantized) -> Result<(), CompileError> {
    if let Some(scale) = codes.scales().iter().find(|s| !s.is_finite()) {
        return Err(PassError::Internal(format!("{name}: scale {scale}")).into());
    }
    let bits = codes.grid.int().map_or(0, |grid| grid.bits);
    let span = (1u32 << bits) as f32;
    if codes.scales().iter().any(|s| !(s * span).is_finite()) {
        let rule = "its values are too large: a code of theirs would overflow".into();
        return Err(PassError::Weight { tensor: name.into(), rule }.into());
    }
    Ok(())
}
