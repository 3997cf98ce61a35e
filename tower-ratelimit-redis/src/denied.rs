//! Refusals that this process knows already: nobody need ask the store again before the wait that it told is over.
//!
//! It costs no accuracy: a refusal lasts until what is counted expires, and other calls only make that later. What makes room
//! earlier are a reset or the end of a block, which every process is told of over the bus, and a refund, which is told to nobody: other
//! processes refuse on until the wait is over that they were told.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis_conn::{Backend, Bus, Clock, Error, Event, Subject, raw::Tasks};
use tokio::task::AbortHandle;

use crate::{Decision, Policy, Source, Spending, store::micros};

const SHARDS: usize = 64;
/// Where resets are told.
const CHANNEL: &str = "limits";
/// For how many microseconds at most a refusal is remembered while this process hears of no resets.
const DEAF: u64 = 1_000_000;
/// After how many microseconds at the earliest it tries again to hear of them.
const LISTEN_AGAIN: u64 = 1_000_000;

/// A policy's name and a subject.
type Name = u128;

/// Refusals by policy and subject: a bounded number.
pub(crate) struct Denied {
    clock: Arc<dyn Clock>,
    bus: Bus,
    tasks: Tasks,
    capacity: usize,
    hasher: RandomState,
    shards: Box<[Shard]>,
    /// Whether anything was ever refused: most often not, and then a look is all that it costs.
    any: AtomicBool,
    /// Whether resets are heard of.
    listening: AtomicBool,
    listen_at: AtomicU64,
    /// It would keep the backend alive.
    listener: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct Shard {
    refusals: Mutex<HashMap<Name, Refusal>>,
    /// How often something was forgotten.
    forgotten: AtomicU64,
}

/// When the store was asked about whom, and what was forgotten by then.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    name: Name,
    /// In microseconds since boot.
    at: u64,
    forgotten: u64,
}

struct Refusal {
    /// Under which limits it was refused.
    policy: Policy,
    /// What costs less may fit.
    cost: u32,
    /// When it was told, and until when it lasts, in microseconds since boot.
    told: u64,
    until: u64,
    decision: Decision,
}

impl Shard {
    fn refusals(&self) -> MutexGuard<'_, HashMap<Name, Refusal>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Denied {
    /// Room for about so many refusals. Without room it remembers none, and still tells others what they are to forget.
    pub(crate) fn new(backend: &Backend, tasks: &Tasks, capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::clone(backend.clock()),
            bus: backend.bus(),
            tasks: tasks.clone(),
            capacity: capacity.div_ceil(SHARDS),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            any: AtomicBool::new(false),
            listening: AtomicBool::new(false),
            listen_at: AtomicU64::new(0),
            listener: Mutex::default(),
        })
    }

    /// The time by which refusals last. Read before the store is asked, so that none lasts too long, and that none is remembered
    /// which somebody was told the end of before its answer came.
    pub(crate) fn now(&self, policy: &Policy, subject: &Subject) -> Moment {
        let name = name(policy, subject);
        Moment {
            name,
            at: self.clock.boot_micros(),
            forgotten: self.shard(name).forgotten.load(Ordering::Acquire),
        }
    }

    /// The refusal of a call of this cost, if it is known.
    pub(crate) fn find(&self, policy: &Policy, cost: u32, moment: Moment) -> Option<Decision> {
        let Moment { name, at: now, .. } = moment;
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let refusals = self.shard(name).refusals();
        let refusal = refusals.get(&name)?;
        let holds = refusal.cost <= cost && now < refusal.until && refusal.policy == *policy;
        holds.then(|| {
            let passed = Duration::from_micros(now.saturating_sub(refusal.told));
            refusal.decision.again_after(passed, cost)
        })
    }

    /// Remembers a refusal of the store, which was asked at `asked`, unless something was forgotten since: that may be this one.
    pub(crate) fn remember(
        self: &Arc<Self>,
        policy: &Policy,
        cost: u32,
        moment: Moment,
        decision: &Decision,
    ) {
        let Moment {
            name,
            at: asked,
            forgotten,
        } = moment;
        let Some(wait) = decision.retry_after() else {
            return;
        };
        if decision.is_allowed()
            || decision.source() != Source::Store
            || cost == 0
            || self.capacity == 0
        {
            return;
        }
        let wait = if self.listening.load(Ordering::Acquire) {
            micros(wait)
        } else {
            self.listen(asked);
            micros(wait).min(DEAF)
        };
        // Another process may give back what it reserved when that part of the window has ended.
        let part = policy.limits().iter().map(|limit| limit.span / 32).min();
        let wait = match (policy.spending(), part) {
            (Spending::Lease(_), Some(part)) => wait.min(part),
            _ => wait,
        };
        let shard = self.shard(name);
        let mut refusals = shard.refusals();
        // With the shard locked: whoever counts later removes it again.
        if shard.forgotten.load(Ordering::Acquire) != forgotten {
            return;
        }
        if refusals.len() >= self.capacity && !refusals.contains_key(&name) {
            refusals.retain(|_, refusal| refusal.until > asked);
            // Whoever is forgotten is asked for again; that costs a call and nothing else.
            if refusals.len() >= self.capacity
                && let Some(other) = refusals.keys().next().copied()
            {
                refusals.remove(&other);
            }
        }
        let refusal = Refusal {
            policy: policy.clone(),
            // Who is blocked is refused whatever it costs.
            cost: if decision.is_blocked() { 1 } else { cost },
            told: asked,
            until: asked.saturating_add(wait),
            decision: decision.clone(),
        };
        refusals.insert(name, refusal);
        self.any.store(true, Ordering::Relaxed);
    }

    /// Forgets what is known of a subject, here.
    pub(crate) fn forget(&self, policy: &Policy, subject: &Subject) {
        self.forget_name(name(policy, subject));
    }

    fn forget_name(&self, name: Name) {
        let shard = self.shard(name);
        shard.forgotten.fetch_add(1, Ordering::AcqRel);
        shard.refusals().remove(&name);
    }

    /// Forgets what is known of a subject, everywhere.
    pub(crate) async fn forget_everywhere(
        &self,
        policy: &Policy,
        subject: &Subject,
    ) -> Result<(), Error> {
        self.forget(policy, subject);
        let name = name(policy, subject);
        self.bus.publish(CHANNEL, &name.to_le_bytes()).await
    }

    fn forget_all(&self) {
        for shard in &self.shards {
            shard.forgotten.fetch_add(1, Ordering::AcqRel);
            shard.refusals().clear();
        }
    }

    fn shard(&self, name: Name) -> &Shard {
        &self.shards[self.hasher.hash_one(name) as usize % SHARDS]
    }

    /// Begins to hear of resets, unless that was tried just now.
    fn listen(self: &Arc<Self>, now: u64) {
        let due = |at| (at <= now).then_some(now.saturating_add(LISTEN_AGAIN));
        let begin = self
            .listen_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, due);
        if begin.is_ok() {
            let listening = listen(Arc::downgrade(self), self.bus.clone());
            let listener = self.tasks.follow(listening);
            let mut held = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
            *held = listener.map(|listener| listener.abort_handle());
        }
    }

    fn hear(&self, event: &Event) {
        match event {
            Event::Message(message) => {
                if let Ok(name) = message.payload().try_into() {
                    self.forget_name(Name::from_le_bytes(name));
                }
            }
            // It may have been told of any.
            _ => self.forget_all(),
        }
    }
}

/// Hears of resets as long as somebody remembers refusals.
async fn listen(denied: Weak<Denied>, bus: Bus) {
    let Ok(mut resets) = bus.subscribe(CHANNEL).await else {
        return;
    };
    drop(bus);
    let _listening = Listening::begin(denied.clone());
    while let Some(event) = resets.recv().await {
        let Some(denied) = denied.upgrade() else {
            return;
        };
        denied.hear(&event);
    }
}

/// As long as this is, resets are heard of; it ends with the task, also where the runtime of that does.
struct Listening(Weak<Denied>);

impl Listening {
    fn begin(denied: Weak<Denied>) -> Self {
        let listening = Self(denied);
        listening.set(true);
        listening
    }

    fn set(&self, listening: bool) {
        let Some(denied) = self.0.upgrade() else {
            return;
        };
        if !listening {
            denied.listening.store(false, Ordering::Release);
        }
        // What was told while it did not listen is not known to be heard.
        denied.forget_all();
        if listening {
            denied.listening.store(true, Ordering::Release);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Drop for Denied {
    fn drop(&mut self) {
        let listener = self.listener.get_mut();
        if let Some(listener) = listener.unwrap_or_else(PoisonError::into_inner) {
            listener.abort();
        }
    }
}

fn name(policy: &Policy, subject: &Subject) -> Name {
    let mut hasher = blake3::Hasher::new();
    hasher.update(policy.name().as_bytes());
    // No name has this byte.
    hasher.update(&[0]);
    hasher.update(subject.as_bytes());
    let mut name = [0; 16];
    hasher.finalize_xof().fill(&mut name);
    Name::from_le_bytes(name)
}

impl fmt::Debug for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denied")
            .field("capacity", &(self.capacity * SHARDS))
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use redis_conn::ManualClock;

    use super::*;
    use crate::{
        counter::{Charge, Now},
        counters::{Ask, Counters},
    };

    const SECOND: u64 = 1_000_000;

    fn policy(max: u64) -> Policy {
        let policy = Policy::new("test").limit(max, Duration::from_secs(1));
        policy.build().unwrap()
    }

    /// What a store says of a call of this cost where nothing is left.
    fn refusal(policy: &Policy, cost: u32) -> Decision {
        let now = Now { at: 0, wall: 0 };
        let mut counters = Counters::new(policy, now);
        counters.decide(policy, Ask::AtMost, Charge::of(u32::MAX), now);
        Decision::look(policy, &counters, now, cost)
    }

    fn denied(capacity: usize) -> Arc<Denied> {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(SECOND));
        let backend = Backend::builder().clock(clock).memory().unwrap();
        Denied::new(&backend, &backend.tasks(), capacity)
    }

    impl Denied {
        fn remember_now(self: &Arc<Self>, policy: &Policy, subject: &Subject, cost: u32) {
            let told = refusal(policy, cost);
            self.remember(policy, cost, self.now(policy, subject), &told);
        }

        fn find_at(
            &self,
            at: u64,
            policy: &Policy,
            subject: &Subject,
            cost: u32,
        ) -> Option<Decision> {
            let now = self.now(policy, subject);
            self.find(policy, cost, Moment { at, ..now })
        }
    }

    #[tokio::test]
    async fn a_refusal_is_known_for_as_long_as_it_lasts_and_for_what_costs_no_less() {
        let (denied, policy, subject) = (denied(100), policy(5), Subject::from("a"));
        denied.listening.store(true, Ordering::Release);
        let told = refusal(&policy, 3);
        let wait = micros(told.retry_after().unwrap());
        denied.remember_now(&policy, &subject, 3);
        let known = |cost, after| denied.find_at(SECOND + after, &policy, &subject, cost);
        assert!(known(2, 0).is_none(), "it may fit");
        for cost in [3, 4] {
            let again = known(cost, wait - 1).unwrap();
            assert_eq!(again.retry_after(), Some(Duration::from_micros(1)));
            assert_eq!(again.source(), Source::Cached);
            assert!(known(cost, wait).is_none());
        }
        let other = Subject::from("b");
        assert!(denied.find_at(SECOND, &policy, &other, 3).is_none());
        denied.forget(&policy, &subject);
        assert!(known(3, 0).is_none());
    }

    #[tokio::test]
    async fn a_greater_cost_may_be_too_much_for_more_limits() {
        let (denied, subject) = (denied(100), Subject::from("a"));
        let seconds = Duration::from_secs;
        let policy = Policy::new("test")
            .limit(3, seconds(1))
            .limit(7, seconds(2));
        let policy = policy.build().unwrap();
        let now = Now { at: 0, wall: 0 };
        let mut counters = Counters::new(&policy, now);
        counters.charge(&policy, Charge::of(2), now);
        let told = Decision::look(&policy, &counters, now, 3);
        denied.remember(&policy, 3, denied.now(&policy, &subject), &told);
        for (cost, violated) in [(3, 1), (6, 2)] {
            let again = denied.find_at(SECOND, &policy, &subject, cost).unwrap();
            assert_eq!(again.violated().count(), violated);
        }
    }

    #[tokio::test]
    async fn another_policy_of_the_name_asks_for_itself() {
        let (denied, subject) = (denied(100), Subject::from("a"));
        let (small, large) = (policy(5), policy(50));
        denied.remember_now(&small, &subject, 1);
        assert!(denied.find_at(SECOND, &policy(5), &subject, 1).is_some());
        assert!(denied.find_at(SECOND, &large, &subject, 1).is_none());
    }

    #[tokio::test]
    async fn the_room_is_bounded() {
        let (denied, policy) = (denied(64), policy(5));
        for n in 0..10_000 {
            let subject = Subject::from(n.to_string());
            denied.remember_now(&policy, &subject, 1);
            assert!(denied.find_at(SECOND, &policy, &subject, 1).is_some());
        }
        let held: usize = denied
            .shards
            .iter()
            .map(|shard| shard.refusals().len())
            .sum();
        assert!(held <= 64, "{held}");
    }

    #[tokio::test]
    async fn who_hears_of_no_resets_remembers_for_a_second() {
        let (denied, subject) = (denied(100), Subject::from("a"));
        let policy = Policy::new("test").limit(1, Duration::from_secs(60));
        let policy = policy.build().unwrap();
        denied.remember_now(&policy, &subject, 1);
        let known = |after| {
            denied
                .find_at(SECOND + after, &policy, &subject, 1)
                .is_some()
        };
        assert!(known(SECOND - 1) && !known(SECOND));
    }

    #[tokio::test]
    async fn a_gap_and_a_message_make_it_ask_again() {
        let (denied, policy) = (denied(100), policy(1));
        let (a, b) = (Subject::from("a"), Subject::from("b"));
        let known = |subject| denied.find_at(SECOND, &policy, subject, 1).is_some();
        for subject in [&a, &b] {
            denied.remember_now(&policy, subject, 1);
        }
        denied.hear(&Event::Gap);
        assert!(!known(&a) && !known(&b));
    }

    #[tokio::test]
    async fn a_refusal_whose_end_is_told_before_its_answer_comes_is_not_remembered() {
        let (denied, policy, subject) = (denied(100), policy(1), Subject::from("a"));
        let told = refusal(&policy, 1);
        let ends: [&dyn Fn(); 2] = [&|| denied.forget(&policy, &subject), &|| {
            denied.hear(&Event::Gap)
        }];
        for end in ends {
            let asked = denied.now(&policy, &subject);
            end();
            denied.remember(&policy, 1, asked, &told);
            assert!(denied.find_at(SECOND, &policy, &subject, 1).is_none());
        }
    }

    #[tokio::test]
    async fn what_others_are_told_keeps_few_refusals_from_being_remembered() {
        let (denied, policy) = (denied(1_000), policy(1));
        let subjects: Vec<_> = (0..100).map(|n| Subject::from(n.to_string())).collect();
        let told = refusal(&policy, 1);
        let asked: Vec<_> = subjects
            .iter()
            .map(|one| denied.now(&policy, one))
            .collect();
        denied.forget(&policy, &subjects[0]);
        for moment in asked {
            denied.remember(&policy, 1, moment, &told);
        }
        let known = |one: &&Subject| denied.find_at(SECOND, &policy, one, 1).is_some();
        assert!(!known(&&subjects[0]));
        assert!(subjects.iter().filter(known).count() > 50);
    }
}
