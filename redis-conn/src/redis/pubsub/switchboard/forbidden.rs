//! Channels that were taken away from those who listened.

use std::{collections::HashMap, sync::Arc};

use crate::Error;

/// So many are remembered. One is enough to say that something is wrong, and whoever gives each channel a name of its own must not
/// fill the memory with them.
const MEMORY: usize = 256;

/// They stay until somebody listens to them again: an end that nobody noticed must be seen in the state and in the health.
#[derive(Debug, Default)]
pub(super) struct Forbidden(HashMap<Arc<str>, Error>);

impl Forbidden {
    pub(super) fn insert(&mut self, channel: &Arc<str>, error: &Error) {
        if self.0.len() < MEMORY {
            self.0.insert(Arc::clone(channel), error.clone());
        }
    }

    pub(super) fn remove(&mut self, channel: &str) {
        self.0.remove(channel);
    }

    /// Why one of them is.
    pub(super) fn error(&self) -> Option<&Error> {
        self.0.values().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn they_are_forgotten_one_by_one_and_their_number_is_bounded() {
        let channel = |number: usize| Arc::from(number.to_string());
        let mut forbidden = Forbidden::default();
        for number in 0..10 * MEMORY {
            let error = Error::new(ErrorKind::Server("NOPERM".into()), "refused");
            forbidden.insert(&channel(number), &error);
        }
        assert_eq!(forbidden.0.len(), MEMORY);
        for number in 0..MEMORY {
            assert!(forbidden.error().is_some());
            forbidden.remove(&channel(number));
        }
        assert!(forbidden.error().is_none());
    }
}
