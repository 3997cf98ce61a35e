//! Waiting for a lock: in the line of this process, and in that of the store.

use std::{pin::pin, sync::Arc, time::Duration};

use redis_conn::{Error, ErrorKind};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    LockError, LockOptions,
    claim::Claim,
    lease::Moment,
    line::{Place, Waiter, Word},
    mail::Addressee,
    owner::random,
    shared::PAUSE,
    store::{CLAIM, Grant},
};

/// Who waits asks the store this often, in case that no word came: a lease that ends tells nobody.
const FALLBACK: Duration = Duration::from_secs(1);

/// What somebody met who waits.
#[derive(Default)]
pub(crate) struct Met {
    /// Who held it last.
    pub(crate) owner: String,
    /// Why the store could not be asked the last time.
    pub(crate) failure: Option<LockError>,
}

/// Somebody who waits for a lock.
pub(crate) struct Waiting<'a> {
    pub(crate) claim: &'a mut Claim,
    pub(crate) options: &'a LockOptions,
    pub(crate) until: Option<Instant>,
    pub(crate) asked: Option<Asked>,
    pub(crate) met: Met,
}

/// When the store was asked for a place in line first, by both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    sent: Moment,
    at: u64,
}

/// What came of asking for a place in line.
enum Asking {
    Granted,
    /// It is asked again after so long, if nothing comes before.
    Again(Duration),
    Late,
}

impl Waiting<'_> {
    /// Waits until it is granted, or too late.
    pub(crate) async fn run(mut self, alone: bool) -> Result<Result<(), Met>, LockError> {
        let (words, mut heard) = mpsc::unbounded_channel();
        if !self.hear(alone, words, &mut heard).await? {
            return Ok(Err(self.met));
        }
        self.claim.heard(heard);
        Ok(Ok(()))
    }

    /// The same; whether it is granted.
    async fn hear(
        &mut self,
        alone: bool,
        words: mpsc::UnboundedSender<Word>,
        heard: &mut mpsc::UnboundedReceiver<Word>,
    ) -> Result<bool, LockError> {
        let shared = Arc::clone(self.claim.shared());
        let name = self.claim.name().clone();
        let mail = shared
            .mail
            .expect(&name, self.claim.terms().owner, words.clone());
        let waiter = Waiter {
            terms: self.claim.terms().clone(),
            wake: Arc::clone(mail.channel()),
            words,
        };
        let place = alone.then(|| shared.lines.join(&name, waiter));
        self.claim.may_be_handed_over();
        let mut is_due = false;
        loop {
            if shared.is_closed() {
                return Err(closed());
            }
            let is_next = place.as_ref().is_none_or(Place::is_first);
            let pause = if !is_next {
                None
            } else if alone && !is_due && shared.lines.is_held(&name) {
                // Whoever of this process holds it hands it over, or has it stand in line. Then a grant may be sent.
                // Without that it asks when it is time.
                let _ = mail.listen().await;
                Some(FALLBACK)
            } else {
                match self.ask(&mail).await? {
                    Asking::Granted => return Ok(true),
                    Asking::Again(pause) => Some(pause),
                    Asking::Late => return Ok(false),
                }
            };
            is_due = false;
            tokio::select! {
                biased;
                word = heard.recv() => match word {
                    Some(Word::Handed(grant, sent)) => match self.handed(grant, sent) {
                        // It was heard of too late.
                        Err(LockError::TtlTooShort { .. }) => is_due = true,
                        handed => return handed.map(|()| true),
                    },
                    Some(Word::InLine(sent, at)) => {
                        self.asked.get_or_insert(Asked { sent, at });
                    }
                    Some(Word::Sent(grant, received)) => match self.asked {
                        Some(asked) => match self.sent(grant, received, asked) {
                            Err(LockError::TtlTooShort { .. }) => is_due = true,
                            sent => return sent.map(|()| true),
                        },
                        // Its time is not known: asking again tells.
                        None => is_due = true,
                    },
                    Some(Word::Ask) | None => {}
                },
                () = optional(self.until) => return Ok(false),
                () = after(pause) => is_due = true,
            }
        }
    }

    /// Asks for a place in line, or is heard of there again.
    async fn ask(&mut self, mail: &Addressee<'_>) -> Result<Asking, LockError> {
        let (claim, options) = (&mut *self.claim, self.options);
        let asking = pin!(async {
            mail.listen().await?;
            let sent = claim.shared().now();
            let busy = claim.ask(Some(mail.channel()), options).await?;
            Ok((sent, busy))
        });
        let asked = match self.until {
            Some(until) => match timeout_at(until, asking).await {
                Ok(asked) => asked,
                Err(_) => return Ok(Asking::Late),
            },
            None => asking.await,
        };
        match asked {
            Ok((_, None)) => Ok(Asking::Granted),
            Ok((sent, Some(busy))) => {
                self.asked.get_or_insert(Asked { sent, at: busy.at });
                let pause = (busy.remaining + jitter(20)).min(FALLBACK + jitter(250));
                self.met = Met {
                    owner: busy.instance,
                    failure: None,
                };
                Ok(Asking::Again(pause))
            }
            Err(error) if LockError::is_outage(&error) => {
                self.met.failure = Some(error);
                Ok(Asking::Again(PAUSE + jitter(20)))
            }
            Err(error) => Err(error),
        }
    }

    fn handed(&mut self, grant: Grant, sent: Moment) -> Result<(), LockError> {
        let until = sent.end_of(self.claim.terms().ttl);
        self.claim.granted(grant, sent, until, self.options)
    }

    /// A grant came by a message. It was made no later than it came, and so long after the first question as the store's clock says.
    fn sent(&mut self, grant: Grant, received: Moment, asked: Asked) -> Result<(), LockError> {
        let since = Duration::from_micros(grant.at.saturating_sub(asked.at));
        let granted = asked.sent.plus(since).earlier(received);
        let until = granted.end_of(self.claim.terms().ttl.min(CLAIM));
        self.claim.granted(grant, granted, until, self.options)
    }
}

pub(crate) fn closed() -> LockError {
    Error::new(
        ErrorKind::Closed,
        "the locks were closed with their backend",
    )
    .into()
}

/// Up to so many milliseconds, so that not all ask at the same time.
fn jitter(millis: u64) -> Duration {
    Duration::from_micros(random() % (millis * 1_000))
}

async fn optional(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}
