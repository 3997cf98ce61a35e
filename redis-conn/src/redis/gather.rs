//! Many calls in one: what is asked while others are under way is gathered, and sent together when one of these returns.
//!
//! Whoever finds room sends at once, and alone, so nobody waits for others to come. Only a server that is slower than its callers has
//! them gather: the more they are, the more go together, so its work for each falls as they rise.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{Class, Redis};
use crate::{Error, ErrorKind};

/// How calls are sent that gather. Clones share one [`Gather`].
pub trait Courier: Clone + Send + Sync + 'static {
    /// What is asked.
    type Request: Send + 'static;
    /// What comes of it.
    type Answer: Send + 'static;

    /// Where calls gather.
    fn gather(&self) -> &Gather<Self::Request, Self::Answer>;

    /// What they are sent on.
    fn redis(&self) -> &Redis;

    /// By when it must be answered.
    fn until(request: &Self::Request) -> Instant;

    /// Sends one by itself.
    fn one(
        &self,
        request: &Self::Request,
    ) -> impl Future<Output = Result<Self::Answer, Error>> + Send;

    /// Sends many, in the order in which they came, and answers each.
    fn many(
        &self,
        batch: Vec<Waiting<Self::Request, Self::Answer>>,
    ) -> impl Future<Output = ()> + Send;

    /// One call fewer is under way, and nobody waits.
    fn ended(&self) {}

    /// Sends a call, together with others where they gather.
    fn call(
        self,
        request: Self::Request,
    ) -> impl Future<Output = Result<Self::Answer, Error>> + Send {
        call(self, request)
    }
}

/// A call that waits to be sent.
pub struct Waiting<Q, A> {
    number: u64,
    /// What is asked.
    pub request: Q,
    until: Instant,
    answer: oneshot::Sender<Result<A, Error>>,
}

impl<Q, A> Waiting<Q, A> {
    /// Whether nobody waits for the answer any more.
    pub fn has_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    /// Answers it.
    pub fn answer(self, answer: Result<A, Error>) {
        // Whoever asked may have given up.
        let _ = self.answer.send(answer);
    }

    /// How long the one of these that has most time may still take.
    pub fn time_left(batch: &[Self]) -> Duration {
        let last = batch.iter().map(|waiting| waiting.until).max();
        last.map_or(Duration::ZERO, |last| {
            last.saturating_duration_since(Instant::now())
        })
    }
}

/// What is under way, and who waits behind it.
struct Queue<Q, A> {
    flights: usize,
    /// In the order of their numbers. Nobody waits while there is room.
    waiting: VecDeque<Waiting<Q, A>>,
    /// How many have waited so far.
    count: u64,
}

/// Where calls gather.
pub struct Gather<Q, A> {
    class: Class,
    flights: usize,
    most: usize,
    queue: Mutex<Queue<Q, A>>,
}

impl<Q, A> Gather<Q, A> {
    /// Of calls of this class so many may be under way, and of those that wait for them so many are sent together.
    pub fn new(class: Class, flights: usize, most: usize) -> Self {
        let queue = Queue {
            flights: 0,
            waiting: VecDeque::new(),
            count: 0,
        };
        Self {
            class,
            flights,
            most,
            queue: Mutex::new(queue),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Q, A>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.queue().flights == 0
    }

    /// Takes off, with the request, or else waits.
    fn enter(&self, request: Q, until: Instant) -> Result<Q, Place<A>> {
        let mut queue = self.queue();
        if queue.flights < self.flights {
            queue.flights += 1;
            return Ok(request);
        }
        queue.count += 1;
        let (answer, answered) = oneshot::channel();
        let number = queue.count;
        queue.waiting.push_back(Waiting {
            number,
            request,
            until,
            answer,
        });
        Err(Place { number, answered })
    }

    /// Those who are next. Nobody, if nobody waits: then one call fewer is under way.
    fn next(&self) -> Option<Vec<Waiting<Q, A>>> {
        let mut queue = self.queue();
        let now = Instant::now();
        let mut batch = Vec::new();
        while batch.len() < self.most
            && let Some(next) = queue.waiting.pop_front()
        {
            if next.has_given_up() {
                continue;
            }
            if next.until <= now {
                next.answer(Err(late()));
            } else {
                batch.push(next);
            }
        }
        if batch.is_empty() {
            queue.flights -= 1;
            return None;
        }
        Some(batch)
    }

    /// Somebody waits no longer. Whoever has no place in the queue any more was sent, and it may have been done. A place is left as it
    /// is: when its turn comes, it is seen that nobody waits there.
    fn give_up(&self, number: u64) -> Error {
        let queue = self.queue();
        let place = queue
            .waiting
            .binary_search_by_key(&number, |other| other.number);
        match place {
            Err(_) if self.class == Class::AtMostOnce => Error::new(
                ErrorKind::Ambiguous,
                "sent with other calls, and not answered in time",
            ),
            _ => late(),
        }
    }

    /// The runtime has ended: nobody sends any more, and whoever waits hears that.
    fn end(&self) {
        let mut queue = self.queue();
        queue.flights -= 1;
        queue.waiting.clear();
    }
}

fn late() -> Error {
    Error::new(ErrorKind::Timeout, "waiting for the answers to other calls")
}

/// Where somebody waits.
struct Place<A> {
    number: u64,
    answered: oneshot::Receiver<Result<A, Error>>,
}

async fn call<C: Courier>(courier: C, request: C::Request) -> Result<C::Answer, Error> {
    let until = C::until(&request);
    match courier.gather().enter(request, until) {
        Ok(request) => {
            let flight = Flight(courier);
            // In a box, so that those who wait do not carry the room for it.
            Box::pin(flight.0.one(&request)).await
        }
        Err(Place { number, answered }) => match tokio::time::timeout_at(until, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, "the runtime has ended")),
            Err(_) => Err(courier.gather().give_up(number)),
        },
    }
}

/// A call of one caller under way. When it has returned, or the caller has given up, those who waited behind it are sent.
struct Flight<C: Courier>(C);

impl<C: Courier> Drop for Flight<C> {
    fn drop(&mut self) {
        let mut runner = Runner {
            courier: self.0.clone(),
            ended: false,
        };
        if let Some(batch) = runner.next() {
            self.0.redis().spawn(runner.run(batch));
        }
    }
}

/// Sends those who wait, again and again until nobody does.
struct Runner<C: Courier> {
    courier: C,
    ended: bool,
}

impl<C: Courier> Runner<C> {
    async fn run(mut self, first: Vec<Waiting<C::Request, C::Answer>>) {
        let mut batch = first;
        loop {
            self.courier.many(batch).await;
            // Those who were answered may ask again at once, and would come too late for the next call.
            tokio::task::yield_now().await;
            match self.next() {
                Some(next) => batch = next,
                None => break,
            }
        }
    }

    fn next(&mut self) -> Option<Vec<Waiting<C::Request, C::Answer>>> {
        let next = self.courier.gather().next();
        if next.is_none() {
            self.ended = true;
            self.courier.ended();
        }
        next
    }
}

impl<C: Courier> Drop for Runner<C> {
    fn drop(&mut self) {
        if !self.ended {
            self.courier.gather().end();
            self.courier.ended();
        }
    }
}

impl<Q, A> fmt::Debug for Waiting<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<Q, A> fmt::Debug for Gather<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.queue();
        f.debug_struct("Gather")
            .field("flights", &queue.flights)
            .field("waiting", &queue.waiting.len())
            .finish_non_exhaustive()
    }
}
