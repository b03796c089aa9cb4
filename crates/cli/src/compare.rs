//! `optimize compare`: several models side by side, each held against one of them.

mod show;

use crate::args::compare::Compare;
use crate::bench::{Speed, speed};
use crate::device::{Devices, Sums, Wanted};
use crate::eval::{WINDOW, sequence, text_tokens};
use crate::failure::{Code, Failure};
use crate::measure::{Forwards, Models};
use crate::model;
use crate::output::{print, remark};
use crate::quality::{Comparison, nll};
use crate::statistics::Mean;
use crate::task::{Difference, Outcome, Set};
use crate::written::{has_a_place, write_whole};
use calibration::windows::{Protocol, windows};
use calibration::{Scored, Sequence};
use runtime::Opened;
use std::path::PathBuf;

/// What was found of a model.
struct Row {
    name: String,
    folder: String,
    /// Of its weight files.
    bytes: u64,
    /// In nats a token.
    nll: Mean,
    /// Against the reference; `None` of itself.
    against: Option<Comparison>,
    tasks: Vec<(PathBuf, Outcome, Option<Difference>)>,
    speed: Option<Speed>,
}

/// What all rows are about.
struct About {
    /// Who the others are held against.
    reference: String,
    text: String,
    window: usize,
    tokens: usize,
    scored: usize,
}

/// What is scored: the windows of a text, then the requests of each task.
struct Work {
    text: Vec<Sequence>,
    tasks: Vec<(PathBuf, Set)>,
}

pub(crate) fn run(args: &Compare) -> Result<(), Failure> {
    args.plot.as_deref().map_or(Ok(()), has_a_place)?;
    if args.models.len() + usize::from(args.baseline.is_some()) < 2 {
        return Err(Failure::refused("one model has nothing to be compared with")
            .with_hint("name several: optimize compare A B C; optimize eval measures one"));
    }
    let named: Vec<&String> = args.baseline.iter().chain(&args.models).collect();
    let opened = named.iter().map(|model| model::open(model, &args.common));
    let opened = opened.collect::<Result<Vec<Opened>, Failure>>()?;
    let names = show::names(&opened);
    let Some((reference, others)) = opened.split_first() else {
        return Err(Failure::refused("no model is given"));
    };
    let quiet = args.common.quiet;
    let context = opened.iter().map(|one| one.spec.context).min().unwrap_or(WINDOW);
    let (work, about) = Work::of(args, reference, context)?;
    let devices = Devices::open(&args.common, Wanted::Fastest, Sums::Ours)?;
    let backend = devices.backend();
    let score = |model, baseline| {
        devices.pool.install(|| {
            let models = Models { opened: model, baseline, backend, forwards: Forwards::Exact };
            models.score(&work.all(), &args.common)
        })
    };
    let mut rows = Vec::new();
    let mut first: Option<Vec<Scored>> = None;
    for (other, name) in others.iter().zip(&names[1..]) {
        if !quiet {
            remark(&format!("scoring {name}"));
        }
        let scores = score(other, Some(reference))?;
        rows.push(work.row(other, name, &scores.main, Some(&scores.baseline))?);
        first.get_or_insert(scores.baseline);
    }
    let first = first.unwrap_or_default();
    rows.insert(0, work.row(reference, &names[0], &first, None)?);
    drop(devices);
    if args.speed {
        for (row, model) in rows.iter_mut().zip(&named) {
            if !quiet {
                remark(&format!("timing {}", row.name));
            }
            row.speed = Some(speed(model, &args.common)?);
        }
    }
    if let Some(path) = &args.plot {
        let page = show::page(&about, &rows);
        let write = write_whole(path, page.as_bytes());
        write.map_err(|error| Failure::new(Code::Machine, error))?;
    }
    match args.common.json {
        true => print(&format!("{:#}", show::json(&about, &rows))),
        false => print(&show::table(&about, &rows)),
    }
}

impl Work {
    /// What the arguments ask for, in the tokens of `reference` and at most `context` at a time.
    fn of(args: &Compare, reference: &Opened, context: usize) -> Result<(Self, About), Failure> {
        let quiet = args.common.quiet;
        let window = args.window.unwrap_or(WINDOW.min(context));
        let mut tokens = text_tokens(args.text.as_ref(), reference)?;
        tokens.ids.truncate(args.max_tokens.unwrap_or(usize::MAX));
        let places = windows(&Protocol::Windows { window, stride: window }, tokens.ids.len());
        let places =
            places.map_err(|error| Failure::refused(format!("{}: {error}", tokens.from)))?;
        let task = |file: &PathBuf| {
            Ok::<_, Failure>((file.clone(), Set::read(file, args.max_tokens, reference, quiet)?))
        };
        let work = Work {
            text: places.iter().map(|place| sequence(place, &tokens)).collect(),
            tasks: args.task.iter().map(task).collect::<Result<_, Failure>>()?,
        };
        let about = About {
            reference: show::folder(reference),
            text: tokens.from,
            window,
            tokens: tokens.ids.len(),
            scored: work.text.iter().map(|s| s.targets.len()).sum(),
        };
        Ok((work, about))
    }

    /// Everything, in one pass over the weights.
    fn all(&self) -> Vec<Sequence> {
        let tasks = self.tasks.iter().flat_map(|(_, set)| &set.sequences);
        self.text.iter().chain(tasks).cloned().collect()
    }

    /// What the scores of a model, and those of the reference, come to.
    fn row(
        &self,
        model: &Opened,
        name: &str,
        scored: &[Scored],
        reference: Option<&[Scored]>,
    ) -> Result<Row, Failure> {
        let targets = |of: &[Sequence]| of.iter().map(|s| s.targets.len()).sum::<usize>();
        let mut at = targets(&self.text);
        let text = scored.get(..at).unwrap_or_default();
        let mut tasks = Vec::new();
        for (file, set) in &self.tasks {
            let part = at..at + targets(&set.sequences);
            at = part.end;
            let of = |scored: &[Scored]| set.result(scored.get(part.clone()).unwrap_or_default());
            let ours = of(scored)?;
            let difference = reference.map(|theirs| Ok::<_, Failure>(ours.over(&of(theirs)?)));
            tasks.push((file.clone(), ours, difference.transpose()?));
        }
        Ok(Row {
            name: name.into(),
            folder: show::folder(model),
            bytes: model.checkpoint.files().iter().map(|file| file.bytes).sum(),
            nll: nll(text, model)?,
            against: reference.map(|_| Comparison::of(text)),
            tasks,
            speed: None,
        })
    }
}
