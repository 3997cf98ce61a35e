//! Where a node says that a key is.

use crate::{config::Endpoint, redis::fault::Fault};

/// The answer `MOVED slot host:port` or `ASK slot host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::redis) struct Redirect {
    /// Empty if it is the host of the node that answered.
    host: String,
    port: u16,
    /// Only this command goes there: the slot is still on its way.
    pub(super) asking: bool,
}

impl Redirect {
    pub(in crate::redis) fn parse(fault: Fault, detail: Option<&str>) -> Option<Self> {
        let (_, address) = detail?.split_once(' ')?;
        // An IPv6 address has colons too.
        let (host, port) = address.trim().rsplit_once(':')?;
        Some(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: port.parse().ok().filter(|port| *port != 0)?,
            asking: fault == Fault::Ask,
        })
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::tcp(&self.host, self.port)
    }

    /// Fills in what the node at `answered` left out.
    pub(super) fn complete(&mut self, answered: &Endpoint) {
        if let Endpoint::Tcp { host, .. } = answered
            && matches!(self.host.as_str(), "" | "?")
        {
            self.host.clone_from(host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (detail, expected) in [
            (Some("3999 127.0.0.1:6381"), Some(("127.0.0.1", 6381))),
            (Some("3999 node.internal:1"), Some(("node.internal", 1))),
            (Some("3999 ::1:7000"), Some(("::1", 7000))),
            (Some("3999 :7000"), Some(("", 7000))),
            (Some("3999 host:0"), None),
            (Some("3999 host:70000"), None),
            (Some("3999"), None),
            (None, None),
        ] {
            let found = Redirect::parse(Fault::Moved, detail);
            let found = found.as_ref().map(|to| (to.host.as_str(), to.port));
            assert_eq!(found, expected, "{detail:?}");
        }
        assert!(Redirect::parse(Fault::Ask, Some("1 a:1")).unwrap().asking);
    }

    #[test]
    fn a_missing_host_is_that_of_the_node_that_answered() {
        let mut redirect = Redirect::parse(Fault::Moved, Some("1 :7001")).unwrap();
        redirect.complete(&Endpoint::tcp("10.0.0.1", 7000));
        assert_eq!(redirect.endpoint(), Endpoint::tcp("10.0.0.1", 7001));
    }
}
