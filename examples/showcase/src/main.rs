//! A small bookshop API, in which everything interesting is a layer or a call of a handle.
//!
//! ```text
//! cargo run -p showcase
//! curl -i http://127.0.0.1:3000/limited
//! curl -i -X POST 'http://127.0.0.1:3000/jobs/report/run?ms=200'
//! ```
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `PORT` | the port; 0 is any free one | 3000 |
//! | `INSTANCE` | the name of this instance in answers | the process id |
//! | `SHOWCASE_LIMIT`, `SHOWCASE_WINDOW_MS` | the limit on `/limited` | 100, 10000 |
//! | `SHOWCASE_CRON_MS` | the period of the cron job `tick`; 0 is off | 1000 |
//! | `SHOWCASE_HEALTH_ADDRESSES` | whether `/health/detailed` names the addresses of the servers | false |
//! | `SQLITE_PATH`, `REDIS_*`, `REDIS_REQUIRED` | the backend, see `Backend::from_env` | in process |
//!
//! Exit codes: 0 after SIGTERM, 1 if it cannot start, 2 if the configuration is wrong.

mod jobs;
mod observe;
mod routes;
mod settings;
mod shutdown;

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use redis_conn::{Backend, ConfigErrors, FromEnvError};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use settings::Settings;

/// Why the showcase does not run.
enum Failure {
    /// Everything that is wrong with the configuration.
    Configuration(Vec<String>),
    Start(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Start(error.to_string())
    }
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let result = Runtime::new().map_err(Failure::from).and_then(|runtime| {
        let result = runtime.block_on(run());
        // What still runs has had its time.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Start(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(Failure::Configuration(errors)) => {
            for error in errors {
                eprintln!("error: {error}");
            }
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<(), Failure> {
    // Before anything that may take its time: whoever stops a server that still waits for Redis wants it to end in order too.
    let mut requested = Box::pin(shutdown::requested()?);
    let metrics = observe::metrics().map_err(|error| Failure::Start(with_causes(&error)))?;
    let (settings, backend) = tokio::select! {
        configured = configure() => configured?,
        () = &mut requested => return Ok(()),
    };
    let app = routes::router(&backend, metrics, &settings)
        .map_err(|error| Failure::Start(with_causes(&error)))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, settings.port))
        .await
        .map_err(|error| Failure::Start(format!("PORT={}: {error}", settings.port)))?;
    let address = listener.local_addr()?;
    println!("listening on http://{address} backend={}", backend.kind());

    shutdown::serve(listener, app, requested, shutdown::FINISH).await?;
    if let Err(error) = backend.close(shutdown::CLOSE).await {
        tracing::warn!(
            error = with_causes(&error),
            "the backend did not close in time"
        );
    }
    Ok(())
}

/// Reads the environment; what is wrong is reported together, ours and the backend's.
async fn configure() -> Result<(Settings, Backend), Failure> {
    match Settings::read(|name| env::var_os(name)) {
        Ok(settings) => match Backend::from_env().await {
            Ok(backend) => Ok((settings, backend)),
            Err(FromEnvError::Config(errors)) => Err(Failure::Configuration(texts(&errors))),
            Err(error) => Err(Failure::Start(with_causes(&error))),
        },
        Err(mut errors) => {
            // The environment is read in the first poll: nobody waits for a server that will not
            // be used.
            let backend = tokio::time::timeout(Duration::ZERO, Backend::from_env());
            if let Ok(Err(FromEnvError::Config(others))) = backend.await {
                errors.extend(texts(&others));
            }
            Err(Failure::Configuration(errors))
        }
    }
}

fn texts(errors: &ConfigErrors) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
