//! What a user types in a conversation: a turn, or a command that begins with `/`.

use crate::words::near;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// A turn of the user.
    Say(String),
    /// List the commands.
    Help,
    /// Forget the turns.
    Clear,
    /// Replace the system text, or show it.
    System(Option<String>),
    /// Write the conversation to a file.
    Save(String),
    /// Change a setting, or show it, or show all.
    Set(Option<(String, Option<String>)>),
    /// Show the model, the conversation and the settings.
    Show,
    /// End the program.
    Leave,
}

/// What was typed and means nothing: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) hint: String,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Opens and closes a text of several lines.
const QUOTES: &str = "\"\"\"";

/// The commands, each with the names under which other chats know it.
pub(super) const NAMES: &[&str] = &["help", "clear", "system", "save", "set", "show", "bye"];
const OTHER_NAMES: &[(&str, &str)] = &[
    ("?", "help"),
    ("h", "help"),
    ("new", "clear"),
    ("reset", "clear"),
    ("exit", "bye"),
    ("quit", "bye"),
    ("q", "bye"),
];

/// The answer to `/help`.
pub(super) const HELP: &str = "\
/help             list what can be typed
/clear            forget the turns; the system text stays
/system TEXT      what the model is told first; alone, show it; \"\" for none
/save FILE        write the conversation to a new FILE, a line of JSON
/set KEY VALUE    change a setting; without VALUE, or KEY too, show what it is
/show             show the model, the conversation and the settings
/bye              leave; Ctrl-D does too

A text in \"\"\" ... \"\"\" may have several lines, and may begin with /. A line that
ends with \\ goes on in the next. Ctrl-C stops an answer, and not the program.";

/// Whether what was typed so far is whole: no text in quotes is open, and no line is to go on.
pub(super) fn is_whole(typed: &str) -> bool {
    match text_of(typed).trim_start().strip_prefix(QUOTES) {
        Some(inside) => inside.trim_end().ends_with(QUOTES),
        None => !typed.ends_with('\\'),
    }
}

/// What is said, in a turn or to a command.
fn text_of(typed: &str) -> &str {
    match typed.strip_prefix('/') {
        Some(command) => command.split_once(char::is_whitespace).map_or("", |(_, text)| text),
        None => typed,
    }
}

/// Understands what was typed, which is whole.
pub(super) fn parse(typed: &str) -> Result<Command, Wrong> {
    let Some(command) = typed.strip_prefix('/') else {
        return Ok(Command::Say(unquoted(typed)));
    };
    let (name, text) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let text = text.trim();
    let name = name.to_ascii_lowercase();
    let known = OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, name)| *name);
    match known.unwrap_or(&name) {
        "help" => Ok(Command::Help),
        "clear" => Ok(Command::Clear),
        "show" => Ok(Command::Show),
        "bye" => Ok(Command::Leave),
        "system" if text.is_empty() => Ok(Command::System(None)),
        "system" if text == "\"\"" => Ok(Command::System(Some(String::new()))),
        "system" => Ok(Command::System(Some(unquoted(text)))),
        "save" if text.is_empty() => {
            Err(Wrong::new("/save has no file", "name a new one: /save FILE"))
        }
        "save" => Ok(Command::Save(text.to_string())),
        "set" => set(text),
        name => Err(unknown(name)),
    }
}

fn set(text: &str) -> Result<Command, Wrong> {
    // What users of Ollama type.
    let text = match text.split_once(char::is_whitespace) {
        Some(("parameter", rest)) => rest.trim_start(),
        Some(("system", rest)) => return parse(&format!("/system {rest}")),
        _ if text == "nothink" => "think off",
        _ => text,
    };
    if text.is_empty() {
        return Ok(Command::Set(None));
    }
    let (key, value) = match text.split_once([' ', '\t', '=']) {
        Some((key, value)) => (key, Some(unquoted(value.trim()))),
        None => (text, None),
    };
    let value = value.filter(|value| !value.is_empty());
    Ok(Command::Set(Some((key.to_ascii_lowercase().replace('-', "_"), value))))
}

fn unknown(name: &str) -> Wrong {
    // Whatever was typed is shown, but not at any length.
    let shown: String = name.chars().take(20).collect();
    let message = format!("no command {:?}", format!("/{shown}"));
    let meant = match near(name, NAMES.iter().copied(), 1).first() {
        Some(meant) => format!("/{meant} is near"),
        None => "/help lists them".to_string(),
    };
    Wrong::new(message, format!("{meant}; a turn that begins with / goes in \"\"\" ... \"\"\""))
}

/// A text without its quotes, or without the signs that its lines go on.
fn unquoted(text: &str) -> String {
    let inside = text.trim().strip_prefix(QUOTES);
    let inside = inside.and_then(|inside| inside.strip_suffix(QUOTES));
    match inside {
        Some(inside) => {
            let inside = inside.strip_prefix('\n').unwrap_or(inside);
            inside.strip_suffix('\n').unwrap_or(inside).to_string()
        }
        None => text.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: Option<&str>) -> Command {
        Command::Set(Some((key.into(), value.map(String::from))))
    }

    #[test]
    fn what_begins_with_a_slash_is_a_command() {
        for (typed, command) in [
            ("/help", Command::Help),
            ("/?", Command::Help),
            ("/CLEAR ", Command::Clear),
            ("/bye", Command::Leave),
            ("/exit", Command::Leave),
            ("/system", Command::System(None)),
            ("/system  Be brief. ", Command::System(Some("Be brief.".into()))),
            ("/system \"\"", Command::System(Some(String::new()))),
            ("/system \"\"\"\"\"\"", Command::System(Some(String::new()))),
            ("/system \"\"\"a\nb\"\"\"", Command::System(Some("a\nb".into()))),
            ("/save my talk.jsonl", Command::Save("my talk.jsonl".into())),
            ("/set", Command::Set(None)),
            ("/set seed", set("seed", None)),
            ("/set top-p 0.9", set("top_p", Some("0.9"))),
            ("/set seed=7", set("seed", Some("7"))),
            ("/set parameter temperature 0", set("temperature", Some("0"))),
            ("/set system Be brief.", Command::System(Some("Be brief.".into()))),
            ("/set nothink", set("think", Some("off"))),
        ] {
            assert!(is_whole(typed), "{typed}");
            assert_eq!(parse(typed), Ok(command), "{typed}");
        }
    }

    #[test]
    fn all_else_is_a_turn() {
        for (typed, said) in [
            ("hello", "hello"),
            (" /help", " /help"),
            ("a \"\"\" b", "a \"\"\" b"),
            ("\"\"\"/etc/fstab?\"\"\"", "/etc/fstab?"),
            ("\"\"\"\none\n\ntwo\n\"\"\"", "one\n\ntwo"),
            ("\"\"\"\"\"\"", ""),
            ("one\\\ntwo", "one\ntwo"),
            ("\"\"\"a\\\nb\"\"\"", "a\\\nb"),
        ] {
            assert!(is_whole(typed), "{typed}");
            assert_eq!(parse(typed), Ok(Command::Say(said.into())), "{typed}");
        }
    }

    #[test]
    fn what_is_not_whole_goes_on() {
        for typed in ["\"\"\"", "\"\"\"one\ntwo", "/system \"\"\"a", "one\\", "/system one\\"] {
            assert!(!is_whole(typed), "{typed}");
        }
    }

    #[test]
    fn the_nearest_command_is_named() {
        let hint = |typed: &str| parse(typed).unwrap_err().hint;
        assert!(hint("/hlep").contains("/help is near"));
        assert!(hint("/sav x").contains("/save is near"));
        assert!(hint("/etc/passwd").contains("/help lists them"));
        assert!(parse("/").unwrap_err().message.contains("\"/\""));
        assert!(parse("/save").unwrap_err().hint.contains("/save FILE"));
        assert!(parse(&format!("/{}", "x".repeat(5000))).unwrap_err().message.len() < 60);
    }

    #[test]
    fn help_names_every_command_and_fits_a_terminal() {
        assert!(NAMES.iter().all(|name| HELP.contains(&format!("/{name}"))));
        assert!(HELP.lines().all(|line| line.len() <= 80), "{HELP}");
    }
}
