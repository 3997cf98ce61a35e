//! Running commands: each is echoed before it runs, and fails loudly.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a command of this crate returns; the error is a sentence for a person.
pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The root folder of the workspace.
pub(crate) fn root() -> &'static Path {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir)
}

/// The cargo that runs us, at the root of the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    // `cargo run` describes the xtask package in these. A build script that watches one of them
    // would run again for each change between `cargo xtask` and plain `cargo`.
    for (name, _) in env::vars_os() {
        let described = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        if described
            .iter()
            .any(|p| name.to_string_lossy().starts_with(p))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Echoes `command`, runs it, and fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result {
    echo(command);
    let status = command
        .status()
        .map_err(|error| format!("{} did not start: {error}", display(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} ended with {status}", display(command)).into())
    }
}

/// Echoes `command`, runs it, and returns its stdout; stderr is passed through.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    echo(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{} did not start: {error}", display(command)))?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?)
    } else {
        Err(format!("{} ended with {}", display(command), output.status).into())
    }
}

/// Whether `command` runs and ends well; prints nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The first executable called `name` on `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn echo(command: &Command) {
    println!("$ {}", display(command));
}

/// The command line as a person would type it, arguments of several lines cut.
fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            line += &format!("{}={:?} ", name.to_string_lossy(), value);
        }
    }
    line += &program.file_name().unwrap_or_default().to_string_lossy();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        line.push(' ');
        match arg.split_once('\n') {
            Some(_) => line += "'...'",
            None => line += &arg,
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_shown_as_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command
            .args(["doc", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(
            display(&command),
            "RUSTDOCFLAGS=\"-D warnings\" cargo doc --no-deps"
        );
    }

    #[test]
    fn failures_name_the_command() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(error.to_string().contains("sh -c exit 3"), "{error}");
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }

    #[test]
    fn the_root_holds_the_workspace_manifest() {
        assert!(root().join("Cargo.toml").is_file());
        assert!(root().join("xtask").is_dir());
    }
}
