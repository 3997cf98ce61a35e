//! Every fault of the proxy, against an echo server or a real one.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use redis::{AsyncCommands as _, AsyncConnectionConfig, aio::MultiplexedConnection};
use testkit::{AfterDrop, Fault, FaultProxy, Matching, RedisServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
    time::timeout,
};

/// Long enough to notice bytes that must not come, short enough to wait for.
const SILENCE: Duration = Duration::from_millis(100);

/// Sends back what it receives, on any number of connections.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    addr
}

async fn echo_through_proxy() -> (FaultProxy, TcpStream) {
    let proxy = FaultProxy::start(echo_server().await).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echo(&mut stream, b"hello").await, b"hello");
    (proxy, stream)
}

async fn echo(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).await.unwrap();
    read(stream, bytes.len()).await
}

async fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    let read = timeout(Duration::from_secs(10), stream.read_exact(&mut buffer)).await;
    read.expect("bytes arrive").unwrap();
    buffer
}

async fn assert_silent(stream: &mut TcpStream) {
    let read = timeout(SILENCE, stream.read_u8()).await;
    assert!(read.is_err(), "{read:?} came");
}

async fn assert_reset(stream: &mut TcpStream) {
    let read = timeout(Duration::from_secs(10), stream.read_u8())
        .await
        .expect("a reset");
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

async fn connect(proxy: &FaultProxy) -> MultiplexedConnection {
    let client = redis::Client::open(format!("{}/?protocol=resp3", proxy.url())).unwrap();
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(SILENCE));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap()
}

#[tokio::test]
async fn passes_and_counts() {
    let (proxy, mut first) = echo_through_proxy().await;
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let (mut reader, mut writer) = first.split();
    let mut echoed = vec![0; bytes.len()];
    let (written, read) = tokio::join!(writer.write_all(&bytes), reader.read_exact(&mut echoed));
    written.unwrap();
    read.unwrap();
    assert!(echoed == bytes);

    let second = TcpStream::connect(proxy.addr()).await.unwrap();
    proxy.wait_for(|stats| stats.live == 2).await;
    assert_eq!((proxy.connections(), proxy.accepted()), (2, 2));
    drop(second);
    proxy.wait_for(|stats| stats.live == 1).await;
    assert_eq!((proxy.connections(), proxy.accepted()), (1, 2));
}

#[tokio::test]
async fn closes_when_the_server_closes() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"bye").await.unwrap();
    drop(server);
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "bye");

    // Bound but not listening: it refuses, and nobody else can take the port meanwhile.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let proxy = FaultProxy::start(nobody.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn refuse_keeps_new_connections_out() {
    let (proxy, mut old) = echo_through_proxy().await;
    proxy.set(Fault::Refuse);
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_reset(&mut new).await;
    assert_eq!(proxy.stats().refused, 1);
    assert_eq!(echo(&mut old, b"still here").await, b"still here");

    proxy.reset_live();
    assert_reset(&mut old).await;
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_reset(&mut new).await;

    proxy.set(Fault::Pass);
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echo(&mut new, b"back").await, b"back");
}

#[tokio::test]
async fn reset_tears_live_connections_only() {
    let (proxy, mut old) = echo_through_proxy().await;
    proxy.set(Fault::Reset);
    assert_reset(&mut old).await;
    proxy
        .wait_for(|stats| stats.reset == 1 && stats.live == 0)
        .await;
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echo(&mut new, b"new").await, b"new");
}

#[tokio::test]
async fn a_black_hole_swallows_and_keeps_open() {
    let (proxy, mut lost) = echo_through_proxy().await;
    let mut idle = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echo(&mut idle, b"1").await, b"1");
    proxy.set(Fault::Blackhole);
    lost.write_all(b"lost").await.unwrap();
    let mut born_in_it = TcpStream::connect(proxy.addr()).await.unwrap();
    born_in_it.write_all(b"also").await.unwrap();
    proxy.wait_for(|stats| stats.swallowed_bytes == 8).await;
    assert_silent(&mut lost).await;
    assert_silent(&mut born_in_it).await;

    proxy.set(Fault::Pass);
    assert_eq!(echo(&mut idle, b"2").await, b"2", "nothing of it was lost");
    lost.write_all(b"more").await.unwrap();
    born_in_it.write_all(b"more").await.unwrap();
    proxy.wait_for(|stats| stats.swallowed_bytes == 16).await;
    assert_silent(&mut lost).await;
    proxy.wait_for(|stats| stats.live == 3).await;
    drop((lost, born_in_it));
    proxy.wait_for(|stats| stats.live == 1).await;
}

#[tokio::test]
async fn live_connections_alone_become_black_holes() {
    let (proxy, mut lost) = echo_through_proxy().await;
    proxy.blackhole_live();
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(echo(&mut new, b"new").await, b"new");
    lost.write_all(b"lost").await.unwrap();
    proxy.wait_for(|stats| stats.swallowed_bytes == 4).await;
    assert_silent(&mut lost).await;
    assert_eq!(echo(&mut new, b"more").await, b"more");

    proxy.blackhole_live();
    new.write_all(b"lost").await.unwrap();
    proxy.wait_for(|stats| stats.swallowed_bytes == 8).await;
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn small_buffers_hold_back_a_writer_whom_nobody_reads() {
    let accepted_by = async |proxy: FaultProxy, listener: TcpListener| {
        let small = TcpSocket::new_v4().unwrap();
        small.set_send_buffer_size(4096).unwrap();
        let mut client = small.connect(proxy.addr()).await.unwrap();
        let (_server, _) = listener.accept().await.unwrap();
        let mut accepted = 0;
        while let Ok(written) = timeout(SILENCE, client.write(&[0; 4096])).await {
            accepted += written.unwrap();
        }
        accepted
    };
    let listener = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    };
    let (large, addr) = listener().await;
    let with_defaults = accepted_by(FaultProxy::start(addr).await, large).await;
    let (small, addr) = listener().await;
    let proxy = FaultProxy::builder().buffers(4096).start(addr).await;
    let with_small = accepted_by(proxy, small).await;
    assert!(
        with_small < 128 * 1024 && with_small < with_defaults / 4,
        "{with_small} bytes, by default {with_defaults}"
    );
}

#[tokio::test]
async fn a_black_hole_hides_that_the_server_died() {
    let server = RedisServer::builder().open().start().await;
    let proxy = FaultProxy::start(&server).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"PING\r\n").await.unwrap();
    assert_eq!(read(&mut client, 7).await, b"+PONG\r\n");
    proxy.set(Fault::Blackhole);
    client.write_all(b"PING\r\n").await.unwrap();
    proxy.wait_for(|stats| stats.swallowed_bytes == 6).await;
    server.kill();
    assert_silent(&mut client).await;
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn freezes_after_some_bytes_and_goes_on() {
    let (proxy, mut stream) = echo_through_proxy().await;
    proxy.set(Fault::FreezeAfter(3));
    stream.write_all(b"abcdef").await.unwrap();
    assert_eq!(read(&mut stream, 3).await, b"abc");
    proxy.wait_for(|stats| stats.frozen == 1).await;
    assert_silent(&mut stream).await;
    proxy.set(Fault::FreezeAfter(1));
    assert_eq!(read(&mut stream, 1).await, b"d");
    assert_silent(&mut stream).await;
    proxy.set(Fault::Pass);
    assert_eq!(read(&mut stream, 2).await, b"ef");
}

#[tokio::test]
async fn a_frozen_connection_ends_when_its_client_does() {
    let (proxy, mut stream) = echo_through_proxy().await;
    proxy.set(Fault::FreezeAfter(0));
    stream.write_all(b"x").await.unwrap();
    proxy.wait_for(|stats| stats.frozen == 1).await;
    drop(stream);
    proxy.wait_for(|stats| stats.live == 0).await;
}

#[tokio::test]
async fn delays_by_the_base_and_jitters_in_order() {
    let (proxy, mut stream) = echo_through_proxy().await;
    let base = Duration::from_millis(50);
    proxy.set(Fault::Delay {
        base,
        jitter: Duration::ZERO,
    });
    let start = Instant::now();
    assert_eq!(echo(&mut stream, b"x").await, b"x");
    assert!(start.elapsed() >= base, "{:?}", start.elapsed());
    assert_eq!(proxy.stats().delayed, 1);

    proxy.set(Fault::Delay {
        base: Duration::ZERO,
        jitter: base,
    });
    for delayed in 2..50_u8 {
        stream.write_all(&[delayed]).await.unwrap();
        proxy
            .wait_for(|stats| stats.delayed == usize::from(delayed))
            .await;
    }
    assert_eq!(read(&mut stream, 48).await, (2..50).collect::<Vec<u8>>());
    assert!(
        start.elapsed() > base * 3 / 2,
        "no jitter: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn slices_what_it_writes() {
    let server = RedisServer::builder().open().start().await;
    let proxy = FaultProxy::start(&server).await;
    proxy.set(Fault::Slice(1));
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.write_all(b"PING\r\n").await.unwrap();
    let mut first = [0; 16];
    let len = client.read(&mut first).await.unwrap();
    assert!(len < 7, "the whole reply came at once");
    read(&mut client, 7 - len).await;
    proxy.wait_for(|stats| stats.slices == 13).await;

    let mut connection = connect(&proxy).await;
    let () = connection.set("key", "value").await.unwrap();
    let value: String = connection.get("key").await.unwrap();
    assert_eq!(value, "value");
}

#[tokio::test]
async fn drops_one_reply_of_a_command_that_ran() {
    let server = RedisServer::builder().open().start().await;
    let proxy = FaultProxy::start(&server).await;
    let mut connection = connect(&proxy).await;
    let mut other = connect(&proxy).await;
    proxy.set(Fault::drop_reply("set"));
    let answer: redis::RedisResult<()> = connection.set("a", 1).await;
    assert!(answer.unwrap_err().is_timeout());
    proxy.wait_for(|stats| stats.dropped_replies == 1).await;
    assert_eq!(server.command_calls().await["set"].calls, 1);

    let value: i64 = other.get("a").await.unwrap();
    assert_eq!(value, 1, "other connections go on");
    proxy.set(Fault::Pass);
    let () = other.set("a", 2).await.unwrap();
    assert_eq!(proxy.dropped_replies(), 1);
}

#[tokio::test]
async fn all_other_replies_of_the_connection_pass() {
    let server = RedisServer::builder().open().start().await;
    let proxy = FaultProxy::start(&server).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let matching = Matching::Bytes(b"secret".to_vec());
    proxy.set(Fault::DropReply {
        matching,
        after: AfterDrop::Continue,
    });
    client
        .write_all(b"PING\r\nSET secret 1\r\nGET secret\r\nECHO x\r\n")
        .await
        .unwrap();
    assert_eq!(read(&mut client, 14).await, b"+PONG\r\n$1\r\nx\r\n");
    assert_eq!(proxy.dropped_replies(), 2);
    assert_eq!(server.keys().await, ["secret"]);
}

#[tokio::test]
async fn stalls_in_place_of_a_reply() {
    let server = RedisServer::builder().open().start().await;
    let proxy = FaultProxy::start(&server).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let matching = Matching::Command("SET".to_owned());
    proxy.set(Fault::DropReply {
        matching,
        after: AfterDrop::Stall,
    });
    client
        .write_all(b"PING\r\nSET a 1\r\nPING\r\n")
        .await
        .unwrap();
    assert_eq!(read(&mut client, 7).await, b"+PONG\r\n");
    proxy.wait_for(|stats| stats.dropped_replies == 1).await;
    assert_silent(&mut client).await;
    server.kill();
    assert_silent(&mut client).await;
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn closes_in_place_of_a_reply() {
    let server = RedisServer::builder().open().start().await;
    let proxy = FaultProxy::start(&server).await;
    let mut connection = connect(&proxy).await;
    proxy.set(Fault::close_instead_of_reply("SET"));
    let answer: redis::RedisResult<()> = connection.set("a", 1).await;
    assert!(answer.unwrap_err().is_connection_dropped());
    assert_eq!(server.keys().await, ["a"]);
    assert_eq!(proxy.stats().dropped_replies, 1);
}

#[tokio::test]
async fn dropping_the_proxy_ends_its_tasks_and_connections() {
    let before = Handle::current().metrics().num_alive_tasks();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    drop(proxy);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    let start = Instant::now();
    while Handle::current().metrics().num_alive_tasks() > before {
        assert!(start.elapsed() < Duration::from_secs(10), "tasks are left");
        tokio::task::yield_now().await;
    }
}
