//! A TCP proxy between a client and a server that behaves as badly as a network can.
//!
//! The proxy carries any bytes; only [`Fault::DropReply`] and [`Fault::DropPushes`] read
//! them as RESP.

mod builder;
mod connection;
mod download;
mod fault;
mod replies;
pub(crate) mod resp;
mod stats;
mod upstream;

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

pub use self::{
    builder::FaultProxyBuilder,
    fault::{AfterDrop, Fault, Matching},
    stats::ProxyStats,
    upstream::Upstream,
};
use self::{builder::Sockets, connection::Born, fault::Control, stats::Meter};
use crate::bound::within;

/// A proxy on a free port of 127.0.0.1 whose [`Fault`] can be changed while traffic flows.
///
/// Every task and connection of it ends when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    userinfo: String,
    upstream: watch::Sender<SocketAddr>,
    control: watch::Sender<Control>,
    meter: Arc<Meter>,
    acceptor: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy in front of `upstream` that lets everything pass.
    pub async fn start(upstream: impl Into<Upstream>) -> Self {
        Self::builder().start(upstream).await
    }

    /// Starts describing a proxy that differs from the defaults.
    pub fn builder() -> FaultProxyBuilder {
        FaultProxyBuilder::default()
    }

    fn serve(listener: TcpListener, upstream: Upstream, sockets: Sockets) -> Self {
        let addr = listener
            .local_addr()
            .expect("a bound socket has an address");
        let (control, receiver) = watch::channel(Control::default());
        let meter = Arc::new(Meter::default());
        let (leads, leads_to) = watch::channel(upstream.addr);
        let acceptor = tokio::spawn(accept(
            listener,
            sockets,
            leads_to,
            receiver,
            Arc::clone(&meter),
        ));
        Self {
            addr,
            userinfo: upstream.userinfo,
            upstream: leads,
            control,
            meter,
            acceptor,
        }
    }

    /// The address that clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address as a Redis URL, with what [`RedisServer::url`](crate::RedisServer::url) has before
    /// the host if the proxy was started in front of a server rather than an address.
    pub fn url(&self) -> String {
        format!("redis://{}{}", self.userinfo, self.addr)
    }

    /// Changes the fault for live and for new connections.
    ///
    /// [`Fault::Reset`] is an event rather than a state: it resets the live connections and leaves
    /// new ones to pass. To keep clients out as well, set [`Fault::Refuse`] and then call
    /// [`reset_live`](Self::reset_live).
    pub fn set(&self, fault: Fault) {
        self.control.send_modify(|control| control.set(fault));
    }

    /// Leads new connections to another server; live ones stay where they are. It is what a name does that is given to another host.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.upstream.send_replace(upstream);
    }

    /// Resets every live connection and leaves the fault as it is.
    pub fn reset_live(&self) {
        self.control.send_modify(Control::reset_live);
    }

    /// Loses, from now on and without a word, all that the live connections carry, and leaves the fault as it is: new ones are
    /// not concerned. It is what a firewall does that has forgotten its connections.
    pub fn blackhole_live(&self) {
        self.control.send_modify(Control::blackhole_live);
    }

    /// How many client connections are open.
    pub fn connections(&self) -> usize {
        self.stats().live
    }

    /// How many client connections were accepted so far, refused ones included.
    pub fn accepted(&self) -> usize {
        self.stats().accepted
    }

    /// How many replies were dropped so far.
    pub fn dropped_replies(&self) -> usize {
        self.stats().dropped_replies
    }

    /// What the proxy has done so far.
    pub fn stats(&self) -> ProxyStats {
        self.meter.read()
    }

    /// Waits until the statistics satisfy `condition`, and returns those that did.
    ///
    /// # Panics
    ///
    /// If they do not within ten seconds.
    pub async fn wait_for(&self, condition: impl FnMut(&ProxyStats) -> bool) -> ProxyStats {
        within("the proxy's statistics", self.meter.wait_for(condition)).await
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // The acceptor owns the connections' tasks.
        self.acceptor.abort();
    }
}

async fn accept(
    listener: TcpListener,
    sockets: Sockets,
    upstream: watch::Receiver<SocketAddr>,
    control: watch::Receiver<Control>,
    meter: Arc<Meter>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                meter.add(|stats| stats.accepted += 1);
                let upstream = sockets.connect(*upstream.borrow());
                admit(client, upstream, &control, &meter, &mut connections);
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

fn admit(
    client: TcpStream,
    upstream: impl Future<Output = io::Result<TcpStream>> + Send + 'static,
    control: &watch::Receiver<Control>,
    meter: &Arc<Meter>,
    connections: &mut JoinSet<()>,
) {
    let (refuse, born) = {
        let control = control.borrow();
        (matches!(control.fault, Fault::Refuse), Born::now(&control))
    };
    if refuse {
        connection::reset(client);
        meter.add(|stats| stats.refused += 1);
        return;
    }
    let live = Meter::live(meter);
    connections.spawn(connection::carry(
        client,
        upstream,
        control.clone(),
        born,
        live,
    ));
}
