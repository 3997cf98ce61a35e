//! The bound that every wait of a fixture has.

use std::{future::Future, time::Duration};

/// Long enough for any healthy machine; reaching it means that what is awaited will not happen.
pub(crate) const HANG: Duration = Duration::from_secs(10);

/// Awaits `future`, or panics with what was awaited once [`HANG`] has passed.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(HANG, future).await {
        Ok(output) => output,
        Err(_) => panic!("gave up after {HANG:?} waiting for {what}"),
    }
}
