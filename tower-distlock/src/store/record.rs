//! What is known of one lock: who holds it, who waits, and the last fence. The embedded stores keep it as it is; the scripts of
//! Redis do the same to the same, which the differential test shows.

use std::time::Duration;

use redis_conn::{Error, ErrorKind};

use super::{Acquired, Busy, CLAIM, Grant, Holding, Next, Outcome, PATIENCE, Seen};
use crate::{
    FenceMode, OwnerId,
    terms::{Mode, Seats, Terms, memory, micros},
};

/// The time of a store, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// By which leases end. Nobody sets it, but on Redis.
    pub(crate) at: u64,
    /// By which fences grow, which must also go on after a reboot.
    pub(crate) wall: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Of the last grant.
    pub(super) fence: u64,
    /// Until when the fence is remembered.
    pub(super) kept: u64,
    /// Before the one grant that there was nothing was remembered.
    pub(super) fresh: bool,
    pub(super) seats: Option<Seats>,
    pub(super) holders: Vec<Holder>,
    /// In the order in which they came.
    pub(super) waiters: Vec<Waiter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) owner: OwnerId,
    pub(super) until: u64,
    pub(super) ttl: u64,
    pub(super) fence: u64,
    pub(super) mode: Mode,
    pub(super) instance: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) owner: OwnerId,
    /// Until when it is believed to wait still.
    pub(super) until: u64,
    pub(super) ttl: u64,
    pub(super) mode: Mode,
    pub(super) seats: Seats,
    pub(super) fence: FenceMode,
    pub(super) instance: String,
    pub(super) wake: String,
}

/// A grant that is to be sent to who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) wake: String,
    pub(crate) owner: OwnerId,
    pub(crate) grant: Grant,
}

impl Record {
    /// Forgets leases that have ended and waiters that are gone. If the clock went back, nothing lasts longer than from now on.
    pub(crate) fn age(&mut self, now: Now) {
        for holder in &mut self.holders {
            holder.until = holder.until.min(now.at + holder.ttl);
        }
        self.holders.retain(|holder| holder.until > now.at);
        for waiter in &mut self.waiters {
            waiter.until = waiter.until.min(now.at + micros(PATIENCE));
        }
        self.waiters.retain(|waiter| waiter.until > now.at);
    }

    /// Whether nothing is left that anybody could ask for.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        self.holders.is_empty() && self.waiters.is_empty() && (self.kept <= now || self.fence == 0)
    }

    pub(crate) fn is_held(&self) -> bool {
        !self.holders.is_empty()
    }

    /// Until when this is to be stored.
    #[cfg(feature = "sqlite")]
    pub(crate) fn kept(&self) -> u64 {
        let waits = self.waiters.iter().map(|waiter| waiter.until);
        waits.fold(self.kept, u64::max)
    }

    pub(crate) fn acquire(
        &mut self,
        now: Now,
        terms: &Terms,
        wake: Option<&str>,
        sent: &mut Vec<Sent>,
    ) -> Result<Acquired, Error> {
        self.age(now);
        if let Some(held) = self.again(now, terms) {
            return Ok(Acquired::Granted(held));
        }
        self.agrees(terms)?;
        if self.waiters.is_empty() && self.has_room(terms.mode, terms.seats) {
            return Ok(Acquired::Granted(self.grant_to(now, terms)));
        }
        if let Some(wake) = wake {
            self.line_up(now, terms, wake);
        }
        self.hand_over(now, terms.owner, sent);
        Ok(self.answer(now, terms))
    }

    /// Grants it if nobody else has it and nobody waits. Where there is no grant, what became of this record is of no use.
    pub(crate) fn grant_if_free(
        &mut self,
        now: Now,
        terms: &Terms,
    ) -> Result<Option<Grant>, Error> {
        match self.acquire(now, terms, None, &mut Vec::new())? {
            Acquired::Granted(grant) => Ok(Some(grant)),
            Acquired::Busy(_) | Acquired::Abandoned => Ok(None),
        }
    }

    pub(crate) fn release(
        &mut self,
        now: Now,
        terms: &Terms,
        abandoned: bool,
        next: Next<'_>,
        sent: &mut Vec<Sent>,
    ) -> Result<(Outcome, Option<Acquired>), Error> {
        self.age(now);
        let outcome = self.remove(now, terms);
        let held = outcome == Outcome::Held;
        if abandoned && held && self.fresh && self.holders.is_empty() {
            // Nobody has seen that fence.
            self.fence = 0;
        }
        let acquired = match next {
            Next::InLine => {
                self.hand_over(now, terms.owner, sent);
                None
            }
            Next::Pass(terms, wake) | Next::Yield(terms, wake) => {
                // Asked for once more, it has it already.
                if self.again(now, terms).is_none() {
                    self.agrees(terms)?;
                    let first = matches!(next, Next::Pass(..))
                        || self.waiters.iter().all(|other| other.owner == terms.owner);
                    if first && self.has_room(terms.mode, terms.seats) {
                        self.waiters.retain(|waiter| waiter.owner != terms.owner);
                        self.grant_to(now, terms);
                    } else {
                        self.line_up(now, terms, wake);
                    }
                }
                self.hand_over(now, terms.owner, sent);
                Some(self.answer(now, terms))
            }
        };
        Ok((outcome, acquired))
    }

    pub(crate) fn renew(&mut self, now: Now, terms: &Terms) -> Outcome {
        self.age(now);
        match self.again(now, terms) {
            Some(_) => Outcome::Held,
            None => self.without(terms.mode),
        }
    }

    pub(crate) fn extend(&mut self, now: Now, terms: &Terms) -> Outcome {
        self.age(now);
        let mine = |holder: &&mut Holder| holder.owner == terms.owner;
        if let Some(holder) = self.holders.iter_mut().find(mine) {
            holder.ttl = terms.ttl_micros();
        }
        self.renew(now, terms)
    }

    pub(crate) fn force(&mut self, now: Now, sent: &mut Vec<Sent>) -> Vec<OwnerId> {
        self.age(now);
        let taken = self.holders.drain(..).map(|holder| holder.owner).collect();
        self.seats = None;
        self.hand_over(now, OwnerId::NOBODY, sent);
        taken
    }

    pub(crate) fn look(&self, now: Now) -> Seen {
        let mut aged = self.clone();
        aged.age(now);
        let holding = |holder: Holder| Holding {
            owner: holder.owner,
            instance: holder.instance,
            fence: holder.fence,
            remaining: Duration::from_micros(holder.until - now.at),
        };
        Seen {
            holders: aged.holders.into_iter().map(holding).collect(),
            waiting: aged.waiters.len(),
        }
    }

    /// Prolongs what this owner holds.
    fn again(&mut self, now: Now, terms: &Terms) -> Option<Grant> {
        let mine = |holder: &&mut Holder| holder.owner == terms.owner;
        let holder = self.holders.iter_mut().find(mine)?;
        // By the ttl that it has: it may have been extended since this was asked.
        holder.until = now.at + holder.ttl;
        self.kept = self.kept.max(now.at + micros(terms.memory()));
        Some(Grant {
            fence: holder.fence,
            at: now.at,
        })
    }

    /// Lets go of what is held, or waited for.
    fn remove(&mut self, now: Now, terms: &Terms) -> Outcome {
        self.waiters.retain(|waiter| waiter.owner != terms.owner);
        let mine = |holder: &Holder| holder.owner == terms.owner;
        let Some(place) = self.holders.iter().position(mine) else {
            return self.without(terms.mode);
        };
        self.holders.remove(place);
        self.kept = self.kept.max(now.at + micros(terms.memory()));
        if self.holders.is_empty() {
            self.seats = None;
        }
        Outcome::Held
    }

    /// What it means that the owner does not hold it.
    fn without(&self, mode: Mode) -> Outcome {
        let excludes = |holder: &Holder| mode == Mode::Alone || holder.mode == Mode::Alone;
        if self.holders.iter().any(excludes) {
            Outcome::Other
        } else {
            Outcome::Absent
        }
    }

    /// While somebody holds it, all must mean the same lock.
    fn agrees(&self, terms: &Terms) -> Result<(), Error> {
        match self.seats {
            Some(seats) if self.is_held() && seats != terms.seats => {
                Err(disagreement(seats, terms.seats))
            }
            _ => Ok(()),
        }
    }

    fn has_room(&self, mode: Mode, seats: Seats) -> bool {
        match (mode, seats) {
            _ if self.holders.is_empty() => true,
            (Mode::Alone, _) => false,
            (Mode::Together, Seats::Any) => self.is_shared(),
            (Mode::Together, Seats::Some(seats)) => {
                self.is_shared() && self.holders.len() < seats as usize
            }
        }
    }

    fn is_shared(&self) -> bool {
        let shared = |holder: &Holder| holder.mode == Mode::Together;
        self.holders.iter().all(shared)
    }

    fn grant_to(&mut self, now: Now, terms: &Terms) -> Grant {
        self.kept = self.kept.max(now.at + micros(terms.memory()));
        self.seats = Some(terms.seats);
        self.grant(now, terms.fence, |fence| Holder {
            owner: terms.owner,
            until: now.at + terms.ttl_micros(),
            ttl: terms.ttl_micros(),
            fence,
            mode: terms.mode,
            instance: (*terms.instance).to_owned(),
        })
    }

    fn grant(&mut self, now: Now, mode: FenceMode, holder: impl FnOnce(u64) -> Holder) -> Grant {
        self.fresh = self.fence == 0;
        let next = self.fence + 1;
        let fence = match mode {
            FenceMode::Clock => next.max(now.wall),
            FenceMode::Counter => next,
        };
        self.fence = fence;
        self.holders.push(holder(fence));
        Grant { fence, at: now.at }
    }

    fn line_up(&mut self, now: Now, terms: &Terms, wake: &str) {
        let until = now.at + micros(PATIENCE);
        let mine = |waiter: &&mut Waiter| waiter.owner == terms.owner;
        match self.waiters.iter_mut().find(mine) {
            Some(waiter) => waiter.until = until,
            None => self.waiters.push(Waiter {
                owner: terms.owner,
                until,
                ttl: terms.ttl_micros(),
                mode: terms.mode,
                seats: terms.seats,
                fence: terms.fence,
                instance: (*terms.instance).to_owned(),
                wake: wake.to_owned(),
            }),
        }
    }

    /// Grants it to those who are next, as long as there is room. Who asks hears of it by the answer.
    fn hand_over(&mut self, now: Now, asker: OwnerId, sent: &mut Vec<Sent>) {
        while let Some(first) = self.waiters.first()
            && self.has_room(first.mode, first.seats)
        {
            let waiter = self.waiters.remove(0);
            let asks = waiter.owner == asker;
            // Who asks has it for all of its time; who is told has to say first that it heard.
            let lease = if asks {
                waiter.ttl
            } else {
                waiter.ttl.min(micros(CLAIM))
            };
            self.seats = Some(waiter.seats);
            let kept = memory(Duration::from_micros(waiter.ttl), waiter.fence);
            self.kept = self.kept.max(now.at + micros(kept));
            let grant = self.grant(now, waiter.fence, |fence| Holder {
                owner: waiter.owner,
                until: now.at + lease,
                ttl: waiter.ttl,
                fence,
                mode: waiter.mode,
                instance: waiter.instance,
            });
            if !asks {
                sent.push(Sent {
                    wake: waiter.wake,
                    owner: waiter.owner,
                    grant,
                });
            }
        }
    }

    /// What came of it for who asked.
    fn answer(&self, now: Now, terms: &Terms) -> Acquired {
        let mine = |holder: &&Holder| holder.owner == terms.owner;
        if let Some(Holder { fence, .. }) = self.holders.iter().find(mine) {
            return Acquired::Granted(Grant {
                fence: *fence,
                at: now.at,
            });
        }
        let first = self.holders.iter().min_by_key(|holder| holder.until);
        Acquired::Busy(Busy {
            remaining: Duration::from_micros(first.map_or(0, |holder| holder.until - now.at)),
            at: now.at,
            instance: first.map_or_else(String::new, |holder| holder.instance.clone()),
        })
    }
}

/// Two programs mean different locks by one name.
pub(crate) fn disagreement(held: Seats, asked: Seats) -> Error {
    let words = |seats| match seats {
        Seats::Some(1) => "a mutex".to_owned(),
        Seats::Some(seats) => format!("a semaphore of {seats}"),
        Seats::Any => "a read-write lock".to_owned(),
    };
    Error::new(
        ErrorKind::Config,
        format!(
            "the lock is held as {}, expected the same and not {}",
            words(held),
            words(asked)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(seats: u32, fence: FenceMode) -> Terms {
        Terms {
            owner: OwnerId::new(),
            ttl: Duration::from_secs(30),
            mode: match seats {
                1 => Mode::Alone,
                _ => Mode::Together,
            },
            seats: Seats::Some(seats),
            fence,
            instance: "here".into(),
        }
    }

    const NOW: Now = Now { at: 5, wall: 7 };

    /// It was seen by the one who held it, whoever gives up later.
    #[test]
    fn a_fence_is_forgotten_by_nobody_but_its_owner() {
        let mut record = Record::default();
        let (first, second) = (terms(1, FenceMode::Counter), terms(1, FenceMode::Counter));
        let mut sent = Vec::new();
        record.acquire(NOW, &first, None, &mut sent).unwrap();
        let mut release = |terms, abandoned| {
            let released = record.release(NOW, terms, abandoned, Next::InLine, &mut sent);
            released.unwrap().0
        };
        assert_eq!(release(&first, false), Outcome::Held);
        assert_eq!(release(&second, true), Outcome::Absent);
        let acquired = record.acquire(NOW, &second, None, &mut sent).unwrap();
        assert_eq!(acquired, Acquired::Granted(Grant { fence: 2, at: 5 }));
    }

    #[test]
    fn who_was_passed_a_seat_has_one_however_often_that_is_sent() {
        let mut record = Record::default();
        let (first, heir) = (terms(3, FenceMode::Clock), terms(3, FenceMode::Clock));
        let mut sent = Vec::new();
        record.acquire(NOW, &first, None, &mut sent).unwrap();
        for _ in 0..2 {
            let next = Next::Pass(&heir, "wake");
            let released = record.release(NOW, &first, false, next, &mut sent);
            let granted = Acquired::Granted(Grant { fence: 8, at: 5 });
            assert_eq!(released.unwrap().1, Some(granted));
        }
        assert_eq!(record.holders.len(), 1);
        assert!(record.waiters.is_empty());
    }
}
