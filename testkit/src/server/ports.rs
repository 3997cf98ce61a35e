//! Ports for servers.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// How far above its port a node of a cluster listens for the other nodes.
pub(crate) const BUS_OFFSET: u16 = 10_000;

/// Below the range that Linux gives to outgoing connections, also with [`BUS_OFFSET`] added: nobody
/// is given the port of a killed node, so that its clients meet no stranger.
const QUIET: Range<u16> = 12_000..22_000;

/// A port that was free a moment ago.
pub(super) fn free() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback has a port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}

/// A port that was free a moment ago, and with it the one of the bus.
pub(super) fn free_with_bus() -> u16 {
    // Random: test processes that run side by side must not try the same ports in the same order.
    let start = RandomState::new().hash_one(()) % u64::from(QUIET.end - QUIET.start);
    let start = QUIET.start + u16::try_from(start).expect("less than the range");
    (start..QUIET.end)
        .chain(QUIET.start..start)
        .find(|port| is_free(*port) && is_free(port + BUS_OFFSET))
        .expect("the loopback has a free port")
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
