//! The time that a transaction goes by.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rusqlite::Connection;

use super::layout;
use crate::Clock;

/// The clock given to `open`, with the wall time clamped.
///
/// Somebody may set the wall clock back. Then the wall time of the file stands still until the clock has caught up, in this process
/// and, from the housekeeper's next look on, in all others and after a restart: what had expired never comes back, and what is
/// stored meanwhile lives longer by as much. The time since boot cannot be set and is not clamped.
#[derive(Debug)]
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    /// The greatest wall time that was seen or stored.
    floor: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) boot: u64,
    pub(super) wall: u64,
}

impl Time {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            floor: AtomicU64::new(0),
        }
    }

    /// The time of the transaction that `connection` is in. Reading what is stored also fixes the snapshot of a read transaction
    /// before the clock is read: no row in it was written after this time.
    pub(super) fn now(&self, connection: &Connection) -> rusqlite::Result<Now> {
        let stored = layout::wall(connection)?;
        let wall = self.clock.wall_micros().max(stored);
        let floor = self.floor.fetch_max(wall, Ordering::AcqRel);
        Ok(Now {
            boot: self.clock.boot_micros(),
            wall: wall.max(floor),
        })
    }
}
