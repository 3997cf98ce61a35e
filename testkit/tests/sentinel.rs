//! The sentinel fixture against real servers.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::time::Duration;

use redis::AsyncCommands as _;
use testkit::{Fault, RedisSentinel};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Subscribes at a sentinel and returns once it has confirmed.
async fn subscribe(addr: std::net::SocketAddr, channel: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("SUBSCRIBE {channel}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    hear(&mut stream, ":1\r\n").await;
    stream
}

/// Reads until `text` was among what came, which is returned.
async fn hear(stream: &mut TcpStream, text: &str) -> String {
    let mut heard = String::new();
    let hearing = async {
        while !heard.contains(text) {
            let byte = stream.read_u8().await.unwrap();
            heard.push(char::from(byte));
        }
    };
    let hearing = tokio::time::timeout(Duration::from_secs(20), hearing).await;
    assert!(hearing.is_ok(), "no {text:?} in {heard:?}");
    heard
}

#[tokio::test]
async fn a_failover_moves_the_master_and_the_old_one_follows() {
    let group = RedisSentinel::builder().master_name("other").start().await;
    assert_eq!(group.master_name(), "other");
    assert_eq!(group.master().await, 0);
    let new = group.failover().await;
    assert_ne!(new, 0);
    assert_eq!(group.master().await, new);
    group.wait_ok().await;
    let replication = group.server(0).info("replication").await;
    assert_eq!(replication["role"], "slave");
    let port = group.server(new).port().to_string();
    assert_eq!(replication["master_port"], port);
    // The sentinels had it write that down.
    group.restart(0).await;
    assert_eq!(group.server(0).info("replication").await["role"], "slave");
}

#[tokio::test]
async fn a_killed_master_is_replaced_and_comes_back_as_a_replica() {
    let group = RedisSentinel::start().await;
    group.kill(0);
    let new = group.wait_for_new_master(0).await;
    let () = group.connection(new).await.set("a", 1).await.unwrap();
    group.restart(0).await;
    group.wait_ok().await;
    assert_eq!(group.master().await, new);
    assert_eq!(group.connection(0).await.get("a").await, Ok(Some(1)));
}

#[tokio::test]
async fn a_frozen_master_is_replaced_also_with_passwords_and_one_sentinel_less() {
    let group = RedisSentinel::builder()
        .password("d@ta%pass")
        .sentinel_password("watch")
        .start()
        .await;
    let mut anonymous = TcpStream::connect(group.sentinel_addrs()[0]).await.unwrap();
    anonymous.write_all(b"PING\r\n").await.unwrap();
    assert!(hear(&mut anonymous, "\r\n").await.starts_with("-NOAUTH"));

    group.kill_sentinel(2);
    group.freeze(0);
    let new = group.wait_for_new_master(0).await;
    group.thaw(0);
    group.restart_sentinel(2).await;
    group.wait_ok().await;
    assert_eq!(group.master().await, new);
}

#[tokio::test]
async fn users_may_turn_the_default_user_off() {
    let group = RedisSentinel::builder()
        .users("user default off")
        .sentinel_users("user default off")
        .start()
        .await;
    let mut anonymous = TcpStream::connect(group.sentinel_addrs()[0]).await.unwrap();
    anonymous.write_all(b"PING\r\n").await.unwrap();
    assert!(hear(&mut anonymous, "\r\n").await.starts_with("-NOAUTH"));
    let new = group.failover().await;
    group.wait_ok().await;
    assert_eq!(group.master().await, new);
}

#[tokio::test]
async fn a_proxied_sentinel_can_be_kept_from_telling_of_the_switch() {
    let group = RedisSentinel::builder()
        .open()
        .proxied_sentinels()
        .start()
        .await;
    let addrs = group.sentinel_addrs();
    group
        .sentinel_proxy(0)
        .set(Fault::drop_pushes("+switch-master"));
    let mut deaf = subscribe(addrs[0], "+switch-master").await;
    let mut told = subscribe(addrs[1], "+switch-master").await;
    let new = group.failover().await;
    let port = group.server(new).port().to_string();
    hear(&mut told, &port).await;
    let proxy = group.sentinel_proxy(0);
    proxy.wait_for(|stats| stats.dropped_pushes == 1).await;

    // The next one arrives, and it is the first that does.
    proxy.set(Fault::Pass);
    group.wait_ok().await;
    let next = group.failover().await;
    let port = group.server(next).port().to_string();
    let heard = hear(&mut deaf, &format!(" {port}\r\n")).await;
    assert_eq!(heard.matches("message").count(), 1, "{heard}");

    // Sentinels tell of each other by the proxies.
    let mut stream = TcpStream::connect(addrs[0]).await.unwrap();
    stream
        .write_all(b"SENTINEL SENTINELS main\r\n")
        .await
        .unwrap();
    let other = format!("\r\nport\r\n$5\r\n{}\r\n", addrs[1].port());
    hear(&mut stream, &other).await;
}
