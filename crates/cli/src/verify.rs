//! `optimize verify`: an artifact against the manifest in its report.

use crate::args;
use crate::failure::Failure;
use crate::output::{print, size};
use compiler::Difference;
use serde_json::json;

pub(crate) fn run(args: &args::Verify) -> Result<(), Failure> {
    // A dangling link or a folder of this name is not nothing: the report's reader says what it is.
    if args.artifact.is_dir() && args.artifact.join("report.json").symlink_metadata().is_err() {
        let message = format!("{:?} is no artifact: it has no report.json", args.artifact);
        return Err(Failure::refused(message)
            .with_hint("only what optimize --quant has written can be verified"));
    }
    let (report, differences) = compiler::verify(&args.artifact)?;
    let all =
        || report.files.values().chain(report.outputs.values().flat_map(|o| o.files.values()));
    let (files, bytes) = (all().count(), all().map(|file| file.bytes).sum::<u64>());
    // What was added is somebody's README or LICENSE, and harms nobody.
    let (added, said): (Vec<_>, Vec<_>) = differences.iter().partition(|d| d.is_unknown());
    let lines = |all: Vec<&Difference>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (added, said) = (lines(added), lines(said));
    let result = json!({
        "artifact": args.artifact.display().to_string(),
        "files": files,
        "bytes": bytes,
        "identity": report.identity,
        "differences": said,
        "remarks": added,
    });
    if !said.is_empty() {
        let message = format!("{:?} is not what was written:\n{}", args.artifact, said.join("\n"));
        let details = result.as_object().into_iter().flatten();
        let details = details.map(|(key, value)| (key.clone(), value.clone())).collect();
        return Err(Failure { details, ..Failure::refused(message) });
    }
    if args.json {
        return print(&format!("{result:#}"));
    }
    let size = size(bytes);
    let added = added.iter().map(|name| format!("{name}: it may stay\n")).collect::<String>();
    print(&format!("{files} files, {size}: each is what was written\n{added}"))
}
