//! The `optimize` binary: arguments, wiring, terminal output. The only crate that prints.

mod allocator;
mod args;
mod bench;
mod chat;
mod compare;
mod convert;
mod device;
mod doctor;
mod eval;
mod failure;
mod fault;
mod fold;
mod host;
mod imatrix;
mod inspect;
mod measure;
mod memory;
mod model;
mod optimize;
mod output;
mod place;
mod plan;
mod progress;
mod quality;
mod readers;
mod recipe;
mod request;
mod run;
mod serve;
mod statistics;
mod stop;
mod task;
mod tokens;
mod verify;
mod words;
mod written;

use args::help::laid_out;
use args::{Command, CommandLine, Compile};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use failure::{Code, Failure};
use output::{print, remark};
use std::ffi::OsString;
use std::panic;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::return_large_blocks();
    allocator::end_without_memory();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.len() < 2 {
        remark(commands().render_help().to_string().trim_end());
        return ExitCode::from(Code::Refused as u8);
    }
    // The default hook has printed the panic by the time it is caught here.
    let outcome = panic::catch_unwind(|| run(&arguments));
    let failure = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(_) => {
            let message = anyhow::Error::msg("this is a bug in optimize");
            Failure::new(Code::Bug, message).with_hint("please report it with the command")
        }
    };
    remark(&failure.to_string());
    let options = arguments.iter().take_while(|a| *a != "--");
    if options.into_iter().any(|a| a == "--json") {
        let object = match first_word(&arguments) {
            // The last of the objects that it prints, each a line.
            Some("chat") => chat::error(&failure).to_string(),
            _ => format!("{:#}", failure.json()),
        };
        // Where not even this can be written, the exit code says all there is to say.
        let _ = print(&object);
    }
    ExitCode::from(failure.code as u8)
}

fn run(arguments: &[OsString]) -> Result<(), Failure> {
    match arguments.get(1).and_then(|a| a.to_str()) {
        Some(word @ ("--help" | "-h" | "help")) if arguments.len() == 2 => {
            return help(word != "-h");
        }
        Some("--version" | "-V") => {}
        Some(word) if is_command(word) => {}
        _ => return main_job(arguments),
    }
    let matches = commands().try_get_matches_from(arguments);
    let line = match matches.and_then(|matches| CommandLine::from_arg_matches(&matches)) {
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
        Command::Convert(args) => convert::run(&args),
        Command::Imatrix(args) => imatrix::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(*args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Recipe(args) => recipe::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

/// The main job, unless the first word is rather a command that does not exist.
fn main_job(arguments: &[OsString]) -> Result<(), Failure> {
    let matches = compilation().try_get_matches_from(arguments);
    let parsed = matches.and_then(|matches| Compile::from_arg_matches(&matches));
    if let Err(error) = &parsed
        && error.kind() == ErrorKind::DisplayHelp
    {
        return print(&error.to_string());
    }
    let asked = matches!(&parsed, Ok(args) if args.quant.is_some() || args.recipe.is_some());
    if let Some(word) = first_word(arguments).filter(|_| !asked) {
        let line = CommandLine::command();
        let commands: Vec<&str> = line.get_subcommands().map(|c| c.get_name()).collect();
        if let Some((message, hint)) = words::no_command(word, &commands) {
            return Err(Failure::refused(message).with_hint(hint));
        }
    }
    match parsed {
        Ok(args) => optimize::run(&args),
        Err(error) => Err(usage(arguments, &error)),
    }
}

/// What the program can do: the main job with its options, and the commands.
fn help(long: bool) -> Result<(), Failure> {
    let rendered = |mut command: clap::Command| match long {
        true => command.render_long_help(),
        false => command.render_help(),
    };
    let (commands, main) = (commands().render_help(), rendered(compilation()));
    print(&format!("{commands}\nThe main job:\n\n{main}"))
}

/// The commands, their help laid out.
fn commands() -> clap::Command {
    laid_out(CommandLine::command(), args::help::COMMANDS)
}

/// The main job, its help laid out.
fn compilation() -> clap::Command {
    laid_out(Compile::command(), args::help::MAIN)
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
    let text = text.trim_start_matches("error: ").trim_end();
    // Its tips name hidden options, and how to pass an option as a value.
    let said = |part: &&str| {
        let part = part.trim_start();
        !part.starts_with("tip:") && !part.starts_with("For more information")
    };
    let message = text.split("\n\n").filter(said).collect::<Vec<_>>().join("\n\n");
    let failure = Failure { kind: "usage", ..Failure::refused(message) };
    let word = first_word(arguments).filter(|word| is_command(word));
    if let Some(word) = word.filter(|word| Path::new(word).is_dir()) {
        return failure.with_hint(format!(
            "{word:?} is a command, and a folder of that name exists; to name the folder, write ./{word}"
        ));
    }
    let help = word.map_or("optimize --help".to_string(), |word| format!("optimize {word} --help"));
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) if error.kind() == ErrorKind::UnknownArgument => name,
        _ => return failure.with_hint(format!("{help} shows what there is")),
    };
    let line = CommandLine::command();
    let command = word.and_then(|word| line.find_subcommand(word).cloned());
    let command = command.unwrap_or_else(Compile::command);
    let options = command.get_arguments().filter(|a| !a.is_hide_set());
    let options: Vec<&str> = options.filter_map(|a| a.get_long()).collect();
    match words::near(unknown.trim_start_matches('-'), options.into_iter(), 2)[..] {
        [] => failure.with_hint(format!("{help} shows all options")),
        [one] => failure.with_hint(format!("--{one} is near; {help} shows all options")),
        [one, other, ..] => {
            failure.with_hint(format!("--{one} and --{other} are near; {help} shows all options"))
        }
    }
}
