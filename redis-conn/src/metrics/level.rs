//! A part of a gauge.

use metrics::Gauge;

/// What one backend adds to a gauge that all backends of the process share. It takes it back when it goes.
#[derive(Debug)]
pub(super) struct Level {
    gauge: Gauge,
    shown: f64,
}

impl Level {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { gauge, shown: 0.0 }
    }

    pub(super) fn show(&mut self, level: f64) {
        self.gauge.increment(level - self.shown);
        self.shown = level;
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        self.show(0.0);
    }
}
