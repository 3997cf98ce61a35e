//! The scripted server, asked by a real client.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    sync::atomic::{AtomicU16, AtomicUsize, Ordering},
    time::Duration,
};

use redis::{AsyncCommands as _, Client, aio::MultiplexedConnection};
use testkit::{Answer, RespMock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn connect(mock: &RespMock, protocol: u8) -> MultiplexedConnection {
    let client = Client::open(format!("{}/?protocol=resp{protocol}", mock.url())).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Sends `request` on a raw connection and reads as many bytes as `expected` has.
async fn exchange(stream: &mut TcpStream, request: &str, expected: &str) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; expected.len()];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer));
    read.await.expect("the mock answers").unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), expected);
}

#[tokio::test]
async fn answers_in_both_protocols() {
    let mock = RespMock::start(|request| match request.arg(0).as_str() {
        "GET" if request.arg(1) == "none" => Answer::Null,
        "GET" => Answer::bulk("value"),
        "INCR" => Answer::Int(7),
        "LRANGE" => Answer::Array(vec![Answer::bulk("a"), Answer::bulk("b")]),
        "SET" => Answer::error("READONLY You can't write against a read only replica."),
        _ => Answer::Default,
    })
    .await;
    for protocol in [2, 3] {
        let mut connection = connect(&mock, protocol).await;
        assert_eq!(connection.get::<_, String>("a").await.unwrap(), "value");
        let none: Option<String> = connection.get("none").await.unwrap();
        assert_eq!(none, None);
        let incremented: i64 = redis::cmd("INCR")
            .arg("a")
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(incremented, 7);
        let list: Vec<String> = connection.lrange("a", 0, 1).await.unwrap();
        assert_eq!(list, ["a", "b"]);
        let refused = connection.set::<_, _, ()>("a", 1).await.unwrap_err();
        assert_eq!(refused.code(), Some("READONLY"));
    }
    assert_eq!(mock.count("get"), 4);
    assert_eq!((mock.accepted(), mock.count("HELLO 3")), (2, 1));
}

#[tokio::test]
async fn plays_the_part_that_it_is_given() {
    let mock = RespMock::start(|_| Answer::Default).await;
    let other = ([127, 0, 0, 1], 7001).into();
    mock.set_version("6.0.9");
    mock.set_mode("cluster");
    mock.set_slots([(0, 99, mock.addr()), (100, 16_383, other)]);
    mock.set_replica(true);
    let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
    let hello = "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n6.0.9\r\n\
                 $5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$7\r\ncluster\r\n\
                 $4\r\nrole\r\n$7\r\nreplica\r\n$7\r\nmodules\r\n*0\r\n";
    exchange(&mut stream, "HELLO 3 AUTH name secret\r\n", hello).await;
    exchange(&mut stream, "HELLO\r\n", hello).await;

    type Node = (String, u16, String, Vec<String>);
    let mut connection = connect(&mock, 3).await;
    let asked: Vec<(u16, u16, Node)> = redis::cmd("CLUSTER")
        .arg("SLOTS")
        .query_async(&mut connection)
        .await
        .unwrap();
    let ports: Vec<_> = asked.iter().map(|(a, b, node)| (*a, *b, node.1)).collect();
    assert_eq!(ports, [(0, 99, mock.addr().port()), (100, 16_383, 7001)]);
    let slot: u16 = redis::cmd("CLUSTER")
        .arg(&["KEYSLOT", "123456789"])
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(slot, 12_739);
}

#[tokio::test]
async fn confirms_subscriptions_and_pushes() {
    let mock = RespMock::start(|_| Answer::Default).await;
    let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
    let confirmed =
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n";
    exchange(&mut stream, "SUBSCRIBE a b\r\n", confirmed).await;
    stream.write_all(b"HELLO 3\r\n").await.unwrap();
    mock.wait_for(|mock| mock.count("HELLO") == 1).await;
    let mut hello = vec![0; 1];
    while !hello.ends_with(b"modules\r\n*0\r\n") {
        hello.push(stream.read_u8().await.unwrap());
    }
    let shard = ">3\r\n$10\r\nssubscribe\r\n$1\r\ns\r\n:1\r\n";
    exchange(&mut stream, "SSUBSCRIBE s\r\n", shard).await;
    let left = ">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n>3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n";
    exchange(&mut stream, "UNSUBSCRIBE\r\n", left).await;
    mock.push(">2\r\n+a\r\n+b\r\n");
    exchange(&mut stream, "", ">2\r\n+a\r\n+b\r\n").await;
}

#[tokio::test]
async fn closes_and_keeps_silent() {
    let mock = RespMock::start(|request| match request.arg(0).as_str() {
        "SILENT" => Answer::Silence,
        "CLOSE" => Answer::Close,
        "RAW" => Answer::Raw(b"+torn".to_vec()),
        _ => Answer::Default,
    })
    .await;
    let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
    exchange(
        &mut stream,
        "SILENT\r\nPING\r\nRAW\r\nCLOSE\r\nPING\r\n",
        "+PONG\r\n+torn",
    )
    .await;
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    mock.wait_for(|mock| mock.connections() == 0).await;
    let first_words: Vec<_> = mock.requests().iter().map(|one| one.arg(0)).collect();
    assert_eq!(first_words, ["SILENT", "PING", "RAW", "CLOSE"]);
    assert!(mock.requests().iter().all(|one| one.connection == 0));

    let mut again = TcpStream::connect(mock.addr()).await.unwrap();
    mock.forget();
    exchange(&mut again, "PING x\r\n", "$1\r\nx\r\n").await;
    assert_eq!(mock.requests()[0].connection, 1);
    mock.close_all();
    assert_eq!(again.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_handler_has_a_memory_and_can_be_replaced() {
    let asked = AtomicUsize::new(0);
    let mock = RespMock::start(move |request| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::Simple(format!("first {}", request.arg(0))),
        _ => Answer::error("ERR again"),
    })
    .await;
    let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
    exchange(&mut stream, "A\r\nB\r\n", "+first A\r\n-ERR again\r\n").await;
    let port = AtomicU16::new(7000);
    mock.on(move |_| {
        Answer::error(format!(
            "MOVED 1 127.0.0.1:{}",
            port.load(Ordering::Relaxed)
        ))
    });
    exchange(&mut stream, "A\r\n", "-MOVED 1 127.0.0.1:7000\r\n").await;
}

#[tokio::test]
async fn ends_with_its_owner() {
    let mock = RespMock::start(|_| Answer::Default).await;
    let mut stream = TcpStream::connect(mock.addr()).await.unwrap();
    exchange(&mut stream, "PING\r\n", "+PONG\r\n").await;
    drop(mock);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}
