//! What proxies say whom they forward for.

use std::{
    borrow::Cow,
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};

/// No proxy writes a longer one. Beyond it an entry is unknown, so that the length of a header bounds no cost.
const MAX_ENTRY: usize = 4_096;

/// The header in which the proxies say whom they forward for. Only one is read: of several, the sender could choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ForwardedFrom {
    /// `X-Forwarded-For: 192.0.2.1, 2001:db8::1`, with or without ports.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=192.0.2.1, for="[2001:db8::1]:4711"`, as in RFC 7239.
    Forwarded,
}

impl ForwardedFrom {
    /// The addresses of all lines from right to left, read as they are asked for; `None` is an entry that names none.
    pub(super) fn addresses(self, headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
        let lines = headers.get_all(self.name()).iter().rev();
        lines.flat_map(move |line| self.addresses_of(line))
    }

    fn name(self) -> HeaderName {
        match self {
            Self::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            Self::Forwarded => FORWARDED,
        }
    }

    fn addresses_of(self, line: &HeaderValue) -> impl Iterator<Item = Option<IpAddr>> {
        let entries = Entries(Some(line.as_bytes()));
        entries.map(move |entry| self.address(entry?))
    }

    fn address(self, entry: &[u8]) -> Option<IpAddr> {
        match self {
            Self::XForwardedFor => node(entry.trim_ascii()),
            Self::Forwarded => node(&forwarded_for(entry)?),
        }
    }
}

/// The entries of a line from right to left; `None` is one that is too long.
///
/// From the right, what a proxy appended is told from what it found, whatever that is: a quotation mark that was never closed
/// does not reach to the right. Where no entry has quoted strings, one with a quotation mark is none anyway.
struct Entries<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Entries<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0.take()?;
        let start = rest.len().saturating_sub(MAX_ENTRY + 1);
        let Some(comma) = last_comma(&rest[start..]) else {
            return Some((start == 0).then_some(rest));
        };
        let comma = start + comma;
        self.0 = Some(&rest[..comma]);
        Some(Some(&rest[comma + 1..]))
    }
}

/// The last comma that is in no quoted string.
fn last_comma(text: &[u8]) -> Option<usize> {
    let mut quoted = false;
    for (at, byte) in text.iter().enumerate().rev() {
        match byte {
            b',' if !quoted => return Some(at),
            b'"' if !is_escaped(&text[..at]) => quoted = !quoted,
            _ => {}
        }
    }
    None
}

/// Whether what follows this text is escaped; a backslash may itself be.
fn is_escaped(text: &[u8]) -> bool {
    let backslashes = text.iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 1
}

/// The value of `for` in one element of `Forwarded`, such as `for="[2001:db8::1]";proto=https`. None if the element is
/// malformed anywhere, or has two.
fn forwarded_for(element: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (mut rest, mut found) = (element.trim_ascii(), None);
    while !rest.is_empty() {
        if let Some(next) = rest.strip_prefix(b";") {
            rest = next.trim_ascii_start();
            continue;
        }
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (rest[..equals].trim_ascii_end(), &rest[equals + 1..]);
        if !is_token(name) {
            return None;
        }
        let (value, next) = pair_value(value.trim_ascii_start())?;
        if name.eq_ignore_ascii_case(b"for") && found.replace(value).is_some() {
            return None;
        }
        rest = next;
    }
    found
}

/// A value, and what follows it: nothing, or a semicolon.
fn pair_value(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    if let Some(quoted) = text.strip_prefix(b"\"") {
        let (value, next) = quoted_string(quoted)?;
        let next = next.trim_ascii_start();
        return (next.is_empty() || next.starts_with(b";")).then_some((value, next));
    }
    let end = text.iter().position(|byte| *byte == b';');
    let (value, next) = text.split_at(end.unwrap_or(text.len()));
    // Colons and brackets are common here, although only a quoted string may have them.
    (!value.contains(&b'"')).then(|| (value.trim_ascii_end().into(), next))
}

/// The string up to the quotation mark that ends it, and what follows.
fn quoted_string(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let ends = |at: &usize| text[*at] == b'"' && !is_escaped(&text[..*at]);
    let end = (0..text.len()).find(ends)?;
    Some((unescaped(&text[..end]), &text[end + 1..]))
}

fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return text.into();
    }
    let mut bytes = text.iter().copied();
    let next = || match bytes.next()? {
        b'\\' => bytes.next(),
        byte => Some(byte),
    };
    iter::from_fn(next).collect::<Vec<_>>().into()
}

fn is_token(text: &[u8]) -> bool {
    let is_char = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_char)
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?;
    if let Some(text) = text.strip_prefix('[') {
        let (ip, port) = text.split_once(']')?;
        let ip: Ipv6Addr = ip.parse().ok()?;
        return (port.is_empty() || is_port(port)).then_some(ip.into());
    }
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let (ip, port) = text.split_at(text.find(':')?);
    let ip: Ipv4Addr = ip.parse().ok()?;
    is_port(port).then_some(ip.into())
}

/// `:4711`, or a port that is not told, `:_p1`.
fn is_port(text: &str) -> bool {
    let Some(port) = text.strip_prefix(':') else {
        return false;
    };
    match port.strip_prefix('_') {
        Some(hidden) => is_token(hidden.as_bytes()),
        None => (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(from: ForwardedFrom, lines: &[&str]) -> Vec<Option<String>> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(from.name(), line.parse().unwrap());
        }
        let addresses = from.addresses(&headers);
        addresses.map(|ip| ip.map(|ip| ip.to_string())).collect()
    }

    fn x_forwarded_for(lines: &[&str]) -> Vec<Option<String>> {
        read(ForwardedFrom::XForwardedFor, lines)
    }

    fn forwarded(lines: &[&str]) -> Vec<Option<String>> {
        read(ForwardedFrom::Forwarded, lines)
    }

    fn some(addresses: &[&str]) -> Vec<Option<String>> {
        addresses.iter().map(|ip| Some((*ip).to_owned())).collect()
    }

    #[test]
    fn lines_are_read_from_right_to_left() {
        assert_eq!(x_forwarded_for(&[]), some(&[]));
        assert_eq!(
            x_forwarded_for(&[
                "192.0.2.1, 192.0.2.2",
                "192.0.2.3",
                "192.0.2.4,\t192.0.2.5 "
            ]),
            some(&[
                "192.0.2.5",
                "192.0.2.4",
                "192.0.2.3",
                "192.0.2.2",
                "192.0.2.1"
            ])
        );
        assert_eq!(
            forwarded(&["for=192.0.2.1,for=192.0.2.2", "for=192.0.2.3"]),
            some(&["192.0.2.3", "192.0.2.2", "192.0.2.1"])
        );
    }

    #[test]
    fn an_address_may_have_brackets_and_a_port() {
        for (text, ip) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:1", "192.0.2.1"),
            ("192.0.2.1:_p1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:65535", "2001:db8::1"),
        ] {
            assert_eq!(x_forwarded_for(&[text]), some(&[ip]));
            assert_eq!(forwarded(&[&format!("for=\"{text}\"")]), some(&[ip]));
        }
    }

    #[test]
    fn what_is_no_address_is_an_entry_all_the_same() {
        for text in [
            "",
            " ",
            "unknown",
            "_hidden",
            "host.example",
            "192.0.2",
            "192.0.2.1:",
            "192.0.2.1:123456",
            "192.0.2.1:p",
            "192.0.2.1:_",
            "192.0.2.1 192.0.2.2",
            "192.0.2.01",
            "[192.0.2.1]",
            "[2001:db8::1",
            "[2001:db8::1]4711",
            "[2001:db8::1]:",
            "fe80::1%eth0",
            "\"192.0.2.1\"",
            "\u{a0}192.0.2.1",
        ] {
            let line = format!("192.0.2.9, {text}");
            let expected = [None, Some("192.0.2.9".to_owned())];
            assert_eq!(x_forwarded_for(&[&line]), expected, "{text}");
        }
        assert_eq!(x_forwarded_for(&["", ""]), [None, None]);
    }

    #[test]
    fn the_parameters_of_an_element() {
        for (element, ip) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("FOR=192.0.2.1;proto=https;by=203.0.113.43", "192.0.2.1"),
            ("proto=https; For=\"192.0.2.1:80\" ;host=a", "192.0.2.1"),
            (";for=192.0.2.1;", "192.0.2.1"),
            ("host=\"a;for=192.0.2.2, b\";for=192.0.2.1", "192.0.2.1"),
            (r#"host="a\",for=x\\";for=192.0.2.1"#, "192.0.2.1"),
            (r#"for="192.0.2.\1""#, "192.0.2.1"),
            (r#"for="\[2001:db8::1\]:4711""#, "2001:db8::1"),
            ("for=192.0.2.1:80", "192.0.2.1"),
            ("for=192.0.2.1;host=\"\u{e4}\"", "192.0.2.1"),
        ] {
            assert_eq!(forwarded(&[element]), some(&[ip]), "{element}");
        }
    }

    #[test]
    fn an_element_that_is_malformed_names_nobody() {
        for element in [
            "",
            ";",
            "proto=https",
            "for",
            "for=",
            "for=\"\"",
            "for=unknown",
            "for=_hidden",
            "for=192.0.2.1;for=192.0.2.2",
            "for=192.0.2.1 for=192.0.2.2",
            "for=\"192.0.2.1\"x",
            "for=\"192.0.2.1\"by=x",
            "=x;for=192.0.2.1",
            "a b=x;for=192.0.2.1",
            "for=\"192.0.2.1",
            "for=192.0.2.1\"",
            "for=192.0.2.1;host=a\"b\"",
            "f\"or=192.0.2.1",
            "=192.0.2.1",
            "192.0.2.1",
        ] {
            assert_eq!(forwarded(&[element]), [None], "{element}");
        }
    }

    #[test]
    fn what_is_not_closed_does_not_reach_to_the_right() {
        for left in ["for=\"", "for=\"a\\", "\"\"\"", "\\", "host=\"x\", \""] {
            let line = format!("{left}, for=192.0.2.1");
            assert_eq!(forwarded(&[&line])[0].as_deref(), Some("192.0.2.1"));
        }
    }

    #[test]
    fn an_entry_that_is_too_long_is_the_last() {
        let long = " ".repeat(MAX_ENTRY - "192.0.2.2".len()) + "192.0.2.2";
        let line = format!("192.0.2.1,{long}");
        assert_eq!(x_forwarded_for(&[&line]), some(&["192.0.2.2", "192.0.2.1"]));
        let line = format!("192.0.2.1, {long}");
        assert_eq!(x_forwarded_for(&[&line]), [None]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes: Vec<u8>, text in r#"[for=:;,"\\ \[\]0-9.a-f]{0,40}"#) {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = (node(bytes), forwarded_for(bytes));
                prop_assert!(Entries(Some(bytes)).count() <= bytes.len() + 1);
            }
        }
    }
}
