//! Redis servers of our own, started from the files in deploy/.

mod cluster;
mod files;
mod home;
mod ports;
mod resp;
mod sentinel;
mod server;
mod single;

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use self::cluster::Cluster;
pub(crate) use self::home::Home;
use self::sentinel::Sentinels;
pub(crate) use self::single::Single;
use crate::sh::Result;
use crate::{Command, Flag, Flags, Value, setup};

pub(crate) const COMMAND: Command = Command {
    name: "redis up",
    about: "run Redis servers from deploy/ until Ctrl-C, and print the environment that finds them",
    flags: &[
        Flag {
            name: "--mode",
            value: Value::OneOf(&["single", "cluster", "sentinel"]),
            about: "one server (the default), 3 primaries with 3 replicas, or 1 master with 2 replicas \
                    and 3 sentinels",
        },
        Flag {
            name: "--dir",
            value: Value::Any("DIR"),
            about: "keep the servers' files in DIR, which must be empty or absent, instead of in a \
                    folder that is removed at the end",
        },
    ],
    details: "
Starts real servers on free ports of 127.0.0.1 with the configuration and the users of deploy/, waits
until they are usable, and prints the variables of redis-conn to copy. It ends with Ctrl-C, SIGTERM or
the end of its standard input, and no server outlives it.",
    run: up,
};

/// How long servers may take until they are usable, on a machine that is busy with other things.
const USABLE: Duration = Duration::from_secs(60);

/// Servers that are usable together.
pub(crate) trait Topology {
    /// What a person sees of each server.
    fn servers(&self) -> Vec<String>;
    /// The variables that lead redis-conn to them.
    fn environment(&self) -> Vec<(String, String)>;
}

fn up(flags: &Flags) -> Result {
    let binary = setup::redis_server()?;
    let home = match flags.value("--dir") {
        Some(dir) => Home::kept(&binary, Path::new(dir))?,
        None => Home::temporary(&binary)?,
    };
    let files = home.dir().display().to_string();
    let topology: Box<dyn Topology> = match flags.value("--mode") {
        Some("cluster") => Box::new(Cluster::start(home)?),
        Some("sentinel") => Box::new(Sentinels::start(home)?),
        _ => Box::new(Single::start(home)?),
    };
    print!("{}", announcement(&*topology, &files));
    // Signals end this process at once, and its end is what the guards of the servers wait for.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    eprintln!("the standard input has ended: stopping");
    Ok(())
}

/// Lines that a shell can read: everything but the variables is a comment.
fn announcement(topology: &dyn Topology, files: &str) -> String {
    let mut text = String::new();
    for server in topology.servers() {
        text += &format!("# {server}\n");
    }
    text += &format!("# files in {files}\n\n");
    for (name, value) in topology.environment() {
        text += &format!("export {name}={value}\n");
    }
    text + "\n# running until Ctrl-C, SIGTERM or the end of the standard input\n"
}

/// Asks again until `ready` says yes; the error says what was awaited, and what was answered last.
fn wait_until(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result {
    let deadline = Instant::now() + USABLE;
    loop {
        let last = match ready() {
            Ok(true) => return Ok(()),
            Ok(false) => "not yet".to_owned(),
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(format!("gave up waiting {USABLE:?} for {what}: {last}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two;

    impl Topology for Two {
        fn servers(&self) -> Vec<String> {
            vec!["a".to_owned(), "b".to_owned()]
        }

        fn environment(&self) -> Vec<(String, String)> {
            vec![("REDIS_HOST".to_owned(), "127.0.0.1".to_owned())]
        }
    }

    #[test]
    fn the_announcement_can_be_read_by_a_shell() {
        let text = announcement(&Two, "here");
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        assert_eq!(code, ["export REDIS_HOST=127.0.0.1"]);
        assert!(text.starts_with("# a\n# b\n# files in here\n"), "{text}");
    }
}
