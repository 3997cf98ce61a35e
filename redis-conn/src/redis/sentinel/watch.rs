//! Following one sentinel, for as long as it is known.

use std::{convert::Infallible, sync::Arc, time::Duration};

use ::redis::{PushInfo, PushKind, RedisError, Value, aio::AsyncPushSender};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Sentinels, answer};
use crate::{
    config::Endpoint,
    redis::{
        backoff::Backoff,
        dial::{Connection, Purpose},
        fault::Failure,
    },
    trace::event,
};

/// A switch whose announcement was lost is noticed after so long at most; so is a sentinel that says nothing any more.
const POLL: Duration = Duration::from_secs(2);

/// The shortest time between a question and one that a doubt causes.
const FLOOR: Duration = Duration::from_millis(100);

/// How often a sentinel is asked for the others.
const PEERS: Duration = Duration::from_secs(30);

/// A connection that lived so long was a good one: the next attempt needs no pause.
const STABLE: Duration = Duration::from_secs(1);

/// How long a sentinel may take to confirm the subscription.
const CONFIRMATION: Duration = Duration::from_millis(500);

/// Told by each sentinel when it takes over the new address.
const CHANNEL: &str = "+switch-master";

/// Keeps what one sentinel says up to date.
pub(super) struct Watcher {
    pub(super) sentinels: Arc<Sentinels>,
    pub(super) endpoint: Endpoint,
}

impl Watcher {
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new();
        loop {
            let Err(failure) = self.follow(&mut backoff).await;
            if self.sentinels.silence(&self.endpoint) {
                event!(
                    warn,
                    "the sentinel at {} is not followed: {}",
                    self.endpoint,
                    failure.error
                );
            }
            sleep(backoff.after(failure.fault)).await;
        }
    }

    /// Follows over one connection until it fails.
    async fn follow(&self, backoff: &mut Backoff) -> Result<Infallible, Failure> {
        let Sentinels { name, dialer, .. } = &*self.sentinels;
        let switched = Arc::new(Notify::new());
        let pushes = announcements(name, &switched);
        let mut connection = dialer
            .dial(&self.endpoint, Purpose::Survey, Some(pushes))
            .await?;
        let connected = Instant::now();
        // Before the first question: a switch after its answer is announced.
        subscribe(&mut connection).await?;
        let mut doubts = self.sentinels.doubts.subscribe();
        let mut peers_due = connected;
        loop {
            let asked = Instant::now();
            let answer = answer::ask_primary(&mut connection.commands, name).await?;
            self.sentinels.hear(&self.endpoint, answer);
            if asked >= peers_due {
                peers_due = asked + PEERS;
                let peers = answer::ask_peers(&mut connection.commands, name).await?;
                self.sentinels.learn(peers);
            }
            if connected.elapsed() >= STABLE {
                backoff.reset();
            }
            tokio::select! {
                _ = &mut connection.driver => return Err(Failure::away("the connection ended")),
                () = switched.notified() => {}
                _ = doubts.changed() => sleep_until(asked + FLOOR).await,
                () = sleep(POLL) => {}
            }
        }
    }
}

/// Without the subscription a switch is noticed later, but it is noticed.
async fn subscribe(connection: &mut Connection) -> Result<(), Failure> {
    let confirmation = connection.commands.subscribe(CHANNEL);
    match timeout(CONFIRMATION, confirmation).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.code().is_some() => {
            event!(
                warn,
                "a sentinel refused the subscription to {CHANNEL}: {error}"
            );
            Ok(())
        }
        Ok(Err(error)) => Err(Failure::of_dial(error)),
        Err(_) => Err(Failure::away(
            "the sentinel did not confirm a subscription in time",
        )),
    }
}

/// Tells of every switch of the primary called `name`.
fn announcements(name: &str, switched: &Arc<Notify>) -> Arc<dyn AsyncPushSender> {
    let (name, switched) = (name.to_owned(), Arc::clone(switched));
    Arc::new(move |push: PushInfo| -> Result<(), RedisError> {
        if is_switch(&push, &name) {
            switched.notify_one();
        }
        Ok(())
    })
}

/// The payload is the name, the old address and the new one. The epoch is not part of it, so the sentinel is asked all the same.
fn is_switch(push: &PushInfo, name: &str) -> bool {
    let [_, Value::BulkString(payload)] = push.data.as_slice() else {
        return false;
    };
    let named = payload.split(|byte| *byte == b' ').next();
    push.kind == PushKind::Message && named == Some(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(kind: PushKind, payload: &str) -> PushInfo {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        PushInfo {
            kind,
            data: vec![bulk(CHANNEL), bulk(payload)],
        }
    }

    #[test]
    fn only_a_message_about_the_primary_is_a_switch() {
        let payload = "main 127.0.0.1 6379 127.0.0.1 6380";
        assert!(is_switch(&push(PushKind::Message, payload), "main"));
        assert!(!is_switch(&push(PushKind::Message, payload), "mai"));
        assert!(!is_switch(&push(PushKind::Message, payload), "127.0.0.1"));
        assert!(!is_switch(&push(PushKind::Subscribe, payload), "main"));
        assert!(!is_switch(
            &PushInfo {
                kind: PushKind::Message,
                data: vec![]
            },
            "main"
        ));
    }
}
