//! How much of an address counts.

use std::{fmt::Write as _, net::IpAddr};

use super::{Cidr, Key};

/// The whole address.
const IPV4: u8 = 32;
/// What a subscriber gets.
const IPV6: u8 = 64;

/// What most keys have room in.
const ROOM: usize = 24;

/// How many bits of an address count: whoever shares them shares the key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefixes {
    ipv4: u8,
    ipv6: u8,
}

impl Prefixes {
    pub(super) fn ipv4(self, bits: u8) -> Self {
        assert!(
            (1..=32).contains(&bits),
            "an IPv4 prefix of {bits} bits, expected 1 to 32"
        );
        Self { ipv4: bits, ..self }
    }

    pub(super) fn ipv6(self, bits: u8) -> Self {
        assert!(
            (1..=128).contains(&bits),
            "an IPv6 prefix of {bits} bits, expected 1 to 128"
        );
        Self { ipv6: bits, ..self }
    }

    /// The key of the network that this address is in. Networks of another than the usual size have it in their key, so that
    /// none is taken for another that begins with the same address.
    pub(super) fn key(self, ip: IpAddr) -> Key {
        let ip = ip.to_canonical();
        let (bits, usual) = match ip {
            IpAddr::V4(_) => (self.ipv4, IPV4),
            IpAddr::V6(_) => (self.ipv6, IPV6),
        };
        let mut key = String::with_capacity(ROOM);
        key.push_str("ip:");
        push_address(&mut key, Cidr::around(ip, bits).first());
        if bits != usual {
            key.push('/');
            key.push_str(itoa::Buffer::new().format(bits));
        }
        Key::from(key)
    }
}

/// For each request: without the machinery of formats, which took a tenth of the layer's instructions.
fn push_address(text: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (at, octet) in ip.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push('.');
                }
                text.push_str(itoa::Buffer::new().format(octet));
            }
        }
        IpAddr::V6(ip) => {
            // A String takes whatever is written.
            let _ = write!(text, "{ip}");
        }
    }
}

impl Default for Prefixes {
    fn default() -> Self {
        Self {
            ipv4: IPV4,
            ipv6: IPV6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(prefixes: Prefixes, ip: &str) -> String {
        String::from_utf8(prefixes.key(ip.parse().unwrap()).0).unwrap()
    }

    #[test]
    fn an_address_counts_with_what_its_subscriber_has() {
        let text = |ip| text(Prefixes::default(), ip);
        assert_eq!(text("192.0.2.1"), "ip:192.0.2.1");
        assert_eq!(text("::ffff:192.0.2.1"), "ip:192.0.2.1");
        assert_eq!(text("2001:db8:1:2:3:4:5:6"), "ip:2001:db8:1:2::");
        assert_eq!(text("2001:db8:1:2::9"), "ip:2001:db8:1:2::");
        assert_ne!(text("2001:db8:1:3::9"), "ip:2001:db8:1:2::");
    }

    #[test]
    fn another_prefix_is_in_the_key() {
        let prefixes = Prefixes::default().ipv4(24).ipv6(48);
        assert_eq!(text(prefixes, "192.0.2.1"), "ip:192.0.2.0/24");
        assert_eq!(text(prefixes, "::ffff:192.0.2.1"), "ip:192.0.2.0/24");
        assert_eq!(text(prefixes, "2001:db8:1:2::9"), "ip:2001:db8:1::/48");
        let whole = Prefixes::default().ipv6(128);
        assert_eq!(text(whole, "2001:db8::9"), "ip:2001:db8::9/128");
        assert_eq!(text(whole, "192.0.2.1"), "ip:192.0.2.1");
        let least = Prefixes::default().ipv4(1).ipv6(1);
        assert_eq!(text(least, "192.0.2.1"), "ip:128.0.0.0/1");
        assert_eq!(text(least, "2001:db8::9"), "ip:::/1");
    }

    #[test]
    #[should_panic(expected = "an IPv4 prefix of 0 bits, expected 1 to 32")]
    fn no_prefix_would_be_one_key_for_everybody() {
        let _ = Prefixes::default().ipv4(0);
    }

    #[test]
    #[should_panic(expected = "an IPv6 prefix of 129 bits, expected 1 to 128")]
    fn a_prefix_is_no_longer_than_the_address() {
        let _ = Prefixes::default().ipv6(129);
    }
}
