//! The same operations at the same moments on Redis and in this process have the same answers: the scripts and the Rust code mean the
//! same.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use redis_conn::{Backend, Event, ManualClock, Subscription};
use testkit::clock::EPOCH_MICROS;

use super::{Fixture, LONG, name};
use crate::{
    FenceMode, OwnerId,
    mail::{self, Letter},
    name::Name,
    store::{
        Acquired, Next, Outcome, Store as _,
        memory::{MemoryStore, Table},
    },
    terms::{Mode, Seats, Terms},
};

const CASES: u64 = 200;
const STEPS: u32 = 40;
const NAMES: usize = 3;
const OWNERS: usize = 6;
const WAKE: &str = "locks:test";
const SECOND: u64 = 1_000_000;
/// How long a line is kept.
const LINE: u64 = 6 * SECOND;

/// Numbers that are the same each time, so that a failure repeats itself.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// The two stores, and what is known of them besides.
struct Pair<'a> {
    fixture: &'a Fixture,
    memory: MemoryStore,
    clock: Arc<ManualClock>,
    now: u64,
    names: Vec<Name>,
    /// Until when the server would have kept each lock, had it gone by the time of the test.
    kept: HashMap<String, u64>,
    /// Who was the last to let go of each, which only Redis remembers: it is asked again where an answer is lost.
    last: HashMap<String, OwnerId>,
    mail: [Subscription; 2],
}

impl<'a> Pair<'a> {
    async fn new(fixture: &'a Fixture, case: u64) -> Self {
        let clock = Arc::new(ManualClock::new(EPOCH_MICROS));
        let backend = Backend::builder().clock(Arc::clone(&clock) as _).memory();
        let bus = backend.unwrap().bus();
        let mail = [
            fixture.backend.bus().subscribe(WAKE).await.unwrap(),
            bus.subscribe(WAKE).await.unwrap(),
        ];
        fixture.clock.set_micros(EPOCH_MICROS);
        Self {
            fixture,
            memory: MemoryStore::new(Arc::clone(&clock) as _, Arc::new(Table::default()), bus),
            clock,
            now: EPOCH_MICROS,
            names: (0..NAMES).map(|n| name(&format!("{case}/{n}"))).collect(),
            kept: HashMap::new(),
            last: HashMap::new(),
            mail,
        }
    }

    fn held_key(&self, name: &Name) -> String {
        self.fixture.store.keys(name).held
    }

    /// Puts the time, and has the server forget what it would have forgotten by then.
    async fn set(&mut self, micros: u64) {
        // The server's own time goes on meanwhile: not so near to an end that this could matter.
        let mut now = micros;
        while self.kept.values().any(|end| end.abs_diff(now) < SECOND) {
            now += 2 * SECOND;
        }
        let lines_end = now > self.now + LINE;
        self.now = now;
        self.clock.set(now);
        self.fixture.clock.set_micros(now);
        for name in self.names.clone() {
            let key = self.held_key(&name);
            if lines_end {
                let keys = self.fixture.store.keys(&name);
                let _: u64 = self.fixture.run(&["DEL", &keys.line, &keys.who]).await;
            }
            let Some(end) = self.kept.get(&key).copied() else {
                continue;
            };
            if end <= now {
                let _: u64 = self.fixture.run(&["DEL", &key]).await;
                // It forgets what is over when it is asked for, and nobody else asks for it now.
                let taken = self.memory.force(&name, LONG).await.unwrap();
                assert!(taken.is_empty(), "{name:?} is forgotten while it is held");
                self.kept.remove(&key);
                self.last.remove(&key);
            } else {
                let left = ((end - now) / 1_000).to_string();
                let _: u64 = self.fixture.run(&["PEXPIRE", &key, &left]).await;
            }
        }
    }

    /// Learns for how long the server keeps a lock after an operation.
    async fn observe(&mut self, name: &Name) {
        let key = self.held_key(name);
        match self.fixture.run::<i64>(&["PTTL", &key]).await {
            -2 => {
                self.kept.remove(&key);
                self.last.remove(&key);
            }
            left => {
                let left = u64::try_from(left).expect("a time to live") * 1_000;
                let known = self
                    .kept
                    .get(&key)
                    .map_or(0, |end| end.saturating_sub(self.now));
                if left > known {
                    // All that a lock is kept for is whole seconds.
                    self.kept
                        .insert(key, self.now + left.next_multiple_of(SECOND));
                }
            }
        }
    }

    /// The grants that were sent to those who wait, on both.
    async fn same_mail(&mut self, context: &str) -> usize {
        let mut told = Vec::new();
        for mail in &mut self.mail {
            let mut grants: Vec<Letter> = Vec::new();
            while let Some(Some(Event::Message(message))) = mail.recv().now_or_never() {
                grants.extend(mail::read(message.payload()));
            }
            told.push(grants);
        }
        let [redis, _] = &mut self.mail;
        // What has not arrived yet.
        while told[0].len() < told[1].len() {
            match tokio::time::timeout(LONG, redis.recv()).await {
                Ok(Some(Event::Message(message))) => told[0].extend(mail::read(message.payload())),
                other => panic!("{context}: {other:?} instead of {:?}", told[1]),
            }
        }
        assert_eq!(told[0], told[1], "{context}");
        told[0].len()
    }
}

fn owner(random: &mut Random, kind: u64) -> Terms {
    let (mode, seats) = match kind {
        0 => (Mode::Alone, Seats::Some(1)),
        1 => (Mode::Together, Seats::Some(2)),
        _ => (
            *random.of(&[Mode::Alone, Mode::Together, Mode::Together]),
            Seats::Any,
        ),
    };
    Terms {
        owner: OwnerId::new(),
        ttl: Duration::from_secs(*random.of(&[5, 30, 30, 60])),
        mode,
        seats,
        fence: *random.of(&[FenceMode::Clock, FenceMode::Clock, FenceMode::Counter]),
        instance: (*random.of(&["", "here:1", "with {32} strange \u{e9}\0 bytes"])).into(),
    }
}

#[tokio::test]
async fn scripts_and_records_mean_the_same() {
    let fixture = Fixture::start().await;
    let mut met = HashMap::<String, u32>::new();
    for case in 0..CASES {
        run(&fixture, case, &mut met).await;
    }
    // Nothing is left out.
    for kind in [
        "Granted", "Busy", "Held", "Absent", "Other", "disagree", "mail", "passed", "yielded",
        "forced", "again", "list", "waiting",
    ] {
        assert!(
            met.get(kind).copied().unwrap_or_default() > 20,
            "{kind}: {met:?}"
        );
    }
}

#[allow(clippy::too_many_lines, reason = "one table of operations")]
async fn run(fixture: &Fixture, case: u64, met: &mut HashMap<String, u32>) {
    let mut random = Random::new(case);
    let mut pair = Pair::new(fixture, case).await;
    // What a name stands for; owners of another kind disagree.
    let kind = random.below(3);
    let mut owners: Vec<Terms> = Vec::new();
    for _ in 0..OWNERS {
        let kind = if random.one_in(12) {
            random.below(3)
        } else {
            kind
        };
        owners.push(owner(&mut random, kind));
    }
    // They may stand in line for another lock still.
    let mut gone = Vec::new();
    let mut log = Vec::new();
    let mut count = |what: &str| *met.entry(what.to_owned()).or_default() += 1;
    for _ in 0..STEPS {
        let step = match random.below(16) {
            0..=7 => 0,
            8..=10 => random.below(SECOND / 2),
            11 => random.below(4 * SECOND),
            12 => SECOND,
            13 => random.below(40) * SECOND,
            14 => random.below(150) * SECOND,
            _ => 0,
        };
        let mut now = pair.now + step;
        if random.one_in(200) {
            now += 8 * 24 * 3_600 * SECOND;
        }
        if random.one_in(25) {
            // Who is gone from the line is noticed there when it would be next: nobody is in it when the clock goes back.
            for name in pair.names.clone() {
                let holding = pair.memory.look(&name, LONG).await.unwrap().holders;
                for terms in owners.iter().chain(&gone) {
                    if holding.iter().all(|holding| holding.owner != terms.owner) {
                        let leave = (&name, terms, false, Next::InLine, LONG);
                        let _ = fixture
                            .store
                            .release(leave.0, leave.1, leave.2, leave.3, leave.4)
                            .await;
                        let left = pair
                            .memory
                            .release(leave.0, leave.1, leave.2, leave.3, leave.4)
                            .await;
                        if left.unwrap().0 == Outcome::Held {
                            pair.last.insert(pair.held_key(&name), terms.owner);
                        }
                        pair.observe(&name).await;
                    }
                }
            }
            pair.same_mail(&format!("{case}: {log:#?}")).await;
            now -= random.below(90 * SECOND);
        }
        if now != pair.now {
            pair.set(now).await;
            log.push(format!(
                "at {:+}",
                pair.now.cast_signed() - EPOCH_MICROS.cast_signed()
            ));
        }
        let name = random.of(&pair.names).clone();
        let key = pair.held_key(&name);
        let place = random.below(OWNERS as u64) as usize;
        let terms = owners[place].clone();
        let (store, memory) = (&fixture.store, &pair.memory);
        match random.below(20) {
            0..=7 => {
                let wake = (!random.one_in(3)).then_some(WAKE);
                log.push(format!("acquire {name:?} {wake:?} {terms:?}"));
                let held = memory.look(&name, LONG).await.unwrap().holders;
                if held.iter().any(|holding| holding.owner == terms.owner) {
                    count("again");
                }
                let asked = store.acquire(&name, &terms, wake, LONG).await;
                let expected = memory.acquire(&name, &terms, wake, LONG).await;
                match (&asked, &expected) {
                    (Ok(asked), Ok(expected)) => {
                        assert_eq!(asked, expected, "{case}: {log:#?}");
                        count(match asked {
                            Acquired::Granted(_) => "Granted",
                            Acquired::Busy(_) => "Busy",
                            Acquired::Abandoned => "Abandoned",
                        });
                    }
                    (Err(asked), Err(expected)) => {
                        assert_eq!(asked.to_string(), expected.to_string(), "{case}: {log:#?}");
                        count("disagree");
                    }
                    other => panic!("{case}: {other:?}: {log:#?}"),
                }
            }
            8..=14 => {
                let abandoned = random.one_in(4);
                let heir = owners[(place + 1) % OWNERS].clone();
                let next = match random.below(6) {
                    0 | 1 => Next::Pass(&heir, WAKE),
                    2 => Next::Yield(&heir, WAKE),
                    _ => Next::InLine,
                };
                log.push(format!("release {name:?} {abandoned} {terms:?} {next:?}"));
                let released = store.release(&name, &terms, abandoned, next, LONG).await;
                let expected = memory.release(&name, &terms, abandoned, next, LONG).await;
                match (released, expected) {
                    (Ok(released), Ok((outcome, acquired))) => {
                        let again = pair.last.get(&key) == Some(&terms.owner);
                        let expected = if again { Outcome::Held } else { outcome };
                        assert_eq!(released, (expected, acquired), "{case}: {log:#?}");
                        if outcome == Outcome::Held {
                            pair.last.insert(key, terms.owner);
                        }
                        count(&format!("{outcome:?}"));
                    }
                    (Err(released), Err(expected)) => {
                        assert_eq!(
                            released.to_string(),
                            expected.to_string(),
                            "{case}: {log:#?}"
                        );
                        count("disagree");
                    }
                    other => panic!("{case}: {other:?}: {log:#?}"),
                }
                match next {
                    Next::Pass(..) => count("passed"),
                    Next::Yield(..) => count("yielded"),
                    Next::InLine => {}
                }
                if abandoned {
                    // It never asks again.
                    let kind = if random.one_in(12) {
                        random.below(3)
                    } else {
                        kind
                    };
                    gone.push(std::mem::replace(
                        &mut owners[place],
                        owner(&mut random, kind),
                    ));
                }
            }
            15 => {
                // Who holds it goes on with the terms of before.
                let terms = Terms {
                    ttl: Duration::from_millis(*random.of(&[1, 900, 60_000])),
                    ..terms
                };
                log.push(format!("extend {name:?} {terms:?}"));
                let extended = store.extend(&name, &terms, LONG).await.unwrap();
                let expected = memory.extend(&name, &terms, LONG).await.unwrap();
                assert_eq!(extended, expected, "{case}: {log:#?}");
                pair.observe(&name).await;
            }
            16..=17 => {
                let mut leases = Vec::new();
                for name in &pair.names {
                    leases.extend(owners.iter().map(|terms| (name.clone(), terms.clone())));
                }
                let leases: Vec<_> = leases.into_iter().filter(|_| random.one_in(6)).collect();
                log.push(format!("renew {leases:?}"));
                let renewed = store.renew(&leases, LONG).await.unwrap();
                assert_eq!(
                    renewed,
                    memory.renew(&leases, LONG).await.unwrap(),
                    "{case}: {log:#?}"
                );
                for name in pair.names.clone() {
                    pair.observe(&name).await;
                }
            }
            18 => {
                log.push(format!("force {name:?}"));
                let forced = store.force(&name, LONG).await.unwrap();
                assert_eq!(
                    forced,
                    memory.force(&name, LONG).await.unwrap(),
                    "{case}: {log:#?}"
                );
                if !forced.is_empty() {
                    count("forced");
                }
            }
            _ => {
                let prefix = format!("{case}/");
                let (listed, expected) = (
                    store.list(&prefix, LONG).await,
                    memory.list(&prefix, LONG).await,
                );
                let (mut listed, mut expected) = (listed.unwrap(), expected.unwrap());
                listed.sort();
                expected.sort();
                assert_eq!(listed, expected, "{case}: {log:#?}");
                count("list");
            }
        }
        pair.observe(&name).await;
        for _ in 0..pair.same_mail(&format!("{case}: {log:#?}")).await {
            count("mail");
        }
        let seen = fixture.store.look(&name, LONG).await.unwrap();
        assert_eq!(
            seen,
            pair.memory.look(&name, LONG).await.unwrap(),
            "{case}: {log:#?}"
        );
        if seen.waiting > 0 {
            count("waiting");
        }
    }
}
