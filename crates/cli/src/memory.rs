//! What a command will take of memory: said, and held against what there is, before it is taken.

use crate::args::Compile;
use crate::failure::Failure;
use crate::output::size;
use crate::tokens::tokenizing;
use backend::KvDType;
use compiler::Plan;
use runtime::{Opened, Taken, free_memory};
use serde_json::{Value, json};

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

/// What a model takes where it is run, in a line.
pub(crate) fn line(taken: &Taken, tokens: u64, dtype: KvDType) -> String {
    let Taken { weights, keys_and_values, work, unpacked, free, .. } = *taken;
    let more = match unpacked {
        0 => String::new(),
        more => format!(
            " ({} more than in the file: the GPU computes with some of its grids as bf16)",
            size(more)
        ),
    };
    let of = free.map_or(String::new(), |free| format!(", of {} that are free", size(free)));
    format!(
        "{} of weights{more} + {} of keys and values ({tokens} tokens, {}) + {} of work = {}{of}",
        size(weights),
        size(keys_and_values),
        dtype.name(),
        size(work),
        size(taken.total())
    )
}

/// The same for programs.
pub(crate) fn json(taken: &Taken) -> Value {
    json!({
        "weights": taken.weights,
        "keys_and_values": taken.keys_and_values,
        "work": taken.work,
        "unpacked": taken.unpacked,
        "total": taken.total(),
        "free": taken.free,
    })
}

/// Refuses what does not fit.
pub(crate) fn no_room(taken: &Taken) -> Failure {
    let Taken { weights, keys_and_values, work, .. } = *taken;
    let parts = [(weights, "weights"), (keys_and_values, "keys and values"), (work, "work")];
    let parts = parts.iter().filter(|(bytes, _)| *bytes > 0);
    let parts: Vec<String> =
        parts.map(|(bytes, what)| format!("{} of {what}", size(*bytes))).collect();
    let hint = match taken.apart {
        true => {
            "--device cuda,cpu has the layers that do not fit on the host; see also --kv-memory"
        }
        false => "a smaller model, or one of fewer bits, takes less; see also --kv-memory",
    };
    Failure::refused(format!(
        "this takes {} of memory ({}), and this process may take {}",
        size(taken.total()),
        parts.join(", "),
        size(taken.free.unwrap_or(u64::MAX))
    ))
    .with_hint(hint)
}
