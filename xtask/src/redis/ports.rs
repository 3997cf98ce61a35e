//! Ports that nobody listens on.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use crate::sh::Result;

/// Below the ports that systems give to outgoing connections, so that none of ours is given away
/// between the look and its use, and low enough for the bus of a cluster node above it.
const RANGE: std::ops::Range<u16> = 10_000..22_000;
/// A cluster node listens on its port plus this one as well.
const BUS: u16 = 10_000;

/// `count` different ports; each is free, and so is the one of the bus above it.
pub(super) fn free(count: usize) -> Result<Vec<u16>> {
    let start = RandomState::new().hash_one(std::process::id());
    let size = u64::from(RANGE.end - RANGE.start);
    let mut taken = Vec::new();
    for step in 0..size {
        let offset = u16::try_from(start.wrapping_add(step) % size)?;
        let port = RANGE.start + offset;
        // Held until all are found, so that none is found twice.
        if let (Ok(own), Ok(bus)) = (listen(port), listen(port + BUS)) {
            taken.push((port, own, bus));
        }
        if taken.len() == count {
            return Ok(taken.into_iter().map(|(port, ..)| port).collect());
        }
    }
    Err(format!("127.0.0.1 has no {count} free ports in {RANGE:?}").into())
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        let mut ports = free(6).unwrap();
        assert!(ports.iter().all(|port| RANGE.contains(port)));
        let listeners: Vec<_> = ports.iter().map(|port| listen(*port).unwrap()).collect();
        let others = free(6).unwrap();
        assert!(others.iter().all(|port| !ports.contains(port)));
        drop(listeners);
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }
}
