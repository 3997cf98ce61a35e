//! The sentinels that are known, and what follows from what they say.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::answer::Answer;
use crate::config::Endpoint;

/// So many sentinels are remembered beside those of the configuration.
const MEMORY: usize = 64;

/// After so long a sentinel that is not cut off knows of a failover: they tell each other every two seconds.
const SPREAD: Duration = Duration::from_secs(8);

/// Every sentinel ever seen: when those of the configuration are gone, one of the others may lead to the new ones.
#[derive(Debug)]
pub(super) struct Roster {
    members: Vec<Member>,
    /// While no sentinel says anything it is where it was.
    primary: Option<Primary>,
}

/// Where the primary is, by which failover, and when a sentinel was last asked that knew of it.
#[derive(Debug)]
struct Primary {
    endpoint: Endpoint,
    config_epoch: u64,
    told: Instant,
}

#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    configured: bool,
    standing: Standing,
    /// Ends with this entry.
    watcher: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
enum Standing {
    /// Not asked yet.
    New,
    Says(Answer),
    /// Since then there is no connection to it, or it does not know the primary.
    Silent(Instant),
}

impl Member {
    fn answer(&self) -> Option<&Answer> {
        match &self.standing {
            Standing::Says(answer) => Some(answer),
            Standing::New | Standing::Silent(_) => None,
        }
    }
}

impl Roster {
    pub(super) fn new(configured: &[Endpoint]) -> Self {
        let mut roster = Self {
            members: Vec::new(),
            primary: None,
        };
        for endpoint in configured {
            if !roster.contains(endpoint) {
                roster.admit(endpoint.clone(), true);
            }
        }
        roster
    }

    fn admit(&mut self, endpoint: Endpoint, configured: bool) {
        self.members.push(Member {
            endpoint,
            configured,
            standing: Standing::New,
            watcher: None,
        });
    }

    fn contains(&self, endpoint: &Endpoint) -> bool {
        self.members
            .iter()
            .any(|member| member.endpoint == *endpoint)
    }

    fn member(&mut self, endpoint: &Endpoint) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.endpoint == *endpoint)
    }

    /// Adds a sentinel that another one told of. When there are too many, the oldest one is forgotten that says nothing.
    pub(super) fn learn(&mut self, endpoint: Endpoint) {
        if self.contains(&endpoint) {
            return;
        }
        let is_learned = |member: &&Member| !member.configured;
        if self.members.iter().filter(is_learned).count() >= MEMORY {
            let is_useless = |member: &Member| !member.configured && member.answer().is_none();
            match self.members.iter().position(is_useless) {
                Some(useless) => drop(self.members.remove(useless)),
                None => return,
            }
        }
        self.admit(endpoint, false);
    }

    /// Takes over what a sentinel says, unless something that it was asked for later is known already.
    pub(super) fn hear(&mut self, endpoint: &Endpoint, answer: Answer) {
        let Some(member) = self.member(endpoint) else {
            return;
        };
        let is_late = match &member.standing {
            Standing::New => false,
            Standing::Says(known) => answer.asked < known.asked,
            Standing::Silent(since) => answer.asked < *since,
        };
        if !is_late {
            member.standing = Standing::Says(answer);
        }
    }

    /// What a sentinel has said does not count any more. Returns whether that is news.
    pub(super) fn silence(&mut self, endpoint: &Endpoint) -> bool {
        let Some(member) = self.member(endpoint) else {
            return false;
        };
        let was = std::mem::replace(&mut member.standing, Standing::Silent(Instant::now()));
        !matches!(was, Standing::Silent(_))
    }

    /// Where the primary is by the latest failover that any of them knows of. Those who know of the same one and disagree (some
    /// give names, some addresses) do not make it move.
    pub(super) fn elect(&mut self) -> Option<&Endpoint> {
        if let Some(latest) = self.latest().filter(|latest| self.may_believe(latest)) {
            self.primary = Some(latest);
        }
        self.primary.as_ref().map(|primary| &primary.endpoint)
    }

    fn latest(&self) -> Option<Primary> {
        let config_epoch = self.answers().map(|answer| answer.config_epoch).max()?;
        let present = self.primary.as_ref().map(|primary| &primary.endpoint);
        let telling = self
            .answers()
            .filter(|answer| answer.config_epoch == config_epoch);
        let mut named = telling.clone().map(|answer| &answer.endpoint);
        let stays = named.clone().find(|endpoint| Some(*endpoint) == present);
        Some(Primary {
            endpoint: stays.or_else(|| named.next())?.clone(),
            config_epoch,
            told: telling.map(|answer| answer.asked).max()?,
        })
    }

    /// An earlier failover than the present one is known to sentinels that have not heard of it yet or were cut off, which must not
    /// lead anybody back, and to those that were set up anew and count from the start: then most of the configured ones say so, and
    /// still do when they had the time to hear of it.
    fn may_believe(&self, latest: &Primary) -> bool {
        let Some(present) = &self.primary else {
            return true;
        };
        let informed = |answer: &Answer| answer.asked >= present.told + SPREAD;
        let configured = || self.members.iter().filter(|member| member.configured);
        let saying = configured().filter(|member| member.answer().is_some_and(informed));
        latest.config_epoch >= present.config_epoch || saying.count() > configured().count() / 2
    }

    fn answers(&self) -> impl Iterator<Item = &Answer> + Clone {
        self.members.iter().filter_map(Member::answer)
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.members
            .iter()
            .map(|member| member.endpoint.clone())
            .collect()
    }

    /// Those whose answer is worth a wait.
    pub(super) fn awaited(&self) -> Vec<Endpoint> {
        let members = self.members.iter();
        let awaited = members.filter(|member| !matches!(member.standing, Standing::Silent(_)));
        awaited.map(|member| member.endpoint.clone()).collect()
    }

    /// Gives everybody a watcher who has none.
    pub(super) fn watch(&mut self, start: impl Fn(Endpoint) -> AbortOnDropHandle<()>) {
        for member in &mut self.members {
            member
                .watcher
                .get_or_insert_with(|| start(member.endpoint.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinel(n: u16) -> Endpoint {
        Endpoint::tcp("sentinel", n)
    }

    fn server(n: u16) -> Endpoint {
        Endpoint::tcp("server", n)
    }

    fn answer(n: u16, config_epoch: u64) -> Answer {
        let asked = Instant::now();
        Answer {
            endpoint: server(n),
            config_epoch,
            asked,
        }
    }

    /// An answer of one who had the time to hear of what the others know.
    fn informed(n: u16, config_epoch: u64) -> Answer {
        let known = answer(n, config_epoch);
        Answer {
            asked: known.asked + SPREAD,
            ..known
        }
    }

    fn three() -> Roster {
        Roster::new(&[1, 2, 3].map(sentinel))
    }

    #[test]
    fn nobody_says_anything_at_first() {
        assert_eq!(three().elect(), None);
        assert_eq!(three().awaited().len(), 3);
        assert_eq!(Roster::new(&[]).elect(), None);
        assert_eq!(Roster::new(&[1, 1, 2].map(sentinel)).endpoints().len(), 2);
    }

    #[test]
    fn the_latest_failover_wins_over_a_majority_that_has_not_seen_it() {
        let mut roster = three();
        roster.hear(&sentinel(1), answer(1, 4));
        roster.hear(&sentinel(3), answer(1, 4));
        assert_eq!(roster.elect(), Some(&server(1)));
        roster.hear(&sentinel(2), answer(2, 5));
        assert_eq!(roster.elect(), Some(&server(2)));
    }

    #[test]
    fn a_tie_moves_nothing() {
        for present in [1, 2] {
            let mut roster = three();
            roster.hear(&sentinel(3), answer(present, 4));
            assert_eq!(roster.elect(), Some(&server(present)));
            roster.hear(&sentinel(1), answer(1, 4));
            roster.hear(&sentinel(2), answer(2, 4));
            assert_eq!(roster.elect(), Some(&server(present)));
            roster.hear(&sentinel(3), answer(3, 4));
            assert_eq!(roster.elect(), Some(&server(present)));
        }
    }

    #[test]
    fn an_address_that_nobody_gives_any_more_is_left_also_without_a_failover() {
        let mut roster = three();
        roster.hear(&sentinel(1), answer(1, 4));
        assert_eq!(roster.elect(), Some(&server(1)));
        roster.hear(&sentinel(1), answer(2, 4));
        assert_eq!(roster.elect(), Some(&server(2)));
    }

    #[test]
    fn sentinels_that_count_anew_are_believed_once_none_counts_on() {
        let mut roster = three();
        for n in 1..=3 {
            roster.hear(&sentinel(n), answer(1, 40));
        }
        for n in 1..=3 {
            assert_eq!(roster.elect(), Some(&server(1)));
            roster.hear(&sentinel(n), informed(2, 0));
        }
        assert_eq!(roster.elect(), Some(&server(2)));
        roster.hear(&sentinel(1), informed(3, 1));
        assert_eq!(
            roster.elect(),
            Some(&server(3)),
            "from then on their count is the one that counts"
        );
    }

    #[test]
    fn the_one_sentinel_that_was_cut_off_leads_nobody_back() {
        let mut roster = three();
        roster.learn(sentinel(4));
        roster.hear(&sentinel(1), answer(1, 4));
        roster.hear(&sentinel(2), answer(2, 5));
        roster.hear(&sentinel(4), answer(1, 4));
        assert_eq!(roster.elect(), Some(&server(2)));
        assert!(roster.silence(&sentinel(2)));
        assert!(!roster.silence(&sentinel(2)), "known already");
        roster.hear(&sentinel(1), informed(1, 4));
        roster.hear(&sentinel(4), informed(1, 4));
        assert_eq!(roster.elect(), Some(&server(2)), "one of three");
        roster.hear(&sentinel(3), informed(1, 4));
        assert_eq!(roster.elect(), Some(&server(1)), "two of three");
    }

    #[test]
    fn those_who_have_not_heard_of_a_failover_yet_lead_nobody_back() {
        let mut roster = three();
        roster.hear(&sentinel(1), answer(1, 4));
        roster.hear(&sentinel(2), answer(2, 5));
        roster.hear(&sentinel(3), answer(1, 4));
        assert_eq!(roster.elect(), Some(&server(2)));
        // The one that led it dies.
        roster.silence(&sentinel(2));
        assert_eq!(roster.elect(), Some(&server(2)));
        roster.hear(&sentinel(1), answer(1, 4));
        roster.hear(&sentinel(3), answer(1, 4));
        assert_eq!(roster.elect(), Some(&server(2)));
    }

    #[test]
    fn while_nobody_says_anything_the_primary_is_where_it_was() {
        let mut roster = three();
        roster.hear(&sentinel(1), answer(1, 4));
        assert_eq!(roster.elect(), Some(&server(1)));
        roster.silence(&sentinel(1));
        assert_eq!(roster.elect(), Some(&server(1)));
        assert_eq!(roster.awaited(), [2, 3].map(sentinel));
    }

    #[test]
    fn an_answer_that_was_overtaken_is_dropped() {
        let mut roster = three();
        let now = answer(1, 9);
        let late = Answer {
            asked: now.asked - std::time::Duration::from_millis(1),
            ..now
        };
        roster.hear(&sentinel(1), answer(2, 5));
        roster.hear(&sentinel(1), late.clone());
        assert_eq!(roster.elect(), Some(&server(2)));
        roster.silence(&sentinel(1));
        roster.hear(&sentinel(1), late);
        assert_eq!(roster.elect(), Some(&server(2)));
        roster.hear(&sentinel(1), answer(3, 6));
        assert_eq!(roster.elect(), Some(&server(3)));
    }

    #[test]
    fn every_sentinel_is_kept_until_there_are_too_many() {
        let mut roster = three();
        let learned = |n: usize| sentinel(1_000 + n as u16);
        for n in 0..MEMORY {
            roster.learn(learned(n));
            roster.learn(learned(n));
        }
        roster.learn(sentinel(1));
        assert_eq!(roster.endpoints().len(), 3 + MEMORY);

        roster.hear(&learned(0), answer(1, 1));
        roster.learn(learned(MEMORY));
        assert_eq!(roster.endpoints().len(), 3 + MEMORY);
        for kept in [sentinel(1), learned(0), learned(2), learned(MEMORY)] {
            assert!(roster.contains(&kept), "{kept}");
        }
        assert!(
            !roster.contains(&learned(1)),
            "the oldest that says nothing"
        );

        for n in 0..=MEMORY {
            roster.hear(&learned(n), answer(1, 1));
        }
        roster.learn(learned(MEMORY + 1));
        assert!(
            !roster.contains(&learned(MEMORY + 1)),
            "all of the others are of use"
        );
    }
}
