//! What a layer goes by.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::request::Parts;

use crate::{
    Callers, Limiter, MissingKey, Policy, headers::Fields, reject::Refuse, resolver::Policies,
    settle::Settle, trace::event,
};

/// What all services of one layer go by.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) limiter: Limiter,
    pub(crate) policies: Policies,
    pub(crate) missing_key: MissingKey,
    pub(crate) allow: Callers,
    pub(crate) deny: Callers,
    pub(crate) cost: Cost,
    pub(crate) settle: Settle,
    pub(crate) shadow: bool,
    pub(crate) headers: Fields,
    pub(crate) refuse: Refuse,
    pub(crate) route: Route,
    /// Whether the wrong configuration that each request would meet has been logged.
    reported: Arc<AtomicBool>,
}

impl Rules {
    pub(crate) fn new(limiter: Limiter, policies: Policies) -> Self {
        Self {
            limiter,
            policies,
            missing_key: MissingKey::default(),
            allow: Callers::default(),
            deny: Callers::default(),
            cost: Cost::default(),
            settle: Settle::default(),
            shadow: false,
            headers: Fields::default(),
            refuse: Refuse::default(),
            route: Route::default(),
            reported: Arc::default(),
        }
    }

    /// Says once that another layer of the stack has a policy of this name.
    pub(crate) fn report_twice(&self, policy: &Policy) {
        if !self.reported.swap(true, Ordering::Relaxed) {
            event!(
                error,
                "two rate limit layers of one stack have a policy named {:?}: every request that meets both is answered with 500",
                policy.name()
            );
        }
    }
}

type CostOf = dyn Fn(&Parts) -> u64 + Send + Sync;

/// What a request costs; 1 if nobody says.
#[derive(Clone, Default)]
pub(crate) struct Cost(Option<Arc<CostOf>>);

impl Cost {
    pub(crate) fn by(cost: impl Fn(&Parts) -> u64 + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(cost)))
    }

    pub(crate) fn of(&self, parts: &Parts) -> u64 {
        self.0.as_ref().map_or(1, |cost| cost(parts))
    }
}

type RouteOf = dyn Fn(&Parts) -> Option<String> + Send + Sync;

/// Which route the metrics name; none if nobody says.
#[derive(Clone, Default)]
pub(crate) struct Route(Option<Arc<RouteOf>>);

impl Route {
    pub(crate) fn by(route: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(route)))
    }

    pub(crate) fn of(&self, parts: &Parts) -> Option<String> {
        self.0.as_ref().and_then(|route| route(parts))
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "by request"
        } else {
            "none"
        })
    }
}

impl fmt::Debug for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "by request" } else { "1" })
    }
}
