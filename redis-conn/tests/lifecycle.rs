//! Health and the orderly end, with parts that behave and parts that do not.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use redis_conn::{Backend, Check, Drain, Error, ErrorKind, Part, Phase, State, Status};

const SECOND: Duration = Duration::from_secs(1);

type Log = Arc<Mutex<Vec<&'static str>>>;

struct Fake {
    name: &'static str,
    phase: Phase,
    status: Status,
    behaviour: Behaviour,
    log: Log,
}

#[derive(Clone, Copy)]
enum Behaviour {
    Ends,
    Hangs,
    Fails,
}

impl Part for Fake {
    fn name(&self) -> &str {
        self.name
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn check(&self) -> Check {
        Check::new(self.name, self.status, "")
    }

    fn drain(&self, _deadline: Duration) -> Drain {
        let (name, log, behaviour) = (self.name, Arc::clone(&self.log), self.behaviour);
        Box::pin(async move {
            log.lock().unwrap().push(name);
            match behaviour {
                Behaviour::Ends => Ok(()),
                Behaviour::Fails => Err(Error::new(ErrorKind::Unavailable, "")),
                Behaviour::Hangs => std::future::pending().await,
            }
        })
    }
}

fn part(
    backend: &Backend,
    log: &Log,
    name: &'static str,
    phase: Phase,
    behaviour: Behaviour,
) -> Arc<dyn Part> {
    let part: Arc<dyn Part> = Arc::new(Fake {
        name,
        phase,
        status: Status::Healthy,
        behaviour,
        log: Arc::clone(log),
    });
    backend.register(&part);
    part
}

#[tokio::test]
async fn phases_end_in_order_whatever_the_order_of_registration() {
    let (backend, log) = (Backend::memory(), Log::default());
    let _parts = [
        part(&backend, &log, "locks", Phase::Locks, Behaviour::Ends),
        part(&backend, &log, "cron", Phase::Cron, Behaviour::Ends),
        part(&backend, &log, "sessions", Phase::Sessions, Behaviour::Ends),
    ];
    backend.close(SECOND).await.unwrap();
    assert_eq!(*log.lock().unwrap(), ["cron", "sessions", "locks"]);
    assert_eq!(backend.state(), State::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_hangs_costs_the_others_no_more_than_its_share() {
    let (backend, log) = (Backend::memory(), Log::default());
    let _parts = [
        part(&backend, &log, "cron", Phase::Cron, Behaviour::Hangs),
        part(
            &backend,
            &log,
            "sessions",
            Phase::Sessions,
            Behaviour::Fails,
        ),
        part(&backend, &log, "locks", Phase::Locks, Behaviour::Ends),
    ];
    let begin = tokio::time::Instant::now();
    let late = backend.close(4 * SECOND).await.unwrap_err();
    assert_eq!(
        begin.elapsed(),
        SECOND,
        "three phases and the end of the connections: a quarter for the one that hangs"
    );
    assert_eq!(*log.lock().unwrap(), ["cron", "sessions", "locks"]);
    assert!(
        late.to_string().contains("cron") && late.to_string().contains("sessions"),
        "{late}"
    );
    assert!(!late.to_string().contains("locks"));
}

#[tokio::test]
async fn the_worst_check_is_the_overall_health_and_a_dropped_handle_is_no_part() {
    let (backend, log) = (Backend::memory(), Log::default());
    let _healthy = part(&backend, &log, "limiter", Phase::Last, Behaviour::Ends);
    let sick: Arc<dyn Part> = Arc::new(Fake {
        name: "cache",
        phase: Phase::Last,
        status: Status::Degraded,
        behaviour: Behaviour::Ends,
        log: Log::default(),
    });
    backend.register(&sick);

    let health = backend.health();
    assert_eq!(health.overall, Status::Degraded);
    let names: Vec<_> = health
        .checks
        .iter()
        .map(|check| check.name.as_ref())
        .collect();
    assert_eq!(names, ["memory", "limiter", "cache"]);
    assert_eq!(
        serde_json::to_value(&health).unwrap()["overall"],
        "degraded"
    );

    drop(sick);
    assert_eq!(backend.health().overall, Status::Healthy);
    backend.close(SECOND).await.unwrap();
    assert_eq!(backend.health().overall, Status::Unhealthy);
}

#[tokio::test]
async fn an_embedded_backend_is_ready_at_once_and_never_after_its_end() {
    let backend = Backend::memory();
    backend.ready(Duration::ZERO).await.unwrap();
    let mut watch = backend.watch_state();
    backend.close(SECOND).await.unwrap();
    assert_eq!(watch.changed().await, Some(State::Disconnected));
    assert_eq!(
        *backend.ready(SECOND).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[test]
fn namespaces_are_checked() {
    let backend = Backend::memory();
    for good in ["a", "shop-2", "0123456789abcdef0123456789abcdef"] {
        backend.namespace(good).unwrap();
    }
    for bad in [
        "",
        "Shop",
        "a b",
        "a:b",
        "{x}",
        "0123456789abcdef0123456789abcdef0",
    ] {
        let refused = backend.namespace(bad).unwrap_err();
        assert_eq!(*refused.kind(), ErrorKind::Config, "{bad:?}");
        assert_eq!(
            *Backend::builder()
                .namespace(bad)
                .memory()
                .unwrap_err()
                .kind(),
            ErrorKind::Config
        );
    }
}

#[cfg(feature = "redis")]
#[test]
fn a_close_is_bounded_while_nobody_drives_the_runtime_of_the_backend() {
    use tokio::{runtime, time::timeout};

    let keeper = runtime::Runtime::new().unwrap();
    let server = keeper.block_on(testkit::RedisServer::start());
    let mut undriven = runtime::Builder::new_current_thread();
    let undriven = undriven.enable_all().build().unwrap();
    let backend = undriven.block_on(async {
        let config = redis_conn::Config::from_url(&server.url()).unwrap();
        let backend = Backend::redis(config).unwrap();
        backend.ready(20 * SECOND).await.unwrap();
        backend
    });
    let closed = keeper.block_on(async { timeout(20 * SECOND, backend.close(SECOND)).await });
    closed.expect("it hangs").unwrap();
}
