//! Many calls in one: what is asked while others are under way is gathered, and sent together when one of these returns.
//!
//! Whoever finds room sends at once, and alone, so nobody waits for others to come. Only a server that is slower than its callers has
//! them gather: the more they are, the more go together, so its work for each falls as they rise. All calls of one subject are one
//! entry of a script call, decided in the order in which they came; so are many subjects, where one server has them all.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis_conn::{Error, ErrorKind};
use tokio::{sync::oneshot, time::Instant};

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

/// A call that waits to be sent.
#[derive(Debug)]
pub(super) struct Waiting {
    number: u64,
    pub(super) request: Request,
    answer: oneshot::Sender<Result<Decision, Error>>,
}

impl Waiting {
    pub(super) fn has_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    pub(super) fn answer(self, decided: Result<Decision, Error>) {
        // Whoever asked may have given up.
        let _ = self.answer.send(decided);
    }
}

/// What is under way, and who waits behind it.
#[derive(Debug, Default)]
struct Queue {
    flights: usize,
    /// In the order of their numbers.
    waiting: VecDeque<Waiting>,
    /// How many have waited so far.
    count: u64,
}

impl Queue {
    fn wait(&mut self, request: Request) -> Place {
        self.count += 1;
        let (answer, answered) = oneshot::channel();
        let number = self.count;
        self.waiting.push_back(Waiting {
            number,
            request,
            answer,
        });
        Place { number, answered }
    }
}

/// Where somebody waits.
struct Place {
    number: u64,
    answered: oneshot::Receiver<Result<Decision, Error>>,
}

/// The calls of one server, or of one subject where subjects may be on different servers.
#[derive(Debug)]
pub(super) struct Gate {
    /// How many calls may be under way.
    flights: usize,
    queue: Mutex<Queue>,
}

/// All gates of a store.
pub(super) enum Gates {
    /// One server has all subjects.
    One(Arc<Gate>),
    /// One gate for each subject that is asked for just now.
    BySubject(Mutex<HashMap<Arc<str>, Arc<Gate>>>),
}

impl Gate {
    fn new(flights: usize) -> Arc<Self> {
        Arc::new(Self {
            flights,
            queue: Mutex::default(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(&self) -> bool {
        let queue = self.queue();
        queue.flights == 0 && queue.waiting.is_empty()
    }

    /// Somebody waits no longer. Whoever has no place in the queue any more was sent, and may have been charged. A place is left as it
    /// is: when its turn comes, it is seen that nobody waits there.
    fn give_up(&self, number: u64) -> Error {
        let queue = self.queue();
        let place = queue
            .waiting
            .binary_search_by_key(&number, |other| other.number);
        match place {
            Ok(_) => late(),
            Err(_) => Error::new(
                ErrorKind::Ambiguous,
                "sent with other calls, and not answered in time",
            ),
        }
    }
}

impl Gates {
    pub(super) fn new(one_server: bool) -> Self {
        if one_server {
            Self::One(Gate::new(FLIGHTS))
        } else {
            Self::BySubject(Mutex::default())
        }
    }

    fn of(&self, key: &Arc<str>) -> Arc<Gate> {
        match self {
            Self::One(gate) => Arc::clone(gate),
            Self::BySubject(gates) => {
                let mut gates = gates.lock().unwrap_or_else(PoisonError::into_inner);
                let gate = gates.entry(Arc::clone(key)).or_insert_with(|| Gate::new(1));
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
    let gate = gates.of(&request.key);
    let until = request.until;
    let waiting = {
        let mut queue = gate.queue();
        if queue.flights < gate.flights {
            queue.flights += 1;
            Err(request)
        } else {
            Ok(queue.wait(request))
        }
    };
    match waiting {
        Err(request) => {
            let flight = Flight {
                server: Arc::clone(server),
                gates: Arc::clone(gates),
                gate,
                key: Arc::clone(&request.key),
            };
            // In a box, so that those who wait do not carry the room for it.
            let decided = Box::pin(server.decide(&request)).await;
            drop(flight);
            decided
        }
        Ok(Place { number, answered }) => match tokio::time::timeout_at(until, answered).await {
            Ok(Ok(decided)) => decided,
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, "the runtime has ended")),
            Err(_) => Err(gate.give_up(number)),
        },
    }
}

fn late() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "waiting for the decisions about other calls",
    )
}

/// A call of one caller under way. When it has returned, or the caller has given up, those who waited behind it are sent.
struct Flight {
    server: Arc<Server>,
    gates: Arc<Gates>,
    gate: Arc<Gate>,
    key: Arc<str>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut runner = Runner {
            gates: Arc::clone(&self.gates),
            gate: Arc::clone(&self.gate),
            key: Arc::clone(&self.key),
            ended: false,
        };
        if let Some(batch) = runner.take() {
            let server = Arc::clone(&self.server);
            self.server.spawn(runner.run(server, batch));
        }
    }
}

/// Sends those who wait, again and again until nobody does.
struct Runner {
    gates: Arc<Gates>,
    gate: Arc<Gate>,
    key: Arc<str>,
    ended: bool,
}

impl Runner {
    async fn run(mut self, server: Arc<Server>, first: Vec<Waiting>) {
        let mut batch = first;
        loop {
            server.decide_all(batch).await;
            // Those who were answered may ask again at once, and would come too late for the next call.
            tokio::task::yield_now().await;
            match self.take() {
                Some(next) => batch = next,
                None => break,
            }
        }
    }

    /// Those who are next, or nobody: then this was the end of it.
    fn take(&mut self) -> Option<Vec<Waiting>> {
        let mut queue = self.gate.queue();
        let now = Instant::now();
        let mut batch = Vec::new();
        while batch.len() < MANY
            && let Some(next) = queue.waiting.pop_front()
        {
            if next.has_given_up() {
                continue;
            }
            if next.request.until <= now {
                next.answer(Err(late()));
            } else {
                batch.push(next);
            }
        }
        if !batch.is_empty() {
            return Some(batch);
        }
        queue.flights -= 1;
        self.ended = true;
        drop(queue);
        self.gates.leave(&self.key, &self.gate);
        None
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if !self.ended {
            // The runtime has ended: nobody sends any more, and whoever waits hears that.
            let mut queue = self.gate.queue();
            queue.flights -= 1;
            queue.waiting.clear();
            drop(queue);
            self.gates.leave(&self.key, &self.gate);
        }
    }
}

/// How long the one that has most time may still take.
pub(super) fn time_left(batch: &[Waiting]) -> Duration {
    let last = batch.iter().map(|waiting| waiting.request.until).max();
    last.map_or(Duration::ZERO, |last| {
        last.saturating_duration_since(Instant::now())
    })
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
    use super::*;

    #[test]
    fn a_gate_that_nobody_uses_is_forgotten_whoever_else_knows_it() {
        let (gates, key) = (Gates::new(false), Arc::from("a"));
        let Gates::BySubject(map) = &gates else {
            panic!("subjects may be on different servers");
        };
        let known = || map.lock().unwrap().len();
        let (gate, same) = (gates.of(&key), gates.of(&key));
        assert!(Arc::ptr_eq(&gate, &same));
        gate.queue().flights = 1;
        gates.leave(&key, &gate);
        assert_eq!(known(), 1, "a call is under way");
        gate.queue().flights = 0;
        gates.leave(&key, &gate);
        assert_eq!(known(), 0);

        let other = gates.of(&key);
        gates.leave(&key, &same);
        assert_eq!(known(), 1, "another one is there by now");
        gates.leave(&key, &other);
        assert_eq!(known(), 0);
    }
}
