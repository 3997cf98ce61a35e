//! Overruling a limit leaves a trace that names nobody's key.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use redis_conn::{Audit, Backend};
use tower_ratelimit_redis::{Limiter, Policy};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_reset_is_one_event() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let limiter = Limiter::new(&Backend::memory());
    let policy = Policy::new("api")
        .limit(1, Duration::from_secs(60))
        .build()
        .unwrap();
    limiter.check(&policy, "user:42", 1).await.unwrap();
    let audit = Audit::new("ops:alice", "ticket 4711");
    limiter.reset(&policy, "user:42", &audit).await.unwrap();
    assert!(
        limiter
            .check(&policy, "user:42", 1)
            .await
            .unwrap()
            .is_allowed()
    );

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let events: Vec<_> = text
        .lines()
        .filter(|line| line.contains(" audit: "))
        .collect();
    let [event] = events.as_slice() else {
        panic!("expected one event:\n{text}");
    };
    for part in [
        "rate limit reset",
        "api ",
        "ops:alice",
        "ticket 4711",
        "done",
    ] {
        assert!(event.contains(part), "{part} is missing in {event}");
    }
    assert!(!text.contains("user:42"), "{text}");
}
