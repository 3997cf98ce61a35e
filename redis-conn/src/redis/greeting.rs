//! Who answers: what a server says of itself when it is greeted.
//!
//! `HELLO` is the one command that every user may send, so this works with the least of permissions.

use std::fmt;

use ::redis::Value;

use super::fault::Failure;

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) brand: Brand,
    pub(super) version: Version,
    pub(super) mode: Mode,
    pub(super) role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brand {
    Redis,
    Valkey,
}

/// Major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u16, pub(super) u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Standalone,
    Cluster,
    Sentinel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    Replica,
}

impl Brand {
    /// Nothing older is tested.
    const fn floor(self) -> Version {
        match self {
            Self::Redis => Version(6, 2),
            Self::Valkey => Version(7, 2),
        }
    }
}

impl Greeting {
    pub(super) fn read(answer: &Value) -> Result<Self, Failure> {
        let Value::Map(fields) = answer else {
            return Err(unreadable());
        };
        let field = |wanted: &str| {
            fields
                .iter()
                .find_map(|(name, value)| (text(name)? == wanted).then(|| text(value)).flatten())
        };
        let brand = match field("server") {
            Some("valkey") => Brand::Valkey,
            _ => Brand::Redis,
        };
        let mode = match field("mode") {
            Some("cluster") => Mode::Cluster,
            Some("sentinel") => Mode::Sentinel,
            _ => Mode::Standalone,
        };
        let role = match field("role") {
            Some("replica" | "slave") => Role::Replica,
            _ => Role::Primary,
        };
        Ok(Self {
            brand,
            version: field("version")
                .and_then(Version::parse)
                .ok_or_else(unreadable)?,
            mode,
            role,
        })
    }

    /// Refuses a server that is too old, or of another kind than the configuration says.
    pub(super) fn check(&self, wanted: Mode) -> Result<(), Failure> {
        let (brand, version, floor) = (self.brand, self.version, self.brand.floor());
        // A sentinel has no data: how old it is does not matter.
        if version < floor && wanted != Mode::Sentinel {
            return Err(Failure::config(format!(
                "the server is {brand} {version}, expected {} {} or newer, or {} {}",
                Brand::Redis,
                Brand::Redis.floor(),
                Brand::Valkey,
                Brand::Valkey.floor(),
            )));
        }
        match (wanted, self.mode) {
            (wanted, found) if wanted == found => Ok(()),
            (wanted, found) => Err(Failure::config(format!(
                "the server is {found}, expected {wanted}: the topology of the configuration is another one"
            ))),
        }
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(str::parse);
        Some(Self(parts.next()?.ok()?, parts.next()?.ok()?))
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn unreadable() -> Failure {
    Failure::config("the server does not say who it is, expected an answer to HELLO as of Redis 6")
}

impl fmt::Display for Brand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standalone => "a single server",
            Self::Cluster => "a node of a cluster",
            Self::Sentinel => "a sentinel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(fields: &[(&str, &str)]) -> Value {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let fields = fields.iter().map(|(name, value)| (bulk(name), bulk(value)));
        Value::Map(fields.collect())
    }

    fn greeting(server: &str, version: &str) -> Greeting {
        let fields = [
            ("server", server),
            ("version", version),
            ("mode", "standalone"),
            ("role", "master"),
        ];
        Greeting::read(&hello(&fields)).unwrap()
    }

    #[test]
    fn the_floor_is_another_one_for_each_brand() {
        for (server, version, serves) in [
            ("redis", "6.0.16", false),
            ("redis", "6.2.0", true),
            ("redis", "7.0.15", true),
            ("redis", "10.1.0", true),
            ("valkey", "7.1.0", false),
            ("valkey", "7.2.0", true),
            ("valkey", "8.0.1", true),
        ] {
            let checked = greeting(server, version).check(Mode::Standalone);
            assert_eq!(checked.is_ok(), serves, "{server} {version}");
            if let Err(failure) = checked {
                let text = failure.error.to_string();
                assert!(text.contains("6.2") && text.contains("7.2"), "{text}");
            }
        }
    }

    #[test]
    fn a_server_of_another_kind_is_refused() {
        let single = greeting("redis", "7.0.15");
        assert!(single.check(Mode::Cluster).is_err());
        assert!(single.check(Mode::Sentinel).is_err());
        let failure = Greeting {
            mode: Mode::Cluster,
            ..single
        }
        .check(Mode::Standalone)
        .unwrap_err();
        assert!(failure.error.to_string().contains("a node of a cluster"));
    }

    #[test]
    fn an_answer_without_a_version_is_refused() {
        assert!(Greeting::read(&hello(&[("server", "redis")])).is_err());
        assert!(Greeting::read(&hello(&[("version", "new")])).is_err());
        assert!(Greeting::read(&Value::Okay).is_err());
    }
}
