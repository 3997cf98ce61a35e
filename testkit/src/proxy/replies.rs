//! Which reply answers which request, on one connection.

use std::collections::VecDeque;

use super::{
    fault::{AfterDrop, Fault, Matching},
    resp::{Framer, bulks},
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
    /// What is decided for the frame that is passing by.
    current: Fate,
    resp3: bool,
    lost_count: bool,
    ended: Option<AfterDrop>,
}

/// What becomes of a frame from the server.
#[derive(Debug, Default)]
enum Fate {
    #[default]
    Pass,
    /// It is a reply and dropped.
    Drop(AfterDrop),
    /// It is held back until its end shows whether it is a message with `text`.
    Judge { frame: Vec<u8>, text: Vec<u8> },
}

/// What is left of a chunk, and how many frames were dropped that end in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) kept: Vec<u8>,
    pub(super) replies: usize,
    pub(super) pushes: usize,
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

    /// Removes what is to be dropped from `chunk`.
    pub(super) fn received(&mut self, mut chunk: &[u8], fault: &Fault) -> Passed {
        let mut passed = Passed::default();
        while !chunk.is_empty() && self.ended.is_none() {
            if self.replies.at_boundary() {
                self.current = self.decide(chunk[0], fault);
            }
            let taken = self.replies.take(chunk);
            match &mut self.current {
                Fate::Pass => passed.kept.extend_from_slice(&chunk[..taken]),
                Fate::Drop(_) => {}
                Fate::Judge { frame, .. } => frame.extend_from_slice(&chunk[..taken]),
            }
            chunk = &chunk[taken..];
            if self.replies.at_boundary() {
                self.end_frame(&mut passed);
            }
        }
        passed
    }

    /// How the connection goes on, if not as before.
    pub(super) fn ended(&self) -> Option<AfterDrop> {
        self.ended
    }

    fn end_frame(&mut self, passed: &mut Passed) {
        match std::mem::take(&mut self.current) {
            Fate::Pass => {}
            Fate::Drop(after) => {
                passed.replies += 1;
                self.ended = (after != AfterDrop::Continue).then_some(after);
            }
            Fate::Judge { frame, text } if is_message(&frame) && contains(&frame, &text) => {
                passed.pushes += 1;
            }
            Fate::Judge { frame, .. } => passed.kept.extend_from_slice(&frame),
        }
    }

    fn decide(&mut self, first: u8, fault: &Fault) -> Fate {
        let push = first == b'>' || (self.lost_count && first == b'*');
        if let Fault::DropPushes(text) = fault
            && push
        {
            return Fate::Judge {
                frame: Vec::new(),
                text: text.clone(),
            };
        }
        if push || self.lost_count {
            return Fate::Pass;
        }
        let dropped = self.pending.pop_front().flatten();
        dropped.map_or(Fate::Pass, Fate::Drop)
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
        Matching::Bytes(pattern) => contains(request, pattern),
    }
}

fn contains(frame: &[u8], pattern: &[u8]) -> bool {
    let mut windows = frame.windows(pattern.len().max(1));
    pattern.is_empty() || windows.any(|window| window == pattern)
}

/// Whether a push, or an array for a RESP2 subscriber, is no answer to the client's own doing.
fn is_message(frame: &[u8]) -> bool {
    let kind = bulks(frame, 1);
    let answers: [&[u8]; 3] = [b"subscribe", b"psubscribe", b"ssubscribe"];
    kind.first().is_some_and(|kind| !answers.contains(kind))
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
    bulks(request, 2)
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

    fn passed(kept: &[u8], replies: usize, pushes: usize) -> Passed {
        Passed {
            kept: kept.to_vec(),
            replies,
            pushes,
        }
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
        let first = replies.received(b"$1\r\n1\r\n+O", &Fault::Pass);
        assert_eq!(first, passed(b"$1\r\n1\r\n", 0, 0));
        let second = replies.received(b"K\r\n$1\r\n2\r\n", &Fault::Pass);
        assert_eq!(second, passed(b"$1\r\n2\r\n", 1, 0));
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
        let expected = [b"%0\r\n".as_slice(), push, push].concat();
        assert_eq!(replies.received(&received, &fault), passed(&expected, 1, 0));
    }

    #[test]
    fn a_resp2_subscriber_is_left_alone() {
        let mut replies = Replies::default();
        replies.sending(&request(&["SUBSCRIBE", "a", "b"]), &Fault::Pass);
        replies.sending(&request(&["PING"]), &Fault::drop_reply("PING"));
        let received = b"*0\r\n*0\r\n+PONG\r\n";
        let all = replies.received(received, &Fault::drop_reply("PING"));
        assert_eq!(all, passed(received, 0, 0));
    }

    #[test]
    fn nothing_follows_a_reply_that_ends_the_connection() {
        let mut replies = Replies::default();
        let fault = Fault::close_instead_of_reply("INCR");
        replies.sending(&request(&["PING"]), &fault);
        replies.sending(&request(&["INCR", "n"]), &fault);
        replies.sending(&request(&["PING"]), &fault);
        let received = replies.received(b"+PONG\r\n:1\r\n+PONG\r\n", &fault);
        assert_eq!(received, passed(b"+PONG\r\n", 1, 0));
        assert_eq!(replies.ended(), Some(AfterDrop::Close));
    }

    #[test]
    fn drops_the_messages_with_a_text_however_they_are_cut() {
        let fault = Fault::drop_pushes("+gone");
        for (first, subscribed) in [(b'>', "3"), (b'*', "2")] {
            let mut replies = Replies::default();
            replies.sending(&request(&["HELLO", subscribed]), &fault);
            replies.sending(&request(&["SUBSCRIBE", "+gone", "c"]), &fault);
            let frame = |kind: &str, channel: &str| {
                let mut frame = request(&[kind, channel, "text"]);
                frame[0] = first;
                frame
            };
            let stream = [
                b"+OK\r\n".to_vec(),
                frame("subscribe", "+gone"),
                frame("message", "+gone"),
                frame("message", "c"),
            ];
            let mut kept = Vec::new();
            let mut pushes = 0;
            for byte in stream.concat() {
                let passed = replies.received(&[byte], &fault);
                kept.extend(passed.kept);
                pushes += passed.pushes;
            }
            let [hello, subscribed, _, other] = stream;
            assert_eq!(kept, [hello, subscribed, other].concat());
            assert_eq!(pushes, 1);
        }
    }
}
