//! Ranges of addresses.

use std::{
    error::Error as StdError,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A range of addresses: a network such as `10.0.0.0/8` or `2001:db8::/32`, or one address.
///
/// An IPv4 address mapped to IPv6 is the IPv4 address; no other IPv6 range has IPv4 addresses in it, not even `::/0`.
///
/// ```
/// use tower_ratelimit_redis::key::Cidr;
///
/// let office: Cidr = "192.0.2.0/24".parse()?;
/// assert!(office.contains("192.0.2.7".parse()?));
/// assert!(office.contains("::ffff:192.0.2.7".parse()?));
/// assert!(!office.contains("198.51.100.7".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// No bit beyond the prefix is set, and it is not mapped.
    first: IpAddr,
    bits: u8,
}

/// Why a text is no [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CidrError {
    /// It does not begin with an address.
    NotAnAddress {
        /// The text that was given.
        text: String,
    },
    /// After the slash is no length, or one that an address of this kind does not have.
    InvalidPrefix {
        /// The text that was given.
        text: String,
        /// The longest prefix of such an address.
        longest: u8,
    },
    /// The address has bits beyond its prefix, so either of them may be meant to be another.
    BitsBeyondPrefix {
        /// The text that was given.
        text: String,
        /// The network that the address is in.
        network: Cidr,
    },
}

impl Cidr {
    /// Whether this address is one of the range.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        truncate(ip.to_canonical(), self.bits) == self.first
    }

    /// The network of so many bits that this address is in.
    pub(super) fn around(ip: IpAddr, bits: u8) -> Self {
        Self {
            first: truncate(ip, bits),
            bits,
        }
    }

    /// `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
    fn unmapped(self) -> Self {
        match (self.first.to_canonical(), self.bits.checked_sub(96)) {
            (first @ IpAddr::V4(_), Some(bits)) if self.first.is_ipv6() => Self { first, bits },
            _ => self,
        }
    }

    pub(super) fn first(&self) -> IpAddr {
        self.first
    }

    /// Whether this address is in any of the ranges.
    pub(crate) fn any_contains(ranges: &[Self], ip: IpAddr) -> bool {
        ranges.iter().any(|range| range.contains(ip))
    }
}

impl From<IpAddr> for Cidr {
    fn from(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        Self::around(ip, width(ip))
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::NotAnAddress {
            text: text.to_owned(),
        })?;
        let Some(prefix) = prefix else {
            return Ok(address.into());
        };
        let longest = width(address);
        let bits = length(prefix).filter(|bits| *bits <= longest);
        let bits = bits.ok_or_else(|| CidrError::InvalidPrefix {
            text: text.to_owned(),
            longest,
        })?;
        let network = Self::around(address, bits);
        if network.first != address {
            let text = text.to_owned();
            return Err(CidrError::BitsBeyondPrefix { text, network });
        }
        Ok(network.unmapped())
    }
}

/// How many bits such an address has.
fn width(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Digits only: what parses as a number may also have a sign.
fn length(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The first address of the network of so many bits.
fn truncate(ip: IpAddr, bits: u8) -> IpAddr {
    let rest = u32::from(width(ip).saturating_sub(bits));
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnAddress { text } => write!(
                f,
                "address range {text:?}: expected an address such as 192.0.2.1, or a network such as 192.0.2.0/24"
            ),
            Self::InvalidPrefix { text, longest } => write!(
                f,
                "address range {text:?}: expected a prefix of 0 to {longest} bits"
            ),
            Self::BitsBeyondPrefix { text, network } => write!(
                f,
                "address range {text:?}: the address has bits beyond the prefix, expected {network}, or the address alone"
            ),
        }
    }
}

impl StdError for CidrError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn contains(range: &str, ip: &str) -> bool {
        cidr(range).contains(ip.parse().unwrap())
    }

    #[test]
    fn a_range_contains_what_has_its_prefix() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::"),
            ("::/0", "ffff::", "0.0.0.0"),
            ("::/64", "::1", "127.0.0.1"),
        ] {
            assert!(contains(range, inside), "{range} {inside}");
            assert!(!contains(range, outside), "{range} {outside}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(!contains("::/0", "::ffff:10.1.2.3"));
        assert_eq!(cidr("::ffff:10.0.0.0/104"), cidr("10.0.0.0/8"));
        assert_eq!(cidr("::ffff:0.0.0.0/96"), cidr("0.0.0.0/0"));
        assert_eq!(cidr("::ffff:192.0.2.1"), cidr("192.0.2.1/32"));
        assert_eq!(cidr("::/96").to_string(), "::/96");
    }

    #[test]
    fn a_range_shows_itself_as_it_is_written() {
        for text in ["10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0", "::1/128"] {
            assert_eq!(cidr(text).to_string(), text);
            assert_eq!(format!("{:?}", cidr(text)), text);
        }
        assert_eq!(cidr("192.0.2.1").to_string(), "192.0.2.1/32");
    }

    #[test]
    fn what_is_no_range_is_refused_with_what_was_expected() {
        let refused = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        for text in [
            "",
            "/8",
            "10.0.0",
            "10.0.0.0.0/8",
            " 10.0.0.1",
            "010.0.0.0/8",
            "fe80::1%eth0",
            "host",
        ] {
            assert!(refused(text).contains("expected an address"), "{text}");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8"] {
            assert!(refused(text).contains("0 to 32 bits"), "{text}");
        }
        for text in ["::/129", "::/-1", "::/ 1", "::/256"] {
            assert!(refused(text).contains("0 to 128 bits"), "{text}");
        }
        assert_eq!(
            refused("10.0.0.1/8"),
            "address range \"10.0.0.1/8\": the address has bits beyond the prefix, expected 10.0.0.0/8, or the address alone"
        );
        assert!(refused("::ffff:0.0.0.0/95").contains("beyond the prefix"));
    }
}
