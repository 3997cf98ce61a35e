//! A few things by name: what a program may choose that becomes a label.

use std::sync::OnceLock;

/// At most `N` things, which are never removed. Finding one takes no lock.
#[derive(Debug)]
pub struct Few<T, const N: usize>([OnceLock<(Box<str>, T)>; N]);

/// One of the few, and its number.
#[derive(Debug)]
pub struct Found<'a, T> {
    /// Below `N`, and of no other one.
    pub place: usize,
    /// Its name.
    pub name: &'a str,
    /// The thing.
    pub value: &'a T,
}

impl<T, const N: usize> Few<T, N> {
    /// None yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for statics")]
    pub const fn new() -> Self {
        Self([const { OnceLock::new() }; N])
    }

    /// The thing of this name, made if there is room for one more.
    pub fn find(&self, wanted: &str, make: impl Fn(&str) -> T) -> Option<Found<'_, T>> {
        // Places are taken in their order, so whoever comes to a free one has seen all names; whoever loses it to another sees
        // that one's name in it.
        for (place, slot) in self.0.iter().enumerate() {
            let (name, value) = slot.get_or_init(|| (wanted.into(), make(wanted)));
            if **name == *wanted {
                return Some(Found { place, name, value });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;

    #[test]
    fn what_was_made_once_is_found_again() {
        let few = Few::<usize, 2>::new();
        let find = |name: &str, value| few.find(name, |_| value).map(|f| (f.place, *f.value));
        assert_eq!(find("a", 1), Some((0, 1)));
        assert_eq!(find("b", 2), Some((1, 2)));
        assert_eq!(find("a", 3), Some((0, 1)));
    }

    #[test]
    fn there_is_no_room_for_more() {
        let few = Few::<(), 2>::new();
        let finds = |name: &str| few.find(name, |_| ()).is_some();
        assert!(finds("a") && finds("b") && !finds("c"));
        assert!(finds("a") && !finds("c"), "nobody had to go");
    }

    #[test]
    fn each_is_made_once_whoever_comes_first() {
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let few = Few::<usize, 8>::new();
        let (made, start) = (AtomicUsize::new(0), Barrier::new(8));
        let ask = |first: usize| {
            start.wait();
            for n in 0..8 {
                let make = |_: &str| made.fetch_add(1, Ordering::Relaxed);
                assert!(few.find(NAMES[(first + n) % 8], make).is_some());
            }
        };
        thread::scope(|scope| {
            for first in 0..8 {
                let ask = &ask;
                scope.spawn(move || ask(first));
            }
        });
        assert_eq!(made.into_inner(), 8);
    }
}
