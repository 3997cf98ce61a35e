//! The routes: handlers stay tiny, because the layers do the work.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use redis_conn::{Backend, Error};
use serde_json::json;
use tower_distlock::Locks;
use tower_ratelimit_redis::key::{self, KeyExtractor as _};
use tower_ratelimit_redis::{Limiter, OnFailure, RateLimitLayer};

use crate::jobs::Jobs;
use crate::observe;
use crate::settings::Settings;

/// How long a request waits for a decision before the failure policy makes it.
const DECISION: Duration = Duration::from_millis(250);

pub(crate) fn router(
    backend: &Backend,
    metrics: PrometheusHandle,
    settings: &Settings,
) -> Result<Router, Error> {
    // While the store is away each instance decides by itself, with its share of the limit.
    let limiter = Limiter::builder(backend)
        .timeout(DECISION)
        .on_failure(OnFailure::Local { share: 0.5 })
        .build()?;
    let limit = RateLimitLayer::new(limiter, settings.policy.clone())
        .key(key::Header::new("x-api-key").or(key::PeerIp::default()));

    let jobs = Jobs::new(Locks::new(backend)?, settings.cron)?;
    let stats = {
        let (jobs, instance) = (jobs.clone(), settings.instance.clone());
        async move || {
            Json(json!({"instance": instance, "cron_runs": jobs.cron_runs(), "locks": jobs.held()}))
        }
    };

    Ok(Router::new()
        .route("/limited", get(async || "ok").route_layer(limit))
        .route("/stats", get(stats))
        .merge(jobs.router())
        .merge(observe::router(backend, metrics, settings))
        .fallback(async || problem(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || problem(StatusCode::METHOD_NOT_ALLOWED)))
}

/// An error answer of RFC 9457.
pub(crate) fn problem(status: StatusCode) -> impl IntoResponse {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
    });
    let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, content_type, body.to_string())
}
