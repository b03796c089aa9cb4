//! Blocks that an earlier process finished: checked, and gone through as they were written.
//!
//! Hidden states are not kept between processes. Each block was advanced through its decoded form,
//! so going through what was written gives the same bits.

use crate::CompileError;
use crate::drive::{Driver, Event};
use crate::identity::{listed, source_changes};
use crate::journal::Entry;
use crate::layer::{Streams, hex};
use crate::plan::{Choice, PlannedWeight};
use calibration::SLICE_ROWS;
use checkpoint::Rows;
use ir::{Block, Quantized, Spec};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Instant;

impl Driver<'_> {
    /// Replays the block of this index if it is finished, and says whether it was. What was
    /// damaged since is done again, and everything after it.
    pub(crate) fn replay(
        &mut self,
        index: usize,
        block: &Block<Spec>,
        planned: &[PlannedWeight],
        streams: &mut Streams,
        last: bool,
    ) -> Result<bool, CompileError> {
        let names = self.names(planned)?;
        let intact = match self.journal.entry(index) {
            None => return Ok(false),
            Some(entry) => self.intact(entry, block, &names)?,
        };
        let Some(entry) = self.journal.entry(index).filter(|_| intact).cloned() else {
            self.journal.cut(index)?;
            self.progress(Event::Damaged(block.id));
            return Ok(false);
        };
        self.progress(Event::Replay(block.id, index, self.job.plan.blocks.len()));
        let source = match block.id {
            ir::BlockId::Layer(_) => self.replay_layer(block, planned, streams, last)?,
            _ => self.hash_sliced(planned)?,
        };
        let changed = source_changes(&entry.source, &source);
        if !changed.is_empty() {
            return Err(self.changed(&listed(&changed)));
        }
        names.iter().try_for_each(|name| self.sink.keep(name))?;
        self.hashes.extend(source);
        self.weights.extend(entry.weights);
        Ok(true)
    }

    /// Flushes a block that was just written, and notes it in the journal.
    pub(crate) fn finished(
        &mut self,
        block: &Block<Spec>,
        planned: &[PlannedWeight],
        reports: usize,
    ) -> Result<(), CompileError> {
        let clock = Instant::now();
        self.disk.reached("block-written");
        self.sink.sync()?;
        self.disk.reached("block-flushed");
        let own = planned.iter().filter(|w| w.choice != Choice::Shared).map(|w| &w.spec.tensor);
        let source = own.filter_map(|name| Some((name.clone(), self.hashes.get(name)?.clone())));
        let source = source.collect();
        let written = self.written(&self.names(planned)?)?;
        let weights = self.weights[reports..].to_vec();
        self.journal.append(Entry { block: block.id.to_string(), source, written, weights })?;
        self.disk.reached("block-noted");
        self.spent.write += clock.elapsed();
        Ok(())
    }

    /// Whether a block is still what the journal says.
    fn intact(
        &self,
        entry: &Entry,
        block: &Block<Spec>,
        names: &[String],
    ) -> Result<bool, CompileError> {
        if entry.block != block.id.to_string() || !entry.written.keys().eq(sorted(names)) {
            return Ok(false);
        }
        Ok(self.written(names)? == entry.written)
    }

    /// SHA-256 of tensors as the files have them.
    fn written(&self, names: &[String]) -> Result<BTreeMap<String, String>, CompileError> {
        use rayon::prelude::*;
        let sink = &self.sink;
        let hash = |name: &String| Ok((name.clone(), sink.hash(name)?));
        names.par_iter().map(hash).collect()
    }

    /// Sends the streams through a layer as it was and as it was written; the hashes of its source.
    fn replay_layer(
        &mut self,
        block: &Block<Spec>,
        planned: &[PlannedWeight],
        streams: &mut Streams,
        last: bool,
    ) -> Result<BTreeMap<String, String>, CompileError> {
        let clock = Instant::now();
        let (host, source) = self.read(block)?;
        if streams.samples.is_none() && streams.held.is_none() {
            return Ok(source);
        }
        let mut device = self.upload(&host, planned)?;
        drop(host);
        self.spent.load += clock.elapsed();
        let clock = Instant::now();
        if let Some([_, original]) = &mut streams.held {
            original.advance(&self.interpreter, &device)?;
        }
        for (index, weight) in planned.iter().enumerate() {
            if weight.grid().is_some() {
                let codes = self.codes(weight)?;
                self.place(&mut device, index, weight, &codes)?;
            }
        }
        self.advance(streams, &device, last)?;
        self.spent.forward += clock.elapsed();
        Ok(source)
    }

    /// The codes of a weight that was written.
    fn codes(&self, weight: &PlannedWeight) -> Result<Quantized, CompileError> {
        match self.sink.read(&weight.name, 0..weight.spec.shape[0])? {
            Rows::On(codes) => Ok(codes),
            Rows::Dense(_) => Err(CompileError::Internal("codes of what is dense".into())),
        }
    }

    /// The names of the tensors that a block becomes.
    fn names(&self, planned: &[PlannedWeight]) -> Result<Vec<String>, CompileError> {
        let mut names = Vec::new();
        for weight in planned.iter().filter(|w| w.choice != Choice::Shared) {
            names.extend_from_slice(self.sink.parts(&weight.name)?);
        }
        Ok(names)
    }

    /// SHA-256 of the source tensors of the embedding or the head.
    fn hash_sliced(
        &self,
        planned: &[PlannedWeight],
    ) -> Result<BTreeMap<String, String>, CompileError> {
        let mut hashes = BTreeMap::new();
        for weight in planned.iter().filter(|w| w.choice != Choice::Shared) {
            let (mut hash, rows) = (Sha256::new(), weight.spec.shape[0]);
            for at in (0..rows).step_by(SLICE_ROWS) {
                let slice = at..(at + SLICE_ROWS).min(rows);
                hash.update(self.job.model.source.read_rows(&weight.spec.tensor, slice)?.bytes());
            }
            hashes.insert(weight.spec.tensor.clone(), hex(hash));
        }
        Ok(hashes)
    }
}

fn sorted(names: &[String]) -> std::collections::btree_set::IntoIter<&String> {
    names.iter().collect::<std::collections::BTreeSet<_>>().into_iter()
}
