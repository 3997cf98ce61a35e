//! Sentinels: what they need on the servers that they watch and of each other, and what a service and
//! people need of them.

use std::{collections::BTreeMap, time::Duration};

use redis_conn::{Backend, Config, Endpoint};
use testkit::{PASSWORD, RedisSentinel, RedisServer, USER, until};

use crate::{
    files::{SENTINEL_USERS, USERS, login},
    needed::{LONG, Row, each_is_needed, refusals},
    raw::ask,
    server::ready,
};

/// What is done with servers that sentinels watch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    /// The sentinels, who have forgotten everything, find the servers and each other.
    Find,
    /// The connections of the sentinels to the servers have names.
    NamedOnServers,
    /// The sentinels replace the master in one transaction.
    Failover,
    /// The sentinels end a script that blocks a master.
    Script,
    /// The connections of the sentinels to each other have names.
    NamedOnSentinels,
    /// A sentinel tells the other one of a new master without the help of the servers.
    Tell,
    /// The sentinels agree that a master is down, and replace it.
    Vote,
    /// The service finds the master, and does not fill the log of refusals, which people read, on its way.
    Master,
    /// The service hears of another master at once.
    Announced,
    /// The service learns of a sentinel that it was not told of.
    Learn,
    /// The connections of the service to the sentinels have its name.
    Named,
    /// A command of the user is allowed.
    Asks(&'static str, &'static str),
}

/// On the servers.
pub(crate) const SERVERS: &[Row<Use>] = &[
    (
        "sentinel",
        &[
            "on",
            ">change-me-sentinel",
            "resetchannels",
            "&__sentinel__:hello",
            "+ping",
            "+info",
            "+subscribe",
            "+publish",
        ],
        Use::Find,
    ),
    ("sentinel", &["+client|setname"], Use::NamedOnServers),
    (
        "sentinel",
        &[
            "+slaveof",
            "+multi",
            "+exec",
            "+config|rewrite",
            "+client|kill",
        ],
        Use::Failover,
    ),
];

/// On the only server, which nobody can replace.
pub(crate) const ONE_SERVER: &[Row<Use>] = &[("sentinel", &["+script|kill"], Use::Script)];

/// On the sentinels.
pub(crate) const SENTINELS: &[Row<Use>] = &[
    (
        "health",
        &["on", "nopass", "+ping"],
        Use::Asks("health", "PING"),
    ),
    (
        "health",
        &["+sentinel|ckquorum"],
        Use::Asks("health", "SENTINEL CKQUORUM main"),
    ),
    (
        "towerkeep",
        &[
            "on",
            ">change-me-towerkeep",
            "+sentinel|get-master-addr-by-name",
            "+sentinel|master",
        ],
        Use::Master,
    ),
    (
        "towerkeep",
        &["resetchannels", "&+switch-master", "+subscribe"],
        Use::Announced,
    ),
    ("towerkeep", &["+sentinel|sentinels"], Use::Learn),
    ("towerkeep", &["+client|setname"], Use::Named),
    (
        "operator",
        &["on", ">change-me-operator", "+@all"],
        Use::Asks("operator", "SENTINEL MASTERS"),
    ),
    (
        "operator",
        &["&*"],
        Use::Asks("operator", "SUBSCRIBE +sdown"),
    ),
    (
        "sentinel",
        &["on", ">change-me-sentinel", "resetchannels", "+ping"],
        Use::Find,
    ),
    ("sentinel", &["&__sentinel__:hello", "+publish"], Use::Tell),
    ("sentinel", &["+client|setname"], Use::NamedOnSentinels),
    ("sentinel", &["+sentinel|is-master-down-by-addr"], Use::Vote),
];

async fn group() -> RedisSentinel {
    RedisSentinel::builder()
        .replicas(1)
        .sentinels(2)
        .start()
        .await
}

#[tokio::test]
async fn each_entry_is_needed_on_servers_that_sentinels_watch() {
    let group = group().await;
    each_is_needed(group.servers(), USERS, SERVERS, async |used, patience| {
        works(&group, used, patience).await
    })
    .await;
}

#[tokio::test]
async fn each_entry_is_needed_on_a_server_that_a_script_blocks() {
    let group = RedisSentinel::builder()
        .replicas(0)
        .sentinels(1)
        .arg("lua-time-limit", "100")
        .start()
        .await;
    each_is_needed(
        group.servers(),
        USERS,
        ONE_SERVER,
        async |used, patience| works(&group, used, patience).await,
    )
    .await;
}

#[tokio::test]
async fn each_entry_is_needed_on_sentinels() {
    let group = group().await;
    each_is_needed(
        group.sentinels(),
        SENTINEL_USERS,
        SENTINELS,
        async |used, patience| works(&group, used, patience).await,
    )
    .await;
}

/// Whoever has not logged in may do everything where the default user is on.
#[tokio::test]
async fn the_default_user_of_a_sentinel_is_off() {
    let stays_on = SENTINEL_USERS.replace("user default off\n", "");
    assert_ne!(stays_on, SENTINEL_USERS);
    let one = || RedisSentinel::builder().replicas(0).sentinels(1);
    let (open, closed) = tokio::join!(one().sentinel_users(stays_on).start(), one().start());
    let ask_one =
        async |group: &RedisSentinel| ask(group.sentinel_addrs()[0], "", "SENTINEL MASTERS").await;
    assert!(ask_one(&open).await.is_ok());
    assert!(ask_one(&closed).await.is_err());
}

async fn works(group: &RedisSentinel, used: Use, patience: Duration) -> Result<(), String> {
    match used {
        Use::Find => find(group, patience).await,
        Use::NamedOnServers => {
            reconnect(group.servers()).await;
            named(&group.servers()[0], "sentinel", "sentinel-", patience).await
        }
        Use::Failover => failover(group, patience).await,
        Use::Script => {
            // It is asked to end scripts once each time that it is found down.
            until(LONG, "the server to be up", async || {
                let words = ["SENTINEL", "MASTER", "main"];
                is_well(&run(&group.sentinels()[0], &words).await, "master")
            })
            .await?;
            script(&group.servers()[0], patience).await
        }
        Use::NamedOnSentinels => {
            reconnect(group.sentinels()).await;
            named(&group.sentinels()[0], "sentinel", "sentinel-", patience).await
        }
        Use::Tell => tell(group, patience).await,
        Use::Vote => vote(group, patience).await,
        Use::Master => {
            connected(group, patience).await?;
            let refused = refusals(group.sentinels(), USER).await;
            refused
                .is_empty()
                .then_some(())
                .ok_or_else(|| refused.join(", "))
        }
        Use::Announced => {
            let _backend = connected(group, patience).await?;
            until(patience, "a subscription", async || {
                let clients = clients(&group.sentinels()[0], USER).await;
                clients.iter().any(|client| client.contains(" sub=1 "))
            })
            .await
        }
        Use::Learn => {
            let _backend = connected(group, patience).await?;
            until(patience, "the other sentinel", async || {
                !clients(&group.sentinels()[1], USER).await.is_empty()
            })
            .await
        }
        Use::Named => {
            let _backend = connected(group, patience).await?;
            named(&group.sentinels()[0], USER, ":survey ", patience).await
        }
        Use::Asks(user, command) => {
            let addr = group.sentinel_addrs()[0];
            let answer = ask(addr, &login(SENTINEL_USERS, user), command).await;
            answer.map(drop)
        }
    }
}

/// A service that was told of the first sentinel only.
async fn connected(group: &RedisSentinel, patience: Duration) -> Result<Backend, String> {
    let addr = group.sentinel_addrs()[0];
    let one = Endpoint::tcp(addr.ip().to_string(), addr.port());
    let config = Config::sentinel([one], group.master_name());
    let config = config.username(USER).password(PASSWORD);
    let config = config.sentinel_username(USER).sentinel_password(PASSWORD);
    ready(config.build().unwrap(), patience).await
}

async fn run<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    let mut admin = server.connection().await;
    let answer = command.arg(&words[1..]).query_async(&mut admin).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// The lines of `CLIENT LIST` about a user.
async fn clients(server: &RedisServer, user: &str) -> Vec<String> {
    let list: String = run(server, &["CLIENT", "LIST"]).await;
    let user = format!(" user={user} ");
    let own = list.lines().filter(|line| line.contains(&user));
    own.map(str::to_owned).collect()
}

async fn named(
    server: &RedisServer,
    user: &str,
    name: &str,
    patience: Duration,
) -> Result<(), String> {
    until(patience, "the name", async || {
        let clients = clients(server, user).await;
        clients.iter().any(|client| client.contains(name))
    })
    .await
}

/// Ends the connections of the sentinels; they make new ones.
async fn reconnect(servers: &[RedisServer]) {
    for server in servers {
        let _: u64 = run(server, &["CLIENT", "KILL", "USER", "sentinel"]).await;
    }
}

type Fields = BTreeMap<String, String>;

/// A server that is up and has answered a `PING`.
fn is_well(fields: &Fields, flags: &str) -> bool {
    fields["flags"] == flags && fields["last-ping-sent"] == "0"
}

async fn find(group: &RedisSentinel, patience: Duration) -> Result<(), String> {
    reconnect(group.servers()).await;
    for sentinel in group.sentinels() {
        let _: u64 = run(sentinel, &["SENTINEL", "RESET", "main"]).await;
    }
    for sentinel in group.sentinels() {
        until(
            patience,
            "the master, its replica, and the other sentinel",
            async || {
                let master: Fields = run(sentinel, &["SENTINEL", "MASTER", "main"]).await;
                let others: Vec<Fields> = run(sentinel, &["SENTINEL", "SENTINELS", "main"]).await;
                let knows_all = master["num-slaves"] == "1" && others.len() == 1;
                let all_well = is_well(&master, "master")
                    && others.iter().all(|other| is_well(other, "sentinel"));
                knows_all && all_well
            },
        )
        .await?;
    }
    Ok(())
}

/// How often `EXEC` worked and failed on the servers.
async fn transactions(group: &RedisSentinel) -> (u64, u64) {
    let (mut worked, mut failed) = (0, 0);
    for server in group.servers() {
        let stats = server.info("commandstats").await;
        let fields = stats.get("cmdstat_exec").map_or("", String::as_str);
        let field = |name: &str| {
            let mut fields = fields.split(',').filter_map(|field| field.split_once('='));
            let found = fields.find(|(found, _)| *found == name);
            found.map_or(0, |(_, value)| value.parse::<u64>().unwrap())
        };
        let failures = field("failed_calls") + field("rejected_calls");
        worked += field("calls") - field("failed_calls");
        failed += failures;
    }
    (worked, failed)
}

async fn failover(group: &RedisSentinel, patience: Duration) -> Result<(), String> {
    // A transaction that could not end blocks its connection.
    reconnect(group.servers()).await;
    well(group).await;
    let old = group.master().await;
    for server in group.servers() {
        server.reset_stats().await;
    }
    begin_failover(&group.sentinels()[0]).await?;
    names_another(&group.sentinels()[0], group.server(old), patience).await?;
    let outcome = match transactions(group).await {
        (1.., 0) => Ok(()),
        other => Err(format!("transactions that worked and failed: {other:?}")),
    };
    if outcome.is_ok() {
        // The old one must follow as well, before the next entry is taken away.
        well(group).await;
    }
    outcome
}

async fn well(group: &RedisSentinel) {
    tokio::time::timeout(LONG, group.wait_ok()).await.unwrap();
}

/// Refused while the sentinel remembers the last one.
async fn begin_failover(sentinel: &RedisServer) -> Result<(), String> {
    let mut begin = redis::cmd("SENTINEL");
    let begin = begin.arg("FAILOVER").arg("main");
    let mut connection = sentinel.connection().await;
    until(LONG, "a failover to begin", async || {
        begin.query_async::<()>(&mut connection).await.is_ok()
    })
    .await
}

async fn names_another(
    sentinel: &RedisServer,
    old: &RedisServer,
    patience: Duration,
) -> Result<(), String> {
    until(patience, "another master", async || {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"];
        let named: Vec<String> = run(sentinel, &words).await;
        named[1] != old.port().to_string()
    })
    .await
}

/// The servers pass nothing on meanwhile.
async fn tell(group: &RedisSentinel, patience: Duration) -> Result<(), String> {
    well(group).await;
    let passing_on = async |rule: &str| {
        for server in group.servers() {
            let _: () = run(server, &["ACL", "SETUSER", "sentinel", rule]).await;
        }
    };
    passing_on("-publish").await;
    let old = group.master().await;
    let [first, second] = group.sentinels() else {
        panic!("expected two sentinels")
    };
    begin_failover(first).await?;
    names_another(first, group.server(old), LONG).await?;
    let told = names_another(second, group.server(old), patience).await;
    passing_on("+publish").await;
    well(group).await;
    told
}

async fn script(server: &RedisServer, patience: Duration) -> Result<(), String> {
    let mut connection = server.patient_connection().await;
    let running = tokio::spawn(async move {
        let mut eval = redis::cmd("EVAL");
        eval.arg("while true do end").arg(0);
        eval.query_async::<()>(&mut connection).await
    });
    // The sentinel first finds that it is down.
    let ended = until(patience * 3, "the end of the script", async || {
        running.is_finished()
    })
    .await;
    if ended.is_err() {
        let _: () = run(server, &["SCRIPT", "KILL"]).await;
    }
    running.await.unwrap().unwrap_err();
    ended
}

async fn vote(group: &RedisSentinel, patience: Duration) -> Result<(), String> {
    well(group).await;
    let old = group.master().await;
    group.freeze(old);
    let sentinel = &group.sentinels()[0];
    let replaced = names_another(sentinel, group.server(old), patience).await;
    group.thaw(old);
    well(group).await;
    replaced
}
