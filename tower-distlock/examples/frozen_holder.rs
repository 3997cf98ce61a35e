//! A holder that is stopped in the middle of its work, in front of something that checks fences.
//!
//! Run with `cargo run -p tower-distlock --features sqlite --example frozen_holder`.

use std::{
    env,
    error::Error,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use redis_conn::{Backend, raw::sql::Connection};
use rustix::process::{Pid, Signal, kill_process};
use tower_distlock::{LockOptions, Locks};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result {
    match env::args().nth(1) {
        Some(dir) => write_under_the_lock(Path::new(&dir)).await,
        None => freeze_and_thaw(),
    }
}

/// What each of two processes does: it writes for as long as it has the lock.
async fn write_under_the_lock(dir: &Path) -> Result {
    let locks = Locks::new(&Backend::sqlite(dir.join("locks.db")).await?)?;
    let options = LockOptions::new().ttl(Duration::from_secs(1));
    let ran = locks
        .with_lock("resource", options, async |held| -> Result {
            let resource = Connection::open(dir.join("resource.db"))?;
            let fence = held.fence().ok_or("no fence")?.cast_signed();
            let write =
                || resource.execute("UPDATE resource SET fence = ?1 WHERE fence <= ?1", [fence]);
            write()?;
            println!("has written, fence {fence}");
            loop {
                // Like any work that blocks: it is not cancelled, only what comes after it is.
                std::thread::sleep(Duration::from_millis(100));
                if write()? == 0 {
                    println!("a write was refused: fence {fence} was passed");
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    println!(
        "stopped: {}",
        ran.map_or_else(|error| error.to_string(), |()| String::new())
    );
    Ok(())
}

fn freeze_and_thaw() -> Result {
    let dir = tempfile::tempdir()?;
    let resource = Connection::open(dir.path().join("resource.db"))?;
    resource
        .execute_batch("CREATE TABLE resource (fence INTEGER); INSERT INTO resource VALUES (0)")?;
    let mut first = Writer::start("first", dir.path())?;
    first.hear()?;
    println!("the first is stopped");
    first.signal(Signal::STOP)?;
    let mut second = Writer::start("second", dir.path())?;
    second.hear()?;
    println!("the first is woken");
    first.signal(Signal::CONT)?;
    while first.hear()? {}
    second.child.kill()?;
    Ok(())
}

struct Writer {
    name: &'static str,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Writer {
    fn start(name: &'static str, dir: &Path) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        let mut child = command.arg(dir).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let output = BufReader::new(output);
        Ok(Self {
            name,
            child,
            output,
        })
    }

    /// Passes a line on; false if there is none any more.
    fn hear(&mut self) -> Result<bool> {
        let mut line = String::new();
        let heard = self.output.read_line(&mut line)? > 0;
        if heard {
            print!("{}: {line}", self.name);
        }
        Ok(heard)
    }

    fn signal(&self, signal: Signal) -> Result {
        let pid = Pid::from_raw(self.child.id().cast_signed()).ok_or("no process")?;
        Ok(kill_process(pid, signal)?)
    }
}
