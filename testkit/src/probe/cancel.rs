//! Dropping a future wherever it waits.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

/// More polls than any future of a test needs; reaching it means that the future never finishes.
const POLLS: usize = 10_000;

/// Drops a fresh future before its first poll, then another at its first await point, another at
/// its second, and so on until one finishes. Calls `check` with the number of polls after each drop,
/// the last one included, and returns how many polls that one took.
///
/// Each future is polled by the calling task and woken by what it waits for. It is dropped while it
/// waits: `check` sees what it left behind.
///
/// # Panics
///
/// If a future does not finish within 10,000 polls.
pub async fn drop_at_every_await<Fut>(
    mut make_future: impl FnMut() -> Fut,
    mut check: impl FnMut(usize),
) -> usize
where
    Fut: Future,
{
    for polls in 0..POLLS {
        let finished = poll_times(make_future(), polls).await;
        check(polls);
        if finished {
            return polls;
        }
    }
    panic!("the future was still waiting after {POLLS} polls");
}

/// Polls `future` at most `limit` times and drops it; returns whether it finished.
async fn poll_times<Fut: Future>(future: Fut, limit: usize) -> bool {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|cx| {
        if polls < limit {
            polls += 1;
            if future.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
        }
        // The last allowed poll is not awaited: the future is dropped while it waits.
        if polls == limit {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}
