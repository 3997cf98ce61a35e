//! The Redis backend against a real server, and a proxy that breaks the way to it.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{sync::Arc, time::Duration};

use redis_conn::{
    Backend, Config, Error, ErrorKind, State,
    raw::{Call, Class, Dedicated, Reply, Script},
};
use support::{LONG, get, incr, redis, until};
use testkit::{AfterDrop, Fault, FaultProxy, Matching, PASSWORD, RedisServer, USER};

const SHORT: Duration = Duration::from_millis(100);

fn config(url: &str) -> Config {
    Config::from_url(url).unwrap()
}

async fn connected(url: &str) -> Backend {
    let backend = Backend::redis(config(url)).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

/// The command is executed, and nothing more comes back on its connection.
fn swallowed(command: &str) -> Fault {
    Fault::DropReply {
        matching: Matching::Command(command.to_owned()),
        after: AfterDrop::Stall,
    }
}

fn text(reply: Reply) -> String {
    String::from_utf8(reply.bytes().unwrap().expect("a value")).unwrap()
}

async fn stored(server: &RedisServer, key: &str) -> Option<u64> {
    redis::cmd("GET")
        .arg(key)
        .query_async(&mut server.connection().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_command_is_answered_and_a_refusal_names_its_prefix() {
    let server = RedisServer::builder().allow("+incr +lpush").start().await;
    let backend = connected(&server.url()).await;
    let redis = redis(&backend);

    assert_eq!(
        redis.call(incr("tk:n"), LONG).await.unwrap().int().unwrap(),
        1
    );
    assert_eq!(text(redis.call(get("tk:n"), LONG).await.unwrap()), "1");
    assert!(redis.call(get("tk:absent"), LONG).await.unwrap().is_nil());

    let refused = redis
        .call(
            Call::new("LPUSH", Class::AtMostOnce)
                .arg("tk:n")
                .arg("secret"),
            LONG,
        )
        .await
        .unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Server("WRONGTYPE".into()));
    assert!(!format!("{refused} {refused:?}").contains("secret"));
}

#[tokio::test]
async fn a_backend_can_be_built_before_its_server_is_there() {
    let server = RedisServer::builder().allow("+incr").start().await;
    server.kill();
    let backend = Backend::redis(config(&server.url())).unwrap();

    let away = backend.ready(SHORT).await.unwrap_err();
    assert_eq!(*away.kind(), ErrorKind::Unavailable);
    assert!(backend.watch_state().wait_for(State::Reconnecting).await);
    let failed = redis(&backend).call(get("tk:n"), LONG).await.unwrap_err();
    assert_eq!(
        *failed.kind(),
        ErrorKind::Unavailable,
        "a lane whose last attempt failed answers at once"
    );
    assert!(
        std::error::Error::source(&failed).is_some(),
        "the cause is kept"
    );

    server.restart().await;
    backend.ready(LONG).await.unwrap();
    redis(&backend).call(incr("tk:n"), LONG).await.unwrap();
}

#[tokio::test]
async fn a_lost_reply_of_an_at_most_once_command_is_ambiguous_and_it_ran_once() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connected(&proxy.url()).await;

    proxy.set(swallowed("INCR"));
    let late = redis(&backend)
        .call(incr("tk:late"), SHORT)
        .await
        .unwrap_err();
    assert!(late.is_ambiguous(), "{late}");
    assert_eq!(stored(&server, "tk:late").await, Some(1));
    proxy.set(Fault::Reset);
    redis(&backend).call(get("tk:late"), LONG).await.unwrap();

    proxy.set(Fault::close_instead_of_reply("INCR"));
    let cut = redis(&backend)
        .call(incr("tk:cut"), LONG)
        .await
        .unwrap_err();
    assert!(cut.is_ambiguous(), "{cut}");
    proxy.set(Fault::Pass);
    backend.ready(LONG).await.unwrap();
    redis(&backend).call(get("tk:cut"), LONG).await.unwrap();
    assert_eq!(
        stored(&server, "tk:cut").await,
        Some(1),
        "nothing was sent again after the connection came back"
    );
}

#[tokio::test]
async fn a_lost_reply_of_an_idempotent_command_is_asked_for_again() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connected(&proxy.url()).await;
    redis(&backend).call(incr("tk:n"), LONG).await.unwrap();

    proxy.set(Fault::close_instead_of_reply("GET"));
    let redis = redis(&backend);
    let asked = tokio::spawn(async move { redis.call(get("tk:n"), LONG).await });
    proxy.wait_for(|stats| stats.dropped_replies >= 1).await;
    proxy.set(Fault::Pass);
    assert_eq!(text(asked.await.unwrap().unwrap()), "1");
}

#[tokio::test]
async fn an_idempotent_command_is_sent_again_when_no_reply_comes_and_no_other_is() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let config = config(&proxy.url()).into_builder().command_timeout(SHORT);
    let backend = Backend::redis(config.lanes(1).build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    redis.call(incr("tk:n"), LONG).await.unwrap();

    // The connection stays, and says nothing any more.
    proxy.set(silent_instead_of_reply("GET"));
    let asked = tokio::spawn({
        let redis = redis.clone();
        async move { redis.call(get("tk:n"), LONG).await }
    });
    proxy.wait_for(|stats| stats.dropped_replies >= 1).await;
    proxy.set(Fault::Pass);
    assert_eq!(text(asked.await.unwrap().unwrap()), "1");

    proxy.set(silent_instead_of_reply("INCR"));
    let lost = redis.call(incr("tk:n"), 5 * SHORT).await.unwrap_err();
    assert!(lost.is_ambiguous(), "{lost}");
    assert_eq!(stored(&server, "tk:n").await, Some(2));
}

fn silent_instead_of_reply(command: &str) -> Fault {
    Fault::DropReply {
        matching: Matching::Command(command.into()),
        after: AfterDrop::Stall,
    }
}

#[tokio::test]
async fn a_slow_server_is_waited_for_when_no_other_attempt_is_left() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    for retries in [0, 3] {
        proxy.set(Fault::Pass);
        let config = config(&proxy.url()).into_builder().command_timeout(SHORT);
        let config = config.max_retries(retries).dial_timeout(LONG).lanes(1);
        let backend = Backend::redis(config.build().unwrap()).unwrap();
        backend.ready(LONG).await.unwrap();
        redis(&backend).call(incr("tk:n"), LONG).await.unwrap();
        proxy.set(Fault::Delay {
            base: 9 * SHORT,
            jitter: Duration::ZERO,
        });
        redis(&backend).call(get("tk:n"), LONG).await.unwrap();
    }
}

/// No timeout tells, because nobody is in a hurry.
#[tokio::test]
async fn a_silent_connection_is_replaced_where_the_server_answers_on_another_one() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let config = config(&proxy.url()).into_builder();
    let backend = Backend::redis(config.lanes(1).build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    redis.call(incr("tk:n"), LONG).await.unwrap();

    proxy.blackhole_live();
    let (read, written) = tokio::join!(
        redis.call(get("tk:n"), LONG),
        redis.call(incr("tk:n"), LONG / 2)
    );
    assert_eq!(text(read.unwrap()), "1");
    assert!(written.unwrap_err().is_ambiguous());
    assert_eq!(stored(&server, "tk:n").await, Some(1));
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn three_timeouts_without_a_reply_between_replace_the_connection() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connected(&proxy.url()).await;
    let redis = redis(&backend);

    proxy.set(Fault::Blackhole);
    for _ in 0..2 {
        assert!(
            redis
                .call(incr("tk:n"), SHORT)
                .await
                .unwrap_err()
                .is_ambiguous()
        );
    }
    assert_eq!(backend.state(), State::Connected, "two are not enough");
    assert!(
        redis
            .call(incr("tk:n"), SHORT)
            .await
            .unwrap_err()
            .is_ambiguous()
    );
    let mut states = backend.watch_state();
    assert!(states.wait_for(State::Reconnecting).await);

    proxy.set(Fault::Pass);
    backend.ready(LONG).await.unwrap();
    redis.call(incr("tk:n"), LONG).await.unwrap();
    assert_eq!(
        stored(&server, "tk:n").await,
        Some(1),
        "what was swallowed stays unexecuted"
    );
}

#[tokio::test]
async fn a_frozen_server_is_used_again_after_it_thaws() {
    let server = RedisServer::builder().allow("+incrby").start().await;
    let backend = connected(&server.url()).await;
    let redis = redis(&backend);

    server.freeze();
    for _ in 0..3 {
        assert_eq!(
            *redis.call(get("tk:n"), SHORT).await.unwrap_err().kind(),
            ErrorKind::Timeout
        );
    }
    assert!(backend.watch_state().wait_for(State::Reconnecting).await);
    server.thaw();
    backend.ready(LONG).await.unwrap();
    redis.call(get("tk:n"), LONG).await.unwrap();
}

static ADD: Script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1]) + ARGV[2]");

#[tokio::test]
async fn a_script_is_sent_by_its_text_only_where_the_server_does_not_know_it() {
    let server = RedisServer::builder().allow("+incrby").start().await;
    let backend = connected(&server.url()).await;
    let redis = redis(&backend);
    let add = || {
        redis
            .script(&ADD, Class::AtMostOnce, &["tk:{s}:sum"])
            .int(2)
            .arg("40")
            .run(LONG)
    };

    for expected in [42, 44, 46] {
        assert_eq!(add().await.unwrap().int().unwrap(), expected);
    }
    let _: () = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query_async(&mut server.connection().await)
        .await
        .unwrap();
    assert_eq!(
        add().await.unwrap().int().unwrap(),
        48,
        "a flushed script runs, once"
    );

    let calls = server.command_calls().await;
    assert_eq!(
        calls["eval"].calls, 2,
        "once at first, once after the flush"
    );
    assert_eq!(calls["evalsha"].calls, 4);
}

#[tokio::test]
async fn more_commands_than_a_lane_takes_are_refused_at_once() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let backend = Backend::redis(
        config(&server.url())
            .into_builder()
            .max_in_flight(4)
            .build()
            .unwrap(),
    )
    .unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);

    server.freeze();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let redis = redis.clone();
            let mut call = Box::pin(async move { redis.call(incr("tk:n"), LONG).await });
            assert!(futures_poll(&mut call).is_pending());
            call
        })
        .collect();
    let refused = redis.call(incr("tk:n"), LONG).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Saturated);

    server.thaw();
    for call in waiting {
        call.await.unwrap();
    }
    redis.call(incr("tk:n"), LONG).await.unwrap();
    assert_eq!(stored(&server, "tk:n").await, Some(5));
}

fn futures_poll<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut context)
}

#[tokio::test]
async fn a_refused_password_is_an_error_state_and_is_tried_until_it_is_right() {
    let server = RedisServer::builder().password("old").start().await;
    let url = server.url().replace("old", "new");
    let backend = Backend::redis(config(&url)).unwrap();
    assert!(backend.watch_state().wait_for(State::Error).await);

    let refused = backend.ready(SHORT).await.unwrap_err();
    let cause = std::error::Error::source(&refused)
        .expect("a cause")
        .downcast_ref::<Error>()
        .expect("our error");
    assert_eq!(*cause.kind(), ErrorKind::Server("WRONGPASS".into()));
    assert!(!format!("{refused:?}").contains("new@"));

    server.set_password("new").await;
    backend.ready(LONG).await.unwrap();
}

#[tokio::test]
async fn close_finishes_what_is_in_flight_and_refuses_what_comes_later() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let backend = connected(&server.url()).await;
    let handle = redis(&backend);

    server.freeze();
    let mut call = Box::pin(async move { handle.call(incr("tk:n"), LONG).await });
    assert!(futures_poll(&mut call).is_pending());
    let mut close = Box::pin(backend.close(LONG));
    assert!(
        futures_poll(&mut close).is_pending(),
        "a command is in flight"
    );
    let refused = redis(&backend).call(incr("tk:n"), LONG).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Closed);

    server.thaw();
    let (answered, closed) = tokio::join!(call, close);
    assert_eq!(answered.unwrap().int().unwrap(), 1);
    closed.unwrap();
    assert_eq!(backend.state(), State::Disconnected);
}

#[tokio::test]
async fn close_does_not_wait_beyond_its_deadline() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let backend = connected(&server.url()).await;
    let handle = redis(&backend);
    server.freeze();
    let mut call = Box::pin(async move { handle.call(incr("tk:n"), LONG * 10).await });
    assert!(futures_poll(&mut call).is_pending());
    tokio::time::timeout(LONG, backend.close(SHORT))
        .await
        .expect("close hangs")
        .unwrap();
    assert!(call.await.unwrap_err().is_ambiguous());
}

#[test]
fn calls_after_the_runtime_has_ended_are_closed() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let first = runtime();
    let (_server, backend) = first.block_on(async {
        let server = RedisServer::start().await;
        let backend = connected(&server.url()).await;
        (server, backend)
    });
    drop(first);
    let refused =
        runtime().block_on(async { redis(&backend).call(get("tk:n"), LONG).await.unwrap_err() });
    assert_eq!(*refused.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_left_for_the_one_that_has_its_place() {
    let (old, new) = (
        RedisServer::builder().allow("+incr").start().await,
        RedisServer::builder().allow("+incr").start().await,
    );
    let proxy = FaultProxy::start(&old).await;
    let backend = connected(&proxy.url()).await;
    let redis = redis(&backend);
    replicate(&old, 1).await;

    let hasty = connected_without_patience(&proxy.url()).await;
    let refused = self::redis(&hasty).call(incr("tk:n"), LONG).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        *refused.kind(),
        ErrorKind::Unavailable,
        "it was not executed: {refused}"
    );
    assert_eq!(
        hasty.state(),
        State::Connected,
        "it goes on for those who read"
    );

    // Whoever has the time waits for the successor, and each is executed once.
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let redis = redis.clone();
        writers.spawn(async move { redis.call(incr("tk:n"), LONG).await });
    }
    let refused_before = refusals(&old).await;
    until("writers that the replica refuses", async || {
        refusals(&old).await > refused_before + 50
    })
    .await;
    assert_eq!(writers.len(), 50);
    proxy.lead_to(new.addr());
    for written in writers.join_all().await {
        written.unwrap();
    }
    assert_eq!(stored(&new, "tk:n").await, Some(50));
    assert_eq!(stored(&old, "tk:n").await, None);
}

/// A backend whose calls have no time to wait for another primary.
async fn connected_without_patience(url: &str) -> Backend {
    let config = config(url).into_builder().retry_delay_on_failover(3 * LONG);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

/// How many commands the server has refused because it is a replica.
async fn refusals(server: &RedisServer) -> u64 {
    let stats = server.info("errorstats").await;
    let readonly = stats.get("errorstat_READONLY");
    readonly.map_or(0, |count| {
        count.trim_start_matches("count=").parse().unwrap()
    })
}

#[tokio::test]
async fn a_write_that_meets_a_demoted_server_is_sent_again_to_its_successor() {
    let (old, new) = (
        RedisServer::builder().allow("+incr").start().await,
        RedisServer::builder().allow("+incr").start().await,
    );
    let proxy = FaultProxy::start(&old).await;
    let backend = connected(&proxy.url()).await;
    replicate(&old, 1).await;
    proxy.lead_to(new.addr());

    let redis = redis(&backend);
    assert_eq!(
        redis.call(incr("tk:n"), LONG).await.unwrap().int().unwrap(),
        1
    );
    assert_eq!(stored(&new, "tk:n").await, Some(1));
}

/// Makes a replica of a server, of a primary that need not be there.
async fn replicate(server: &RedisServer, primary: u16) {
    let mut admin = server.connection().await;
    let mut replicaof = redis::cmd("REPLICAOF");
    let replicaof = replicaof.arg("127.0.0.1").arg(primary);
    replicaof.exec_async(&mut admin).await.unwrap();
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let server = RedisServer::builder()
        .allow("+incr")
        .unix_socket(true)
        .start()
        .await;
    let path = server
        .unix_socket()
        .expect("a socket")
        .display()
        .to_string();
    let config = config(&format!("unix://{path}")).into_builder();
    let config = config.username(USER).password(PASSWORD).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    assert_eq!(
        redis(&backend)
            .call(incr("tk:n"), LONG)
            .await
            .unwrap()
            .int()
            .unwrap(),
        1
    );
}

async fn connection_id(dedicated: &mut Dedicated) -> i64 {
    dedicated
        .call(Call::new("CLIENT", Class::Idempotent).arg("ID"), LONG)
        .await
        .unwrap()
        .int()
        .unwrap()
}

#[tokio::test]
async fn an_exclusive_connection_keeps_its_transaction_to_itself() {
    let server = RedisServer::builder()
        .allow("+incr +watch +multi +exec")
        .start()
        .await;
    let backend = connected(&server.url()).await;
    let redis = redis(&backend);
    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();

    exclusive
        .call(Call::new("WATCH", Class::Idempotent).arg("tk:n"), LONG)
        .await
        .unwrap();
    redis.call(incr("tk:n"), LONG).await.unwrap();
    exclusive
        .call(Call::new("MULTI", Class::Idempotent), LONG)
        .await
        .unwrap();
    exclusive.call(incr("tk:n"), LONG).await.unwrap();
    assert!(
        exclusive
            .call(Call::new("EXEC", Class::AtMostOnce), LONG)
            .await
            .unwrap()
            .is_nil(),
        "the watched key changed"
    );
    exclusive.release();
    assert_eq!(stored(&server, "tk:n").await, Some(1));
}

#[tokio::test]
async fn a_released_connection_is_used_again_and_a_dropped_one_is_closed() {
    let server = RedisServer::builder()
        .allow("+blpop +client|id")
        .start()
        .await;
    let backend = connected(&server.url()).await;
    let redis = redis(&backend);

    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
    let first = connection_id(&mut exclusive).await;
    exclusive.release();
    server.reset_stats().await;
    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
    assert_eq!(connection_id(&mut exclusive).await, first);
    assert!(
        !server.command_calls().await.contains_key("ping"),
        "a check-out costs no command"
    );

    drop(exclusive);
    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
    let second = connection_id(&mut exclusive).await;
    assert_ne!(second, first, "nobody knows what a dropped one was doing");

    // A reply that nobody took makes it unusable too, also when it is released.
    let blocked = Call::new("BLPOP", Class::AtMostOnce).arg("tk:queue").int(0);
    assert!(
        exclusive
            .call(blocked, SHORT)
            .await
            .unwrap_err()
            .is_ambiguous()
    );
    exclusive.release();
    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
    assert_ne!(connection_id(&mut exclusive).await, second);
}

#[tokio::test]
async fn an_exhausted_pool_is_saturation_and_not_an_outage() {
    let server = RedisServer::start().await;
    let backend = Backend::redis(
        config(&server.url())
            .into_builder()
            .pool_size(1)
            .build()
            .unwrap(),
    )
    .unwrap();
    let redis = redis(&backend);
    let held = redis.dedicated("k", LONG).await.unwrap();
    assert_eq!(
        *redis.dedicated("k", SHORT).await.unwrap_err().kind(),
        ErrorKind::Saturated
    );
    held.release();
    redis.dedicated("k", LONG).await.unwrap();

    server.kill();
    drop(redis.dedicated("k", LONG).await);
    let away = redis.dedicated("k", LONG).await.unwrap_err();
    assert_eq!(*away.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn building_outside_of_a_runtime_is_a_named_error() {
    let refused = std::thread::spawn(|| Backend::redis(config("redis://127.0.0.1:1")).unwrap_err())
        .join()
        .unwrap();
    assert_eq!(*refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("runtime"));
}

#[tokio::test]
async fn dropping_the_last_handle_ends_every_task_and_connection() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let backend = connected(&proxy.url()).await;
    let subscription = backend.bus().subscribe("news").await.unwrap();
    redis(&backend)
        .dedicated("k", LONG)
        .await
        .unwrap()
        .release();
    assert_eq!(
        proxy.connections(),
        3,
        "one lane, one for subscriptions, one in the pool"
    );

    drop(subscription);
    drop(backend);
    proxy.wait_for(|stats| stats.live == 0).await;
    let ended = async {
        while tasks.num_alive_tasks() > before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, ended)
        .await
        .expect("a task is left");
}

#[tokio::test]
async fn clones_share_state_and_another_type_in_the_same_place_is_refused() {
    let backend = Backend::memory();
    let first: Arc<u64> = backend.shared('r', "limits", || 7).unwrap();
    let second: Arc<u64> = backend.clone().shared('r', "limits", || 8).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    let elsewhere: Arc<u64> = backend
        .namespace("other")
        .unwrap()
        .shared('r', "limits", || 9)
        .unwrap();
    assert_eq!(*elsewhere, 9);
    let refused = backend.shared('r', "limits", String::new).unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_short_stall_under_many_calls_is_no_silence() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let backend = connected(&server.url()).await;
    let redis = redis(&backend);

    server.freeze();
    let patient = tokio::spawn({
        let redis = redis.clone();
        async move { redis.call(incr("tk:n"), LONG).await }
    });
    let hasty: Vec<_> = (0..20)
        .map(|_| {
            let redis = redis.clone();
            tokio::spawn(async move { redis.call(get("tk:n"), SHORT).await })
        })
        .collect();
    for call in hasty {
        let late = call.await.unwrap().unwrap_err();
        assert_eq!(*late.kind(), ErrorKind::Timeout);
    }
    assert_eq!(
        backend.state(),
        State::Connected,
        "they waited out one stall together"
    );
    server.thaw();
    patient.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_server_repeats_of_the_password_goes_nowhere() {
    let server = RedisServer::builder()
        .arg("rename-command", "HELLO \"\"")
        .start()
        .await;
    let url = server.url().replace("redis://", "redis://:hunter2secret@");
    let backend = Backend::redis(config(&url)).unwrap();
    assert!(backend.watch_state().wait_for(State::Error).await);
    let refused = backend.ready(SHORT).await.unwrap_err();
    let failed = redis(&backend).call(get("tk:n"), SHORT).await.unwrap_err();
    let mut shown = format!("{backend:?} {:?} {:?}", redis(&backend), backend.health());
    for error in [&refused as &dyn std::error::Error, &failed] {
        let mut next = Some(error);
        while let Some(error) = next {
            shown += &format!(" {error} {error:?}");
            next = error.source();
        }
    }
    assert!(!shown.contains("hunter2secret"), "{shown}");
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_not_ready() {
    let server = RedisServer::builder()
        .arg("enable-debug-command", "yes")
        .arg("key-load-delay", "20000")
        .arg("rdbcompression", "no")
        .arg("loading-process-events-interval-bytes", "1024")
        .start()
        .await;
    let mut admin = server.connection().await;
    for n in 0..100 {
        let mut set = redis::cmd("SET");
        let _: () = set
            .arg(n)
            .arg("x".repeat(1024))
            .query_async(&mut admin)
            .await
            .unwrap();
    }
    // It answers when it is done; until then all others hear that the server loads.
    let mut reloader = server.patient_connection().await;
    let reload = tokio::spawn(async move {
        let mut reload = redis::cmd("DEBUG");
        reload.arg("RELOAD").query_async::<()>(&mut reloader).await
    });
    let loads = async {
        while redis::cmd("PING")
            .query_async::<String>(&mut admin)
            .await
            .is_ok()
        {
            assert!(!reload.is_finished(), "it loaded before it was asked");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, loads)
        .await
        .expect("it never loads");
    let backend = Backend::redis(config(&server.url())).unwrap();
    let mut states = backend.watch_state();
    assert_eq!(
        states.changed().await,
        Some(State::Reconnecting),
        "it accepts connections, but does not serve"
    );
    reload.await.unwrap().unwrap();
    backend.ready(LONG).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_that_has_ended_is_not_handed_out() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connected(&proxy.url()).await;
    let redis = redis(&backend);
    redis.dedicated("k", LONG).await.unwrap().release();
    proxy.set(Fault::Reset);
    assert!(backend.watch_state().wait_for(State::Reconnecting).await);
    backend.ready(LONG).await.unwrap();
    // The lane and the idle connection were cut at the same moment, and the lane is back.
    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
    exclusive.call(incr("tk:n"), LONG).await.unwrap();
}

#[tokio::test]
async fn the_deadline_of_a_check_out_is_the_callers() {
    let server = RedisServer::start().await;
    let config = config(&server.url())
        .into_builder()
        .pool_size(1)
        .command_timeout(SHORT)
        .build()
        .unwrap();
    let backend = Backend::redis(config).unwrap();
    let redis = redis(&backend);
    let held = redis.dedicated("k", LONG).await.unwrap();
    let waiting = tokio::spawn({
        let redis = redis.clone();
        async move { redis.dedicated("k", LONG).await.map(Dedicated::release) }
    });
    // Longer than the command timeout, which has no say in it.
    assert_eq!(
        *redis.dedicated("k", SHORT * 3).await.unwrap_err().kind(),
        ErrorKind::Saturated
    );
    held.release();
    waiting.await.unwrap().unwrap();

    backend.ready(LONG).await.unwrap();
    drop(redis.dedicated("k", LONG).await.unwrap());
    server.freeze();
    let away = redis.dedicated("k", SHORT).await.unwrap_err();
    assert_eq!(
        *away.kind(),
        ErrorKind::Unavailable,
        "nothing was taken, nothing could be made"
    );
}

#[tokio::test]
async fn an_exclusive_connection_ends_with_the_backend() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let backend = connected(&server.url()).await;
    let mut exclusive = redis(&backend).dedicated("k", LONG).await.unwrap();
    backend.close(LONG).await.unwrap();
    assert_eq!(
        *exclusive.call(incr("tk:n"), LONG).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[test]
fn exclusive_connections_belong_to_the_runtime_of_the_backend() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (first, second) = (runtime(), runtime());
    let (_server, backend) = first.block_on(async {
        let server = RedisServer::builder().allow("+incr").start().await;
        let backend = connected(&server.url()).await;
        (server, backend)
    });
    let handle = redis(&backend);
    second.block_on(async { handle.dedicated("k", LONG).await.unwrap().release() });
    drop(second);
    first.block_on(async {
        let mut exclusive = handle.dedicated("k", LONG).await.unwrap();
        exclusive.call(incr("tk:n"), LONG).await.unwrap();
        exclusive.release();
    });
    drop(first);
    runtime().block_on(async {
        assert_eq!(
            *handle.dedicated("k", LONG).await.unwrap_err().kind(),
            ErrorKind::Closed
        );
        assert_eq!(
            *backend.ready(LONG).await.unwrap_err().kind(),
            ErrorKind::Closed
        );
    });
}

#[tokio::test]
async fn no_deadline_is_too_long() {
    let server = RedisServer::builder().allow("+incr +incrby").start().await;
    let backend = connected(&server.url()).await;
    backend.ready(Duration::MAX).await.unwrap();
    redis(&backend)
        .call(incr("tk:n"), Duration::MAX)
        .await
        .unwrap();
    redis(&backend)
        .script(&ADD, Class::AtMostOnce, &["tk:s"])
        .int(1)
        .int(1)
        .run(Duration::MAX)
        .await
        .unwrap();
    let mut exclusive = redis(&backend).dedicated("k", Duration::MAX).await.unwrap();
    exclusive.call(incr("tk:n"), Duration::MAX).await.unwrap();
    exclusive.release();
    backend.close(Duration::MAX).await.unwrap();
}

#[tokio::test]
async fn writes_to_a_replica_leave_its_readers_alone() {
    let server = RedisServer::builder()
        .allow("+incr +client|id")
        .start()
        .await;
    replicate(&server, 1).await;
    let backend = connected_without_patience(&server.url()).await;
    let redis = redis(&backend);
    let id = || Call::new("CLIENT", Class::Idempotent).arg("ID");
    let before = redis.call(id(), LONG).await.unwrap();
    for _ in 0..5 {
        let refused = redis.call(incr("tk:n"), LONG).await.unwrap_err();
        assert_eq!(*refused.kind(), ErrorKind::Unavailable);
    }
    let after = redis.call(id(), LONG).await.unwrap();
    assert_eq!(
        before, after,
        "the connection was not replaced by one to the same server"
    );
}

#[tokio::test]
async fn every_setting_of_the_connection_has_its_effect() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let config = config(&proxy.url())
        .into_builder()
        .db(3)
        .dial_timeout(LONG)
        .command_timeout(SHORT)
        .build()
        .unwrap();
    // Slower than the default of the dial timeout.
    let slow = Duration::from_millis(1_100);
    proxy.set(Fault::Delay {
        base: slow,
        jitter: Duration::ZERO,
    });
    let backend = Backend::builder().instance_id("shop one").redis(config);
    assert!(backend.is_err(), "a name with a space");
    let config = self::config(&proxy.url())
        .into_builder()
        .db(3)
        .dial_timeout(LONG)
        .command_timeout(SHORT)
        .build()
        .unwrap();
    let backend = Backend::builder()
        .instance_id("shop-1")
        .redis(config)
        .unwrap();
    backend.ready(LONG).await.unwrap();
    assert_eq!(proxy.accepted(), 1, "the first attempt was patient enough");
    proxy.set(Fault::Pass);

    let handle = redis(&backend);
    handle.call(incr("tk:n"), LONG).await.unwrap();
    let mut admin = server.connection().await;
    let _: () = redis::cmd("SELECT")
        .arg(3)
        .query_async(&mut admin)
        .await
        .unwrap();
    let n: u64 = redis::cmd("GET")
        .arg("tk:n")
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(n, 1);
    let clients: String = redis::cmd("CLIENT")
        .arg("LIST")
        .query_async(&mut admin)
        .await
        .unwrap();
    assert!(clients.contains("name=shop-1"), "{clients}");

    server.freeze();
    let bus = backend.bus();
    let late = tokio::time::timeout(Duration::from_secs(2), bus.publish("news", b""));
    assert!(
        late.await
            .expect("the command timeout is not kept")
            .unwrap_err()
            .is_ambiguous()
    );
}

#[tokio::test]
async fn with_two_lanes_one_that_is_down_costs_nothing() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let config = config(&proxy.url())
        .into_builder()
        .lanes(2)
        .build()
        .unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let mut admin = server.connection().await;
    proxy.set(Fault::Refuse);
    let clients: String = redis::cmd("CLIENT")
        .arg("LIST")
        .query_async(&mut admin)
        .await
        .unwrap();
    let lane = clients
        .lines()
        .find(|line| line.contains(":lane "))
        .expect("a lane");
    let id = lane
        .split_whitespace()
        .find_map(|field| field.strip_prefix("id="))
        .expect("an id");
    let _: u64 = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("ID")
        .arg(id)
        .query_async(&mut admin)
        .await
        .unwrap();
    assert!(backend.watch_state().wait_for(State::Reconnecting).await);
    for n in 0..50 {
        redis(&backend).call(incr("tk:n"), LONG).await.unwrap();
        // Also those that have a lane of their own, be it the one or the other.
        let ordered = incr(&format!("tk:{n}")).in_order();
        redis(&backend).call(ordered, LONG).await.unwrap();
    }
}
