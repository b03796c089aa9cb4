//! The activation store: the hidden states of many sequences between two blocks.
//!
//! What does not fit the budget lies in a file that the caller opened; only one group of it is
//! resident at a time. What is computed does not depend on the budget.

use crate::EvalError;
use crate::forward::{Group, Model, bytes_a_token, embed, together};
use backend::{Buffer, Call, Interpreter, Program, See};
use ir::{ReadError, WeightId};
use std::io;

/// States that are spilled are embedded so many bytes at a time.
pub const SPILL_PART: usize = 32 << 20;

/// Hidden states `[rows, hidden]` of groups of sequences.
pub struct Activations {
    groups: Vec<Group>,
    states: Vec<State>,
    hidden: usize,
    spill: Option<Box<dyn Spill>>,
}

/// Where the hidden states of a group are.
enum State {
    Held(Buffer),
    /// In the file, from this byte on.
    Spilled(u64),
}

/// Where hidden states may lie.
pub struct Room {
    /// Bytes of hidden states that may stay in memory; a group at least does.
    pub bytes: usize,
    /// Where the others go.
    pub spill: Option<Box<dyn Spill>>,
}

/// A file that is read and written by position. Its errors name it.
pub trait Spill: Send {
    /// Fills `buffer` from the byte `at` on.
    ///
    /// # Errors
    /// If the file ends before, or cannot be read.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes `bytes` from the byte `at` on.
    ///
    /// # Errors
    /// If they cannot be written.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
}

impl Activations {
    /// The embeddings of `sequences`, each of which starts at position 0.
    ///
    /// # Errors
    /// If a weight cannot be read, or the spill file cannot be written.
    pub fn start<'t>(
        interpreter: &Interpreter<'_>,
        model: Model<'_>,
        sequences: impl Iterator<Item = &'t [u32]>,
        room: Room,
    ) -> Result<Self, EvalError> {
        let token = bytes_a_token(model.spec);
        let mut new = Self {
            groups: Vec::new(),
            states: Vec::new(),
            hidden: model.spec.hidden,
            spill: room.spill,
        };
        let mut budget = if new.spill.is_some() { room.bytes } else { usize::MAX };
        let mut offset = 0u64;
        let mut rest = Group::cut(sequences).into_iter().peekable();
        while rest.peek().is_some() {
            // The embedding is read once for each part.
            let (mut part, mut bytes) = (Vec::new(), 0usize);
            while let Some(group) = rest.next_if(|g| {
                part.is_empty() || bytes + g.tokens.len() * token <= budget.max(SPILL_PART)
            }) {
                bytes += group.tokens.len() * token;
                part.push(group);
            }
            let keeps = new.spill.is_none() || bytes <= budget;
            budget -= if keeps { bytes } else { budget };
            let states = embed(interpreter, model, &part)?;
            for (group, state) in part.into_iter().zip(states) {
                let size = (group.tokens.len() * token) as u64;
                new.groups.push(group);
                if keeps {
                    new.states.push(State::Held(state));
                } else {
                    new.write(interpreter, offset, state)?;
                    new.states.push(State::Spilled(offset));
                    offset += size;
                }
            }
        }
        Ok(new)
    }

    /// Tokens in all sequences.
    pub fn tokens(&self) -> usize {
        self.groups.iter().map(|g| g.tokens.len()).sum()
    }

    /// Sends every group through `block`, [`EXPERT_GROUPS`](crate::EXPERT_GROUPS) at once if it has experts;
    /// the outputs replace the states.
    ///
    /// # Errors
    /// If the backend does not execute an op, or the spill file fails.
    pub fn advance<'p>(
        &mut self,
        interpreter: &Interpreter<'_>,
        block: impl Into<Program<'p>>,
    ) -> Result<(), EvalError> {
        let program = block.into();
        let (groups, step) = (self.groups.len(), together(program.ops));
        for first in (0..groups).step_by(step) {
            let some = first..groups.min(first + step);
            let taken = some.clone().map(|index| self.take(interpreter, index));
            let (states, places): (Vec<_>, Vec<_>) =
                taken.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
            let calls = states.into_iter().zip(&self.groups[some.clone()]);
            let calls = calls.map(|(state, group)| Call::whole(state, &group.sequences)).collect();
            let outputs = interpreter.run_all(program, calls)?;
            for ((index, place), output) in some.zip(places).zip(outputs) {
                match place {
                    None => self.states[index] = State::Held(output),
                    Some(at) => self.write(interpreter, at, output)?,
                }
            }
        }
        Ok(())
    }

    /// Shows `see` what each of the matrices `wanted` of the block multiplies, group by group; the states
    /// stay. See [`Interpreter::observe`].
    ///
    /// # Errors
    /// If the backend does not execute an op, or the spill file fails.
    pub fn observe<'p>(
        &mut self,
        interpreter: &Interpreter<'_>,
        block: impl Into<Program<'p>>,
        wanted: &[WeightId],
        see: &mut See<'_>,
    ) -> Result<(), EvalError> {
        let program = block.into();
        for index in 0..self.groups.len() {
            let state = match &self.states[index] {
                State::Held(state) => interpreter.backend().copy(state)?,
                State::Spilled(_) => self.take(interpreter, index)?.0,
            };
            let sequences = &self.groups[index].sequences;
            interpreter.observe(program, state, sequences, wanted, see)?;
        }
        Ok(())
    }

    /// The groups and their hidden states, all in memory.
    ///
    /// # Errors
    /// If the spill file fails.
    pub(crate) fn into_states(
        mut self,
        interpreter: &Interpreter<'_>,
    ) -> Result<(Vec<Group>, Vec<Buffer>), EvalError> {
        let states = (0..self.groups.len())
            .map(|index| Ok(self.take(interpreter, index)?.0))
            .collect::<Result<_, EvalError>>()?;
        Ok((self.groups, states))
    }

    /// A group's states, and its place in the file if it has one.
    fn take(
        &mut self,
        interpreter: &Interpreter<'_>,
        index: usize,
    ) -> Result<(Buffer, Option<u64>), EvalError> {
        match self.states[index] {
            State::Spilled(at) => {
                let mut values = vec![0f32; self.groups[index].tokens.len() * self.hidden];
                let file = self.spill.as_ref().ok_or_else(no_file)?;
                let bytes = bytemuck::cast_slice_mut(&mut values);
                file.read_exact_at(bytes, at).map_err(spill_error)?;
                Ok((interpreter.backend().upload(self.hidden, values)?, Some(at)))
            }
            State::Held(ref mut state) => {
                Ok((std::mem::replace(state, Buffer::new(0, 0, ())), None))
            }
        }
    }

    fn write(
        &mut self,
        interpreter: &Interpreter<'_>,
        at: u64,
        state: Buffer,
    ) -> Result<(), EvalError> {
        let values = interpreter.backend().download(state)?;
        let file = self.spill.as_ref().ok_or_else(no_file)?;
        file.write_all_at(bytemuck::cast_slice(&values), at).map_err(spill_error)
    }
}

fn no_file() -> EvalError {
    EvalError::Internal("spilled states without a file".into())
}

fn spill_error(error: io::Error) -> EvalError {
    ReadError::Machine(format!("cannot use the spill file of activations: {error}")).into()
}
