//! What a client asks the mock, and what the mock may say.

use crate::proxy::resp::bulks;

/// One request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The number of the connection that it came on, from 0.
    pub connection: usize,
    /// The command and its arguments.
    pub args: Vec<Vec<u8>>,
}

impl Request {
    /// Whether the request begins with the words of `command`, whatever their case: `GET`,
    /// `CLUSTER SLOTS`.
    pub fn is(&self, command: &str) -> bool {
        let words: Vec<&str> = command.split_whitespace().collect();
        let same = |(word, arg): (&&str, &Vec<u8>)| arg.eq_ignore_ascii_case(word.as_bytes());
        words.len() <= self.args.len() && words.iter().zip(&self.args).all(same)
    }

    /// Argument `index` as text, the command being number 0; empty if there is none.
    pub fn arg(&self, index: usize) -> String {
        let arg = self.args.get(index).map(Vec::as_slice);
        String::from_utf8_lossy(arg.unwrap_or_default()).into_owned()
    }

    /// Reads one whole frame: an array of bulk strings, or an inline command.
    pub(super) fn parse(connection: usize, frame: &[u8]) -> Self {
        let words = if frame.first() == Some(&b'*') {
            bulks(frame, usize::MAX)
        } else {
            let words = frame.trim_ascii().split(|byte| *byte == b' ');
            words.filter(|word| !word.is_empty()).collect()
        };
        let args = words.into_iter().map(<[u8]>::to_vec).collect();
        Self { connection, args }
    }
}

/// What a [`RespMock`](crate::RespMock) does about one request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Answer {
    /// An error, such as `MOVED 1 127.0.0.1:7000`.
    Error(String),
    /// A simple string.
    Simple(String),
    /// A bulk string.
    Bulk(Vec<u8>),
    /// A number.
    Int(i64),
    /// An array.
    Array(Vec<Answer>),
    /// A map; an array of keys and values to a RESP2 client.
    Map(Vec<(Answer, Answer)>),
    /// A push; an array to a RESP2 client.
    Push(Vec<Answer>),
    /// Nothing found.
    Null,
    /// These bytes as they are.
    Raw(Vec<u8>),
    /// The connection is closed. What was answered before is still sent.
    Close,
    /// This request is never answered. A later one is, which its client must take for the answer to
    /// this one.
    Silence,
    /// What the mock says unless told otherwise.
    #[default]
    Default,
}

impl Answer {
    /// An [`Error`](Self::Error).
    pub fn error(text: impl Into<String>) -> Self {
        Self::Error(text.into())
    }

    /// A [`Simple`](Self::Simple) string.
    pub fn simple(text: impl Into<String>) -> Self {
        Self::Simple(text.into())
    }

    /// A [`Bulk`](Self::Bulk) string.
    pub fn bulk(text: impl Into<Vec<u8>>) -> Self {
        Self::Bulk(text.into())
    }

    /// `OK`.
    pub fn ok() -> Self {
        Self::simple("OK")
    }

    /// Appends the encoding to `out`. What is no value has none.
    pub(super) fn encode(&self, resp3: bool, out: &mut Vec<u8>) {
        let aggregate = if resp3 { ['%', '>'] } else { ['*', '*'] };
        match self {
            Self::Error(text) => out.extend(format!("-{text}\r\n").bytes()),
            Self::Simple(text) => out.extend(format!("+{text}\r\n").bytes()),
            Self::Int(number) => out.extend(format!(":{number}\r\n").bytes()),
            Self::Bulk(bytes) => {
                out.extend(format!("${}\r\n", bytes.len()).bytes());
                out.extend(bytes);
                out.extend(b"\r\n");
            }
            Self::Array(items) => encode_all('*', items.len(), items, resp3, out),
            Self::Push(items) => encode_all(aggregate[1], items.len(), items, resp3, out),
            Self::Map(pairs) => {
                let len = if resp3 { pairs.len() } else { 2 * pairs.len() };
                let items = pairs.iter().flat_map(|(key, value)| [key, value]);
                encode_all(aggregate[0], len, items, resp3, out);
            }
            Self::Null => out.extend(if resp3 { &b"_\r\n"[..] } else { b"$-1\r\n" }),
            Self::Raw(bytes) => out.extend(bytes),
            Self::Close | Self::Silence | Self::Default => {}
        }
    }
}

fn encode_all<'a>(
    kind: char,
    len: usize,
    items: impl IntoIterator<Item = &'a Answer>,
    resp3: bool,
    out: &mut Vec<u8>,
) {
    out.extend(format!("{kind}{len}\r\n").bytes());
    for item in items {
        item.encode(resp3, out);
    }
}
