//! Several acquisitions in one step of the store.

use std::sync::Arc;

use tokio::time::timeout;

use super::{Claim, SLOW, State, late};
use crate::{
    Durability, LockError, LockOptions, metrics,
    name::Name,
    options::Wait,
    shared::Shared,
    store::Store as _,
    terms::{Mode, Seats},
    waiting::closed,
};

impl Claim {
    /// Acquires several mutexes at once, if all of them are free and the store can have them in one step. `None` if not: nothing is held
    /// then, and they are to be acquired one by one.
    pub(crate) async fn acquire_all(
        shared: &Arc<Shared>,
        names: &[Name],
        options: &LockOptions,
    ) -> Result<Option<Vec<Self>>, LockError> {
        // Who waits in order of arrival, or in the line of this process, is not overtaken.
        let simple = !options.fair
            && options.owner.is_none()
            && options.durability == Durability::Primary
            && !names.iter().any(|name| shared.lines.has_waiters(name));
        if names.len() < 2 || !simple {
            return Ok(None);
        }
        options.check()?;
        if shared.is_closed() {
            return Err(closed());
        }
        let acquiring: Vec<_> = names.iter().map(|_| metrics::Acquiring::begin()).collect();
        let asking = Self::ask_for_all(shared, names, options);
        let asked = match options.wait {
            Wait::For(wait) => timeout(wait, asking).await.unwrap_or_else(|_| Err(late())),
            Wait::Once | Wait::Forever => asking.await,
        };
        let asked = match asked {
            // Who waits asks again.
            Err(error) if error.is_outage() && options.wait != Wait::Once => Ok(None),
            asked => asked,
        };
        for one in acquiring {
            match &asked {
                Ok(Some(_)) => one.end(None),
                Ok(None) => one.goes_on(),
                Err(error) => one.end(Some(error)),
            }
        }
        asked
    }

    async fn ask_for_all(
        shared: &Arc<Shared>,
        names: &[Name],
        options: &LockOptions,
    ) -> Result<Option<Vec<Self>>, LockError> {
        let claims = names.iter().map(|name| {
            let terms = shared.terms(options, Mode::Alone, Seats::Some(1));
            Self::new(shared, name.clone(), terms)
        });
        let mut claims: Vec<_> = claims.collect();
        // Dropped from here on, each lets go of what it may have been granted.
        for claim in &mut claims {
            claim.state = State::Asked { unanswered: true };
        }
        let asked = claims
            .iter()
            .map(|claim| (claim.name.clone(), claim.terms.clone()));
        let asked: Vec<_> = asked.collect();
        let sent = shared.now();
        let asking = shared.store.acquire_all(&asked, shared.timeout);
        let hearing = async {
            shared.hear_of_force().await;
            Ok(())
        };
        let (granted, ()) = tokio::try_join!(asking, hearing)?;
        // It may have been sent twice, and be granted still.
        let doubtful = sent.at.elapsed() >= SLOW;
        let Some(grants) = granted else {
            if !doubtful {
                claims
                    .iter_mut()
                    .for_each(|claim| claim.state = State::Nothing);
            }
            return Ok(None);
        };
        for (claim, grant) in claims.iter_mut().zip(grants) {
            claim.doubtful = doubtful;
            claim.granted(grant, sent, sent.end_of(options.ttl), options)?;
        }
        Ok(Some(claims))
    }
}
