//! Which boot of the machine this is.

/// Changes with every boot, and only then.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn id() -> std::io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// The moment of the boot, in minutes since the epoch. A wall clock that is set makes it look like another boot, which voids
/// leases and limits early: the safe side.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn id() -> std::io::Result<String> {
    use crate::{Clock, SystemClock};
    let booted = SystemClock
        .wall_micros()
        .saturating_sub(SystemClock.boot_micros());
    // Rounded to ten minutes: the two clocks are not read at the same instant, and the wall clock is slewed.
    Ok(format!("minute {}", booted / 600_000_000 * 10))
}
