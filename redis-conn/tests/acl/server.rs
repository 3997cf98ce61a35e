//! A single server: a service on it, and the people and the replica that come to it.

use std::time::Duration;

use redis_conn::{
    Backend, Config, Event,
    raw::{Call, Class, Script},
};
use testkit::{RedisServer, until};

use crate::{
    files::{USERS, login},
    needed::{LONG, Row, each_is_needed},
    raw::ask,
    support::redis,
};

/// What is done on a server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    /// The service stores a value, reads and deletes it.
    Values,
    /// The service hears what it publishes.
    Bus,
    /// The service sees that the server loads its data still.
    Loading,
    /// The connections of the service have its name.
    Named,
    /// The service works in a database of its own.
    Database,
    /// The service sees that the server removes keys when it is full.
    Eviction,
    /// The service runs a script that the server does not know yet, and then again, by the clock of the server.
    Script,
    /// A command of the user is allowed.
    Asks(&'static str),
    /// A command of the user is forbidden.
    MayNot(&'static str),
    /// Another server copies from this one.
    Replica,
}

pub(crate) const TABLE: &[Row<Use>] = &[
    (
        "towerkeep",
        &[
            "on",
            ">change-me-towerkeep",
            "~tk:*",
            "+get",
            "+set",
            "+del",
        ],
        Use::Values,
    ),
    (
        "towerkeep",
        &["resetchannels", "&tk:b1:*", "+@pubsub"],
        Use::Bus,
    ),
    ("towerkeep", &["+ping"], Use::Loading),
    ("towerkeep", &["+client|setname"], Use::Named),
    ("towerkeep", &["+select"], Use::Database),
    ("towerkeep", &["+info"], Use::Eviction),
    ("towerkeep", &["+evalsha", "+eval", "+time"], Use::Script),
    (
        "towerkeep",
        &["-psubscribe"],
        Use::MayNot("PSUBSCRIBE tk:b1:*"),
    ),
    ("towerkeep", &["-punsubscribe"], Use::MayNot("PUNSUBSCRIBE")),
    ("towerkeep", &["-pubsub"], Use::MayNot("PUBSUB CHANNELS")),
    ("health", &["on", "nopass", "+ping"], Use::Asks("PING")),
    (
        "operator",
        &["on", ">change-me-operator", "+@admin"],
        Use::Asks("CONFIG GET maxmemory"),
    ),
    ("operator", &["+@connection"], Use::Asks("PING")),
    ("operator", &["+info"], Use::Asks("INFO")),
    ("operator", &["-module"], Use::MayNot("MODULE LIST")),
    ("operator", &["-debug"], Use::MayNot("DEBUG SLEEP 0")),
    ("operator", &["-monitor"], Use::MayNot("MONITOR")),
    (
        "replica",
        &["on", ">change-me-replica", "+psync", "+replconf"],
        Use::Replica,
    ),
];

#[tokio::test]
async fn each_entry_is_needed() {
    let servers = [RedisServer::builder()
        .arg("repl-diskless-sync-delay", "0")
        .arg("enable-debug-command", "yes")
        .arg("key-load-delay", "100000")
        .arg("rdbcompression", "no")
        .arg("loading-process-events-interval-bytes", "1024")
        .start()
        .await];
    let replica = RedisServer::start().await;
    for (user, rows) in by_user(TABLE) {
        each_is_needed(&servers, USERS, &rows, async |used, patience| {
            works(&servers[0], &replica, user, used, patience).await
        })
        .await;
    }
}

/// Runs of rows about the same user.
fn by_user(table: &[Row<Use>]) -> Vec<(&'static str, Vec<Row<Use>>)> {
    let runs = table.chunk_by(|one, other| one.0 == other.0);
    runs.map(|rows| (rows[0].0, rows.to_vec())).collect()
}

async fn works(
    server: &RedisServer,
    replica: &RedisServer,
    user: &str,
    used: Use,
    patience: Duration,
) -> Result<(), String> {
    match used {
        Use::Values => values(server, patience).await,
        Use::Bus => bus(&connected(server, patience).await?, patience).await,
        Use::Loading => waits_for_the_data(server, patience).await,
        Use::Named => {
            let _backend = connected(server, patience).await?;
            until(patience, "the name", async || {
                clients(server).await.contains(":lane ")
            })
            .await
        }
        Use::Database => database(server, patience).await,
        Use::Eviction => eviction(server, patience).await,
        Use::Script => script(server, patience).await,
        Use::Asks(command) => {
            let answer = ask(server.addr(), &login(USERS, user), command).await;
            answer.map(drop)
        }
        Use::MayNot(command) => match ask(server.addr(), &login(USERS, user), command).await {
            Ok(answer) => Err(format!("{command} is allowed: {answer}")),
            Err(_) => Ok(()),
        },
        Use::Replica => copies(server, replica, patience).await,
    }
}

async fn connected(server: &RedisServer, patience: Duration) -> Result<Backend, String> {
    ready(Config::from_url(&server.url()).unwrap(), patience).await
}

pub(crate) async fn ready(config: Config, patience: Duration) -> Result<Backend, String> {
    let backend = Backend::redis(config).unwrap();
    let ready = backend.ready(patience).await;
    ready.map_err(|error| error.to_string())?;
    Ok(backend)
}

async fn call(backend: &Backend, call: Call, patience: Duration) -> Result<(), String> {
    let answer = redis(backend).call(call, patience).await;
    answer.map(drop).map_err(|error| error.to_string())
}

async fn values(server: &RedisServer, patience: Duration) -> Result<(), String> {
    let backend = connected(server, patience).await?;
    let on_key = |command| Call::new(command, Class::Idempotent).key("tk:a");
    call(&backend, on_key("SET").arg("1"), patience).await?;
    call(&backend, on_key("GET"), patience).await?;
    call(&backend, on_key("DEL"), patience).await
}

pub(crate) async fn bus(backend: &Backend, patience: Duration) -> Result<(), String> {
    let heard = async {
        let mut news = backend.bus().subscribe("news").await?;
        backend.bus().publish("news", b"hello").await?;
        Ok(news.recv().await)
    };
    let heard: Result<_, redis_conn::Error> = tokio::time::timeout(patience, heard)
        .await
        .map_err(|_| "nothing was heard".to_owned())?;
    match heard.map_err(|error| error.to_string())? {
        Some(Event::Message(message)) if message.payload() == b"hello" => Ok(()),
        other => Err(format!("expected a message, found {other:?}")),
    }
}

async fn waits_for_the_data(server: &RedisServer, patience: Duration) -> Result<(), String> {
    let mut admin = server.connection().await;
    // 100 ms each.
    for n in 0..40 {
        let mut set = redis::cmd("SET");
        let set = set.arg(n).arg("x".repeat(1024));
        set.query_async::<()>(&mut admin).await.unwrap();
    }
    let mut reloader = server.patient_connection().await;
    let reload = tokio::spawn(async move {
        let mut reload = redis::cmd("DEBUG");
        reload.arg("RELOAD").query_async::<()>(&mut reloader).await
    });
    let mut is_loading = async || {
        let ping = redis::cmd("PING").query_async::<()>(&mut admin).await;
        ping.is_err_and(|error| error.code() == Some("LOADING"))
    };
    until(LONG, "the server to load", &mut is_loading).await?;
    let config = || Config::from_url(&server.url()).unwrap();
    let early = ready(config(), Duration::from_millis(500)).await;
    assert!(is_loading().await, "it has loaded too soon");
    reload.await.unwrap().unwrap();
    for n in 0..40 {
        let mut del = redis::cmd("DEL");
        del.arg(n).query_async::<()>(&mut admin).await.unwrap();
    }
    match early {
        Ok(_) => Err("ready before the server was".to_owned()),
        Err(_) => ready(config(), patience).await.map(drop),
    }
}

async fn clients(server: &RedisServer) -> String {
    let mut list = redis::cmd("CLIENT");
    let list = list.arg("LIST");
    list.query_async(&mut server.connection().await)
        .await
        .unwrap()
}

async fn database(server: &RedisServer, patience: Duration) -> Result<(), String> {
    let config = Config::from_url(&server.url()).unwrap().into_builder();
    let backend = ready(config.db(3).build().unwrap(), patience).await?;
    let set = Call::new("SET", Class::Idempotent).key("tk:a").arg("1");
    call(&backend, set, patience).await?;
    assert!(server.info("keyspace").await.contains_key("db3"));
    Ok(())
}

async fn eviction(server: &RedisServer, patience: Duration) -> Result<(), String> {
    let mut admin = server.connection().await;
    let mut set_policy = async |policy: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg(&["SET", "maxmemory-policy", policy]);
        set.query_async::<()>(&mut admin).await.unwrap();
    };
    set_policy("allkeys-lru").await;
    let backend = connected(server, patience).await?;
    let seen = until(patience, "the policy in the health", async || {
        let health = backend.health();
        health.checks[0].message.contains("allkeys-lru")
    })
    .await;
    set_policy("noeviction").await;
    seen
}

static CLOCK: Script = Script::new("return redis.call('TIME')[1]");

async fn script(server: &RedisServer, patience: Duration) -> Result<(), String> {
    let mut forget = redis::cmd("SCRIPT");
    forget.arg("FLUSH");
    let mut admin = server.connection().await;
    forget.query_async::<()>(&mut admin).await.unwrap();
    let backend = connected(server, patience).await?;
    let redis = redis(&backend);
    for _ in 0..2 {
        let script = redis.script(&CLOCK, Class::Idempotent, &["tk:a"]);
        let answer = script.run(patience).await;
        answer.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn copies(
    server: &RedisServer,
    replica: &RedisServer,
    patience: Duration,
) -> Result<(), String> {
    let password = login(USERS, "replica").replace("replica ", "");
    let mut admin = replica.connection().await;
    let port = server.port().to_string();
    for command in [
        ["CONFIG", "SET", "masteruser", "replica"].as_slice(),
        &["CONFIG", "SET", "masterauth", &password],
        &["REPLICAOF", "NO", "ONE"],
        &["REPLICAOF", "127.0.0.1", &port],
    ] {
        let mut asked = redis::cmd(command[0]);
        let asked = asked.arg(&command[1..]);
        asked.query_async::<()>(&mut admin).await.unwrap();
    }
    // It has told its port, and that it has all.
    let known = format!("port={},state=online", replica.port());
    until(patience, "the replica in step", async || {
        let seen = server.info("replication").await;
        seen.get("slave0").is_some_and(|seen| seen.contains(&known))
    })
    .await
}

/// Whoever has not logged in may do everything where the default user is on.
#[tokio::test]
async fn the_default_user_is_off() {
    let stays_on = USERS.replace("user default off\n", "");
    assert_ne!(stays_on, USERS);
    let open = RedisServer::builder().users(stays_on).start().await;
    assert!(ask(open.addr(), "", "SET a 1").await.is_ok());
    let server = RedisServer::start().await;
    assert!(ask(server.addr(), "", "SET a 1").await.is_err());
}
