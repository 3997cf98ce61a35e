//! The clocks of the embedded backends. (Redis decides by its own `TIME`, inside its scripts.)

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where an embedded backend reads the time, in microseconds.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Time since the machine booted, suspended time included. All processes of one host agree on it and nobody can set it,
    /// therefore limits and leases go by it.
    fn boot_micros(&self) -> u64;

    /// Time since the Unix epoch. It survives a reboot and may be set by anybody, therefore only sessions and cached values go by it.
    fn wall_micros(&self) -> u64;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot_micros(&self) -> u64 {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const BOOT: rustix::time::ClockId = rustix::time::ClockId::Boottime;
        // Elsewhere the monotonic clock is the nearest: common to all processes, and nobody can set it.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const BOOT: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

        let now = rustix::time::clock_gettime(BOOT);
        now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
    }

    fn wall_micros(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// A clock that moves only when told to. For tests.
#[derive(Debug)]
pub struct ManualClock {
    micros: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `micros`, on both time lines.
    pub fn new(micros: u64) -> Self {
        Self {
            micros: AtomicU64::new(micros),
        }
    }

    /// Puts the clock to `micros`; backwards too.
    pub fn set(&self, micros: u64) {
        self.micros.store(micros, Ordering::SeqCst);
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn boot_micros(&self) -> u64 {
        self.micros.load(Ordering::SeqCst)
    }

    fn wall_micros(&self) -> u64 {
        self.micros.load(Ordering::SeqCst)
    }
}
