//! What was observed of the inputs of weights, on the calibration samples.

use backend::{Backend, BackendError, Buffer, DeviceWeight, Interpreter, Seen};
use ir::{Block, Spec, WeightId};
use std::ops::Range;

/// What is to be observed. By weight and not by value, since an expert sees rows of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Observe {
    /// `x^T x` over the inputs of a weight.
    Gram(WeightId),
}

/// What was observed, by weight.
#[derive(Debug, Default)]
pub struct Statistics {
    pub(crate) grams: Vec<Gram>,
}

/// The Gram matrix of an input that some weights read.
#[derive(Debug)]
pub(crate) struct Gram {
    /// The weights that read this input.
    pub(crate) weights: Vec<WeightId>,
    /// `[in, in]`, the lower triangle.
    pub(crate) sum: Vec<f32>,
    /// How many rows it is of.
    pub(crate) rows: usize,
}

/// Inputs that are being observed.
pub(crate) struct Observer {
    inputs: Vec<Observed>,
}

/// An input that is being observed.
struct Observed {
    weights: Vec<WeightId>,
    sum: Buffer,
    rows: usize,
}

impl Observer {
    /// Begins to observe; weights that read one input share its statistics.
    pub(crate) fn new(
        backend: &dyn Backend,
        block: &Block<Spec>,
        wanted: &[Observe],
    ) -> Result<Self, BackendError> {
        let matrices = block.matrices();
        let (mut known, mut inputs) = (Vec::new(), Vec::<Observed>::new());
        for what in wanted {
            let weight = what.weight();
            let matrix = matrices.iter().find(|matrix| matrix.weight == weight);
            let input = matrix.map(|matrix| matrix.input).ok_or_else(|| {
                BackendError::Internal(format!("nothing is multiplied by weight {}", weight.0))
            })?;
            match known.iter().position(|seen| *seen == input) {
                Some(at) => inputs[at].weights.push(weight),
                None => {
                    let width = block.weights[weight.0 as usize].shape[1];
                    let (weights, sum) = (vec![weight], backend.zeros(width, width)?);
                    inputs.push(Observed { weights, sum, rows: 0 });
                    known.push(input);
                }
            }
        }
        Ok(Self { inputs })
    }

    /// A weight of each input.
    pub(crate) fn wanted(&self) -> Vec<WeightId> {
        self.inputs.iter().filter_map(|input| input.weights.first().copied()).collect()
    }

    /// Adds what a weight multiplies.
    pub(crate) fn see(
        &mut self,
        backend: &dyn Backend,
        seen: &Seen<'_>,
    ) -> Result<(), BackendError> {
        let mut all = self.inputs.iter_mut();
        let Some(input) = all.find(|input| input.weights.first() == Some(&seen.weight)) else {
            return Ok(());
        };
        input.rows += seen.sequences.iter().map(ExactSizeIterator::len).sum::<usize>();
        backend.algebra()?.gram(seen.input, seen.sequences, &mut input.sum)
    }

    /// What was observed.
    pub(crate) fn end(self, backend: &dyn Backend) -> Result<Statistics, BackendError> {
        let gram = |seen: Observed| {
            Ok(Gram { weights: seen.weights, sum: backend.download(seen.sum)?, rows: seen.rows })
        };
        let grams = self.inputs.into_iter().map(gram).collect::<Result<_, BackendError>>()?;
        Ok(Statistics { grams })
    }
}

impl Statistics {
    /// What one call of a block shows: `input` is `[rows, width]`, `sequences` the rows of each
    /// sequence.
    ///
    /// # Errors
    /// If the device fails, or a weight is asked for that no linear reads.
    pub fn of(
        interpreter: &Interpreter<'_>,
        block: &Block<Spec>,
        device: &Block<DeviceWeight>,
        input: Buffer,
        sequences: &[Range<usize>],
        wanted: &[Observe],
    ) -> Result<Self, BackendError> {
        let backend = interpreter.backend();
        let mut observer = Observer::new(backend, block, wanted)?;
        let wanted = observer.wanted();
        let mut see = |seen: &Seen<'_>| observer.see(backend, seen);
        interpreter.observe(device, input, sequences, &wanted, &mut see)?;
        observer.end(backend)
    }

    /// The Gram matrix `[in, in]` (lower triangle) of a weight's input, summed over all calibration
    /// tokens that reached it; `None` if it was not observed.
    pub fn gram(&self, weight: WeightId) -> Option<&[f32]> {
        self.seen(weight).map(|gram| &gram.sum[..])
    }

    /// How many tokens reached a weight; `None` if it was not observed.
    pub fn tokens(&self, weight: WeightId) -> Option<usize> {
        self.seen(weight).map(|gram| gram.rows)
    }

    fn seen(&self, weight: WeightId) -> Option<&Gram> {
        self.grams.iter().find(|gram| gram.weights.contains(&weight))
    }
}

impl Observe {
    /// The weight whose input is observed.
    pub fn weight(self) -> WeightId {
        let Self::Gram(weight) = self;
        weight
    }
}
