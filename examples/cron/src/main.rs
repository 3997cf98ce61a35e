//! A job that runs each five seconds, once over any number of processes.
//!
//! ```text
//! SQLITE_PATH=cron.db cargo run -p cron
//! SQLITE_PATH=cron.db cargo run -p cron
//! ```
//!
//! Start it twice: each line is printed by one of them. Stop one: the other goes on. With `REDIS_URL` set it is the same over many hosts,
//! whose clocks may differ; with neither, each process is alone.

use std::{error::Error, str::FromStr as _, time::Duration, time::SystemTime};

use chrono::{DateTime, Utc};
use croner::Cron;
use redis_conn::Backend;
use tower_distlock::{CronLock, Locks};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    let backend = Backend::from_env().await?;
    let locks = Locks::new(&backend)?;
    let job = CronLock::new(&locks, "overdue-tasks").at_most(Duration::from_secs(60));
    if let Some(last) = job.last_run().await? {
        println!("last run by {}: {:?}", last.instance, last.outcome);
    }
    let expression = Cron::from_str("*/5 * * * * *")?;
    // In UTC: the same instants in all processes, and no hour that comes twice or not at all.
    let next = move |after: SystemTime| {
        let next = expression.find_next_occurrence(&DateTime::<Utc>::from(after), false);
        next.ok().map(SystemTime::from)
    };
    let running = job.schedule(next, |slot, held| async move {
        println!("{}: fence {:?}", DateTime::<Utc>::from(slot), held.fence());
        Ok::<_, std::io::Error>(())
    })?;
    tokio::signal::ctrl_c().await?;
    running.stop().await;
    backend.close(Duration::from_secs(10)).await?;
    Ok(())
}
