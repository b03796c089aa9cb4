//! `optimize eval --task`: multiple choice and last words, by log-likelihood.

use crate::args;
use crate::eval::{read, tokenizer};
use crate::failure::{Code, Failure};
use crate::measure::{Models, Path};
use crate::output::{print, remark, write_whole};
use crate::quality::write_how;
use calibration::tasks::{Answer, Request, Score, Task, TaskError, parse};
use calibration::{Scored, Sequence, Target};
use serde_json::{Value, json};
use std::fmt::Write;

pub(crate) fn run(
    args: &args::Eval,
    models: &Models<'_>,
    file: &std::path::Path,
) -> Result<(), Failure> {
    let named = |e| Failure::refused(format!("{}: {e}", file.display()));
    let mut task = parse(&read(file)?).map_err(named)?;
    if let Some(items) = args.max_tokens {
        match &mut task {
            Task::Choice(all) => all.truncate(items),
            Task::LastWord(all) => all.truncate(items),
        }
    }
    let tokenizer = tokenizer(models.opened)?;
    let mut requests = task.requests(&tokenizer).map_err(named)?;
    clip(&mut requests, models.opened.spec.context, args.common.quiet)?;
    let sequences: Vec<Sequence> = requests.iter().map(sequence).collect();
    let scored = models.score(&sequences, args.common.quiet)?;
    let answers = answers(&sequences, &scored.main);
    let score = task.score(&answers).map_err(Failure::refused)?;
    let served = scored.served.as_ref().map(|(how, scored)| {
        let score = task.score(&self::answers(&sequences, scored))?;
        Ok::<_, TaskError>((*how, score))
    });
    let served = served.transpose().map_err(Failure::refused)?;
    if let Some(path) = &args.logprobs {
        write_whole(path, lines(&requests, &answers).as_bytes())
            .map_err(|e| Failure::new(Code::Machine, e))?;
    }
    if !args.common.json {
        let how = match (models.path, &served) {
            (Path::Served(how), _) => format!("\npath   as served: {how}"),
            (_, Some((how, score))) => format!(", exact\nserved {score}, {how}"),
            _ => String::new(),
        };
        return print(&format!("task   {}\nscore  {score}{how}", file.display()));
    }
    let mut report = json!({
        "model": models.opened.checkpoint.folder().display().to_string(),
        "task": file.display().to_string(),
        "path": "exact",
    });
    if let Path::Served(how) = models.path {
        report["path"] = json!("served");
        write_how(how, &mut report);
    }
    write_score(&score, &mut report);
    if let Some((how, score)) = &served {
        let mut served = json!({});
        write_how(*how, &mut served);
        write_score(score, &mut served);
        report["served"] = served;
    }
    print(&format!("{report:#}"))
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

fn write_score(score: &Score, report: &mut Value) {
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
