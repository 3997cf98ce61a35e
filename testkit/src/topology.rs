//! Redis in each of the ways that it is run.

use std::time::Duration;

use redis::RedisResult;

use crate::{RedisCluster, RedisSentinel, RedisServer};

/// Where no server fails, a busy machine must not look like a death.
const PATIENT: Duration = Duration::from_secs(15);

/// A way to run Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single,
    /// Three primaries, each with a replica.
    Cluster,
    /// A master, two replicas and three sentinels.
    Sentinel,
}

impl Topology {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Single, Self::Cluster, Self::Sentinel];

    /// Starts the servers, which replace none of their number for as long as a test runs, and waits
    /// until they serve.
    pub async fn start(self) -> Servers {
        self.start_allowing("").await
    }

    /// The same, with `words` added to what the user of services may do, see
    /// [`RedisServerBuilder::allow`](crate::server::RedisServerBuilder::allow).
    pub async fn start_allowing(self, words: &str) -> Servers {
        match self {
            Self::Single => Servers::Single(RedisServer::builder().allow(words).start().await),
            Self::Cluster => {
                let cluster = RedisCluster::builder().allow(words).start().await;
                // Only now: nodes that meet take their time from it.
                let patient = PATIENT.as_millis().to_string();
                for node in cluster.nodes() {
                    let set = ["SET", "cluster-node-timeout", &patient];
                    node.run_config(&set).await;
                }
                Servers::Cluster(cluster)
            }
            Self::Sentinel => {
                let group = RedisSentinel::builder().down_after(PATIENT);
                Servers::Sentinel(group.allow(words).start().await)
            }
        }
    }
}

/// The servers of one [`Topology`].
#[derive(Debug)]
#[allow(missing_docs, reason = "each is what it is called")]
pub enum Servers {
    Single(RedisServer),
    Cluster(RedisCluster),
    Sentinel(RedisSentinel),
}

impl Servers {
    /// The variables that a service in production would be given to reach them.
    pub fn env(&self) -> Vec<(String, String)> {
        let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        match self {
            Self::Single(server) => vec![of("REDIS_URL", &server.url())],
            Self::Cluster(cluster) => {
                let addrs: Vec<_> = cluster.addrs().iter().map(ToString::to_string).collect();
                let mut env = vec![of("REDIS_CLUSTER", "true")];
                env.push(of("REDIS_NODES", &addrs.join(",")));
                env.extend(self.login_env());
                env
            }
            Self::Sentinel(group) => {
                let mut env = vec![of("REDIS_SENTINEL", "true")];
                env.push(of("REDIS_MASTER_NAME", group.master_name()));
                for (addr, number) in group.sentinel_addrs().iter().zip(1..) {
                    let name = |part| format!("REDIS_SENTINEL{number}_{part}");
                    env.push((name("HOST"), addr.ip().to_string()));
                    env.push((name("PORT"), addr.port().to_string()));
                }
                env.extend(self.login_env());
                env
            }
        }
    }

    fn login_env(&self) -> impl Iterator<Item = (String, String)> {
        let servers = self.login().map(|login| login.env("REDIS"));
        let sentinels = self.sentinel_login();
        let sentinels = sentinels.map(|login| login.env("REDIS_SENTINEL"));
        servers.into_iter().chain(sentinels).flatten()
    }

    /// What a service logs in with at the servers; nothing if they do not care.
    pub fn login(&self) -> Option<Login> {
        Login::read(&self.all()[0].url())
    }

    /// The same at the sentinels, who have users of their own.
    pub fn sentinel_login(&self) -> Option<Login> {
        match self {
            Self::Sentinel(group) => Login::read(&group.sentinels()[0].url()),
            Self::Single(_) | Self::Cluster(_) => None,
        }
    }

    /// All servers that have data.
    fn all(&self) -> &[RedisServer] {
        match self {
            Self::Single(server) => std::slice::from_ref(server),
            Self::Cluster(cluster) => cluster.nodes(),
            Self::Sentinel(group) => group.servers(),
        }
    }

    /// The servers that copy from no other one.
    pub async fn primaries(&self) -> Vec<&RedisServer> {
        let mut primaries = Vec::new();
        for server in self.all() {
            if server.info("replication").await["role"] == "master" {
                primaries.push(server);
            }
        }
        primaries
    }

    /// Forgets all keys and scripts.
    pub async fn clear(&self) {
        for primary in self.primaries().await {
            for words in [["FLUSHALL", "SYNC"], ["SCRIPT", "FLUSH"]] {
                let done: RedisResult<()> = primary.command(&words).await;
                done.expect("a primary that runs forgets");
            }
        }
    }
}

/// What a service logs in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Nobody for the default user.
    pub user: Option<String>,
    /// The password.
    pub password: String,
}

impl Login {
    /// What `url` says.
    ///
    /// # Panics
    ///
    /// If a character of it is encoded.
    fn read(url: &str) -> Option<Self> {
        let (_, rest) = url.split_once("://")?;
        let (login, _) = rest.rsplit_once('@')?;
        assert!(!login.contains('%'), "encoded characters are not read");
        let (user, password) = login.split_once(':')?;
        Some(Self {
            user: (!user.is_empty()).then(|| user.to_owned()),
            password: password.to_owned(),
        })
    }

    fn env(self, prefix: &str) -> Vec<(String, String)> {
        let user = self.user.map(|user| (format!("{prefix}_USERNAME"), user));
        let password = (format!("{prefix}_PASSWORD"), self.password);
        user.into_iter().chain([password]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_read_from_a_url() {
        let login = |user: Option<&str>| {
            let (user, password) = (user.map(str::to_owned), "b-c".to_owned());
            Some(Login { user, password })
        };
        assert_eq!(Login::read("redis://a:b-c@127.0.0.1:1"), login(Some("a")));
        assert_eq!(Login::read("redis://:b-c@127.0.0.1:1"), login(None));
        assert_eq!(Login::read("redis://127.0.0.1:1"), None);
    }
}
