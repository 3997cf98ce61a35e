//! One command of somebody who has logged in, without a client library.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Longer than anything that works takes.
const HANG: Duration = Duration::from_secs(20);

/// The first line of the answer; an error if the server does not know who asks or does not allow it.
pub(crate) async fn ask(addr: SocketAddr, login: &str, command: &str) -> Result<String, String> {
    timeout(HANG, exchange(addr, login, command)).await.unwrap()
}

async fn exchange(addr: SocketAddr, login: &str, command: &str) -> Result<String, String> {
    let mut stream = BufReader::new(TcpStream::connect(addr).await.unwrap());
    if !login.is_empty() {
        say(&mut stream, &format!("AUTH {login}")).await?;
    }
    say(&mut stream, command).await
}

async fn say(stream: &mut BufReader<TcpStream>, command: &str) -> Result<String, String> {
    let line = format!("{command}\r\n");
    stream.write_all(line.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).await.unwrap();
    let refused = ["-NOPERM", "-NOAUTH", "-WRONGPASS"];
    if answer.is_empty() || refused.iter().any(|code| answer.starts_with(code)) {
        return Err(answer);
    }
    Ok(answer)
}
