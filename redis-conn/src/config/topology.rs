//! Which servers there are, and which of them answer reads.

use std::{fmt, path::PathBuf};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// A host name or an address; an IPv6 address is written without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// The port on which servers listen unless told otherwise.
    pub const DEFAULT_PORT: u16 = 6379;

    /// The port on which sentinels listen unless told otherwise.
    pub const DEFAULT_SENTINEL_PORT: u16 = 26379;

    /// A TCP port.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        let host = host.into();
        Self::Tcp { host, port }
    }

    /// A Unix domain socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::Unix(path.into())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How the servers form one backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Topology {
    /// One server.
    Single(Endpoint),
    /// A cluster, which spreads the keys over its nodes.
    Cluster {
        /// The nodes that are asked for the others; one that answers is enough.
        nodes: Vec<Endpoint>,
    },
    /// A master and its replicas, watched by sentinels.
    Sentinel {
        /// The sentinels that are asked for the master; one that answers is enough.
        sentinels: Vec<Endpoint>,
        /// The name under which the sentinels know the master.
        master: String,
    },
}

impl Topology {
    /// Everything that is dialled before any server was asked for more.
    #[cfg(feature = "redis")]
    pub(crate) fn seeds(&self) -> &[Endpoint] {
        match self {
            Self::Single(endpoint) => std::slice::from_ref(endpoint),
            Self::Cluster { nodes } => nodes,
            Self::Sentinel { sentinels, .. } => sentinels,
        }
    }

    /// The name in [`Backend::kind`](crate::Backend::kind).
    #[cfg(feature = "redis")]
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Single(_) => "redis-single",
            Self::Cluster { .. } => "redis-cluster",
            Self::Sentinel { .. } => "redis-sentinel",
        }
    }
}

/// Which servers answer the reads that may be answered by a replica. Limits, sessions and locks always go to the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScaleReads {
    /// The primary.
    #[default]
    Primary,
    /// A replica if there is one.
    Replica,
    /// The primary and its replicas in turn.
    Any,
}

/// Which addresses of a host name are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// All of them.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}
