//! A server that says what a test wants it to say.

mod defaults;
mod message;
mod serve;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use self::message::{Answer, Request};
use self::{defaults::Guise, serve::Order};
use crate::{bound::within, cluster::SLOTS};

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A server on a free port of 127.0.0.1 that speaks RESP2 and RESP3 and answers as scripted.
///
/// What the script answers with [`Answer::Default`] is answered as a master does that holds nothing:
/// the commands of a connection's beginning, of subscriptions, of discovery. A data command is
/// unknown then. Dropping this closes everything.
///
/// ```no_run
/// use testkit::{Answer, RespMock};
///
/// # async fn demo() {
/// let mock = RespMock::start(|request| {
///     if request.is("GET") {
///         Answer::error("LOADING Redis is loading the dataset in memory")
///     } else {
///         Answer::Default
///     }
/// })
/// .await;
/// // ... connect the code under test to `mock.url()` ...
/// mock.wait_for(|mock| mock.count("GET") == 2).await;
/// # }
/// ```
pub struct RespMock {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

impl RespMock {
    /// Starts a mock that asks `handler` about each request.
    pub async fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("the loopback has a free port");
        let addr = listener
            .local_addr()
            .expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            handler: Mutex::new(Arc::new(handler)),
            guise: Mutex::new(Guise {
                version: "7.2.0".to_owned(),
                mode: "standalone".to_owned(),
                replica: false,
                slots: vec![(0, SLOTS - 1, addr)],
            }),
            record: Mutex::default(),
            changed: watch::Sender::default(),
        });
        let acceptor = tokio::spawn(serve::accept(listener, Arc::clone(&shared)));
        Self {
            addr,
            shared,
            acceptor,
        }
    }

    /// The address that clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address as a Redis URL without credentials.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Asks `handler` about each request from now on.
    pub fn on(&self, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *lock(&self.shared.handler) = Arc::new(handler);
    }

    /// Claims to be this version; 7.2.0 unless set.
    pub fn set_version(&self, version: &str) {
        version.clone_into(&mut lock(&self.shared.guise).version);
    }

    /// Claims to run in this mode: `standalone`, which it is unless set, `cluster` or `sentinel`.
    pub fn set_mode(&self, mode: &str) {
        mode.clone_into(&mut lock(&self.shared.guise).mode);
    }

    /// Claims to be a replica, or the master that it is unless set.
    pub fn set_replica(&self, replica: bool) {
        lock(&self.shared.guise).replica = replica;
    }

    /// Tells these ranges of slots, first and last, and the primary of each; all slots are its own
    /// unless set.
    pub fn set_slots(&self, slots: impl IntoIterator<Item = (u16, u16, SocketAddr)>) {
        lock(&self.shared.guise).slots = slots.into_iter().collect();
    }

    /// Sends `bytes` on all open connections.
    pub fn push(&self, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        for orders in lock(&self.shared.record).live.values() {
            // A connection that is ending needs to hear nothing.
            let _ = orders.send(Order::Send(bytes.clone()));
        }
    }

    /// Closes all open connections. New ones are accepted.
    pub fn close_all(&self) {
        for orders in lock(&self.shared.record).live.values() {
            let _ = orders.send(Order::Close);
        }
    }

    /// All requests so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.record).requests.clone()
    }

    /// How many requests so far [begin](Request::is) with `command`.
    pub fn count(&self, command: &str) -> usize {
        let record = lock(&self.shared.record);
        let requests = record.requests.iter();
        requests.filter(|request| request.is(command)).count()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        lock(&self.shared.record).requests.clear();
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        lock(&self.shared.record).live.len()
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> usize {
        lock(&self.shared.record).accepted
    }

    /// Waits until `condition` is true; it is asked again after each request and connection.
    ///
    /// # Panics
    ///
    /// If it is not within ten seconds.
    pub async fn wait_for(&self, mut condition: impl FnMut(&Self) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            while !condition(self) {
                let more = changed.changed().await;
                more.expect("the mock holds the sender");
            }
        };
        within("the mock's clients", waiting).await;
    }
}

impl Drop for RespMock {
    fn drop(&mut self) {
        // The acceptor owns the connections' tasks.
        self.acceptor.abort();
    }
}

impl fmt::Debug for RespMock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespMock")
            .field("addr", &self.addr)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// What the test and the connections share.
struct Shared {
    handler: Mutex<Handler>,
    guise: Mutex<Guise>,
    record: Mutex<Record>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Record {
    requests: Vec<Request>,
    accepted: usize,
    live: BTreeMap<usize, mpsc::UnboundedSender<Order>>,
}

impl Shared {
    fn admit(&self) -> (usize, mpsc::UnboundedReceiver<Order>) {
        let (sender, orders) = mpsc::unbounded_channel();
        let number = self.change(|record| {
            let number = record.accepted;
            record.accepted += 1;
            record.live.insert(number, sender);
            number
        });
        (number, orders)
    }

    fn dismiss(&self, number: usize) {
        self.change(|record| record.live.remove(&number));
    }

    fn record(&self, request: Request) {
        self.change(|record| record.requests.push(request));
    }

    fn decide(&self, request: &Request) -> Answer {
        // Not under the lock: the handler may change the mock.
        let handler = Arc::clone(&lock(&self.handler));
        handler(request)
    }

    fn guise(&self) -> Guise {
        lock(&self.guise).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let changed = change(&mut lock(&self.record));
        self.changed.send_replace(());
        changed
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
