//! `optimize verify`: an artifact against the manifest in its report.

use crate::args;
use crate::failure::{Code, Failure};
use crate::output::{print, size};
use serde_json::json;

pub(crate) fn run(args: &args::Verify) -> Result<(), Failure> {
    // A dangling link or a folder of this name is not nothing: the report's reader says what it is.
    if args.artifact.is_dir() && args.artifact.join("report.json").symlink_metadata().is_err() {
        let message = format!("{:?} is no artifact: it has no report.json", args.artifact);
        return Err(Failure::refused(message)
            .with_hint("only what optimize --quant has written can be verified"));
    }
    let (report, differences) = compiler::verify(&args.artifact)?;
    let bytes: u64 = report.files.values().map(|f| f.bytes).sum();
    let said: Vec<String> = differences.iter().map(ToString::to_string).collect();
    if args.json {
        let result = json!({
            "artifact": args.artifact.display().to_string(),
            "files": report.files.len(),
            "bytes": bytes,
            "identity": report.identity,
            "differences": said,
        });
        print(&format!("{result:#}"))?;
    }
    match &said[..] {
        [] if args.json => Ok(()),
        [] => {
            let (files, size) = (report.files.len(), size(bytes));
            print(&format!("{files} files, {size}: each is what was written"))
        }
        _ => {
            let message = format!("{:?}: {}", args.artifact, said.join("; "));
            Err(Failure::new(Code::Refused, anyhow::Error::msg(message)))
        }
    }
}
