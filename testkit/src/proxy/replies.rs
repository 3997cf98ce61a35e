//! Which reply answers which request, on one connection.

use std::collections::VecDeque;

use super::{
    fault::{AfterDrop, Fault, Matching},
    resp::Framer,
};

/// Follows the requests of a connection and filters the replies to some of them.
///
/// RESP answers requests in order, so counting is enough. Three things are answered otherwise:
/// pushes and, in RESP3, subscribing are no replies; in RESP2 a connection that subscribes is not
/// followed any more. `MONITOR` and `CLIENT REPLY` would throw the count off.
#[derive(Debug, Default)]
pub(super) struct Replies {
    requests: Framer,
    request: Vec<u8>,
    replies: Framer,
    pending: VecDeque<Option<AfterDrop>>,
    /// What is decided for the reply that is passing by.
    current: Option<AfterDrop>,
    resp3: bool,
    lost_count: bool,
    ended: Option<AfterDrop>,
}

impl Replies {
    /// Notes the requests in `chunk`, which is about to be sent.
    pub(super) fn sending(&mut self, mut chunk: &[u8], fault: &Fault) {
        while !chunk.is_empty() && !self.lost_count {
            let taken = self.requests.take(chunk);
            self.request.extend_from_slice(&chunk[..taken]);
            chunk = &chunk[taken..];
            if self.requests.at_boundary() {
                self.sent(fault);
                self.request.clear();
            }
        }
    }

    /// Removes the replies to be dropped from `chunk`; returns what is left and how many ended.
    pub(super) fn received(&mut self, mut chunk: &[u8]) -> (Vec<u8>, usize) {
        let mut kept = Vec::with_capacity(chunk.len());
        let mut dropped = 0;
        while !chunk.is_empty() && self.ended.is_none() {
            if self.replies.at_boundary() {
                self.current = self.decide(chunk[0]);
            }
            let taken = self.replies.take(chunk);
            if self.current.is_none() {
                kept.extend_from_slice(&chunk[..taken]);
            }
            chunk = &chunk[taken..];
            if self.replies.at_boundary()
                && let Some(after) = self.current.take()
            {
                dropped += 1;
                self.ended = (after != AfterDrop::Continue).then_some(after);
            }
        }
        (kept, dropped)
    }

    /// How the connection goes on, if not as before.
    pub(super) fn ended(&self) -> Option<AfterDrop> {
        self.ended
    }

    fn decide(&mut self, first: u8) -> Option<AfterDrop> {
        if first == b'>' || self.lost_count {
            return None;
        }
        self.pending.pop_front().flatten()
    }

    fn sent(&mut self, fault: &Fault) {
        let words = words(&self.request);
        let Some(command) = words.first().map(|word| word.to_ascii_uppercase()) else {
            return; // an empty line has no reply
        };
        let subscribes = command.ends_with(b"SUBSCRIBE");
        if subscribes && !self.resp3 {
            self.lost_count = true;
            return;
        }
        if subscribes {
            return;
        }
        if command == b"HELLO" {
            self.resp3 = words.get(1).is_some_and(|version| *version == b"3");
        }
        let drop = match fault {
            Fault::DropReply { matching, after } if matches(matching, &command, &self.request) => {
                Some(*after)
            }
            _ => None,
        };
        self.pending.push_back(drop);
    }
}

fn matches(matching: &Matching, command: &[u8], request: &[u8]) -> bool {
    match matching {
        Matching::Command(name) => command.eq_ignore_ascii_case(name.as_bytes()),
        Matching::Bytes(pattern) => {
            pattern.is_empty()
                || request
                    .windows(pattern.len())
                    .any(|window| window == pattern)
        }
    }
}

/// The first two words of a request: of an array of bulk strings, or of an inline command.
fn words(request: &[u8]) -> Vec<&[u8]> {
    if request.first() != Some(&b'*') {
        return request
            .trim_ascii()
            .split(|byte| *byte == b' ')
            .filter(|w| !w.is_empty())
            .collect();
    }
    let mut rest = after_line(request);
    let mut words = Vec::new();
    while words.len() < 2 && rest.first() == Some(&b'$') {
        let digits = rest[1..].iter().take_while(|byte| byte.is_ascii_digit());
        let len = digits.fold(0_usize, |len, digit| len * 10 + usize::from(digit - b'0'));
        let body = after_line(rest);
        let Some((word, more)) = body.split_at_checked(len) else {
            break;
        };
        words.push(word);
        rest = after_line(more);
    }
    words
}

fn after_line(text: &[u8]) -> &[u8] {
    let end = text
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(text.len(), |end| end + 1);
    &text[end..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&str]) -> Vec<u8> {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text += &format!("${}\r\n{word}\r\n", word.len());
        }
        text.into_bytes()
    }

    #[test]
    fn drops_the_reply_of_the_matching_request_in_a_pipeline() {
        let mut replies = Replies::default();
        let pipeline = [
            request(&["GET", "a"]),
            request(&["set", "a", "b"]),
            request(&["GET", "b"]),
        ]
        .concat();
        for byte in pipeline {
            replies.sending(&[byte], &Fault::drop_reply("SET"));
        }
        let (kept, dropped) = replies.received(b"$1\r\n1\r\n+O");
        assert_eq!((kept.as_slice(), dropped), (b"$1\r\n1\r\n".as_slice(), 0));
        let (kept, dropped) = replies.received(b"K\r\n$1\r\n2\r\n");
        assert_eq!((kept.as_slice(), dropped), (b"$1\r\n2\r\n".as_slice(), 1));
    }

    #[test]
    fn a_push_is_no_reply() {
        let mut replies = Replies::default();
        replies.sending(&request(&["HELLO", "3"]), &Fault::Pass);
        replies.sending(&request(&["SUBSCRIBE", "c"]), &Fault::Pass);
        let bytes = Matching::Bytes(b"secret".to_vec());
        let fault = Fault::DropReply {
            matching: bytes,
            after: AfterDrop::Continue,
        };
        replies.sending(&request(&["GET", "secret:1"]), &fault);
        let push = b">3\r\n+subscribe\r\n+c\r\n:1\r\n";
        let received = [b"%0\r\n".as_slice(), push, b"+dropped\r\n", push].concat();
        let (kept, dropped) = replies.received(&received);
        assert_eq!(kept, [b"%0\r\n".as_slice(), push, push].concat());
        assert_eq!(dropped, 1);
    }

    #[test]
    fn a_resp2_subscriber_is_left_alone() {
        let mut replies = Replies::default();
        replies.sending(&request(&["SUBSCRIBE", "a", "b"]), &Fault::Pass);
        replies.sending(&request(&["PING"]), &Fault::drop_reply("PING"));
        let received = b"*0\r\n*0\r\n+PONG\r\n";
        assert_eq!(replies.received(received), (received.to_vec(), 0));
    }

    #[test]
    fn nothing_follows_a_reply_that_ends_the_connection() {
        let mut replies = Replies::default();
        let fault = Fault::close_instead_of_reply("INCR");
        replies.sending(&request(&["PING"]), &fault);
        replies.sending(&request(&["INCR", "n"]), &fault);
        replies.sending(&request(&["PING"]), &fault);
        let (kept, dropped) = replies.received(b"+PONG\r\n:1\r\n+PONG\r\n");
        assert_eq!((kept.as_slice(), dropped), (b"+PONG\r\n".as_slice(), 1));
        assert_eq!(replies.ended(), Some(AfterDrop::Close));
    }
}
