//! Blocks that an earlier process finished: checked, and gone through as they were written.
//!
//! Hidden states are not kept between processes. Each block was advanced through what the first
//! output holds of it, so reading that gives the same bits, whatever passes did to it.

use crate::CompileError;
use crate::journal::Entry;
use crate::table::hashes_of;
use crate::turn::{Hashes, Layouts, Turn};
use crate::writer::Writer;
use calibration::expert;
use ir::BlockId;
use std::time::Instant;

/// Whether a block is still what the journal says.
pub(crate) fn intact(turn: &Turn<'_, '_>, entry: &Entry) -> Result<bool, CompileError> {
    if entry.block != turn.source().id.to_string() || entry.written.len() != turn.writers.len() {
        return Ok(false);
    }
    for (writer, written) in turn.writers.iter().zip(&entry.written) {
        let mut names = writer.names(turn.index)?;
        names.sort_unstable();
        if !written.keys().eq(&names) || writer.hashes(&names)? != *written {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the journal says of a block that was just written and flushed.
pub(crate) fn entry(turn: &Turn<'_, '_>, source: Hashes) -> Result<Entry, CompileError> {
    let written = turn.writers.iter().map(|writer| writer.hashes(&writer.names(turn.index)?));
    let block = turn.source().id.to_string();
    let own = |writer: &Writer<'_>| {
        writer.weights.iter().filter(|report| report.block == block).cloned().collect()
    };
    let weights = turn.writers.iter().map(own).collect();
    Ok(Entry { source, written: written.collect::<Result<_, _>>()?, weights, block })
}

/// Goes through a finished block; the hashes of its source.
pub(crate) fn replay(turn: &mut Turn<'_, '_>) -> Result<Hashes, CompileError> {
    match turn.source().id {
        BlockId::Layer(_) => replay_layer(turn),
        _ => hashes_of(turn),
    }
}

/// Sends the streams through a layer as it was and as it was written.
fn replay_layer(turn: &mut Turn<'_, '_>) -> Result<Hashes, CompileError> {
    let (clock, mut source) = (Instant::now(), Hashes::new());
    let host = turn.read_rest(&mut source)?;
    turn.read_experts(&mut source, |_| Ok(()))?;
    if turn.ends_samples() {
        turn.streams.end_samples();
    }
    if turn.streams.are_empty() {
        return Ok(source);
    }
    let device = turn.upload(&host)?;
    drop(host);
    turn.progress.spent.load += clock.elapsed();
    let clock = Instant::now();
    let block = turn.source();
    let of_source = |layouts: Layouts<'_, '_>, index: usize| layouts.source(&block.weights[index]);
    turn.run(&block.weights, &device, of_source, |streams, interpreter, program| {
        streams.advance_original(interpreter, program)
    })?;
    drop(device);
    let (block, layouts) = (turn.result(), turn.layouts());
    let mut indices = 0..;
    let device = block.clone().try_map(|spec| match (indices.next(), expert(&spec)) {
        (Some(index), None) => layouts.lead(index),
        _ => Ok(None),
    })?;
    let of_lead = |layouts: Layouts<'_, '_>, index| layouts.lead_expert(index);
    turn.run(&block.weights, &device, of_lead, |streams, interpreter, program| {
        streams.advance(interpreter, program)
    })?;
    turn.progress.spent.forward += clock.elapsed();
    Ok(source)
}

/// Counts what the journal says of a block as written.
pub(crate) fn keep(turn: &mut Turn<'_, '_>, entry: &Entry) -> Result<(), CompileError> {
    let index = turn.index;
    for (writer, weights) in turn.writers.iter_mut().zip(&entry.weights) {
        writer.names(index)?.iter().try_for_each(|name| writer.sink.keep(name))?;
        writer.weights.extend(weights.iter().cloned());
    }
    Ok(())
}
