//! What a command will take of memory: said, and held against what there is, before it is taken.

use crate::args::Compile;
use crate::failure::Failure;
use crate::model::Opened;
use crate::output::size;
use crate::tokens::tokenizing;
use backend::Backend;
use compiler::{BASE_BYTES, Plan};
use ir::{Grid, ModelSpec, held_elements};
use runtime::{Settings, free_memory};
use serde_json::{Value, json};

/// The grid that each tensor is stored on; `None` for a dense one.
pub(crate) type Grids<'a> = &'a (dyn Fn(&str) -> Option<Grid> + Sync);

/// What a compilation takes, within what it may.
pub(crate) struct Compilation {
    /// Bytes of hidden states that stay in memory.
    pub(crate) resident: u64,
    /// The most that the process takes.
    pub(crate) peak: u64,
}

/// The bytes that a compilation may take: what it is told, or what there is.
pub(crate) fn limit(args: &Compile) -> u64 {
    args.memory.or_else(free_memory).unwrap_or(u64::MAX)
}

/// So many bytes, or a quarter of what is free, if that is less.
pub(crate) fn part_of_free(bytes: usize) -> usize {
    let free = free_memory().map_or(usize::MAX, |free| usize::try_from(free).unwrap_or(usize::MAX));
    bytes.min(free / 4)
}

impl Compilation {
    /// What `plan` takes within `limit`: for the plan that is shown, for the refusal, and for the run.
    pub(crate) fn of(
        args: &Compile,
        opened: &Opened,
        plan: &Plan,
        limit: u64,
    ) -> Result<Self, Failure> {
        // The texts are tokenized before the work, and are gone by then.
        let tokenizing = tokenizing(args, opened, plan.observes);
        // What is estimated is not exact, and what is promised is to be kept.
        let within = limit - limit / 16;
        let resident = args.resident.or_else(|| plan.resident(within)).unwrap_or(0);
        let peak = plan.peak_memory(resident).max(tokenizing);
        if peak <= within {
            return Ok(Self { resident, peak });
        }
        let (needed, most) = (size(peak + peak / 15), size(limit));
        let failure = Failure::refused(match args.memory {
            Some(_) => format!("--memory {most} is too little: this takes {needed}"),
            None => format!("this takes {needed} of memory, and this process may take {most}"),
        });
        let hint = match tokenizing > plan.peak_memory(resident) {
            true => {
                "most of it is for tokenizing the texts: give shorter ones with --calibration and \
                     --gate-text, or use --method rtn"
            }
            false => "--method rtn and --no-gate take less",
        };
        Err(failure.with_hint(hint))
    }
}

/// What a model takes where it is run, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Weights, a draft's too.
    pub(crate) weights: u64,
    pub(crate) keys_and_values: u64,
    /// The program, its tokenizer, the values of a step.
    pub(crate) work: u64,
    /// What there is for it; `None` where the system does not say.
    pub(crate) free: Option<u64>,
    /// Whether some of it is a GPU's.
    pub(crate) apart: bool,
}

impl Taken {
    pub(crate) fn total(&self) -> u64 {
        self.weights.saturating_add(self.keys_and_values).saturating_add(self.work)
    }

    /// In a line.
    pub(crate) fn line(&self, tokens: u64, dtype: &str) -> String {
        let Self { weights, keys_and_values, work, free, .. } = *self;
        let of = free.map_or(String::new(), |free| format!(", of {} that are free", size(free)));
        format!(
            "{} of weights + {} of keys and values ({tokens} tokens, {dtype}) + {} of work \
             = {}{of}",
            size(weights),
            size(keys_and_values),
            size(work),
            size(self.total())
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "weights": self.weights,
            "keys_and_values": self.keys_and_values,
            "work": self.work,
            "total": self.total(),
            "free": self.free,
        })
    }

    /// Refuses what does not fit.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let (total, free) = (self.total(), self.free.unwrap_or(u64::MAX));
        if total <= free {
            return Ok(());
        }
        let Self { weights, keys_and_values, work, .. } = *self;
        let parts = [(weights, "weights"), (keys_and_values, "keys and values"), (work, "work")];
        let parts = parts.iter().filter(|(bytes, _)| *bytes > 0);
        let parts: Vec<String> =
            parts.map(|(bytes, what)| format!("{} of {what}", size(*bytes))).collect();
        let hint = match self.apart {
            true => {
                "--device cuda,cpu has the layers that do not fit on the host; see also --kv-memory"
            }
            false => "a smaller model, or one of fewer bits, takes less; see also --kv-memory",
        };
        Err(Failure::refused(format!(
            "this takes {} of memory ({}), and this process may take {}",
            size(total),
            parts.join(", "),
            size(free)
        ))
        .with_hint(hint))
    }
}

/// What the weights of a model take on a device: of those on a grid as that, unless they are computed
/// with `exact`ly. The rows of the embedding are gathered as floats.
pub(crate) fn laid_out(
    spec: &ModelSpec,
    backend: &dyn Backend,
    exact: bool,
    grid: Grids<'_>,
) -> u64 {
    let table = spec.table().map(|weight| &weight.tensor);
    let bytes = |weight: &ir::Spec| {
        let dense = exact || table == Some(&weight.tensor);
        backend.laid_out_bytes(weight, if dense { None } else { grid(&weight.tensor) })
    };
    spec.tensors().into_iter().map(bytes).sum()
}

/// What the host holds beside weights, keys and values: the program, a tokenizer of a file of so many
/// bytes, the values of a step.
pub(crate) fn work(spec: &ModelSpec, tokenizer: u64, settings: &Settings) -> u64 {
    /// Rows whose logits are held at once, and how often.
    const LOGITS: usize = 2 * 16;
    let values = spec.layers.iter().map(held_elements).max().unwrap_or(0);
    let rows = settings.tokens.min(spec.context) as u64;
    let logits = (LOGITS * spec.vocab * size_of::<f32>()) as u64;
    BASE_BYTES + tokenizer.saturating_mul(HELD_OF_TOKENIZER) + rows * 4 * values + logits
}

/// Memory that a tokenizer keeps, in the lengths of its file.
const HELD_OF_TOKENIZER: u64 = 8;
