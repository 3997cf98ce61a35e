//! Events, which cost nothing without the feature `tracing`.

macro_rules! event {
    ($level:ident, $($text:tt)*) => {{
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "tower_distlock", $($text)*);
        #[cfg(not(feature = "tracing"))]
        let _ = format_args!($($text)*);
    }};
}

pub(crate) use event;
