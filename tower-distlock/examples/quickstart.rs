//! A job that runs once at a time, and a lock that is waited for, without a server.
//!
//! Run with `cargo run -p tower-distlock --example quickstart`.
//!
//! expected output:
//! > first: done, under a fence: true
//! > second: somebody else runs it
//! > the lock is free again: true

use std::{error::Error, time::Duration};

use redis_conn::Backend;
use tower_distlock::{LockOptions, Locks};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // `Backend::from_env()` takes Redis or an SQLite file from the environment: then all processes share the locks.
    let locks = Locks::new(&Backend::memory())?;
    let once = || LockOptions::new().try_once();
    locks
        .with_lock("cron:report", once(), async |held| {
            let second =
                locks.with_lock("cron:report", once(), async |_| Ok::<_, Box<dyn Error>>(()));
            let busy = second.await.is_err_and(|error| error.is_busy());
            println!("first: done, under a fence: {}", held.fence().is_some());
            println!(
                "second: {}",
                if busy {
                    "somebody else runs it"
                } else {
                    "ran too"
                }
            );
            Ok::<_, Box<dyn Error>>(())
        })
        .await
        .map_err(|error| error.to_string())?;
    let waited = LockOptions::new().wait(Duration::from_secs(5));
    let guard = locks.acquire("cron:report", waited).await?;
    guard.release().await?;
    println!(
        "the lock is free again: {}",
        !locks.is_locked("cron:report").await?
    );
    Ok(())
}
