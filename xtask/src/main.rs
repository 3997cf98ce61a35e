//! The commands of this workspace, run as `cargo xtask <command>`.

mod bench;
mod ci;
mod demo;
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

use sh::Result;

/// One `cargo xtask` command.
struct Command {
    name: &'static str,
    about: &'static str,
    /// The flags it takes, each with what it does.
    flags: &'static [(&'static str, &'static str)],
    /// What `--help` adds to `about`.
    details: &'static str,
    run: fn(&Flags) -> Result,
}

/// The flags that one command was called with, all of them known to it.
struct Flags(Vec<String>);

impl Flags {
    fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|given| given == flag)
    }
}

const COMMANDS: &[Command] = &[
    setup::COMMAND,
    demo::COMMAND,
    test::COMMAND,
    ci::COMMAND,
    tidy::COMMAND,
    bench::COMMAND,
];

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let name = args.next();
    let rest: Vec<String> = args.collect();
    match name.as_deref() {
        None | Some("help" | "--help" | "-h") => {
            print!("{}", overview());
            ExitCode::SUCCESS
        }
        Some(name) => match COMMANDS.iter().find(|command| command.name == name) {
            Some(command) => dispatch(command, rest),
            None => usage(&format!("there is no command `{name}`\n\n{}", overview())),
        },
    }
}

fn dispatch(command: &Command, args: Vec<String>) -> ExitCode {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{}", help(command));
        return ExitCode::SUCCESS;
    }
    let known = |arg: &String| command.flags.iter().any(|(flag, _)| flag == arg);
    if let Some(unknown) = args.iter().find(|arg| !known(arg)) {
        return usage(&format!(
            "`{}` does not take `{unknown}`\n\n{}",
            command.name,
            help(command)
        ));
    }
    match (command.run)(&Flags(args)) {
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
        text += &format!("  {:<7}{}\n", command.name, command.about);
    }
    text
}

fn help(command: &Command) -> String {
    let mut text = format!("cargo xtask {}: {}\n", command.name, command.about);
    if !command.details.is_empty() {
        text += &format!("\n{}\n", command.details.trim());
    }
    for (flag, about) in command.flags {
        text += &format!("\n  {flag:<9}{about}\n");
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
    }
}
