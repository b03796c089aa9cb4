//! `optimize verify`: an artifact against the manifest in its report.

use crate::args;
use crate::failure::{Code, Failure};
use crate::output::{print, size};
use serde_json::json;

pub(crate) fn run(args: &args::Verify) -> Result<(), Failure> {
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
