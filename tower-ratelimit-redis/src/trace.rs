//! Events, which cost nothing without the feature `tracing`.

use redis_conn::Subject;

use crate::{Decision, Policy};

macro_rules! event {
    ($level:ident, $($text:tt)*) => {{
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "tower_ratelimit_redis", $($text)*);
        #[cfg(not(feature = "tracing"))]
        let _ = format_args!($($text)*);
    }};
}

pub(crate) use event;

/// A call was denied. Nobody but who looks for it wants to hear of each, and the subject is named by its hash.
#[cfg(feature = "tracing")]
pub(crate) fn denied(policy: &Policy, subject: &Subject, decision: &Decision) {
    if !tracing::enabled!(target: "tower_ratelimit_redis", tracing::Level::DEBUG) {
        return;
    }
    let violated: Vec<&str> = decision.violated().map(|limit| &*limit.name).collect();
    tracing::debug!(
        target: "tower_ratelimit_redis",
        policy = policy.name(),
        limits = violated.join(","),
        retry_after = decision.retry_after().map(|wait| wait.as_secs_f64()),
        source = ?decision.source(),
        subject = crate::store::digest(subject),
        "denied"
    );
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn denied(_: &Policy, _: &Subject, _: &Decision) {}

#[cfg(test)]
#[cfg(feature = "tracing")]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
        time::Duration,
    };

    use redis_conn::Backend;
    use tracing::Level;

    use super::*;
    use crate::Limiter;

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

    /// What is said up to this level of a call that is allowed, and of one that is denied.
    async fn said(level: Level) -> String {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let limiter = Limiter::new(&Backend::memory());
        let policy = Policy::new("api")
            .limit(3, Duration::from_secs(600))
            .limit(9, Duration::from_secs(3600))
            .build()
            .unwrap();
        for allowed in [true, false] {
            let decision = limiter.check(&policy, "user:42", 2).await.unwrap();
            assert_eq!(decision.is_allowed(), allowed);
        }
        drop(guard);
        let bytes = log.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn a_denial_is_one_event_that_names_no_subject() {
        let text = said(Level::TRACE).await;
        let events: Vec<_> = text
            .lines()
            .filter(|line| line.contains("denied"))
            .collect();
        let [event] = events.as_slice() else {
            panic!("expected one event:\n{text}");
        };
        let digest = crate::store::digest(&Subject::from("user:42"));
        for part in [
            "DEBUG",
            "policy=\"api\"",
            "limits=\"api-600s\"",
            "retry_after=6",
            "source=Store",
            &digest,
        ] {
            assert!(event.contains(part), "{part} is missing in {event}");
        }
        assert!(!text.contains("user:42"), "{text}");
    }

    #[tokio::test]
    async fn who_does_not_look_for_denials_hears_of_none() {
        let text = said(Level::INFO).await;
        assert!(!text.contains("denied"), "{text}");
    }
}
