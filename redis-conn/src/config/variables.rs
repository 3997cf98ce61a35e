//! The environment variables, in one table: what is read, what errors say, and what `variables.md` and the example in `deploy`
//! document.

use super::check;

/// A variable that this version reads. Where the name contains `{n}`, it is one for each number from 1.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(test),
    allow(
        dead_code,
        reason = "some of it is for the documentation, which a test renders"
    )
)]
pub(crate) struct Variable {
    pub(super) name: &'static str,
    pub(super) section: &'static str,
    pub(super) meaning: &'static str,
    pub(super) expected: &'static str,
    pub(super) value: Value,
    pub(super) secrecy: Secrecy,
    pub(super) scope: Scope,
}

/// A value that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(test),
    allow(
        dead_code,
        reason = "examples are for the documentation, which a test renders"
    )
)]
pub(super) enum Value {
    /// What holds while the variable is not set.
    Default(&'static str),
    /// Nothing holds while it is not set.
    Example(&'static str),
}

/// How much of a value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    Open,
    Url,
    Secret,
}

/// Where a variable has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Always,
    /// It names a single server, or the first node of a cluster.
    Single,
    Cluster,
    Sentinel,
    /// Any of the three.
    Server,
    Tls,
}

impl Variable {
    pub(super) fn default(self) -> Option<&'static str> {
        match self.value {
            Value::Default(value) => Some(value),
            Value::Example(_) => None,
        }
    }
}

macro_rules! table {
    ($($section:literal { $(
        $constant:ident = $name:literal, $scope:ident, $secrecy:ident:
        $meaning:literal; $expected:expr; $kind:ident($value:literal)
    )+ })+) => {
        $($(pub(crate) const $constant: Variable = Variable {
            name: $name,
            section: $section,
            meaning: $meaning,
            expected: $expected,
            value: Value::$kind($value),
            secrecy: Secrecy::$secrecy,
            scope: Scope::$scope,
        };)+)+

        /// In the order of the documentation.
        pub(super) const VARIABLES: &[Variable] = &[$($($constant),+),+];
    };
}

const URL: &str = "`redis://[[user]:password@]host[:port][/db]`, `rediss://` for TLS, or `unix:///path/to/socket`";
const FILE: &str = "the path of a file, which is created if absent";

table! {
    "A server" {
        REDIS_URL = "REDIS_URL", Single, Url:
            "a Redis or Valkey server, with credentials and database";
            URL; Example("redis://user:password@localhost:6379/0")
        REDIS_HOST = "REDIS_HOST", Single, Open:
            "the same in parts, instead of a URL";
            check::HOST; Example("localhost")
        REDIS_PORT = "REDIS_PORT", Single, Open:
            "port of `REDIS_HOST`";
            check::PORT; Default("6379")
        REDIS_USERNAME = "REDIS_USERNAME", Server, Open:
            "user at the servers";
            check::USERNAME; Example("app")
        REDIS_PASSWORD = "REDIS_PASSWORD", Server, Secret:
            "password at the servers";
            check::PASSWORD; Example("change-me")
        REDIS_PASSWORD_FILE = "REDIS_PASSWORD_FILE", Server, Open:
            "file with that password, read whenever a connection is made";
            check::PATH; Example("/run/secrets/redis")
        REDIS_DB = "REDIS_DB", Server, Open:
            "database; always 0 on a cluster";
            check::DB; Default("0")
    }
    "A cluster" {
        REDIS_CLUSTER = "REDIS_CLUSTER", Always, Open:
            "whether the servers are a cluster";
            check::BOOL; Default("false")
        REDIS_NODES = "REDIS_NODES", Cluster, Open:
            "nodes of the cluster; three or more are better than one";
            check::ENDPOINTS; Example("redis-node-1:7000,redis-node-2:7001,redis-node-3:7002")
        REDIS_NODE_HOST = "REDIS_NODE{n}_HOST", Cluster, Open:
            "the same in parts, numbered from 1 without a gap";
            check::HOST; Example("redis-node-1")
        REDIS_NODE_PORT = "REDIS_NODE{n}_PORT", Cluster, Open:
            "port of `REDIS_NODE{n}_HOST`";
            check::PORT; Default("6379")
        REDIS_CLUSTER_SCALE_READS = "REDIS_CLUSTER_SCALE_READS", Cluster, Open:
            "who answers the reads that a replica may answer";
            check::READS; Default("master")
        REDIS_CLUSTER_MAX_REDIRECTIONS = "REDIS_CLUSTER_MAX_REDIRECTIONS", Cluster, Open:
            "how many times a call follows the cluster to another node";
            check::REDIRECTIONS; Default("16")
        REDIS_CLUSTER_RETRY_DELAY_ON_CLUSTER_DOWN = "REDIS_CLUSTER_RETRY_DELAY_ON_CLUSTER_DOWN", Cluster, Open:
            "how long to wait before a call is sent again while the cluster is down";
            check::DELAY; Default("300ms")
        REDIS_CLUSTER_RETRY_DELAY_ON_FAILOVER = "REDIS_CLUSTER_RETRY_DELAY_ON_FAILOVER", Cluster, Open:
            "how long to wait before a call is sent again after its node failed";
            check::DELAY; Default("100ms")
        REDIS_CLUSTER_ENABLE_OFFLINE_QUEUE = "REDIS_CLUSTER_ENABLE_OFFLINE_QUEUE", Cluster, Open:
            "`REDIS_ENABLE_OFFLINE_QUEUE` for a cluster, instead of it";
            check::BOOL; Default("false")
    }
    "A server that sentinels watch" {
        REDIS_SENTINEL = "REDIS_SENTINEL", Always, Open:
            "whether sentinels are asked for the server";
            check::BOOL; Default("false")
        REDIS_SENTINEL_HOST = "REDIS_SENTINEL{n}_HOST", Sentinel, Open:
            "the sentinels, numbered from 1 without a gap; three or more are better than one";
            check::HOST; Example("sentinel-1")
        REDIS_SENTINEL_PORT = "REDIS_SENTINEL{n}_PORT", Sentinel, Open:
            "port of `REDIS_SENTINEL{n}_HOST`";
            check::PORT; Default("26379")
        REDIS_MASTER_NAME = "REDIS_MASTER_NAME", Sentinel, Open:
            "the name under which the sentinels know the server";
            check::MASTER; Example("mymaster")
        REDIS_SENTINEL_USERNAME = "REDIS_SENTINEL_USERNAME", Sentinel, Open:
            "user at the sentinels, who do not share those of the servers";
            check::USERNAME; Example("app")
        REDIS_SENTINEL_PASSWORD = "REDIS_SENTINEL_PASSWORD", Sentinel, Secret:
            "password at the sentinels";
            check::PASSWORD; Example("change-me")
        REDIS_SENTINEL_PASSWORD_FILE = "REDIS_SENTINEL_PASSWORD_FILE", Sentinel, Open:
            "file with that password, read whenever a connection is made";
            check::PATH; Example("/run/secrets/sentinel")
        REDIS_SENTINEL_RETRY_DELAY_ON_FAILOVER = "REDIS_SENTINEL_RETRY_DELAY_ON_FAILOVER", Sentinel, Open:
            "how long to wait before a call is sent again after the server failed or was demoted";
            check::DELAY; Default("100ms")
        REDIS_SENTINEL_RETRY_DELAY_ON_CLUSTER_DOWN = "REDIS_SENTINEL_RETRY_DELAY_ON_CLUSTER_DOWN", Sentinel, Open:
            "how long to wait before a call is sent again while there is no master";
            check::DELAY; Default("300ms")
    }
    "TLS" {
        REDIS_TLS = "REDIS_TLS", Server, Open:
            "whether connections are encrypted, those to sentinels included";
            check::BOOL; Default("false")
        REDIS_TLS_SERVERNAME = "REDIS_TLS_SERVERNAME", Tls, Open:
            "what the certificate must be for, where that is not the host";
            check::HOST; Example("redis.example.com")
        REDIS_TLS_REJECT_UNAUTHORIZED = "REDIS_TLS_REJECT_UNAUTHORIZED", Tls, Open:
            "whether a server without a valid certificate is refused";
            check::BOOL; Default("true")
        REDIS_TLS_CA_FILE = "REDIS_TLS_CA_FILE", Tls, Open:
            "authorities to trust instead of those of the system, in PEM";
            check::PATH; Example("/etc/redis/tls/ca.pem")
        REDIS_TLS_CERT_FILE = "REDIS_TLS_CERT_FILE", Tls, Open:
            "our certificate, in PEM, for a server that asks for one";
            check::PATH; Example("/etc/redis/tls/client.pem")
        REDIS_TLS_KEY_FILE = "REDIS_TLS_KEY_FILE", Tls, Open:
            "its key, in PEM";
            check::PATH; Example("/etc/redis/tls/client.key")
    }
    "Connections" {
        REDIS_REQUIRED = "REDIS_REQUIRED", Always, Open:
            "whether to fail unless a server is named and answers in time";
            check::BOOL; Default("false")
        REDIS_LAZY_CONNECT = "REDIS_LAZY_CONNECT", Server, Open:
            "whether the first call connects, rather than the start";
            check::BOOL; Default("false")
        REDIS_CONNECT_TIMEOUT = "REDIS_CONNECT_TIMEOUT", Server, Open:
            "how long a required server may take until it first answers";
            check::TIMEOUT; Default("10s")
        REDIS_COMMAND_TIMEOUT = "REDIS_COMMAND_TIMEOUT", Server, Open:
            "deadline of operations that have no tighter one, and how long an idempotent one waits before it is sent again";
            check::TIMEOUT; Default("5s")
        REDIS_ENABLE_READY_CHECK = "REDIS_ENABLE_READY_CHECK", Server, Open:
            "whether to wait until a server has loaded its data";
            check::BOOL; Default("true")
        REDIS_MAX_LOADING_TIMEOUT = "REDIS_MAX_LOADING_TIMEOUT", Server, Open:
            "how long that may take before it is an error";
            check::TIMEOUT; Default("10s")
        REDIS_MAX_RETRIES_PER_REQUEST = "REDIS_MAX_RETRIES_PER_REQUEST", Server, Open:
            "how many times a call is sent again that may be: it is idempotent, or was not executed";
            check::RETRIES; Default("3")
        REDIS_ENABLE_OFFLINE_QUEUE = "REDIS_ENABLE_OFFLINE_QUEUE", Server, Open:
            "whether calls wait, inside their deadline, while there is no connection";
            check::BOOL; Default("false")
        REDIS_FAMILY = "REDIS_FAMILY", Server, Open:
            "which addresses of a host name are used: IPv4, IPv6";
            check::FAMILY; Default("0")
        REDIS_KEEP_ALIVE = "REDIS_KEEP_ALIVE", Server, Open:
            "after which silence TCP asks whether the server is still there";
            check::KEEP_ALIVE; Default("15s")
        REDIS_NO_DELAY = "REDIS_NO_DELAY", Server, Open:
            "whether small packets are sent at once";
            check::BOOL; Default("true")
        REDIS_CONNECTION_NAME = "REDIS_CONNECTION_NAME", Server, Open:
            "name of the connections for people who look at the server; otherwise that of the process";
            check::INSTANCE; Example("shop")
    }
    "Instead of a server, and beside it" {
        SQLITE_PATH = "SQLITE_PATH", Always, Open:
            "one file that the processes of a host share";
            FILE; Example("/var/lib/shop/shared.db")
        NAMESPACE = "NAMESPACE", Always, Open:
            "prefix of all keys, channels and rows";
            check::NAMESPACE; Default("tk")
        INSTANCE_ID = "INSTANCE_ID", Always, Open:
            "name of this process for people";
            check::INSTANCE; Example("shop-1")
    }
}

/// It asks for what this version cannot do, and is refused, because to ignore it would be to do something else.
pub(super) const REDIS_PARTITIONS: &str = "REDIS_PARTITIONS";
pub(super) const NO_PARTITIONS: &str = "a single server, a cluster or sentinels: independent nodes are not available yet in this version";

#[cfg(test)]
mod tests;
