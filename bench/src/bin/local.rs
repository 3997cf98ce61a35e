//! A fixed number of sequential decisions in process, for an instruction counter: `local governor|limiter|bare|layer COUNT`; the last
//! two are requests without the layer and through it.
//!
//! The difference between two counts is the price of the decisions alone.

use std::{
    convert::Infallible,
    env,
    future::{Ready, ready},
    hint::black_box,
    net::Ipv4Addr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use governor::{Quota, RateLimiter};
use http::{Request, Response};
use redis_conn::{Backend, Clock};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer, key::PeerAddr};

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

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future);
}

fn limiter() -> Limiter {
    let clock = Arc::new(Elapsed(Instant::now()));
    let backend = Backend::builder().clock(clock).memory();
    Limiter::new(&backend.expect("a backend"))
}

fn policy() -> Policy {
    let policy = Policy::new("bench").limit(LIMIT.into(), Duration::from_secs(60));
    policy.build().expect("a policy")
}

fn answer(_: Request<String>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

async fn requests<S>(mut service: S, count: u64)
where
    S: Service<Request<String>, Error = Infallible>,
{
    for n in 0..count {
        let mut request = Request::new(String::new());
        let peer = Ipv4Addr::from_bits((10 << 24) + (n % SUBJECTS) as u32);
        let peer = PeerAddr((peer, 1_024).into());
        request.extensions_mut().insert(peer);
        let ready = service.ready().await.expect("it never fails");
        black_box(ready.call(request).await.is_ok());
    }
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, peer, count] = arguments.as_slice() else {
        panic!("usage: local governor|limiter|bare|layer COUNT");
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
            let (limiter, policy) = (limiter(), policy());
            block_on(async {
                for subject in subjects {
                    let decided = limiter.check(&policy, subject, 1).await;
                    assert!(decided.expect("a decision").is_allowed());
                }
            });
        }
        "bare" => block_on(requests(service_fn(answer), count)),
        "layer" => {
            let layer = RateLimitLayer::new(limiter(), policy());
            block_on(requests(layer.layer(service_fn(answer)), count));
        }
        other => panic!("unknown peer {other}"),
    }
}
