//! `optimize eval --task`: multiple choice and last words, by log-likelihood.

mod names;

use crate::args;
use crate::eval::{read, tokenizer};
use crate::failure::{Code, Failure};
use crate::measure::{AsServed, Forwards, Models};
use crate::output::{print, remark};
use crate::quality::write_how;
use crate::statistics::Mean;
use crate::written::write_whole;
use calibration::tasks::{Answer, Request, Right, Score, Task, parse};
use calibration::{Scored, Sequence, Target};
use runtime::Opened;
use serde_json::{Value, json};
use std::fmt::Write;

pub(crate) fn run(
    args: &args::Eval,
    models: &Models<'_>,
    file: &std::path::Path,
) -> Result<(), Failure> {
    let set = Set::read(file, args.max_tokens, models.opened, args.common.quiet)?;
    let scored = models.score(&set.sequences, &args.common)?;
    let main = set.result(&scored.main)?;
    let baseline = models.baseline.map(|_| set.result(&scored.baseline)).transpose()?;
    let served = scored.served.as_ref().map(|(how, scored)| {
        let result = set.result(scored)?;
        Ok::<_, Failure>((*how, result))
    });
    let served = served.transpose()?;
    if let Some(path) = &args.logprobs {
        write_whole(path, lines(&set.requests, &main.answers).as_bytes())
            .map_err(|e| Failure::new(Code::Machine, e))?;
    }
    let (ours, theirs) = (models.opened, models.baseline.map(folder));
    if args.common.json {
        let mut report = json!({
            "model": folder(ours),
            "task": file.display().to_string(),
            "path": "exact",
        });
        if let Forwards::Served(how) = models.forwards {
            report["path"] = json!("served");
            write_how(how, &mut report);
        }
        write_score(&main.score, &mut report);
        if let (Some(baseline), Some(model)) = (&baseline, theirs) {
            report["baseline"] = json!({ "model": model });
            write_score(&baseline.score, &mut report["baseline"]);
            report["difference"] = main.over(baseline).json();
        }
        if let Some((how, result)) = &served {
            let mut served = json!({});
            write_how(*how, &mut served);
            write_score(&result.score, &mut served);
            served["difference"] = result.over(&main).json();
            report["served"] = served;
        }
        return print(&format!("{report:#}"));
    }
    let mut text = format!("task   {}\n", file.display());
    if let Forwards::Served(how) = models.forwards {
        let _ = writeln!(text, "path   as served: {how}");
    }
    match (&baseline, &served) {
        (None, None) => {
            let _ = writeln!(text, "score  {}", main.score);
        }
        _ => text.push_str(&table(&main, baseline.as_ref(), served.as_ref())),
    }
    if let Some(model) = theirs {
        let _ = writeln!(text, "baseline is {model}; differences are paired, item by item");
    }
    print(&text)
}

/// One row a model, and one a difference.
fn table(
    main: &Outcome,
    baseline: Option<&Outcome>,
    served: Option<&(AsServed, Outcome)>,
) -> String {
    let mut text = String::new();
    let mut row = |label: &str, columns: Vec<(&'static str, String)>| {
        if text.is_empty() {
            let names: String = columns.iter().map(|(name, _)| format!("{name:<22}")).collect();
            let _ = writeln!(text, "{:<20}{}", "", names.trim_end());
        }
        let cells: String = columns.iter().map(|(_, cell)| format!("{cell:<22}")).collect();
        let _ = writeln!(text, "{label:<20}{}", cells.trim_end());
    };
    row(if served.is_some() { "exact" } else { "model" }, main.columns());
    if let Some(baseline) = baseline {
        row("baseline", baseline.columns());
        row("  difference", main.over(baseline).columns());
    }
    if let Some((how, result)) = served {
        row("as served", result.columns());
        row("  against exact", result.over(main).columns());
        let _ = writeln!(text, "served with {how}");
    }
    text
}

fn folder(opened: &Opened) -> String {
    opened.checkpoint.folder().display().to_string()
}

/// A task, and what is asked of a model for it.
pub(crate) struct Set {
    task: Task,
    requests: Vec<Request>,
    pub(crate) sequences: Vec<Sequence>,
}

/// What a model made of a task.
pub(crate) struct Outcome {
    pub(crate) score: Score,
    answers: Vec<Answer>,
    right: Vec<Right>,
}

/// How much better one model did than another, item by item.
pub(crate) struct Difference {
    acc: Mean,
    acc_norm: Option<Mean>,
    /// How much higher the perplexity of last words is, as a share.
    perplexity: Option<Mean>,
}

impl Set {
    /// Reads a task, as the tokens of `opened`.
    pub(crate) fn read(
        file: &std::path::Path,
        items: Option<usize>,
        opened: &Opened,
        quiet: bool,
    ) -> Result<Self, Failure> {
        let named = |e| Failure::refused(format!("{}: {e}", file.display()));
        if !file.exists() {
            return Err(names::unknown(file));
        }
        let mut task = parse(&read(file)?).map_err(named)?;
        match (&mut task, items) {
            (Task::Choice(all), Some(items)) => all.truncate(items),
            (Task::LastWord(all), Some(items)) => all.truncate(items),
            (_, None) => {}
        }
        let tokenizer = tokenizer(opened)?;
        let mut requests = task.requests(&tokenizer).map_err(named)?;
        clip(&mut requests, opened.spec.context, quiet)?;
        let sequences = requests.iter().map(sequence).collect();
        Ok(Self { task, requests, sequences })
    }

    /// What was made of it, from what was scored of its sequences.
    pub(crate) fn result(&self, scored: &[Scored]) -> Result<Outcome, Failure> {
        let answers = answers(&self.sequences, scored);
        let score = self.task.score(&answers).map_err(Failure::refused)?;
        let right = self.task.right(&answers).map_err(Failure::refused)?;
        Ok(Outcome { score, answers, right })
    }
}

impl Outcome {
    /// Compared with what another model made of the same task.
    pub(crate) fn over(&self, other: &Self) -> Difference {
        let both = self.right.iter().zip(&other.right);
        let one = |right: bool| f64::from(u8::from(right));
        let norm = |(a, b): (&Right, &Right)| Some(one(a.acc_norm?) - one(b.acc_norm?));
        let has_norm = self.right.first().is_some_and(|right| right.acc_norm.is_some());
        let nats = self.answers.iter().zip(&other.answers).map(|(a, b)| b.logprob - a.logprob);
        Difference {
            perplexity: (!has_norm).then(|| Mean::of(nats).increase()),
            acc: Mean::of(both.clone().map(|(a, b)| one(a.acc) - one(b.acc))),
            acc_norm: has_norm.then(|| Mean::of(both.filter_map(norm))),
        }
    }

    /// Each metric and its value.
    pub(crate) fn columns(&self) -> Vec<(&'static str, String)> {
        let mean = |mean, stderr| Mean { mean, stderr }.to_string();
        match self.score {
            Score::Choice { acc, acc_stderr, acc_norm, acc_norm_stderr, .. } => {
                vec![("acc", mean(acc, acc_stderr)), ("acc_norm", mean(acc_norm, acc_norm_stderr))]
            }
            Score::LastWord { acc, acc_stderr, perplexity, perplexity_stderr, .. } => {
                let perplexity = mean(perplexity, perplexity_stderr);
                vec![("acc", mean(acc, acc_stderr)), ("perplexity", perplexity)]
            }
        }
    }
}

impl Difference {
    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let mut object = json!({});
        self.acc.write("acc", &mut object);
        if let Some(norm) = self.acc_norm {
            norm.write("acc_norm", &mut object);
        }
        if let Some(increase) = self.perplexity {
            increase.write("perplexity_increase", &mut object);
        }
        object
    }

    fn columns(&self) -> Vec<(&'static str, String)> {
        let signed = |mean: Mean| {
            let text = mean.to_string();
            if mean.mean < 0.0 { text } else { format!("+{text}") }
        };
        let mut columns = vec![("acc", signed(self.acc))];
        columns.extend(self.acc_norm.map(|norm| ("acc_norm", signed(norm))));
        columns.extend(self.perplexity.map(|increase| ("perplexity", increase.percent(true))));
        columns
    }
}

/// A request's tokens in one.
fn answers(sequences: &[Sequence], scored: &[Scored]) -> Vec<Answer> {
    let mut rest = scored.iter();
    let answer = |sequence: &Sequence| {
        let tokens: Vec<_> = rest.by_ref().take(sequence.targets.len()).collect();
        Answer {
            logprob: tokens.iter().map(|s| s.logprob).sum(),
            greedy: tokens.iter().all(|s| s.greedy),
        }
    };
    sequences.iter().map(answer).collect()
}

pub(crate) fn write_score(score: &Score, report: &mut Value) {
    if let (Some(report), Ok(Value::Object(score))) =
        (report.as_object_mut(), serde_json::to_value(score))
    {
        report.extend(score);
    }
}

/// Drops the oldest tokens of requests that exceed the context.
fn clip(requests: &mut [Request], context: usize, quiet: bool) -> Result<(), Failure> {
    let mut clipped = 0;
    for request in requests {
        clipped += usize::from(request.clip(context).map_err(Failure::refused)? > 0);
    }
    if clipped > 0 && !quiet {
        remark(&format!("warning: {clipped} requests were cut to the context of {context} tokens"));
    }
    Ok(())
}

/// The last token is only predicted, so it need not go through the model.
fn sequence(request: &Request) -> Sequence {
    let mut tokens = request.context.clone();
    let targets = request.continuation.iter().enumerate();
    let target = |(i, &token): (usize, &u32)| Target { position: request.context.len() + i, token };
    let targets = targets.map(target).collect();
    tokens.extend(&request.continuation[..request.continuation.len().saturating_sub(1)]);
    Sequence { tokens, targets }
}

fn lines(requests: &[Request], answers: &[Answer]) -> String {
    let mut lines = String::new();
    for (request, answer) in requests.iter().zip(answers) {
        let line = json!({
            "item": request.item,
            "choice": request.choice,
            "logprob": answer.logprob,
            "greedy": answer.greedy,
            "context_tokens": request.context,
            "continuation_tokens": request.continuation,
        });
        let _ = writeln!(lines, "{line}");
    }
    lines
}
