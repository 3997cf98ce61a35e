//! Finding where one RESP2 or RESP3 frame ends and the next begins.

/// Follows a stream of frames, however the stream is cut into pieces.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    /// Values of the present frame that have not begun yet, the elements of aggregates included.
    /// One counter serves for any nesting: where a value belongs does not matter here.
    values: u64,
    /// Bytes left of the present value's body, its closing CRLF included.
    body: u64,
    /// The present value's header line so far.
    header: Vec<u8>,
    inside: bool,
}

impl Framer {
    /// Whether the last byte taken ended a frame.
    pub(crate) fn at_boundary(&self) -> bool {
        !self.inside
    }

    /// Takes bytes of `input` up to the end of the present frame; returns how many.
    pub(crate) fn take(&mut self, input: &[u8]) -> usize {
        let mut taken = 0;
        if !self.inside {
            self.inside = true;
            self.values = 1;
        }
        while self.inside && taken < input.len() {
            taken += if self.body > 0 {
                self.take_body(&input[taken..])
            } else {
                self.take_header(&input[taken..])
            };
            self.inside = self.values > 0 || self.body > 0;
        }
        taken
    }

    fn take_body(&mut self, input: &[u8]) -> usize {
        let len = usize::try_from(self.body)
            .unwrap_or(usize::MAX)
            .min(input.len());
        self.body -= len as u64;
        len
    }

    fn take_header(&mut self, input: &[u8]) -> usize {
        let Some(end) = input.iter().position(|&byte| byte == b'\n') else {
            self.header.extend_from_slice(input);
            return input.len();
        };
        self.header.extend_from_slice(&input[..=end]);
        self.begin_value();
        self.header.clear();
        end + 1
    }

    fn begin_value(&mut self) {
        self.values -= 1;
        let kind = self.header.first().copied();
        // A null has the length -1; what is no length counts as none.
        let text = std::str::from_utf8(&self.header).unwrap_or_default();
        let len: u64 = text
            .get(1..)
            .and_then(|len| len.trim_end().parse().ok())
            .unwrap_or(0);
        let null = text.as_bytes().get(1) == Some(&b'-');
        match kind {
            Some(b'$' | b'=' | b'!') if !null => self.body = len + 2,
            Some(b'*' | b'~' | b'>') => self.values += len,
            Some(b'%') => self.values += 2 * len,
            // Attributes precede the value that they describe.
            Some(b'|') => self.values += 2 * len + 1,
            // A simple value is its header; so is an inline command.
            _ => {}
        }
    }
}

/// The first `count` bulk strings of an array or a push that is all bulk strings up to there.
pub(crate) fn bulks(frame: &[u8], count: usize) -> Vec<&[u8]> {
    let mut rest = after_line(frame);
    let mut bulks = Vec::new();
    while bulks.len() < count && rest.first() == Some(&b'$') {
        let digits = rest[1..].iter().take_while(|byte| byte.is_ascii_digit());
        let len = digits.fold(0_usize, |len, digit| len * 10 + usize::from(digit - b'0'));
        let body = after_line(rest);
        let Some((bulk, more)) = body.split_at_checked(len) else {
            break;
        };
        bulks.push(bulk);
        rest = after_line(more);
    }
    bulks
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

    fn frames(input: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let mut framer = Framer::default();
        let mut frames = Vec::new();
        for mut chunk in input.chunks(piece) {
            while !chunk.is_empty() {
                if framer.at_boundary() {
                    frames.push(Vec::new());
                }
                let taken = framer.take(chunk);
                frames
                    .last_mut()
                    .unwrap()
                    .extend_from_slice(&chunk[..taken]);
                chunk = &chunk[taken..];
            }
        }
        assert!(framer.at_boundary());
        frames
    }

    #[test]
    fn every_cut_of_a_stream_has_the_same_frames() {
        let expected: &[&[u8]] = &[
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":42\r\n",
            b"$5\r\nhe\r\no\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*3\r\n*2\r\n:1\r\n$1\r\n\n\r\n:2\r\n*0\r\n",
            b"_\r\n",
            b",1.5\r\n",
            b"#t\r\n",
            b"(123456789012345678901234567890\r\n",
            b"=7\r\ntxt:a\nb\r\n",
            b"!5\r\nE bad\r\n",
            b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
            b"~2\r\n:1\r\n:2\r\n",
            b">2\r\n+message\r\n$1\r\nx\r\n",
            b"|1\r\n+ttl\r\n:1\r\n*1\r\n+x\r\n",
            b"PING\r\n",
        ];
        let stream = expected.concat();
        for piece in [1, 2, 3, 7, stream.len()] {
            assert_eq!(
                frames(&stream, piece),
                expected,
                "cut into pieces of {piece}"
            );
        }
    }
}
