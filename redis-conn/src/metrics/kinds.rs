//! What the kinds of errors are called in labels.

use crate::Error;

/// All of them.
pub const KINDS: &[&str] = &[
    "config",
    "unavailable",
    "timeout",
    "ambiguous",
    "circuit_open",
    "saturated",
    "refused",
    "corrupt",
    "closed",
];

/// That of this error.
#[must_use]
pub fn kind(error: &Error) -> &'static str {
    error.kind().as_str()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{ErrorKind, metrics::table::OPERATION_DURATION};

    #[test]
    fn every_kind_of_error_has_its_label() {
        let kinds = [
            ErrorKind::Config,
            ErrorKind::Unavailable,
            ErrorKind::Timeout,
            ErrorKind::Ambiguous,
            ErrorKind::CircuitOpen {
                retry_after: Duration::ZERO,
            },
            ErrorKind::Saturated,
            ErrorKind::Server("ERR".into()),
            ErrorKind::Corrupt,
            ErrorKind::Closed,
        ];
        let labels = kinds.map(|of| kind(&Error::new(of, "")));
        assert_eq!(labels, KINDS);
    }

    #[test]
    fn a_call_ends_well_or_with_an_error_of_some_kind() {
        let outcomes = OPERATION_DURATION.each(&[], |_, says| says.concat());
        for outcome in ["ok"].iter().chain(KINDS) {
            assert!(outcomes.of(outcome).is_some(), "{outcome}");
        }
    }
}
