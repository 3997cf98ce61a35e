//! Units that are held at the same time.

use std::fmt;

use redis_conn::Subject;
use tokio::time::Instant;

use crate::{
    Decision, Limiter, Policy, RateLimitError, Source,
    counter::Charge,
    counters::Ask,
    held::{Held, Place},
    store::{Asked, Permits},
};

/// What [`Limiter::acquire`] came to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Acquired {
    /// All limits admit it, and the units of the concurrency limit are held.
    Held(Permit),
    /// A limit does not.
    Refused(Decision),
}

impl Acquired {
    /// The decision, whichever it is.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        match self {
            Self::Held(permit) => permit.decision(),
            Self::Refused(decision) => decision,
        }
    }

    /// The permit, if there is one.
    #[must_use]
    pub fn permit(self) -> Option<Permit> {
        match self {
            Self::Held(permit) => Some(permit),
            Self::Refused(_) => None,
        }
    }
}

/// Units of a concurrency limit that are held. Dropping it releases them.
///
/// While it lives, its lease is renewed every third of its length. One whose lease has ended all the same, because the store
/// was away for so long, [is lost](Self::is_lost): its units may be held by others. So is one that the
/// [fallback](crate::OnFailure::Local) granted, after its first lease: the store knows nothing of it.
#[must_use = "the units are released when the permit is dropped"]
pub struct Permit {
    held: Held,
    decision: Decision,
}

impl Permit {
    pub(crate) async fn acquire(
        limiter: &Limiter,
        policy: &Policy,
        subject: Subject,
        units: u32,
    ) -> Result<Acquired, RateLimitError> {
        let place = Place {
            policy: policy.clone(),
            subject,
        };
        // Before anything is sent: what is given up on the way is released all the same.
        let mut held = Held::new(&limiter.0, place)?;
        let charge = Charge {
            permit: held.name(),
            ..Charge::of(units)
        };
        let asked = Asked::new(Ask::All, charge);
        let asked_at = Instant::now();
        let decision = limiter.decide(policy, held.subject(), asked).await?;
        if decision.is_allowed() {
            if units > 0 {
                held.keep(asked_at);
            } else {
                held.forget();
            }
            return Ok(Acquired::Held(Self { held, decision }));
        }
        if decision.source() == Source::Store {
            held.forget();
        }
        // Else the store may have granted it all the same, and hears that it is released.
        Ok(Acquired::Refused(decision))
    }

    /// The decision by which it was admitted.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Whether its lease has ended although it was to be renewed: the store has said so, or has not said otherwise for that long.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.held.is_lost()
    }

    /// Releases it, and tells whether it was held until now.
    ///
    /// # Errors
    ///
    /// [`RateLimitError::Store`] if the store did not answer; then its lease ends by itself.
    ///
    /// # Cancel safety
    ///
    /// A dropped call is a permit that was dropped.
    pub async fn release(mut self) -> Result<bool, RateLimitError> {
        let held = self.held.ask(Permits::Release).await?;
        self.held.forget();
        Ok(held)
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("policy", &self.held.policy().name())
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
