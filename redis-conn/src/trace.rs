//! Events, which cost nothing without the feature `tracing`.

macro_rules! event {
    ($level:ident, $($text:tt)*) => {{
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "redis_conn", $($text)*);
        #[cfg(not(feature = "tracing"))]
        let _ = format_args!($($text)*);
    }};
}

pub(crate) use event;

/// The target of the spans of commands, which are shown at `TRACE` only: a span costs more than most commands.
#[cfg(all(feature = "tracing", feature = "redis"))]
const COMMANDS: &str = "redis_conn::command";

/// Runs a command inside of a span with the fields that OpenTelemetry wants of a database client. Keys are not among them.
#[cfg(all(feature = "tracing", feature = "redis"))]
pub(crate) async fn spanned<T>(
    name: &str,
    calling: impl Future<Output = Result<T, crate::Error>>,
) -> Result<T, crate::Error> {
    use tracing::{Instrument as _, field::Empty};

    if !tracing::enabled!(target: COMMANDS, tracing::Level::TRACE) {
        return calling.await;
    }
    let span = tracing::trace_span!(
        target: COMMANDS,
        "redis",
        otel.name = name,
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "redis",
        db.operation.name = name,
        db.response.status_code = Empty,
        "error.type" = Empty,
        server.address = Empty,
        server.port = Empty,
    );
    let answered = calling.instrument(span.clone()).await;
    if let Err(error) = &answered {
        span.record("otel.status_code", "ERROR");
        match error.kind() {
            crate::ErrorKind::Server(code) => {
                span.record("error.type", &**code);
                span.record("db.response.status_code", &**code);
            }
            kind => {
                span.record("error.type", kind.as_str());
            }
        }
    }
    answered
}

/// Says which server the command of the current span goes to.
#[cfg(all(feature = "tracing", feature = "redis"))]
pub(crate) fn server(endpoint: &crate::Endpoint) {
    if !tracing::enabled!(target: COMMANDS, tracing::Level::TRACE) {
        return;
    }
    let span = tracing::Span::current();
    // The span of a caller may have fields of the same name.
    if span
        .metadata()
        .is_none_or(|metadata| metadata.target() != COMMANDS)
    {
        return;
    }
    match endpoint {
        crate::Endpoint::Tcp { host, port } => {
            span.record("server.address", host.as_str());
            span.record("server.port", port);
        }
        crate::Endpoint::Unix(path) => {
            span.record("server.address", path.to_string_lossy().as_ref());
        }
    }
}
