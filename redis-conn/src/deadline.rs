//! From "how long" to "until when".

use std::time::Duration;

use tokio::time::Instant;

/// As long as anybody means by "for ever"; more would overflow the clock.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The end of a deadline that begins now.
pub(crate) fn after(deadline: Duration) -> Instant {
    Instant::now() + deadline.min(FOREVER)
}
