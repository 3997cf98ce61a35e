//! A showcase as a process of its own, and what it answers over HTTP.
#![allow(
    dead_code,
    reason = "each test binary has a copy, and none uses all of it"
)]

use std::net::Ipv4Addr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Only a hang takes this long.
pub(crate) const BOUND: Duration = Duration::from_secs(60);
/// What the showcase promises between SIGTERM and its end.
const STOP: Duration = Duration::from_secs(10);

pub(crate) fn command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_showcase"));
    command
        .env_clear()
        .env("PORT", "0")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

pub(crate) struct Showcase {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    pub(crate) address: String,
    pub(crate) backend: String,
}

impl Showcase {
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        let mut child = command(variables).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(BOUND, stdout.next_line())
            .await
            .expect("a start line");
        let line = line.unwrap().expect("a start line");
        let (address, backend) = line
            .strip_prefix("listening on http://")
            .and_then(|rest| rest.split_once(" backend="))
            .unwrap_or_else(|| panic!("not the start line: {line}"));
        Self {
            child,
            stdout,
            address: address.to_owned(),
            backend: backend.to_owned(),
        }
    }

    pub(crate) async fn get(&self, path: &str, headers: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\n{headers}"))
            .await
    }

    pub(crate) async fn limited(&self, api_key: &str) -> u16 {
        self.get("/limited", &format!("x-api-key: {api_key}\r\n"))
            .await
            .status
    }

    pub(crate) async fn send(&self, head: &str) -> Answer {
        self.send_from(Ipv4Addr::LOCALHOST, head).await
    }

    pub(crate) async fn send_from(&self, client: Ipv4Addr, head: &str) -> Answer {
        let exchange = async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((client, 0).into()).unwrap();
            let address = self.address.parse().unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            let request = format!("{head}host: showcase\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        Answer::parse(&timeout(BOUND, exchange).await.expect("an answer"))
    }

    /// A connection that carries one request after the other.
    pub(crate) async fn keep_alive(&self) -> KeepAlive {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        KeepAlive(BufReader::new(stream))
    }

    /// Sends SIGTERM, and returns how it ended and what else it had printed.
    pub(crate) async fn stop(mut self) -> (ExitStatus, Vec<String>) {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let status = timeout(STOP, self.child.wait())
            .await
            .expect("the end")
            .unwrap();
        let mut printed = Vec::new();
        while let Some(line) = self.stdout.next_line().await.unwrap() {
            printed.push(line);
        }
        (status, printed)
    }
}

pub(crate) struct KeepAlive(BufReader<TcpStream>);

impl KeepAlive {
    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        let exchange = async {
            let request = format!("GET {path} HTTP/1.1\r\nhost: showcase\r\n\r\n");
            self.0.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            while !text.ends_with("\r\n\r\n") {
                let read = self.0.read_line(&mut text).await.unwrap();
                assert!(read > 0, "it has ended after {text:?}");
            }
            let mut answer = Answer::parse(&text);
            let mut body = vec![0; answer.length()];
            self.0.read_exact(&mut body).await.unwrap();
            answer.body = String::from_utf8(body).unwrap();
            answer
        };
        timeout(BOUND, exchange).await.expect("an answer")
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {text:?}"));
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    fn length(&self) -> usize {
        let mut lines = self.head.lines();
        let length = lines.find_map(|line| line.strip_prefix("content-length: "));
        length.expect("a length").parse().unwrap()
    }

    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{self:?}"
        );
        assert!(
            self.body.contains(&format!("\"status\":{status}")),
            "{self:?}"
        );
    }
}
