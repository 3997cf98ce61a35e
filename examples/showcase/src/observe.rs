//! What people and machines see of the server from outside: its health and its metrics.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use redis_conn::{Backend, Health};
use serde_json::json;
use tokio::time::sleep;

use crate::settings::Settings;

/// Upper bounds in seconds: half of all commands take less than a millisecond.
const BUCKETS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0,
];

/// How often measured times are put into their buckets, also if nobody asks for them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Collects what the layers count. Before the backend is built, or it would count for nobody.
pub(crate) fn metrics() -> Result<PrometheusHandle, BuildError> {
    let builder = PrometheusBuilder::new().set_buckets(&BUCKETS)?;
    let metrics = builder.install_recorder()?;
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok(metrics)
}

pub(crate) fn router(backend: &Backend, metrics: PrometheusHandle, settings: &Settings) -> Router {
    // It never looks at the backend: a Redis that is away is no reason to restart every instance.
    let live = Json(json!({ "status": "ok", "instance": settings.instance }));
    let addresses = settings.addresses;
    Router::new()
        .route(
            "/health",
            get(async |State(on): State<Backend>| answer(&on.health())),
        )
        .route(
            "/health/ready",
            get(async |State(on): State<Backend>| answer(&on.health())),
        )
        .route(
            "/health/detailed",
            get(async move |State(on): State<Backend>| {
                let health = on.health_detailed();
                answer(&if addresses {
                    health
                } else {
                    unaddressed(health)
                })
            }),
        )
        .route("/health/live", get(async || live))
        .route("/metrics", get(async move || metrics.render()))
        .with_state(backend.clone())
}

/// The nodes by number: where the servers are is nothing for everybody.
fn unaddressed(mut health: Health) -> Health {
    let details = health.checks.iter_mut().map(|check| &mut check.details);
    let nodes = details
        .flatten()
        .filter_map(|details| details.nodes.as_mut());
    for (number, node) in (1..).zip(nodes.flatten()) {
        node.name = format!("node-{number}");
    }
    health
}

fn answer(health: &Health) -> impl IntoResponse + use<> {
    let status =
        StatusCode::from_u16(health.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (
        status,
        [(header::CACHE_CONTROL, "no-store")],
        Json(json!(health)),
    )
}
