//! `cargo xtask redis up`: what it prints leads to servers that answer, and none outlives it.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Ten times what a busy machine needs.
const HANG: Duration = Duration::from_secs(60);

/// `xtask redis up`, once it has said that the servers are usable.
struct Up {
    child: Child,
    variables: BTreeMap<String, String>,
    /// The address of each server.
    servers: Vec<String>,
    dir: PathBuf,
}

impl Up {
    fn start(args: &[&str]) -> Self {
        assert!(
            has_server(),
            "neither redis-server nor valkey-server is on the PATH: run `cargo xtask setup`"
        );
        let mut child = xtask(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut up = Self {
            child,
            variables: BTreeMap::new(),
            servers: Vec::new(),
            dir: PathBuf::new(),
        };
        for line in stdout.lines() {
            let line = line.unwrap();
            if line.starts_with("# running until") {
                return up;
            }
            up.take(&line);
        }
        panic!("it ended before the servers were usable");
    }

    fn take(&mut self, line: &str) {
        if let Some((name, value)) = line
            .strip_prefix("export ")
            .and_then(|variable| variable.split_once('='))
        {
            self.variables.insert(name.to_owned(), value.to_owned());
        } else if let Some(dir) = line.strip_prefix("# files in ") {
            self.dir = PathBuf::from(dir);
        } else if let Some(address) = line
            .split_whitespace()
            .find(|word| word.starts_with("127.0.0.1:"))
        {
            self.servers.push(address.to_owned());
        }
    }

    fn variable(&self, name: &str) -> &str {
        &self.variables[name]
    }

    /// Logs in to `address` as the printed variables say, and returns what it answers to `command`.
    fn ask(&self, address: &str, login: &str, command: &str) -> String {
        let user = self.variable(&format!("{login}_USERNAME"));
        let password = self.variable(&format!("{login}_PASSWORD"));
        ask(address, user, password, command)
    }

    fn signal(&mut self, signal: &str) -> ExitStatus {
        let pid = self.child.id().to_string();
        // `kill` is a builtin of every shell, but not a program on every machine.
        let sent = Command::new("sh")
            .args(["-c", "kill -\"$1\" \"$2\"", "sh", signal, &pid])
            .status();
        assert!(sent.unwrap().success());
        self.child.wait().unwrap()
    }

    fn end_of_input(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }

    /// No server accepts a connection any more, and the folder is gone.
    fn leaves_nothing(&self) {
        until("the end of all servers", || {
            self.servers
                .iter()
                .all(|address| TcpStream::connect(address).is_err())
        });
        until("the end of the folder", || !self.dir.exists());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Only after a failed assertion it still runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn xtask(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["redis", "up"]).args(args);
    command
}

fn has_server() -> bool {
    if let Some(chosen) = env::var_os("REDIS_SERVER_BIN").filter(|chosen| !chosen.is_empty()) {
        return Path::new(&chosen).is_file();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| {
        let servers = ["redis-server", "valkey-server"];
        servers.iter().any(|name| dir.join(name).is_file())
    })
}

fn ask(address: &str, user: &str, password: &str, command: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    let request = format!("AUTH {user} {password}\r\n{command}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    // The server answers what it has read before it sees the end.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let rest = answer.strip_prefix("+OK\r\n");
    rest.unwrap_or_else(|| panic!("{address} does not know {user}: {answer}"))
        .to_owned()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !done() {
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn url_answers(up: &Up) {
    let url = up.variable("REDIS_URL");
    let (login, address) = url
        .strip_prefix("redis://")
        .unwrap()
        .split_once('@')
        .unwrap();
    let (user, password) = login.split_once(':').unwrap();
    assert_eq!(ask(address, user, password, "PING"), "+PONG\r\n");
    assert_eq!([address], *up.servers);
}

#[test]
fn a_single_server_ends_with_sigterm() {
    let mut up = Up::start(&[]);
    url_answers(&up);
    assert!(!up.signal("TERM").success());
    up.leaves_nothing();
}

#[test]
fn a_single_server_ends_with_sigkill() {
    let mut up = Up::start(&["--mode", "single"]);
    url_answers(&up);
    assert!(!up.signal("KILL").success());
    up.leaves_nothing();
}

#[test]
fn a_single_server_ends_with_the_input_and_its_folder_can_stay() {
    let parent = env::temp_dir().join(format!("towerkeep-redis-up-{}", std::process::id()));
    let dir = parent.join("kept");
    let mut up = Up::start(&["--dir", dir.to_str().unwrap()]);
    url_answers(&up);
    assert!(up.end_of_input().success());
    // In order: nothing is left when it has ended.
    assert!(TcpStream::connect(&up.servers[0]).is_err());
    let conf = std::fs::read_to_string(dir.join("redis/redis.conf")).unwrap();
    assert!(conf.contains("noeviction"), "{conf}");
    let mut again = xtask(&["--dir", dir.to_str().unwrap()]);
    let refused = again.stdin(Stdio::null()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    std::fs::remove_dir_all(parent).unwrap();
}

#[test]
fn a_cluster_is_complete_and_ends_with_sigterm() {
    let mut up = Up::start(&["--mode", "cluster"]);
    assert_eq!(up.servers.len(), 6);
    assert_eq!(up.variable("REDIS_NODES"), up.servers.join(","));
    for node in &up.servers {
        assert_eq!(up.ask(node, "REDIS", "PING"), "+PONG\r\n");
        let info = up.ask(node, "REDIS", "CLUSTER INFO");
        assert!(info.contains("cluster_state:ok"), "{info}");
        assert!(info.contains("cluster_size:3"), "{info}");
    }
    up.signal("TERM");
    up.leaves_nothing();
}

#[test]
fn sentinels_name_the_master_and_end_with_sigkill() {
    let mut up = Up::start(&["--mode=sentinel"]);
    assert_eq!(up.servers.len(), 6);
    let (_, port) = up.servers[0].split_once(':').unwrap();
    let name = up.variable("REDIS_MASTER_NAME");
    for number in 1..=3 {
        let host = up.variable(&format!("REDIS_SENTINEL{number}_HOST"));
        let sentinel = format!(
            "{host}:{}",
            up.variable(&format!("REDIS_SENTINEL{number}_PORT"))
        );
        let question = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {name}");
        let answer = up.ask(&sentinel, "REDIS_SENTINEL", &question);
        assert!(answer.contains(port), "{answer}");
        let answer = up.ask(
            &sentinel,
            "REDIS_SENTINEL",
            &format!("SENTINEL MASTER {name}"),
        );
        assert!(answer.contains("num-other-sentinels"), "{answer}");
    }
    assert_eq!(up.ask(&up.servers[0], "REDIS", "PING"), "+PONG\r\n");
    up.signal("KILL");
    up.leaves_nothing();
}

#[test]
fn another_mode_is_a_mistake_of_the_caller() {
    let refused = xtask(&["--mode", "ring"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        error.contains("one of single, cluster, sentinel"),
        "{error}"
    );
}
