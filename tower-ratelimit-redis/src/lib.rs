//! Limits the rate of requests per caller, over all processes of a service.
//!
//! `tower::limit::RateLimit` delays the requests of one service instance, whoever sends them, and is not `Clone`, so servers
//! that clone their service cannot use it. This crate's [`RateLimitLayer`] refuses: each caller has limits of its own, all clones
//! of the service share them, and so do all processes on one backend. The backend is that of [`redis_conn`]: this process, one
//! SQLite file, or Redis or Valkey.
//!
//! # Example
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//!
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use redis_conn::Backend;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer, key};
//!
//! async fn handle(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
//!     Ok(Response::new(Full::from("hello")))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In this process. `Backend::from_env()` takes another backend from the environment.
//! let limiter = Limiter::new(&Backend::memory());
//! let policy = Policy::new("api")
//!     .limit(1, Duration::from_secs(1))
//!     .limit(1_000, Duration::from_secs(3600))
//!     .build()?;
//! let service = ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(limiter, policy).key(key::Header::new("x-api-key")))
//!     .service_fn(handle);
//!
//! let request = || Request::builder().header("x-api-key", "k1").body(Full::default());
//!
//! let admitted = service.clone().oneshot(request()?).await?;
//! assert_eq!(admitted.status(), StatusCode::OK);
//! assert_eq!(
//!     admitted.headers()["ratelimit-policy"],
//!     r#""api-1s";q=1;w=1, "api-3600s";q=1000;w=3600"#
//! );
//!
//! let refused = service.clone().oneshot(request()?).await?;
//! assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
//! assert_eq!(refused.headers()["content-type"], "application/problem+json");
//! assert!(refused.headers().contains_key("retry-after"));
//!
//! let other = Request::builder().header("x-api-key", "k2").body(Full::default())?;
//! assert_eq!(service.oneshot(other).await?.status(), StatusCode::OK);
//! # Ok(()) }
//! ```
//!
//! Without HTTP, ask the [`Limiter`] itself: see [Operations](#operations).
//!
//! # What is promised
//!
//! **In any interval of a window's length no more than the limit is admitted**, by the clock of the store, over all processes: not
//! twice the limit around a full minute, as fixed windows admit, and not limit and refill, as token buckets do. That is what a
//! [strict window](Algorithm::StrictWindow) does, the algorithm if none is named. The others [have other bounds](#algorithms).
//!
//! All limits of a policy are decided together. A refused call is charged to none, and writes nothing but new times once after
//! the clock of the store went back. A decision is one round trip: one script call in Redis, one transaction in SQLite. What
//! [this process knows already](#who-counts), it does not ask.
//!
//! The promise ends where the store forgets (a failover to a replica that had not yet seen the last writes, an eviction, a restart
//! without persistence) and where its clock steps. After a step forward, units may go by so much earlier; each step back lets the
//! units of a strict window go up to a 32nd of it earlier, and nobody waits longer than ever.
//!
//! Policies of one name decide each by its own limits, and what any of them admits is charged to the counts of all (to the first
//! eight that a policy does not have itself). So quotas may differ by subject, and two versions of a policy may serve side
//! by side. What else becomes of the counts when it changes, says its [revision](PolicyBuilder::revision).
//!
//! # Algorithms
//!
//! Of a limit of `L` units in a window `W`; the bytes of one subject in Redis are those of its key and value together.
//!
//! | [`Algorithm`] | admits in any `W` at most | sustains | bytes |
//! |---|---|---|---|
//! | `StrictWindow` (default) | `L` | at least 32/33 of `L` per `W`: a unit counts up to `W` + `W`/32 | 312 |
//! | `SlidingLog`, for `L` up to 1,024 | `L` | `L` per `W` | about 140, and 12 for each call |
//! | `SlidingCounter` | 2 `L` | `L` per `W`, less up to one unit | 152 |
//! | `Gcra { burst }` | `burst` + `L` | `L` per `W` | 152 |
//! | `FixedWindow` | 2 `L` | `L` per `W` | 152 |
//! | [`concurrency`](PolicyBuilder::concurrency), up to 1,024 | `L` at one moment | | about 130, and 20 for each permit |
//!
//! A policy may have up to eight limits of any of them. Pictures of what each admits of the same calls, and when to take which, are
//! in `docs/rate-limits.md` of the repository.
//!
//! # Operations
//!
//! | operation | what it does |
//! |---|---|
//! | [`check`](Limiter::check), [`check_at_most`](Limiter::check_at_most) | charges a cost to all limits or to none; as much of it as there is room for |
//! | [`peek`](Limiter::peek) | tells what a check would, and charges nothing |
//! | [`until_ready`](Limiter::until_ready) | waits until it is admitted, or a deadline would pass |
//! | [`refund`](Limiter::refund), [`settle`](Limiter::settle) | corrects what a call was charged, when its cost is known |
//! | [`acquire`](Limiter::acquire) | holds units of a concurrency limit until the [`Permit`] is dropped; those of a process that dies are free after one lease |
//! | [`block`](Limiter::block), [`reset`](Limiter::reset) | refuses a subject for a time; forgets what it was charged. Both are audited |
//!
//! # Who counts
//!
//! The store decides each call, unless the policy has another [`Spending`]:
//!
//! | | calls of the store | what is admitted |
//! |---|---|---|
//! | `Exact` (default) | one for each call | the bound of the algorithm |
//! | `Lease(chunk)`, for strict windows | one for each chunk of units | no more than the limit in any interval, over all processes. A reserved unit counts up to `W` + `W`/16, and is refused to other processes meanwhile |
//! | `WriteBehind(interval)` | one for each subject and interval | **more than the limit**: up to what all processes admit in one interval |
//!
//! Whatever the policy, a refusal is [remembered](LimiterBuilder::denied_capacity) until the wait is over that the store told, so who
//! is refused costs the store nothing more; and calls that come while others are under way are [sent
//! together](LimiterBuilder::coalesce), so many calls of one subject cost it little.
//!
//! # What happens when the store does not answer
//!
//! Every decision has a timeout, 100 ms if not [set](LimiterBuilder::timeout). Then [`OnFailure`] decides:
//!
//! | | the call is | [`source`](Decision::source) | fields | as long as it lasts |
//! |---|---|---|---|---|
//! | `Local { share }` (default, 0.5) | decided in this process at `ceil(limit x share)` | `Local` | those of the smaller limit | n processes admit up to n x share of the limit |
//! | `Open` | admitted | `Open` | none | no limit |
//! | `Closed` | an error; 503 in the layer | | none | no service |
//!
//! Once the store has not answered several times in a row, or nothing connects to it, one call at a time finds out whether it is
//! back, and the others do not wait. The local counts are warm: they contain what the store admitted through this limiter, so an
//! outage opens with no fresh burst.
//! A call whose answer was lost may have been charged in the store. It is decided by the policy and never sent a second time.
//! Meanwhile the check `rate-limit` in [`Backend::health`](redis_conn::Backend::health) is `degraded`; the first decision of the
//! store ends that. A wrong configuration is always an error. The memory backend does not fail.
//!
//! # Backends
//!
//! | backend | shared by | decides by | bounded by |
//! |---|---|---|---|
//! | memory | this process | time since boot | [`local_capacity`](LimiterBuilder::local_capacity): beyond it newcomers share counts, and nobody refused is forgotten |
//! | SQLite (feature `sqlite`) | the processes of one host | time since boot | the disk; expired rows are swept |
//! | Redis (feature `redis`, default) | everybody | the server's clock | its memory; every key expires after the longest window counted in it |
//!
//! Redis 6.2 or Valkey 7.2 and later, with `noeviction`: a server that evicts forgets counts. A user of the server needs the keys
//! `tk:r1:*` with `EVALSHA`, `EVAL`, `TIME`, `GET`, `SET`, and `DEL` for resets; and the channel `tk:b1:limits` with `SUBSCRIBE`
//! and `PUBLISH` (on a cluster `SSUBSCRIBE` and `SPUBLISH`), by which resets and blocks are told. Without the channel a refusal is
//! remembered for a second at most, and a reset or a block is an error after it took effect: others may not have heard of it. Taken
//! away from a process that listens, it also makes the state of the backend an [`Error`](redis_conn::State::Error) until it is given
//! again; decisions go on.
//!
//! What a limiter does in the background is done on the runtime that built the backend, whoever calls. A limiter keeps its backend
//! open. [`Backend::close`](redis_conn::Backend::close) writes what was written behind, gives back what was reserved, releases the
//! permits that were dropped, and settles what is to be settled. Permits that are held then end with their lease.
//!
//! # Privacy
//!
//! A subject leaves the process only as a hash (128 bits of BLAKE3) and appears in no log and no `Debug` output. Whoever can read
//! the store can still test a guess: an address or a short user id is found by trying all of them, a random API key is not.
//! The names of policies are stored and logged as they are.
//!
//! # Requests
//!
//! A [`RateLimitLayer`] asks of each request:
//!
//! | what | set by | if not set |
//! |---|---|---|
//! | whether its caller is always refused or always admitted | [`deny`](RateLimitLayer::deny), [`allow`](RateLimitLayer::allow) | nobody is |
//! | which limits it has | [`policy_by`](RateLimitLayer::policy_by) | those of [`new`](RateLimitLayer::new) |
//! | whose it is | [`key`](RateLimitLayer::key) | that of its peer's address |
//! | what it costs | [`cost`](RateLimitLayer::cost) | 1 |
//! | what it has cost in the end | [`settle`](RateLimitLayer::settle), [`settle_by_body`](RateLimitLayer::settle_by_body) | as before |
//!
//! [`RateLimitLayer::per_minute`] is a layer that needs none of it, and no limiter. In [shadow mode](RateLimitLayer::shadow) a
//! layer decides and counts, and refuses nobody.
//!
//! # Responses
//!
//! Admitted and refused responses have the fields of [`HeaderStyle`]. The inner service is called only after a request was
//! admitted, and its errors pass through unchanged. Handlers find the [`Decision`] in the request extensions.
//!
//! A refusal is a problem document (RFC 9457) with `Retry-After`, rounded up and never earlier than the end of the quota. To
//! clients of gRPC and grpc-web it is a status, whose details have a `RetryInfo`, without which a client does not try again, and
//! a `QuotaFailure` that names the limits:
//!
//! | [`Reason`] | HTTP | problem type | gRPC |
//! |---|---|---|---|
//! | a limit is reached | 429 | `quota-exceeded` with `violated-policies` | `RESOURCE_EXHAUSTED` |
//! | a penalty | 429 | `abnormal-usage-detected` | `RESOURCE_EXHAUSTED` |
//! | the store is away, with `Closed` | 503 | `temporary-reduced-capacity` | `UNAVAILABLE` |
//! | it costs more than a limit | 429 without `Retry-After` | `quota-exceeded` | `RESOURCE_EXHAUSTED` |
//! | the caller is denied | 403 | `about:blank` | `PERMISSION_DENIED` |
//! | no key, with `Unauthorized` | 401 with `WWW-Authenticate` | `about:blank` | `UNAUTHENTICATED` |
//! | no key, or one that is none | 400 | `about:blank` | `INVALID_ARGUMENT` |
//! | a wrong configuration | 500 | `about:blank` | `INTERNAL` |
//!
//! [`RateLimitLayer::reject`] takes a [`Reject`], such as a closure, that makes another response.
//!
//! # Metrics
//!
//! With the feature `metrics`, through the facade of that name. Install the recorder before the limiter is built. No label says
//! anything of a subject; of more than 64 policies or routes the later ones are `other`.
//!
#![doc = include_str!("metrics/metrics.md")]
//!
//! # Features
//!
//! - `redis` (default), `sqlite`: the backends. Memory is always there.
//! - `axum`: [`Decision`] as an extractor, and the peer address of `ConnectInfo`.
//! - `metrics`: what the limiter and the connections count, see [Metrics](#metrics).
//! - `tracing`: events on the target `tower_ratelimit_redis`; at `DEBUG` one for each denial, with the subject as a hash. Without
//!   them it behaves the same.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod admit;
mod away;
#[cfg(feature = "axum")]
mod axum;
mod body;
mod builder;
mod callers;
mod counter;
mod counters;
mod decision;
mod denied;
mod error;
mod fallback;
mod future;
mod grpc;
mod headers;
mod held;
mod keeper;
pub mod key;
mod layer;
mod limiter;
mod metrics;
mod missing;
mod permit;
mod policy;
mod problem;
mod random;
mod refusal;
mod reject;
mod resolver;
mod rules;
mod service;
mod settle;
mod shadow;
mod shared;
mod spend;
mod store;
mod trace;

#[cfg(feature = "axum")]
pub use crate::axum::DecisionRejection;
pub use crate::{
    body::ResponseBody,
    builder::LimiterBuilder,
    callers::Callers,
    decision::{Decision, LimitState, Source, Unit},
    error::{PolicyError, RateLimitError},
    fallback::OnFailure,
    future::ResponseFuture,
    headers::{HeaderStyle, LegacyReset},
    layer::RateLimitLayer,
    limiter::Limiter,
    missing::MissingKey,
    permit::{Acquired, Permit},
    policy::{Algorithm, Policy, PolicyBuilder, Revise, Spending, WindowStart},
    refusal::{Reason, Refusal},
    reject::{DefaultReject, Reject},
    resolver::PolicyResolver,
    service::RateLimit,
    shadow::Shadow,
};
