//! A primary dies, and a replica takes its place.

use std::{
    future::pending,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis_conn::{Backend, Config, Endpoint};
use testkit::{PASSWORD, RedisSentinel, USER, until};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower_distlock::{Durability, LockError, LockGuard, LockOptions, Locks};

use crate::{LONG, TTL, Tally, connected};

const NAME: &str = "job";
/// How long who asks again waits.
const PAUSE: Duration = Duration::from_millis(2);
/// How soon sentinels miss a server. They promote no replica that was cut off for ten times as long before the primary was missed.
const DOWN_AFTER: Duration = Duration::from_secs(1);
/// As in `deploy/sentinel.conf`, so that one is promoted that was cut off for a lease.
const DOWN_AFTER_A_LEASE: Duration = Duration::from_secs(5);

/// How many tasks acquire locks all the time.
const TASKS: usize = 16;
/// So many locks are held at least when the primary is killed.
const HELD: usize = 2_000;

/// The grant is on the primary alone.
pub async fn held_back(durability: Durability) -> Tally {
    let group = Group::start(1, DOWN_AFTER).await;
    let mut tally = Tally::default();
    group.cut_off(1).await;
    let first = group.acquire(durability, &mut tally).await;
    group.fail_over(&[0], first, &mut tally).await;
    tally
}

/// The grant is on one of two replicas, and that dies too.
pub async fn another_takes_over(durability: Durability) -> Tally {
    let group = Group::start(2, DOWN_AFTER).await;
    let mut tally = Tally::default();
    group.cut_off(2).await;
    let first = group.acquire(durability, &mut tally).await;
    group.fail_over(&[0, 1], first, &mut tally).await;
    tally
}

/// The grant is on the replica, and no renewal is.
pub async fn renewals_are_missed(durability: Durability) -> Tally {
    let group = Group::start(1, DOWN_AFTER_A_LEASE).await;
    let mut tally = Tally::default();
    let first = group.acquire(durability, &mut tally).await;
    let replicas_end = Instant::now() + TTL;
    group.cut_off(1).await;
    sleep_until(replicas_end).await;
    if let Some(first) = &first {
        // So that the next one is not due before the failover is over.
        let renewed = async || first.valid_for() > TTL * 9 / 10;
        until(LONG, "a renewal", renewed).await.expect("a renewal");
    }
    group.fail_over(&[0], first, &mut tally).await;
    tally
}

/// Nothing is held back, and there is always a grant that is on its way.
pub async fn under_load(durability: Durability) -> Tally {
    let group = Group::start(1, DOWN_AFTER).await;
    let mut tally = Tally::default();
    let load = Load::start(&group.first.1, durability);
    let many = async || load.held() >= HELD;
    until(LONG, "locks", many).await.expect("locks");
    group.group.kill(0);
    let (guards, errors) = load.end().await;
    errors.iter().for_each(|error| tally.refuse(error));
    tally.held += guards.len();
    // Whoever asks first finds the new primary.
    let asked = second(&group.second.1, guards[0].name(), Some(&guards[0])).await;
    tally.second(&asked, is_held(&guards[0]));
    let (guards, next) = (Arc::new(guards), Arc::new(AtomicUsize::new(1)));
    let mut asking = JoinSet::new();
    for _ in 0..TASKS {
        let (locks, guards) = (group.second.1.clone(), Arc::clone(&guards));
        let next = Arc::clone(&next);
        asking.spawn(async move {
            let mut tally = Tally::default();
            while let Some(first) = guards.get(next.fetch_add(1, Ordering::Relaxed)) {
                let asked = second(&locks, first.name(), Some(first)).await;
                tally.second(&asked, is_held(first));
            }
            tally
        });
    }
    for asked in asking.join_all().await {
        tally.add(asked);
    }
    tally
}

/// A primary with replicas, sentinels, and two processes that lock.
struct Group {
    first: (Backend, Locks),
    second: (Backend, Locks),
    group: RedisSentinel,
}

impl Group {
    async fn start(replicas: usize, down_after: Duration) -> Self {
        let builder = RedisSentinel::builder().replicas(replicas);
        let group = builder.down_after(down_after).start().await;
        // One that has all data may hear of what is written up to a second later, and acknowledges nothing before.
        let mut primary = group.connection(0).await;
        let are_told = async || {
            let (mut write, mut wait) = (redis::cmd("SET"), redis::cmd("WAIT"));
            let written = write.arg("told").arg(1).exec_async(&mut primary).await;
            written.expect("a write");
            let told = wait.arg(replicas).arg(100).query_async(&mut primary).await;
            told == Ok(replicas)
        };
        until(LONG, "replicas", are_told).await.expect("replicas");
        // What they know of a replica is old after five of these, and they ask each second: hurried more, they promote none and pause.
        for sentinel in group.sentinels() {
            let mut connection = sentinel.connection().await;
            let mut rarely = redis::cmd("SENTINEL");
            let rarely = rarely.arg("DEBUG").arg("ping-period").arg(300);
            let set = rarely.exec_async(&mut connection).await;
            set.expect("a sentinel of Redis 7");
        }
        let process = async || {
            let backend = connected(config(&group)).await;
            let locks = Locks::new(&backend).expect("locks");
            (backend, locks)
        };
        Self {
            first: process().await,
            second: process().await,
            group,
        }
    }

    /// The replica hears nothing of its primary any more. It is not refused what is under way already, as by a signal that stops it:
    /// what its socket had received by then it would read when it goes on.
    async fn cut_off(&self, replica: usize) {
        let mut primary = self.group.connection(0).await;
        let mut refuse = redis::cmd("ACL");
        let refuse = refuse.arg("SETUSER").arg("replica").arg("off");
        refuse.exec_async(&mut primary).await.expect("a user");
        let mut connection = self.group.connection(replica).await;
        let mut cut = redis::cmd("CLIENT");
        let cut = cut.arg("KILL").arg("TYPE").arg("master");
        cut.exec_async(&mut connection).await.expect("a link");
        let server = self.group.server(replica);
        let is_cut = async || server.info("replication").await["master_link_status"] == "down";
        until(LONG, "the cut", is_cut).await.expect("a cut");
    }

    async fn acquire(&self, durability: Durability, tally: &mut Tally) -> Option<LockGuard> {
        let options = options().durability(durability);
        match self.first.1.acquire(NAME, options).await {
            Ok(guard) => {
                tally.held += 1;
                Some(guard)
            }
            Err(error) => {
                tally.refuse(&error);
                None
            }
        }
    }

    /// Kills servers, the primary among them, and has the second process ask until there is an answer.
    async fn fail_over(&self, killed: &[usize], first: Option<LockGuard>, tally: &mut Tally) {
        assert_eq!(self.group.master().await, 0, "it failed over by itself");
        killed.iter().for_each(|server| self.group.kill(*server));
        let asked = second(&self.second.1, NAME, first.as_ref()).await;
        match first {
            Some(first) => tally.second(&asked, is_held(&first)),
            // What was refused is nobody's.
            None => drop(asked.expect("a lock")),
        }
    }
}

/// Asks for a lock until there is an answer, or until the first has it no more.
async fn second(
    locks: &Locks,
    name: &str,
    first: Option<&LockGuard>,
) -> Result<LockGuard, LockError> {
    let lost = async {
        match first {
            Some(first) => first.lost().await,
            None => pending().await,
        }
    };
    let mut lost = pin!(lost);
    loop {
        let asked = locks.try_acquire(name, options()).await;
        match asked {
            Err(error) if !error.is_busy() => tokio::select! {
                _ = &mut lost => return Err(error),
                () = sleep(PAUSE) => {}
            },
            answered => return answered,
        }
    }
}

fn is_held(guard: &LockGuard) -> bool {
    !guard.valid_for().is_zero() && !guard.token().is_lost()
}

fn options() -> LockOptions {
    LockOptions::new().ttl(TTL).try_once()
}

fn config(group: &RedisSentinel) -> Config {
    let addrs = group.sentinel_addrs().into_iter();
    let sentinels = addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
    let config = Config::sentinel(sentinels, group.master_name())
        .username(USER)
        .password(PASSWORD)
        .sentinel_username(USER)
        .sentinel_password(PASSWORD);
    config.build().expect("a configuration")
}

/// What tasks acquired, each lock under a name of its own, and what they were refused.
type Acquired = (Vec<LockGuard>, Vec<LockError>);

/// Tasks that acquire locks and let go of none, each until it is refused one when the primary is killed.
struct Load {
    acquired: Arc<Mutex<Acquired>>,
    killed: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(locks: &Locks, durability: Durability) -> Self {
        let mut load = Self {
            acquired: Arc::default(),
            killed: Arc::default(),
            tasks: JoinSet::new(),
        };
        for task in 0..TASKS {
            let (acquired, killed) = (Arc::clone(&load.acquired), Arc::clone(&load.killed));
            let locks = locks.clone();
            load.tasks.spawn(async move {
                for n in 0.. {
                    let options = options().durability(durability);
                    let one = locks.acquire(&format!("{NAME}:{task}:{n}"), options).await;
                    let mut acquired = lock(&acquired);
                    match one {
                        Ok(guard) => acquired.0.push(guard),
                        Err(error) => {
                            acquired.1.push(error);
                            if killed.load(Ordering::Relaxed) {
                                return;
                            }
                        }
                    }
                }
            });
        }
        load
    }

    fn held(&self) -> usize {
        lock(&self.acquired).0.len()
    }

    async fn end(self) -> Acquired {
        self.killed.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        std::mem::take(&mut *lock(&self.acquired))
    }
}

fn lock(acquired: &Mutex<Acquired>) -> MutexGuard<'_, Acquired> {
    acquired.lock().unwrap_or_else(PoisonError::into_inner)
}
