//! The bound that every wait of a fixture has.

use std::{future::Future, time::Duration};

/// Long enough for any healthy machine; reaching it means that what is awaited will not happen.
pub(crate) const HANG: Duration = Duration::from_secs(10);

/// How long to wait before asking a server again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Asks again and again until it is so: for what no event tells.
///
/// # Errors
///
/// It is not so after `bound`. The text names `what` was waited for.
pub async fn until(
    bound: Duration,
    what: &str,
    mut is_so: impl AsyncFnMut() -> bool,
) -> Result<(), String> {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    let asked = tokio::time::timeout(bound, asking).await;
    asked.map_err(|_| format!("gave up after {bound:?} waiting for {what}"))
}

/// Awaits `future`, or panics with what was awaited once [`HANG`] has passed.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    within_at_most(HANG, what, future).await
}

/// Awaits `future`, or panics with what was awaited once `bound` has passed.
pub(crate) async fn within_at_most<F: Future>(bound: Duration, what: &str, future: F) -> F::Output {
    match tokio::time::timeout(bound, future).await {
        Ok(output) => output,
        Err(_) => panic!("gave up after {bound:?} waiting for {what}"),
    }
}
