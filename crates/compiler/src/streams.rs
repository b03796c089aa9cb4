//! What goes through the blocks: the calibration samples and the held-out tokens.

use crate::CompileError;
use crate::job::{Job, Text};
use crate::publish::Destination;
use crate::statistics::{Observe, Observer, Statistics};
use backend::{Interpreter, Program, Seen};
use calibration::{Activations, Model, Room, Spill};
use ir::{Block, Spec};

/// Token streams between two blocks.
pub(crate) struct Streams {
    /// The calibration samples, through the blocks as the first output stores them.
    samples: Option<Activations>,
    /// The held-out tokens, through the blocks as they are stored and as they were.
    held: Option<[Activations; 2]>,
}

impl Streams {
    /// The embeddings of all token streams.
    pub(crate) fn start(
        job: &Job<'_>,
        interpreter: &Interpreter<'_>,
        destination: &Destination,
    ) -> Result<Self, CompileError> {
        let spills = job.plan.activation_bytes > job.activations;
        // Shares of the room, by tokens; the held-out stream goes in two forms.
        let tokens = |text: &Text<'_>| text.sequences.iter().map(Vec::len).sum::<usize>();
        let (samples, held) = (tokens(&job.samples), tokens(&job.held_out));
        let share = |n: usize| {
            (job.activations as u128 * n as u128 / (samples + 2 * held).max(1) as u128) as usize
        };
        let start = |text: &Text<'_>, name| -> Result<Activations, CompileError> {
            let spill = spills.then(|| destination.spill(name)).transpose()?;
            let room = Room { bytes: share(tokens(text)), spill };
            let sequences = text.sequences.iter().map(|s| &s[..]);
            Ok(Activations::start(interpreter, job.model, sequences, room)?)
        };
        let samples = match job.samples.sequences {
            [] => None,
            _ => Some(start(&job.samples, "samples")?),
        };
        let held = match job.held_out.sequences {
            [] => None,
            _ => Some([start(&job.held_out, "held-out")?, start(&job.held_out, "original")?]),
        };
        Ok(Self { samples, held })
    }

    /// The embeddings of samples alone, of which so many bytes stay in memory.
    pub(crate) fn surveyed(
        model: Model<'_>,
        interpreter: &Interpreter<'_>,
        samples: &Text<'_>,
        bytes: usize,
        spill: Option<Box<dyn Spill>>,
    ) -> Result<Self, CompileError> {
        let sequences = samples.sequences.iter().map(|s| &s[..]);
        let start = || Activations::start(interpreter, model, sequences, Room { bytes, spill });
        let samples = match samples.sequences {
            [] => None,
            _ => Some(start()?),
        };
        Ok(Self { samples, held: None })
    }

    /// Whether nothing goes through the blocks.
    pub(crate) fn are_empty(&self) -> bool {
        self.samples.is_none() && self.held.is_none()
    }

    /// The samples are not needed any more.
    pub(crate) fn end_samples(&mut self) {
        self.samples = None;
    }

    /// The held-out tokens as they are stored and as they were.
    pub(crate) fn into_held(self) -> Option<[Activations; 2]> {
        self.held
    }

    /// Sends the original stream through a block as it was.
    pub(crate) fn advance_original(
        &mut self,
        interpreter: &Interpreter<'_>,
        program: Program<'_>,
    ) -> Result<(), CompileError> {
        if let Some([_, original]) = &mut self.held {
            original.advance(interpreter, program)?;
        }
        Ok(())
    }

    /// Sends the samples and the other held-out stream through a block as it is stored.
    pub(crate) fn advance(
        &mut self,
        interpreter: &Interpreter<'_>,
        program: Program<'_>,
    ) -> Result<(), CompileError> {
        if let Some(samples) = &mut self.samples {
            samples.advance(interpreter, program)?;
        }
        if let Some([result, _]) = &mut self.held {
            result.advance(interpreter, program)?;
        }
        Ok(())
    }

    /// What the samples show of a block as it is on the device. Nothing if there are no samples.
    pub(crate) fn observe(
        &mut self,
        interpreter: &Interpreter<'_>,
        block: &Block<Spec>,
        program: Program<'_>,
        wanted: &[Observe],
    ) -> Result<Statistics, CompileError> {
        let (Some(samples), false) = (&mut self.samples, wanted.is_empty()) else {
            return Ok(Statistics::default());
        };
        let backend = interpreter.backend();
        let mut observer = Observer::new(backend, block, wanted)?;
        let wanted = observer.wanted();
        let mut see = |seen: &Seen<'_>| observer.see(backend, seen);
        samples.observe(interpreter, program, &wanted, &mut see)?;
        Ok(observer.end(backend)?)
    }
}
