//! As much of the Redis protocol as it takes to set servers up.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::files;
use crate::sh::Result;

const SILENT: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    Text(String),
    Int(i64),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }

    /// The value after `name` in an array of names and values.
    pub(super) fn field(&self, name: &str) -> &str {
        let Self::Array(items) = self else {
            return "";
        };
        let found = items.chunks_exact(2).find(|pair| pair[0].text() == name);
        found.map_or("", |pair| pair[1].text())
    }
}

/// One connection to a server of ours.
pub(super) struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects as the operator.
    pub(super) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(SILENT))?;
        let mut client = Self(BufReader::new(stream));
        let password = files::password(files::OPERATOR)?;
        client.call(&["AUTH", files::OPERATOR, &password])?;
        Ok(client)
    }

    /// Sends one command; an error that the server answers is an error.
    pub(super) fn call(&mut self, words: &[&str]) -> Result<Reply> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        read(&mut self.0).map_err(|error| format!("{}: {error}", words[0]).into())
    }
}

fn read(from: &mut impl BufRead) -> Result<Reply> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line
        .strip_suffix("\r\n")
        .ok_or("the connection has ended")?;
    let (kind, rest) = line.split_at_checked(1).ok_or("an empty reply")?;
    match kind {
        "+" => Ok(Reply::Text(rest.to_owned())),
        "-" => Err(rest.into()),
        ":" => Ok(Reply::Int(rest.parse()?)),
        "$" | "*" if rest == "-1" => Ok(Reply::Nil),
        "$" => {
            let mut bytes = vec![0; rest.parse::<usize>()? + 2];
            from.read_exact(&mut bytes)?;
            bytes.truncate(bytes.len() - 2);
            Ok(Reply::Text(String::from_utf8(bytes)?))
        }
        "*" => {
            let items = (0..rest.parse::<usize>()?).map(|_| read(from));
            Ok(Reply::Array(items.collect::<Result<_>>()?))
        }
        _ => Err(format!("no RESP2 reply: {line:?}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Result<Reply> {
        read(&mut text.as_bytes())
    }

    #[test]
    fn replies_are_read() {
        assert_eq!(reply("+OK\r\n").unwrap().text(), "OK");
        assert_eq!(reply("$4\r\na\r\nb\r\n").unwrap().text(), "a\r\nb");
        assert_eq!(reply("$-1\r\n").unwrap(), Reply::Nil);
        let array = reply("*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n$1\r\nx\r\n").unwrap();
        assert_eq!(array.field("b"), "x");
        assert_eq!(array.field("a"), "");
        assert_eq!(array.field("x"), "");
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for (text, expected) in [
            ("-NOAUTH who\r\n", "NOAUTH who"),
            ("", "has ended"),
            ("+OK", "has ended"),
            ("\r\n", "an empty reply"),
            ("%1\r\n", "no RESP2 reply"),
        ] {
            let error = reply(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
