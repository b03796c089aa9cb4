//! The embedding and the head: weights that are copied or quantized by slices of rows.

use crate::CompileError;
use crate::damage::{Flat, Kind, check_damage};
use crate::drive::Driver;
use crate::layer::{check_finite, converted, hex, put_codes};
use crate::pass::{Outcome, PassCx, PassError};
use crate::plan::{Choice, PlannedWeight};
use calibration::SLICE_ROWS;
use ir::{Block, Grid, Spec, Weight};
use sha2::{Digest, Sha256};
use std::ops::Range;
use tensor::{Bytes, DType, Tensor};

impl Driver<'_> {
    /// Writes the weights of the embedding or the head, a slice of rows at a time.
    pub(crate) fn sliced(
        &mut self,
        block: &Block<Spec>,
        planned: &[PlannedWeight],
    ) -> Result<(), CompileError> {
        for (index, weight) in planned.iter().enumerate() {
            let mut hash = Sha256::new();
            let mut outcomes = Vec::new();
            let rows = weight.spec.shape[0];
            let mut flat = Flat::new(Kind::Table, rows);
            let slices = (0..rows).step_by(SLICE_ROWS).map(|at| at..(at + SLICE_ROWS).min(rows));
            for slice in slices.filter(|_| weight.choice != Choice::Shared) {
                let tensor = self.job.model.source.read_rows(&weight.spec.tensor, slice.clone())?;
                hash.update(tensor.bytes());
                match weight.spec.shape.len() {
                    _ if self.job.allow_zero => {}
                    2 => flat.see(&tensor),
                    _ => check_damage(&weight.spec.tensor, Kind::Table, &tensor)?,
                }
                match weight.choice {
                    Choice::Quantized { pass, grid } => {
                        let part = Part { index, pass, grid, rows: slice };
                        outcomes.push(self.part(block, planned, &part, tensor)?);
                    }
                    Choice::Dense(dtype) => {
                        let tensor = converted(&weight.spec.tensor, tensor, dtype, slice.start)?;
                        self.sink.put_values(&weight.name, slice.start, &tensor)?;
                    }
                    Choice::Shared => {}
                }
            }
            flat.check(&weight.spec.tensor)?;
            if weight.choice != Choice::Shared {
                self.hashes.insert(weight.spec.tensor.clone(), hex(hash));
            }
            if let Some(outcome) = together(&outcomes) {
                self.report(block.id, weight, &outcome);
            }
        }
        Ok(())
    }

    /// Copies the tensors that no block reads, byte by byte.
    pub(crate) fn carry(&mut self) -> Result<(), CompileError> {
        for tensor in &self.job.plan.carried {
            let mut hash = Sha256::new();
            let rows = tensor.shape.first().copied().unwrap_or(1);
            for at in (0..rows).step_by(SLICE_ROWS) {
                let slice = at..(at + SLICE_ROWS).min(rows);
                let part = self.job.model.source.read_rows(&tensor.name, slice)?;
                hash.update(part.bytes());
                self.sink.put_values(&tensor.name, at, &part)?;
            }
            self.hashes.insert(tensor.name.clone(), hex(hash));
        }
        Ok(())
    }

    /// Quantizes and writes some rows of a weight, by a pass that needs no statistics.
    fn part(
        &self,
        block: &Block<Spec>,
        planned: &[PlannedWeight],
        part: &Part,
        tensor: Tensor,
    ) -> Result<(f64, Outcome), CompileError> {
        check_finite(&planned[part.index].spec.tensor, &tensor, part.rows.start)?;
        let pass = &self.job.passes[part.pass];
        let mut grids = vec![None; planned.len()];
        grids[part.index] = Some(part.grid);
        let elements = tensor.elements() as f64;
        let mut slice = Some(tensor);
        let mut index = 0;
        let empty = || Tensor::new(DType::F32, vec![0], Bytes::zeroed(0));
        let rows = block.clone().try_map(|spec| {
            let tensor = if index == part.index { slice.take() } else { empty() };
            index += 1;
            let tensor = tensor.ok_or_else(|| CompileError::Internal("no slice".into()))?;
            let spec = Spec { shape: tensor.shape().to_vec(), ..spec };
            Ok::<_, CompileError>(Weight { spec, tensor })
        })?;
        let cx = PassCx { backend: self.job.backend, grids: &grids, grams: &[] };
        let name = &planned[part.index].name;
        for stage in pass.stages(block).iter().filter(|s| !s.observes) {
            for rewrite in pass.run(stage, &rows, &cx)? {
                if rewrite.weight.0 as usize == part.index {
                    put_codes(&self.sink, name, &rewrite.quantized, part.rows.start)?;
                    return Ok((elements, rewrite.outcome));
                }
            }
        }
        let rule = format!("pass {} did not rewrite {name}", pass.name());
        Err(PassError::Internal(rule).into())
    }
}

/// Some rows of a weight of a block.
struct Part {
    index: usize,
    pass: usize,
    grid: Grid,
    rows: Range<usize>,
}

/// The outcomes of slices as one: the mean error by elements.
fn together(outcomes: &[(f64, Outcome)]) -> Option<Outcome> {
    let (_, first) = outcomes.first()?;
    let elements: f64 = outcomes.iter().map(|(n, _)| n).sum();
    let error = outcomes.iter().map(|(n, o)| n * o.relative_error).sum::<f64>() / elements;
    Some(Outcome { relative_error: error, ..first.clone() })
}
