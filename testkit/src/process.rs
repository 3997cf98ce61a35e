//! The current test binary again, as child processes.
//!
//! The child is an ignored test of the same binary; the parent runs it by its name:
//!
//! ```no_run
//! use testkit::{Fleet, process};
//!
//! #[test]
//! #[ignore = "the child of counts_once"]
//! fn counts_once_child() {
//!     let n: u32 = std::env::var("N").unwrap().parse().unwrap();
//!     process::report(n + 1);
//! }
//!
//! # async fn demo() {
//! let results = Fleet::new("counts_once_child").env("N", 41).run(4).await;
//! assert_eq!(results, vec![vec!["42"]; 4]);
//! # }
//! ```

use std::{
    collections::BTreeMap,
    env,
    fmt::Display,
    io::Write as _,
    process::{Command, Stdio},
};

use rustix::process::{Signal, kill_process};

use crate::{
    bound::within,
    guard::{Guard, Output},
};

/// What a line of a child's standard output starts with that is a result.
const MARK: &str = "RESULT ";

/// Prints one result line for the parent.
pub fn report(result: impl Display) {
    let mut stdout = std::io::stdout().lock();
    // The harness may have left an unfinished line.
    let written = writeln!(stdout, "\n{MARK}{result}").and_then(|()| stdout.flush());
    written.expect("the parent reads what its children print");
}

/// Several processes that run one ignored test of the current test binary.
#[derive(Debug, Clone)]
#[must_use]
pub struct Fleet {
    test: String,
    env: BTreeMap<String, String>,
}

impl Fleet {
    /// Processes that run the ignored test `test`, named with its modules.
    pub fn new(test: impl Into<String>) -> Self {
        Self {
            test: test.into(),
            env: BTreeMap::new(),
        }
    }

    /// Sets an environment variable of every child. `TESTKIT_CHILD` is always its number,
    /// from 0.
    pub fn env(mut self, name: impl Into<String>, value: impl Display) -> Self {
        self.env.insert(name.into(), value.to_string());
        self
    }

    /// Starts `count` children; they run at the same time.
    ///
    /// # Panics
    ///
    /// If a process cannot be started.
    pub async fn spawn(&self, count: usize) -> Vec<Child> {
        let mut children = Vec::with_capacity(count);
        for number in 0..count {
            children.push(self.spawn_one(number).await);
        }
        children
    }

    /// Runs `count` children at the same time to their end, and returns the results of each.
    ///
    /// # Panics
    ///
    /// If a process cannot be started or its test fails.
    pub async fn run(&self, count: usize) -> Vec<Vec<String>> {
        let mut results = Vec::with_capacity(count);
        for child in self.spawn(count).await {
            results.push(child.finish().await);
        }
        results
    }

    async fn spawn_one(&self, number: usize) -> Child {
        let mut command = Command::new(env::current_exe().expect("a running process has a binary"));
        command
            .args([self.test.as_str(), "--exact", "--ignored", "--nocapture"])
            .envs(&self.env)
            .env("TESTKIT_CHILD", number.to_string());
        let (guard, output) = Guard::spawn(&command, None, Stdio::inherit())
            .await
            .unwrap_or_else(|error| panic!("cannot start child {number}: {error}"));
        Child {
            number,
            guard,
            output,
            results: Vec::new(),
        }
    }
}

/// A child process; dropping it, or the end of this process, kills it.
#[derive(Debug)]
pub struct Child {
    number: usize,
    guard: Guard,
    output: Output,
    results: Vec<String>,
}

impl Child {
    /// The process id.
    pub fn pid(&self) -> i32 {
        self.guard.pid().as_raw_pid()
    }

    /// Kills the child as SIGKILL does: nothing of it runs any more once this returns.
    pub fn kill(self) {
        drop(self);
    }

    /// Stops the child as SIGSTOP does: it does nothing from when this returns, and knows nothing of it.
    ///
    /// # Panics
    ///
    /// If the child has ended.
    pub async fn freeze(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.pid());
        within("the child to stop", async {
            // The state is behind the name, which is in parentheses. Elsewhere than on Linux nothing tells.
            while let Ok(stat) = std::fs::read_to_string(&stat)
                && !stat.contains(") T ")
            {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Lets a frozen child go on.
    ///
    /// # Panics
    ///
    /// If the child has ended.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.guard.pid(), signal).expect("a child that lives");
    }

    /// Waits for the next result; `None` when the child has ended.
    ///
    /// # Cancel safety
    ///
    /// No result is lost if this is dropped.
    pub async fn next_result(&mut self) -> Option<String> {
        let line = self.next_line().await?;
        self.results.push(line.clone());
        Some(line)
    }

    /// Waits until the child has ended, and returns all its results.
    ///
    /// # Panics
    ///
    /// If its test failed, or if there is no test of that name.
    pub async fn finish(mut self) -> Vec<String> {
        let mut ran = false;
        while let Some(line) = self.next_raw_line().await {
            ran |= line.starts_with("test result: ok. 1 passed");
            self.results
                .extend(line.strip_prefix(MARK).map(str::to_owned));
        }
        let status = self
            .guard
            .stop()
            .expect("the guard reports how its child ended");
        assert!(
            status.success() && ran,
            "child {} ended with {status} and these results: {:?}",
            self.number,
            self.results
        );
        self.results
    }

    async fn next_line(&mut self) -> Option<String> {
        loop {
            let line = self.next_raw_line().await?;
            if let Some(result) = line.strip_prefix(MARK) {
                return Some(result.to_owned());
            }
        }
    }

    async fn next_raw_line(&mut self) -> Option<String> {
        self.output.next_line().await.expect("a child prints UTF-8")
    }
}
