//! The socket below a connection, tuned so that a peer that vanished is noticed.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::timeout,
};

use super::fault::Failure;
use crate::{
    Config,
    config::{Endpoint, Family},
};

/// How long one address is waited for before the next one is tried as well.
const HEAD_START: Duration = Duration::from_millis(250);

/// How often a peer that does not answer keepalive is asked, and how many times.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
#[cfg(not(any(target_os = "openbsd", target_os = "windows")))]
const PROBES: u32 = 3;

/// A stream of bytes to a server.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Socket for T {}

pub(super) type BoxSocket = Pin<Box<dyn Socket>>;

/// Why the stream ended, if the server said so below of what the client library reads.
pub(super) type Ending = Arc<OnceLock<Failure>>;

/// Opens a socket, without TLS.
pub(super) async fn open(endpoint: &Endpoint, config: &Config) -> io::Result<BoxSocket> {
    match endpoint {
        Endpoint::Tcp { host, port } => Ok(Box::pin(open_tcp(host, *port, config).await?)),
        #[cfg(unix)]
        Endpoint::Unix(path) => Ok(Box::pin(tokio::net::UnixStream::connect(path).await?)),
        #[cfg(not(unix))]
        Endpoint::Unix(_) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system has no unix sockets",
        )),
    }
}

async fn open_tcp(host: &str, port: u16, config: &Config) -> io::Result<TcpStream> {
    let socket = connect(host, port, config).await?;
    tune(&socket, config)?;
    Ok(socket)
}

async fn connect(host: &str, port: u16, config: &Config) -> io::Result<TcpStream> {
    let family = config.family();
    let mut addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    addresses.retain(|address| is_wanted(*address, family));
    if addresses.is_empty() {
        let text = format!("the host has no address of the family {family:?}");
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text));
    }
    race(&addresses, head_start(&addresses, config.dial_timeout())).await
}

fn is_wanted(address: SocketAddr, family: Family) -> bool {
    match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    }
}

/// The last address must have its turn inside of the dial timeout.
fn head_start(addresses: &[SocketAddr], dial_timeout: Duration) -> Duration {
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    HEAD_START.min(dial_timeout / count.max(1))
}

/// Tries the addresses in their order, the next one when one fails or is silent; the first that answers is taken.
async fn race(addresses: &[SocketAddr], head_start: Duration) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut failed = None;
    for address in addresses {
        attempts.spawn(TcpStream::connect(*address));
        match timeout(head_start, attempts.join_next()).await {
            Ok(Some(Ok(Ok(socket)))) => return Ok(socket),
            Ok(Some(Ok(Err(error)))) => failed = Some(error),
            Ok(_) | Err(_) => {}
        }
    }
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failed = Some(error),
            Err(_) => {}
        }
    }
    Err(failed.unwrap_or_else(|| io::ErrorKind::NotConnected.into()))
}

/// Without these a peer that vanished is noticed after minutes: keepalive covers an idle socket, the user timeout one with
/// unacknowledged data.
fn tune(socket: &TcpStream, config: &Config) -> io::Result<()> {
    socket.set_nodelay(config.no_delay())?;
    let socket = SockRef::from(socket);
    if let Some(idle) = config.keep_alive() {
        let probes = TcpKeepalive::new()
            .with_time(idle)
            .with_interval(PROBE_INTERVAL);
        #[cfg(not(any(target_os = "openbsd", target_os = "windows")))]
        let probes = probes.with_retries(PROBES);
        socket.set_tcp_keepalive(&probes)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(user_timeout(config)))?;
    Ok(())
}

/// Long enough for a few retransmissions, however impatient the callers are.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn user_timeout(config: &Config) -> Duration {
    (config.command_timeout() * 2).max(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::{Domain, Socket as RawSocket, Type};

    use super::*;
    use crate::ConfigBuilder;

    const HANG: Duration = Duration::from_secs(10);

    fn bound() -> (RawSocket, SocketAddr) {
        let socket = RawSocket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    /// A listener whose queue is full: it answers nobody any more.
    async fn black_hole() -> (RawSocket, Vec<TcpStream>, SocketAddr) {
        let (listener, address) = bound();
        listener.listen(0).unwrap();
        let mut queued = Vec::new();
        while let Ok(socket) = timeout(HEAD_START, TcpStream::connect(address)).await {
            queued.push(socket.unwrap());
        }
        (listener, queued, address)
    }

    #[tokio::test]
    async fn an_address_that_is_silent_or_refuses_does_not_keep_the_next_from_being_used() {
        let (_listener, _queued, silent) = black_hole().await;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let serving = listener.local_addr().unwrap();
        // Nobody listens there, and nobody else can.
        let (_bound, refusing) = bound();

        for first in [silent, refusing] {
            let addresses = [first, serving];
            let raced = timeout(HANG, race(&addresses, HEAD_START));
            let socket = raced.await.unwrap().unwrap();
            assert_eq!(socket.peer_addr().unwrap(), serving);
        }
    }

    #[tokio::test]
    async fn addresses_that_all_refuse_are_an_error() {
        let (_bound, refusing) = bound();
        let raced = race(&[refusing, refusing], HEAD_START).await;
        assert_eq!(raced.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    async fn opened(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Config::builder(Endpoint::tcp("127.0.0.1", port));
        let config = change(config).build().unwrap();
        open_tcp("127.0.0.1", port, &config).await.unwrap()
    }

    #[tokio::test]
    async fn the_options_of_a_socket_are_those_of_the_configuration() {
        for no_delay in [true, false] {
            let socket = opened(|config| config.no_delay(no_delay)).await;
            assert_eq!(socket.nodelay().unwrap(), no_delay);
        }

        let idle = Duration::from_secs(42);
        let socket = opened(|config| config.keep_alive(Some(idle))).await;
        let options = SockRef::from(&socket);
        assert!(options.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(options.tcp_keepalive_time().unwrap(), idle);
            assert_eq!(options.tcp_keepalive_interval().unwrap(), PROBE_INTERVAL);
            assert_eq!(options.tcp_keepalive_retries().unwrap(), PROBES);
        }
        let socket = opened(|config| config.keep_alive(None)).await;
        assert!(!SockRef::from(&socket).keepalive().unwrap());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn unacknowledged_data_condemns_a_socket_after_two_command_timeouts() {
        for (command_timeout, expected) in [(20, 40), (1, 5)] {
            let timeout = Duration::from_secs(command_timeout);
            let socket = opened(|config| config.command_timeout(timeout)).await;
            let found = SockRef::from(&socket).tcp_user_timeout().unwrap();
            assert_eq!(found, Some(Duration::from_secs(expected)));
        }
    }

    #[test]
    fn every_address_has_its_turn_inside_of_the_dial_timeout() {
        let addresses = ["127.0.0.1:1".parse().unwrap(); 10];
        let limit = Duration::from_secs(1);
        assert!(head_start(&addresses, limit) * 9 < limit);
        assert_eq!(head_start(&addresses[..2], limit), HEAD_START);
    }

    #[test]
    fn only_addresses_of_the_family_are_used() {
        let v4: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let v6: SocketAddr = "[::1]:1".parse().unwrap();
        for (family, wants_v4, wants_v6) in [
            (Family::Any, true, true),
            (Family::V4, true, false),
            (Family::V6, false, true),
        ] {
            assert_eq!(is_wanted(v4, family), wants_v4);
            assert_eq!(is_wanted(v6, family), wants_v6);
        }
    }
}
