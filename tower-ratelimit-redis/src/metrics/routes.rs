//! The routes that may be labels.

use redis_conn::metrics::Few;

/// So many routes are told apart; the others are one.
const ROUTES: usize = 64;
/// A template that is longer is none.
const LONGEST: usize = 128;
/// How many things there are to be had by [`Route::number`].
pub(super) const NUMBERS: usize = ROUTES + 1;

static SEEN: Routes = Routes::new();

/// A route of this process, or all those that came too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) number: usize,
    pub(super) label: &'static str,
}

const OTHER: Route = Route {
    number: ROUTES,
    label: "other",
};

impl Route {
    pub(super) fn of(template: &str) -> Self {
        SEEN.of(template)
    }
}

struct Routes(Few<(), ROUTES>);

impl Routes {
    const fn new() -> Self {
        Self(Few::new())
    }

    fn of(&'static self, template: &str) -> Route {
        if template.len() > LONGEST {
            return OTHER;
        }
        self.0.find(template, |_| ()).map_or(OTHER, |found| Route {
            number: found.place,
            label: found.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_64_routes_are_told_apart() {
        static SEEN: Routes = Routes::new();
        let of = |n: usize| SEEN.of(&format!("/books/{n}"));
        for n in 0..64 {
            assert_eq!(of(n).label, format!("/books/{n}"));
            assert_eq!(of(n).number, n);
        }
        assert_eq!([of(64), of(1_000)], [OTHER, OTHER]);
        assert_eq!(of(63).label, "/books/63", "the first ones keep their names");
    }

    #[test]
    fn what_is_too_long_takes_no_place() {
        static SEEN: Routes = Routes::new();
        assert_eq!(SEEN.of(&"x".repeat(129)), OTHER);
        assert_eq!(SEEN.of(&"x".repeat(128)).number, 0);
    }
}
