//! A fixed number of sequential decisions in process, for an instruction counter: `local governor|limiter COUNT`.
//!
//! The difference between two counts is the price of the decisions alone.

use std::{
    env,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use governor::{Quota, RateLimiter};
use redis_conn::{Backend, Clock};
use tower_ratelimit_redis::{Limiter, Policy};

const SUBJECTS: u64 = 10_000;
const LIMIT: u32 = 1_000_000_000;

/// The system's clock cannot be read under an instruction counter; this one costs the same.
#[derive(Debug)]
struct Elapsed(Instant);

impl Clock for Elapsed {
    fn boot_micros(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }

    fn wall_micros(&self) -> u64 {
        self.boot_micros()
    }
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, peer, count] = arguments.as_slice() else {
        panic!("usage: local governor|limiter COUNT");
    };
    let count: u64 = count.parse().expect("a number");
    let subjects = (0..count).map(|n| format!("user:{}", n % SUBJECTS));
    match peer.as_str() {
        "governor" => {
            let quota = Quota::per_minute(NonZeroU32::new(LIMIT).expect("not zero"));
            let governor = RateLimiter::keyed(quota);
            for subject in subjects {
                assert!(governor.check_key(&subject).is_ok());
            }
        }
        "limiter" => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.expect("a runtime");
            let _context = runtime.enter();
            let clock = Arc::new(Elapsed(Instant::now()));
            let backend = Backend::builder().clock(clock).memory();
            let limiter = Limiter::new(&backend.expect("a backend"));
            let policy = Policy::new("bench").limit(LIMIT.into(), Duration::from_secs(60));
            let policy = policy.build().expect("a policy");
            runtime.block_on(async {
                for subject in subjects {
                    let decided = limiter.check(&policy, subject, 1).await;
                    assert!(decided.expect("a decision").is_allowed());
                }
            });
        }
        other => panic!("unknown peer {other}"),
    }
}
