//! What is asked of the models, and whether they have room for it.

use crate::args::bench::{Batching, Bench};
use crate::eval::read;
use crate::failure::Failure;
use crate::output::remark;
use ::bench::{Trace, Workload};
use std::path::Path;

/// A workload.
pub(crate) enum Demand {
    /// Equal requests.
    Equal(Workload),
    /// Those of a trace, and how many were cut.
    Trace(Trace, usize),
}

/// Tokens that a request may take beside its own: a block that is not full, a draft.
const SLACK: usize = 64;

/// The most tokens that a run of equal requests has in all.
pub(crate) fn tokens(args: &Bench) -> usize {
    let sweep = args.sweep.iter().copied();
    let requests = sweep.fold(args.requests.max(super::session::users(args)), usize::max);
    requests.saturating_mul(args.prompt() + args.output() + SLACK)
}

/// What a request may have at most.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    /// Tokens of prompt and output.
    pub(crate) tokens: usize,
    /// What sets it: `the context of "model"`.
    pub(crate) of: String,
}

impl Demand {
    /// What the arguments ask for, before it is known what there is room for.
    pub(crate) fn trace(path: &Path, args: &Bench) -> Result<Self, Failure> {
        let trace = Trace::read(&read(path)?, args.requests.max(1));
        let mut trace = trace.map_err(|error| Failure::refused(format!("{path:?}: {error}")))?;
        trace.workload = trace.workload.stretched(args.stretch.unwrap_or(1.0));
        Ok(Self::Trace(trace, 0))
    }

    /// Equal requests as the arguments say.
    pub(crate) fn equal(args: &Bench) -> Self {
        let (count, prompt, output) = (args.requests, args.prompt(), args.output());
        Self::Equal(match args.rate {
            Some(rate) => Workload::poisson(rate, count, prompt, output, 0),
            None => Workload::closed(super::session::users(args), count, prompt, output),
        })
    }

    /// The most tokens that any of its runs has in all, blocks that are not full included.
    pub(crate) fn tokens(&self) -> usize {
        let of =
            |request: &::bench::Arrival| (request.prompt + request.output).saturating_add(SLACK);
        self.workload().requests.iter().map(of).fold(0, usize::saturating_add)
    }

    /// The requests.
    pub(crate) fn workload(&self) -> &Workload {
        match self {
            Self::Equal(workload) | Self::Trace(Trace { workload, .. }, _) => workload,
        }
    }

    /// Refuses a request that does not fit, or cuts it where that is asked for.
    pub(crate) fn fit(&mut self, args: &Bench, limit: &Limit) -> Result<(), Failure> {
        let Limit { tokens, of } = limit;
        let (prompt, output) = (args.prompt(), args.output());
        if prompt.saturating_add(output.max(2)) > *tokens {
            let message = format!("{prompt} + {output} tokens exceed {of}, {tokens} tokens");
            return Err(Failure::refused(message)
                .with_hint("--prompt N and --output N say how long a request is"));
        }
        let Self::Trace(trace, cut) = self else { return Ok(()) };
        let path = args.trace.clone().unwrap_or_default();
        if args.clip {
            *cut = trace.clip(*tokens);
            if *cut > 0 && !args.common.quiet {
                let all = trace.lines.len();
                remark(&format!("{cut} of {all} requests are cut to {tokens} tokens, {of}"));
            }
        } else if let Some((line, long, count)) = trace.too_long(*tokens) {
            let (prompt, output) = (long.prompt, long.output);
            let message = format!(
                "{path:?}: line {line}: {prompt} + {output} tokens exceed {of}, {tokens} tokens"
            );
            return Err(Failure::refused(message).with_hint(format!(
                "{count} of the {} requests do not fit; --clip cuts them to what does",
                trace.lines.len()
            )));
        }
        Ok(())
    }

    /// The same in words, for people.
    pub(crate) fn words(&self, args: &Bench) -> String {
        let (prompt, output) = (args.prompt(), args.output());
        let batches = match args.batching {
            Batching::Continuous => "",
            Batching::Static => ", in static batches",
            Batching::Dynamic => ", in dynamic batches",
        };
        let replicas = match args.common.device.len() {
            0 | 1 => String::new(),
            several => format!(", on {several} replicas"),
        };
        match self {
            Self::Equal(workload) => {
                let how = match args.rate {
                    None => format!("{} at once", super::session::users(args)),
                    Some(rate) => format!("{rate} a second (Poisson)"),
                };
                let requests = requests(workload.requests.len());
                format!(
                    "{requests}, {how}{batches}{replicas}; {prompt} tokens of prompt, {output} generated"
                )
            }
            Self::Trace(trace, cut) => {
                let name = args.trace.as_deref().and_then(Path::file_name).unwrap_or_default();
                let (count, name) = (trace.lines.len(), name.to_string_lossy());
                let which = match trace.total == count {
                    true => format!("all {} of {name}", requests(count)),
                    false => {
                        format!("the first {count} of the {} of {name}", requests(trace.total))
                    }
                };
                let stretch = match args.stretch {
                    Some(factor) => format!(", {factor} times as slowly"),
                    None => String::new(),
                };
                let cut = match cut {
                    0 => String::new(),
                    cut => format!(", {cut} of them cut to the context"),
                };
                format!("{which}{stretch}{cut}{batches}{replicas}")
            }
        }
    }
}

/// `1 request`, `16 requests`.
fn requests(count: usize) -> String {
    if count == 1 { "1 request".into() } else { format!("{count} requests") }
}
