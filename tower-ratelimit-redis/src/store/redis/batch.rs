//! Which calls gather with which: all of one server, or those of one subject where subjects may be on different servers.
//!
//! All calls of one subject are one entry of a script call, decided in the order in which they came; so are many subjects, where one
//! server has them all.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use redis_conn::{
    Error,
    raw::{Class, Courier, Gather, Redis},
};
use tokio::time::Instant;

use super::server::Server;
use crate::{Decision, Policy, store::Asked};

/// So many script calls to one server are under way at most before others wait: one is decided while the other is on its way. More
/// would only divide the same calls by more script calls; fewer leaves the server idle meanwhile.
const FLIGHTS: usize = 2;
/// So many calls go together at most.
const MANY: usize = 128;

/// A call, and by when it must be decided.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) policy: Policy,
    pub(super) key: Arc<str>,
    pub(super) asked: Asked,
    pub(super) until: Instant,
}

pub(super) type Waiting = redis_conn::raw::Waiting<Request, Decision>;

/// The calls of one server, or of one subject where subjects may be on different servers.
type Gate = Gather<Request, Decision>;

/// All gates of a store.
pub(super) enum Gates {
    /// One server has all subjects.
    One(Arc<Gate>),
    /// One gate for each subject that is asked for just now.
    BySubject(Mutex<HashMap<Arc<str>, Arc<Gate>>>),
}

fn gate(flights: usize) -> Arc<Gate> {
    Arc::new(Gather::new(Class::AtMostOnce, flights, MANY))
}

impl Gates {
    pub(super) fn new(one_server: bool) -> Self {
        if one_server {
            Self::One(gate(FLIGHTS))
        } else {
            Self::BySubject(Mutex::default())
        }
    }

    fn of(&self, key: &Arc<str>) -> Arc<Gate> {
        match self {
            Self::One(gate) => Arc::clone(gate),
            Self::BySubject(gates) => {
                let mut gates = gates.lock().unwrap_or_else(PoisonError::into_inner);
                let gate = gates.entry(Arc::clone(key)).or_insert_with(|| gate(1));
                Arc::clone(gate)
            }
        }
    }

    /// Forgets a gate that nobody uses any more.
    fn leave(&self, key: &Arc<str>, gate: &Arc<Gate>) {
        if let Self::BySubject(gates) = self {
            let mut gates = gates.lock().unwrap_or_else(PoisonError::into_inner);
            // Somebody may have come in between, also after another had left.
            let is_there = |known: &Arc<Gate>| Arc::ptr_eq(known, gate);
            if gates.get(key).is_some_and(is_there) && gate.is_idle() {
                gates.remove(key);
            }
        }
    }
}

/// Decides a call, together with others where they gather.
pub(super) async fn decide(
    server: &Arc<Server>,
    gates: &Arc<Gates>,
    request: Request,
) -> Result<Decision, Error> {
    let through = Through {
        server: Arc::clone(server),
        gates: Arc::clone(gates),
        gate: gates.of(&request.key),
        key: Arc::clone(&request.key),
    };
    through.call(request).await
}

/// The way through one gate.
#[derive(Clone)]
struct Through {
    server: Arc<Server>,
    gates: Arc<Gates>,
    gate: Arc<Gate>,
    key: Arc<str>,
}

impl Courier for Through {
    type Request = Request;
    type Answer = Decision;

    fn gather(&self) -> &Gate {
        &self.gate
    }

    fn redis(&self) -> &Redis {
        &self.server.redis
    }

    fn until(request: &Request) -> Instant {
        request.until
    }

    async fn one(&self, request: &Request) -> Result<Decision, Error> {
        self.server.decide(request).await
    }

    async fn many(&self, batch: Vec<Waiting>) {
        self.server.decide_all(batch).await;
    }

    fn ended(&self) {
        self.gates.leave(&self.key, &self.gate);
    }
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "One",
            Self::BySubject(_) => "BySubject",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};
    use std::time::Duration;

    use redis_conn::{Backend, Config, raw::Engine};

    use super::*;
    use crate::{counter::Charge, counters::Ask};

    #[tokio::test]
    async fn a_gate_that_nobody_uses_is_forgotten_whoever_else_knows_it() {
        // Nobody answers there: calls wait for a connection.
        let config = Config::from_url("redis://127.0.0.1:1").unwrap();
        let backend = Backend::redis(config).unwrap();
        let Engine::Redis(redis) = backend.engine() else {
            panic!("it is a server");
        };
        let server = Arc::new(Server {
            redis: redis.clone(),
        });
        let (gates, key) = (Arc::new(Gates::new(false)), Arc::from("a"));
        let Gates::BySubject(map) = &*gates else {
            panic!("subjects may be on different servers");
        };
        let known = || map.lock().unwrap().len();
        let (gate, same) = (gates.of(&key), gates.of(&key));
        assert!(Arc::ptr_eq(&gate, &same));
        let request = Request {
            policy: Policy::new("a")
                .limit(1, Duration::from_secs(1))
                .build()
                .unwrap(),
            key: Arc::clone(&key),
            asked: Asked::new(Ask::All, Charge::of(1)),
            until: Instant::now() + Duration::from_secs(60),
        };
        let mut call = Box::pin(decide(&server, &gates, request));
        let mut context = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut context).is_pending());
        gates.leave(&key, &gate);
        assert_eq!(known(), 1, "a call is under way");
        drop(call);
        assert_eq!(known(), 0);

        let other = gates.of(&key);
        gates.leave(&key, &same);
        assert_eq!(known(), 1, "another one is there by now");
        gates.leave(&key, &other);
        assert_eq!(known(), 0);
    }
}
