//! Which of several answers is believed.

use super::view::View;

/// What one node says.
#[derive(Clone, Debug)]
pub(super) struct Testimony {
    pub(super) view: View,
    /// What the node calls itself, if that is known.
    pub(super) id: Option<String>,
    /// Whether the configuration names its address.
    pub(super) is_configured: bool,
}

impl Testimony {
    /// Whether both are of one node, which may have been asked under two names.
    pub(super) fn is_of_the_same_node(&self, other: &Self) -> bool {
        self.id.is_some() && self.id == other.id
    }
}

/// What is believed, and whether all who know anything say it. Nothing if all that was said is worse than what is known.
///
/// Of two views one that covers all slots is better: if it is out of date the nodes say so to the first command, while the calls
/// for slots without a server have nowhere to go.
pub(super) fn elect<'a>(
    testimonies: &'a [Testimony],
    present: Option<&View>,
) -> Option<(&'a View, bool)> {
    let present = present.filter(|view| !view.is_empty());
    let is_kin = |view: &View| present.is_none_or(|present| view.is_kin(present));
    let mut believed: Vec<_> = testimonies.iter().collect();
    if present.is_some() || believed.iter().any(|said| !said.view.is_empty()) {
        believed.retain(|said| !said.view.is_empty());
    }
    // An address may have come to a node of another cluster. Where the configuration leads is right if nobody else is left.
    let has_kin = believed.iter().any(|said| is_kin(&said.view));
    believed.retain(|said| is_kin(&said.view) || (!has_kin && said.is_configured));
    let votes = |view: &View| {
        let agree = believed.iter().filter(|other| other.view.agrees(view));
        agree.count()
    };
    let rank = |said: &&Testimony| {
        let is_present = present.is_some_and(|present| present.agrees(&said.view));
        (said.view.is_complete(), votes(&said.view), is_present)
    };
    // The last of the best ones is taken, and who answered first is to be preferred.
    let elected = &believed.iter().copied().rev().max_by_key(rank)?.view;
    Some((elected, votes(elected) == believed.len()))
}

#[cfg(test)]
mod tests {
    use ::redis::Value;

    use super::*;
    use crate::config::Endpoint;

    /// The slots from `first` are those of the node on `port`, whose name has this number.
    fn view(ranges: &[(i64, i64, i64, i64)]) -> View {
        let range = |&(first, last, port, id): &(i64, i64, i64, i64)| {
            let node = vec![
                Value::BulkString("host".into()),
                Value::Int(port),
                Value::BulkString(id.to_string().into()),
            ];
            Value::Array(vec![
                Value::Int(first),
                Value::Int(last),
                Value::Array(node),
            ])
        };
        let answer = Value::Array(ranges.iter().map(range).collect());
        View::read(&answer, &Endpoint::tcp("host", 1)).unwrap()
    }

    fn says(view: &View) -> Testimony {
        Testimony {
            view: view.clone(),
            id: None,
            is_configured: false,
        }
    }

    fn elected(views: &[&View], present: Option<&View>) -> Option<(View, bool)> {
        let testimonies: Vec<_> = views.iter().copied().map(says).collect();
        elect(&testimonies, present).map(|(view, unanimous)| (view.clone(), unanimous))
    }

    #[test]
    fn most_votes_win_and_a_tie_is_for_what_is_known() {
        let (old, new) = (
            view(&[(0, 16_383, 1, 1)]),
            view(&[(0, 9, 2, 2), (10, 16_383, 1, 1)]),
        );
        let win = |views: &[&View], present| elected(views, present).unwrap();
        assert_eq!(win(&[&old, &new, &new], Some(&old)), (new.clone(), false));
        assert_eq!(win(&[&new, &new], Some(&old)), (new.clone(), true));
        for order in [[&old, &new], [&new, &old]] {
            assert_eq!(win(&order, Some(&old)), (old.clone(), false));
            assert_eq!(win(&order, Some(&new)), (new.clone(), false));
            assert_eq!(win(&order, None), (order[0].clone(), false));
        }
    }

    #[test]
    fn who_knows_of_all_slots_is_believed_before_many_who_do_not() {
        let (whole, part) = (view(&[(0, 16_383, 1, 1)]), view(&[(0, 9, 1, 1)]));
        assert_eq!(
            elected(&[&part, &part, &whole], Some(&part)),
            Some((whole, false))
        );
        assert_eq!(elected(&[&part], None), Some((part, true)));
    }

    #[test]
    fn who_knows_of_no_slots_has_no_voice() {
        let (some, none) = (view(&[(0, 9, 1, 1)]), view(&[]));
        assert_eq!(
            elected(&[&none, &none, &some], None),
            Some((some.clone(), true))
        );
        assert_eq!(elected(&[&none], Some(&some)), None);
        assert_eq!(elected(&[&none], None), Some((none.clone(), true)));
        assert_eq!(elected(&[&some], Some(&none)), Some((some, true)));
    }

    #[test]
    fn another_cluster_is_believed_only_where_the_configuration_leads_and_nobody_else_answers() {
        let (ours, theirs) = (view(&[(0, 16_383, 1, 1)]), view(&[(0, 16_383, 1, 2)]));
        let part_of_ours = view(&[(0, 9, 3, 1)]);
        let won = elected(&[&theirs, &theirs, &part_of_ours], Some(&ours));
        assert_eq!(won, Some((part_of_ours.clone(), true)));
        assert_eq!(elected(&[&theirs], Some(&ours)), None);

        let named = Testimony {
            is_configured: true,
            ..says(&theirs)
        };
        let won = elect(std::slice::from_ref(&named), Some(&ours));
        assert_eq!(won, Some((&theirs, true)));
        let among_ours = [named, says(&part_of_ours)];
        assert_eq!(elect(&among_ours, Some(&ours)), Some((&part_of_ours, true)));
    }
}
