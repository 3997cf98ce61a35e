//! Jobs that run on one instance at a time: on demand under a lock, and `tick` once in each period.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use redis_conn::{Audit, Error, ErrorKind};
use serde_json::{Value, json};
use tower_distlock::{CronJob, CronLock, LockError, LockOptions, Locks, WithLockError};

use crate::routes::problem;

/// How long a job stays locked whose instance died.
const TTL: Duration = Duration::from_secs(10);
/// How many names this instance counts the runs of.
const NAMES: usize = 10_000;

#[derive(Clone)]
pub(crate) struct Jobs {
    locks: Locks,
    /// The cron job, unless it is off.
    tick: Option<Arc<CronJob>>,
    /// Finished runs on this instance, by name.
    runs: Arc<Mutex<HashMap<String, u64>>>,
}

impl Jobs {
    pub(crate) fn new(locks: Locks, period: Option<Duration>) -> Result<Self, Error> {
        let tick = period.map(|period| tick(&locks, period)).transpose()?;
        Ok(Self {
            locks,
            tick: tick.map(Arc::new),
            runs: Arc::default(),
        })
    }

    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/jobs/{name}/run", post(run))
            .route("/jobs/{name}", get(look))
            .route("/jobs/{name}/lock", delete(force))
            .with_state(self)
    }

    /// What this instance holds, for `/stats`.
    pub(crate) fn held(&self) -> Vec<Value> {
        let held = self.locks.held().into_iter();
        held.map(|held| json!({"name": held.name, "fence": held.fence}))
            .collect()
    }

    /// How often the cron job ran on this instance.
    pub(crate) fn cron_runs(&self) -> u64 {
        self.tick.as_ref().map_or(0, |tick| tick.ran())
    }

    fn finished(&self, name: &str) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() < NAMES || runs.contains_key(name) {
            *runs.entry(name.to_owned()).or_default() += 1;
        }
    }

    fn runs(&self, name: &str) -> u64 {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.get(name).copied().unwrap_or_default()
    }
}

/// Runs a job at each multiple of the period since the epoch: the same instants on all instances.
fn tick(locks: &Locks, period: Duration) -> Result<CronJob, Error> {
    let next = move |after: SystemTime| {
        let since = after.duration_since(UNIX_EPOCH).ok()?;
        let periods = since.as_millis() / period.as_millis() + 1;
        let millis = u64::try_from(periods * period.as_millis()).ok()?;
        Some(UNIX_EPOCH + Duration::from_millis(millis))
    };
    CronLock::new(locks, "tick")
        .at_most(TTL)
        .schedule(next, async |_, held| {
            tracing::debug!(fence = held.fence(), "tick");
            Ok::<_, Infallible>(())
        })
}

/// How long a job takes.
#[derive(serde::Deserialize)]
struct Work {
    #[serde(default)]
    ms: u64,
}

async fn run(
    State(jobs): State<Jobs>,
    Path(name): Path<String>,
    work: Result<Query<Work>, QueryRejection>,
) -> Response {
    let Ok(Query(Work { ms })) = work else {
        return problem(StatusCode::BAD_REQUEST).into_response();
    };
    let options = LockOptions::new().ttl(TTL).try_once();
    let ran = jobs
        .locks
        .with_lock(&name, options, async |held| {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            jobs.finished(&name);
            Ok::<_, LockError>(held.fence())
        })
        .await;
    match ran {
        Ok(fence) => Json(json!({"ran": true, "fence": fence})).into_response(),
        Err(WithLockError::Lost { .. }) => conflict(json!({"ran": false, "lost": true})),
        Err(error) if error.is_busy() => conflict(json!({"ran": false})),
        Err(WithLockError::NotAcquired(error) | WithLockError::Inner(error)) => failed(&error),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR).into_response(),
    }
}

async fn look(State(jobs): State<Jobs>, Path(name): Path<String>) -> Response {
    match jobs.locks.holders(&name).await {
        Ok(holders) => {
            let holder = holders.first();
            let ttl = holder.map(|holder| holder.remaining.as_millis());
            Json(json!({
                "locked": holder.is_some(),
                "owner": holder.map(|holder| &holder.instance),
                "ttl_ms": ttl.map(|ttl| u64::try_from(ttl).unwrap_or(u64::MAX)),
                "runs": jobs.runs(&name),
            }))
            .into_response()
        }
        Err(error) => failed(&error),
    }
}

async fn force(State(jobs): State<Jobs>, Path(name): Path<String>) -> Response {
    let audit = Audit::new("showcase", "DELETE of the lock over HTTP");
    match jobs.locks.force_release(&name, &audit).await {
        Ok(released) => Json(json!({"released": released})).into_response(),
        Err(error) => failed(&error),
    }
}

fn conflict(body: Value) -> Response {
    (StatusCode::CONFLICT, Json(body)).into_response()
}

/// The client's fault if no lock can have that name, else the store's.
fn failed(error: &LockError) -> Response {
    let status = match error {
        LockError::Backend(error) if *error.kind() == ErrorKind::Config => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(status).into_response()
}
