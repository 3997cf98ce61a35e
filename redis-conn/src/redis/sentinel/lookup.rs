//! Asking all sentinels at once, over connections of the question's own.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, timeout_at},
};

use super::{
    Sentinels,
    answer::{self, Answer},
};
use crate::{
    config::Endpoint,
    redis::{
        dial::Purpose,
        fault::{Failure, Fault},
    },
};

/// How long the others are waited for once one has answered: it may be the one that does not know of the failover yet.
const GRACE: Duration = Duration::from_millis(200);

type Reply = (Endpoint, Result<Answer, Failure>);

/// One look-up.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) began: Instant,
    pub(super) found: Result<Endpoint, Failure>,
}

impl Lookup {
    pub(super) async fn make(sentinels: &Arc<Sentinels>) -> Self {
        let began = Instant::now();
        let found = look_up(sentinels).await;
        Self { began, found }
    }
}

async fn look_up(sentinels: &Arc<Sentinels>) -> Result<Endpoint, Failure> {
    let (mut asked, mut awaited) = ask_all(sentinels);
    let mut end = None;
    let mut failure = None;
    while let Some(reply) = next(&mut asked, end).await {
        let Ok((endpoint, reply)) = reply else {
            continue;
        };
        awaited.retain(|other| *other != endpoint);
        match reply {
            Ok(answer) => {
                sentinels.hear(&endpoint, answer);
                end.get_or_insert_with(|| Instant::now() + GRACE);
            }
            Err(failed) => failure = Some(more_telling(failure, answer::at(&endpoint, failed))),
        }
        if end.is_some() && awaited.is_empty() {
            break;
        }
    }
    let announced = sentinels.announced.borrow().clone();
    match (end, announced) {
        (Some(_), Some(endpoint)) => Ok(endpoint),
        _ => {
            Err(failure.unwrap_or_else(|| Failure::away("no sentinel tells where the primary is")))
        }
    }
}

/// The questions, and those of the sentinels that are likely to answer.
fn ask_all(sentinels: &Arc<Sentinels>) -> (JoinSet<Reply>, Vec<Endpoint>) {
    let (endpoints, awaited) = {
        let roster = sentinels.roster();
        (roster.endpoints(), roster.awaited())
    };
    let mut asked = JoinSet::new();
    for endpoint in endpoints {
        let sentinels = Arc::clone(sentinels);
        asked.spawn(async move {
            let reply = ask(&sentinels, &endpoint).await;
            (endpoint, reply)
        });
    }
    (asked, awaited)
}

async fn ask(sentinels: &Sentinels, endpoint: &Endpoint) -> Result<Answer, Failure> {
    let dialled = sentinels.dialer.dial(endpoint, Purpose::Survey, None);
    let mut connection = dialled.await?;
    answer::ask_primary(&mut connection.commands, &sentinels.name).await
}

/// The next reply before `end`, if there is an end and a reply.
async fn next(
    asked: &mut JoinSet<Reply>,
    end: Option<Instant>,
) -> Option<Result<Reply, JoinError>> {
    match end {
        Some(end) => timeout_at(end, asked.join_next()).await.ok()?,
        None => asked.join_next().await,
    }
}

/// That something must be changed says more than that somebody is away.
fn more_telling(known: Option<Failure>, other: Failure) -> Failure {
    match known {
        Some(known) if known.fault == Fault::Credentials => known,
        Some(known) if other.fault == Fault::Away => known,
        _ => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_waits_for_a_change_is_told_first() {
        let away = || Failure::away("");
        let change = || Failure::config("");
        for (first, second) in [(away(), change()), (change(), away())] {
            assert_eq!(more_telling(Some(first), second).fault, Fault::Credentials);
        }
        assert_eq!(more_telling(None, away()).fault, Fault::Away);
    }
}
