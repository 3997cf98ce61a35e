//! Whom a list names.

use std::{collections::HashSet, fmt};

use http::request::Parts;
use redis_conn::Subject;

use crate::key::{Cidr, ClientIp};

/// Callers, by the ranges of their addresses and by their subjects: whom a layer [always admits](crate::RateLimitLayer::allow) or
/// [never](crate::RateLimitLayer::deny).
///
/// ```
/// use tower_ratelimit_redis::{Callers, key::{Cidr, ClientIp}};
///
/// let balancers: Cidr = "10.1.0.0/16".parse()?;
/// let office: Cidr = "192.0.2.0/24".parse()?;
/// let ours = Callers::new()
///     .within(ClientIp::behind([balancers]), [office])
///     .subjects(["header:x-api-key:monitoring"]);
/// # let _ = ours;
/// # Ok::<(), tower_ratelimit_redis::key::CidrError>(())
/// ```
#[derive(Clone, Default)]
pub struct Callers {
    ranges: Vec<(ClientIp, Vec<Cidr>)>,
    subjects: HashSet<Subject>,
}

impl Callers {
    /// Nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// And whoever has an address in one of these ranges, as `client` finds it: [`ClientIp::hops(0)`](ClientIp::hops) is the peer.
    ///
    /// Behind a proxy the peer is the proxy, and a range with its address in it names everybody. A request whose address the
    /// server does not tell is in no range.
    #[must_use]
    pub fn within(mut self, client: ClientIp, ranges: impl IntoIterator<Item = Cidr>) -> Self {
        self.ranges.push((client, ranges.into_iter().collect()));
        self
    }

    /// And whoever has one of these [subjects](crate::key#subjects).
    #[must_use]
    pub fn subjects<S: Into<Subject>>(mut self, subjects: impl IntoIterator<Item = S>) -> Self {
        self.subjects.extend(subjects.into_iter().map(Into::into));
        self
    }

    pub(crate) fn have_address_of(&self, parts: &Parts) -> bool {
        let within = |(client, ranges): &(ClientIp, Vec<Cidr>)| {
            let ip = client.address(parts);
            ip.is_some_and(|ip| Cidr::any_contains(ranges, ip))
        };
        self.ranges.iter().any(within)
    }

    pub(crate) fn have_subject(&self, subject: &Subject) -> bool {
        // Most lists are empty, and to hash is to read the whole subject.
        self.name_subjects() && self.subjects.contains(subject)
    }

    pub(crate) fn name_subjects(&self) -> bool {
        !self.subjects.is_empty()
    }
}

impl fmt::Debug for Callers {
    /// Without the subjects, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers")
            .field("ranges", &self.ranges)
            .field("subjects", &self.subjects.len())
            .finish()
    }
}
