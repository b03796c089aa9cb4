//! The `optimize` binary: arguments, wiring, terminal output. The only crate that prints.

mod allocator;
mod args;
mod bench;
mod budget;
mod chat;
mod compare;
mod device;
mod doctor;
mod eval;
mod failure;
mod fault;
mod fold;
mod generation;
mod host;
mod inspect;
mod measure;
mod model;
mod optimize;
mod output;
mod place;
mod plan;
mod quality;
mod request;
mod room;
mod run;
mod serve;
mod statistics;
mod task;
mod tokens;
mod verify;

use args::{Command, CommandLine, Compile};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use failure::{Code, Failure};
use output::{print, remark};
use std::ffi::OsString;
use std::panic;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::return_large_blocks();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // The default hook has printed the panic by the time it is caught here.
    let outcome = panic::catch_unwind(|| run(&arguments));
    let code = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            remark(&failure.to_string());
            failure.code
        }
        Err(_) => {
            remark("error: this is a bug in optimize; please report it with the command");
            Code::Bug
        }
    };
    ExitCode::from(code as u8)
}

fn run(arguments: &[OsString]) -> Result<(), Failure> {
    let asks_for_help = || arguments[1..].iter().any(|a| a == "--help" || a == "-h");
    match arguments.get(1).and_then(|a| a.to_str()) {
        Some("--help" | "-h" | "help") if arguments.len() == 2 => return help(),
        // The version, or nothing at all.
        None | Some("--version" | "-V") => {}
        Some(word) if is_command(word) => {}
        Some(_) => match Compile::try_parse_from(arguments) {
            Ok(args) => return optimize::run(&args),
            Err(error) if asks_for_help() => return print(&error.to_string()),
            Err(error) => return Err(usage(arguments, &error)),
        },
    }
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            return print(&error.to_string());
        }
        Err(error) => return Err(usage(arguments, &error)),
    };
    match line.command {
        Command::Inspect(args) => inspect::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(*args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

/// What the program can do: the main job with its options, and the commands.
fn help() -> Result<(), Failure> {
    let commands = CommandLine::command().render_help();
    let main = Compile::command().render_help();
    print(&format!("{commands}\nThe main job:\n\n{main}"))
}

/// The first argument, unless it is an option.
fn first_word(arguments: &[OsString]) -> Option<&str> {
    arguments.get(1).and_then(|a| a.to_str()).filter(|a| !a.starts_with('-'))
}

fn is_command(word: &str) -> bool {
    word == "help" || CommandLine::command().find_subcommand(word).is_some()
}

/// A command line that does not parse. A folder of the command's name may be what was meant.
fn usage(arguments: &[OsString], error: &clap::Error) -> Failure {
    let text = error.to_string();
    let message = text.trim_start_matches("error: ").trim_end().to_string();
    let failure = Failure::refused(message);
    match first_word(arguments) {
        Some(word) if is_command(word) && Path::new(word).is_dir() => failure.with_hint(format!(
            "{word:?} is a command, and a folder of that name exists; to name the folder, write ./{word}"
        )),
        _ => failure,
    }
}
