//! The commands of this workspace, run as `cargo xtask <command>`.

mod args;
mod bench;
mod ci;
mod dashboards;
mod demo;
mod guard;
mod http;
mod process;
mod redis;
mod setup;
mod sh;
mod showcase;
mod test;
mod tidy;

use std::env;
use std::process::ExitCode;

use args::{Flag, Flags, Value};
use sh::Result;

/// One `cargo xtask` command.
struct Command {
    /// One word, or two where the first is a noun.
    name: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    /// What `--help` adds to `about`.
    details: &'static str,
    run: fn(&Flags) -> Result,
}

const COMMANDS: &[Command] = &[
    setup::COMMAND,
    demo::COMMAND,
    redis::COMMAND,
    test::COMMAND,
    ci::COMMAND,
    tidy::COMMAND,
    bench::COMMAND,
    dashboards::COMMAND,
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if matches!(
        args.first().map(String::as_str),
        None | Some("help" | "--help" | "-h")
    ) {
        print!("{}", overview());
        return ExitCode::SUCCESS;
    }
    match find(&args) {
        Some((command, rest)) => dispatch(command, rest),
        None => usage(&format!(
            "there is no command `{}`\n\n{}",
            args.join(" "),
            overview()
        )),
    }
}

/// The command that `args` begin with, and what follows it.
fn find(args: &[String]) -> Option<(&'static Command, &[String])> {
    COMMANDS.iter().find_map(|command| {
        let words: Vec<&str> = command.name.split(' ').collect();
        let (given, rest) = args.split_at_checked(words.len())?;
        (given == words).then_some((command, rest))
    })
}

fn dispatch(command: &Command, args: &[String]) -> ExitCode {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{}", help(command));
        return ExitCode::SUCCESS;
    }
    let flags = match Flags::parse(command.flags, args) {
        Ok(flags) => flags,
        Err(error) => {
            return usage(&format!("`{}` {error}\n\n{}", command.name, help(command)));
        }
    };
    match (command.run)(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(message: &str) -> ExitCode {
    eprint!("error: {message}");
    ExitCode::from(2)
}

fn overview() -> String {
    let mut text = String::from("cargo xtask <command> [--help]\n\n");
    for command in COMMANDS {
        text += &format!("  {:<12}{}\n", command.name, command.about);
    }
    text
}

fn help(command: &Command) -> String {
    let mut text = format!("cargo xtask {}: {}\n", command.name, command.about);
    if !command.details.is_empty() {
        text += &format!("\n{}\n", command.details.trim());
    }
    for flag in command.flags {
        let shown = format!("{}{}", flag.name, flag.value.placeholder());
        text += &format!("\n  {shown}\n      {}\n", flag.about);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_names_each_command_on_one_line() {
        let text = overview();
        for command in COMMANDS {
            let mut lines = text.lines().filter(|line| line.contains(command.about));
            assert!(lines.next().is_some_and(|l| l.contains(command.name)));
            assert!(lines.next().is_none());
        }
    }

    #[test]
    fn help_names_the_flags() {
        let text = help(&demo::COMMAND);
        assert!(text.contains("--redis"), "{text}");
        let text = help(&redis::COMMAND);
        assert!(text.contains("--mode single|cluster|sentinel"), "{text}");
        assert!(text.contains("--dir DIR"), "{text}");
    }

    #[test]
    fn a_command_of_two_words_is_found_by_both() {
        let found = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            find(&args).map(|(command, rest)| (command.name, rest.len()))
        };
        assert_eq!(found(&["demo", "--redis"]), Some(("demo", 1)));
        assert_eq!(found(&["redis", "up", "--dir", "x"]), Some(("redis up", 2)));
        assert_eq!(found(&["redis"]), None);
        assert_eq!(found(&["redis", "down"]), None);
    }
}
