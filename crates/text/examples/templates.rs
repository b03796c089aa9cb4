//! Holds chat templates that are not part of the repository against transformers' rendering:
//! `templates GOLDENS FOLDER`, where make_chat_goldens.py has made GOLDENS of the templates in FOLDER.

#![expect(clippy::print_stdout, reason = "it reports to whoever runs it")]
#![expect(clippy::unwrap_used, reason = "a check fails by it")]

#[path = "../tests/compare/mod.rs"]
mod compare;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [goldens, templates] = &paths[..] else {
        println!("usage: templates GOLDENS FOLDER");
        return ExitCode::from(2);
    };
    let (cases, differ) = compare::goldens(goldens, templates);
    println!("{cases} cases, {} differ", differ.len());
    differ.iter().for_each(|case| println!("FAIL {case}"));
    ExitCode::from(u8::from(!differ.is_empty() || cases == 0))
}
