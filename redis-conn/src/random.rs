//! Random identities and jitter, from the operating system.

/// A random number; unique for all practical purposes.
pub(crate) fn id() -> u64 {
    // Without a random source (which no supported system lacks) the address of a fresh allocation and the time still differ between callers.
    getrandom::u64().unwrap_or_else(|_| {
        let fresh = Box::new(0_u8);
        let address = std::ptr::from_ref::<u8>(&fresh).addr() as u64;
        address ^ crate::Clock::wall_micros(&crate::SystemClock)
    })
}

/// Full jitter: a random part of `ceiling`.
#[cfg(any(feature = "redis", feature = "sqlite"))]
pub(crate) fn jitter(ceiling: std::time::Duration) -> std::time::Duration {
    let fraction = (id() >> 11) as f64 / (1_u64 << 53) as f64;
    ceiling.mul_f64(fraction)
}
