//! Policies, costs and lists of callers by request, and shadow mode.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod requests;

use std::{convert::Infallible, future::ready};

use http::{Method, Request, Response, request::Parts};
use redis_conn::Backend;
use requests::{Body, all, from, layer, limiter, policy, problem, request, send, statuses, with};
use testkit::Probe;
use tower::{Layer as _, ServiceBuilder};
use tower_ratelimit_redis::{
    Callers, Decision, Limiter, MissingKey, Policy, PolicyResolver, RateLimitLayer, Reason, Shadow,
    Source,
    key::{self, Cidr, ClientIp, Key, KeyError, KeyExtractor},
};

/// A call of gRPC.
fn call() -> Request<Body> {
    let mut request = with("content-type", "application/grpc");
    *request.method_mut() = Method::POST;
    request
}

/// An extractor that must not be asked.
struct Unasked;

impl KeyExtractor for Unasked {
    async fn extract(&self, _: &mut Parts) -> Result<Option<Key>, KeyError> {
        panic!("asked for a key that nobody needs")
    }
}

mod policies {
    use super::*;

    fn of(tier: &str) -> Request<Body> {
        with("x-tier", tier)
    }

    /// The tier that the request names.
    struct Tiers {
        free: Policy,
        paid: Policy,
    }

    impl PolicyResolver for Tiers {
        async fn resolve(&self, parts: &mut Parts) -> Option<Policy> {
            tokio::task::yield_now().await;
            match parts.headers.get("x-tier")?.as_bytes() {
                b"free" => Some(self.free.clone()),
                _ => Some(self.paid.clone()),
            }
        }
    }

    fn tiers() -> Tiers {
        let (free, paid) = (policy("free", 1), policy("paid", 2));
        Tiers { free, paid }
    }

    #[tokio::test]
    async fn each_request_has_its_own() {
        let (probe, handle) = Probe::ok();
        let service = RateLimitLayer::policy_by(limiter(), tiers()).layer(probe);
        let requests = ["free", "free", "paid", "paid", "paid"].map(of);
        assert_eq!(
            statuses(&service, requests).await,
            [200, 429, 200, 200, 429]
        );
        assert_eq!(handle.calls(), 3);
        let refused = send(&service, of("free")).await;
        assert_eq!(
            all(refused.headers(), "ratelimit-policy"),
            ["\"free-32s\";q=1;w=32"]
        );
    }

    #[tokio::test]
    async fn a_request_without_one_passes_uncounted() {
        let (probe, _) = Probe::new(|request: Request<Body>| {
            assert!(request.extensions().get::<Decision>().is_none());
            ready(Ok::<_, Infallible>(Response::new(Body::from("ok"))))
        });
        let none = RateLimitLayer::policy_by(limiter(), |_: &mut Parts| None);
        let service = none.key(Unasked).layer(probe);
        let response = send(&service, request()).await;
        assert_eq!(response.status(), 200);
        assert!(all(response.headers(), "ratelimit").is_empty());
        assert!(response.extensions().get::<Decision>().is_none());
    }

    #[tokio::test]
    async fn a_closure_sees_the_request() {
        let (probe, _) = Probe::ok();
        let writes = policy("writes", 1);
        let layer = RateLimitLayer::policy_by(limiter(), move |parts: &mut Parts| {
            (parts.method != Method::GET).then(|| writes.clone())
        });
        let service = layer.layer(probe);
        let post = || {
            let mut request = request();
            *request.method_mut() = Method::POST;
            request
        };
        let requests = [post(), post(), request(), request()];
        assert_eq!(statuses(&service, requests).await, [200, 429, 200, 200]);
    }

    #[tokio::test]
    async fn two_of_one_name_are_a_fault_only_where_they_meet() {
        let (probe, handle) = Probe::ok();
        let limiter = limiter();
        let service = ServiceBuilder::new()
            .layer(RateLimitLayer::policy_by(limiter.clone(), tiers()))
            .layer(RateLimitLayer::new(limiter, policy("free", 9)))
            .service(probe);
        let requests = [of("free"), of("paid"), request()];
        assert_eq!(statuses(&service, requests).await, [500, 200, 200]);
        assert_eq!(handle.calls(), 2);
    }

    #[test]
    fn what_is_shown_names_the_resolver() {
        let shown = format!("{:?}", RateLimitLayer::policy_by(limiter(), tiers()));
        assert!(shown.contains("Tiers"), "{shown}");
    }
}

mod costs {
    use super::*;

    fn costing(max: u64) -> RateLimitLayer {
        layer(max).cost(|parts: &Parts| {
            let cost = parts.headers.get("x-cost").unwrap();
            cost.to_str().unwrap().parse().unwrap()
        })
    }

    fn of(cost: u64) -> Request<Body> {
        with("x-cost", &cost.to_string())
    }

    #[tokio::test]
    async fn a_request_is_charged_what_it_costs() {
        let (probe, _) = Probe::ok();
        let service = costing(10).layer(probe);
        let requests = [of(4), of(4), of(4), of(2), of(1)];
        assert_eq!(
            statuses(&service, requests).await,
            [200, 200, 429, 200, 429]
        );
    }

    #[tokio::test]
    async fn one_that_costs_nothing_looks_whether_anything_is_left() {
        let (probe, handle) = Probe::ok();
        let service = costing(1).layer(probe);
        let requests = [of(0), of(0), of(1), of(0)];
        assert_eq!(statuses(&service, requests).await, [200, 200, 200, 429]);
        assert_eq!(handle.calls(), 3);
    }

    #[tokio::test]
    async fn more_than_the_limit_is_refused_for_ever() {
        let (probe, handle) = Probe::ok();
        let service = costing(10).layer(probe);
        for cost in [11, u64::MAX] {
            let refused = send(&service, of(cost)).await;
            assert_eq!(refused.status(), 429);
            assert!(all(refused.headers(), "retry-after").is_empty());
            let reason = refused.extensions().get().unwrap();
            let exceeds =
                matches!(reason, Reason::CostExceedsLimit { cost: c, limit: 10 } if *c == cost);
            assert!(exceeds, "{reason:?}");
            let problem = problem(refused).await;
            assert_eq!(
                problem["detail"],
                format!("the request costs {cost}, and the limit is 10: waiting does not help")
            );
        }
        let mut call = call();
        call.headers_mut().insert("x-cost", 11.into());
        let refused = send(&service, call).await;
        assert_eq!(all(refused.headers(), "grpc-status"), ["8"]);
        assert_eq!(handle.calls(), 0);
        assert_eq!(
            statuses(&service, [of(10)]).await,
            [200],
            "nothing was charged"
        );
    }
}

mod lists {
    use super::*;

    fn within(range: &str) -> Callers {
        let range: Cidr = range.parse().unwrap();
        Callers::new().within(ClientIp::hops(0), [range])
    }

    #[tokio::test]
    async fn an_allowed_address_passes_uncounted() {
        let (probe, _) = Probe::ok();
        let layer = layer(1).allow(within("192.0.2.0/24"));
        let service = layer.layer(probe);
        let requests = [
            "192.0.2.1:1",
            "192.0.2.1:1",
            "198.51.100.1:1",
            "198.51.100.1:1",
        ]
        .map(from);
        assert_eq!(statuses(&service, requests).await, [200, 200, 200, 429]);
        let response = send(&service, from("192.0.2.1:1")).await;
        assert!(all(response.headers(), "ratelimit").is_empty());
    }

    #[tokio::test]
    async fn an_allowed_address_needs_no_key() {
        let (probe, _) = Probe::ok();
        let layer = layer(1)
            .key(key::Header::new("x-api-key"))
            .missing_key(MissingKey::Reject)
            .allow(within("192.0.2.0/24"));
        let service = layer.layer(probe);
        let requests = ["192.0.2.1:1", "198.51.100.1:1"].map(from);
        assert_eq!(statuses(&service, requests).await, [200, 400]);
    }

    #[tokio::test]
    async fn a_denied_address_is_forbidden_without_being_asked_for_a_key() {
        let (probe, handle) = Probe::ok();
        let layer = layer(1).key(Unasked).deny(within("192.0.2.0/24"));
        let service = layer.layer(probe);
        let refused = send(&service, from("192.0.2.1:1")).await;
        assert_eq!(refused.status(), 403);
        assert!(all(refused.headers(), "retry-after").is_empty());
        assert!(all(refused.headers(), "ratelimit").is_empty());
        assert!(matches!(refused.extensions().get(), Some(Reason::Denied)));
        assert_eq!(problem(refused).await["title"], "caller denied");
        let mut call = call();
        call.extensions_mut()
            .extend(from("192.0.2.1:1").extensions().clone());
        let refused = send(&service, call).await;
        assert_eq!(all(refused.headers(), "grpc-status"), ["7"]);
        assert_eq!(handle.calls(), 0);
    }

    #[tokio::test]
    async fn subjects_are_allowed_and_denied() {
        let (probe, _) = Probe::ok();
        let layer = layer(1)
            .key(key::Header::new("x-api-key"))
            .allow(Callers::new().subjects(["header:x-api-key:ours", "header:x-api-key:both"]))
            .deny(Callers::new().subjects(["header:x-api-key:theirs", "header:x-api-key:both"]));
        let service = layer.layer(probe);
        let of = |key| with("x-api-key", key);
        let requests = ["ours", "ours", "theirs", "both", "other", "other"].map(of);
        assert_eq!(
            statuses(&service, requests).await,
            [200, 200, 403, 403, 200, 429]
        );
    }

    #[tokio::test]
    async fn who_is_denied_is_so_also_where_allowed_and_where_nothing_is_counted() {
        let (probe, handle) = Probe::ok();
        let nobody = |_: &mut Parts| None;
        let layer = RateLimitLayer::policy_by(limiter(), nobody)
            .key(key::Header::new("x-api-key"))
            .allow(within("192.0.2.0/24"))
            .deny(Callers::new().subjects(["header:x-api-key:theirs"]));
        let service = layer.layer(probe);
        let mut request = from("192.0.2.1:1");
        request
            .headers_mut()
            .insert("x-api-key", "theirs".parse().unwrap());
        assert_eq!(statuses(&service, [request]).await, [403]);
        assert_eq!(handle.calls(), 0);
    }

    /// The peer is the proxy, and its address is that of everybody.
    #[tokio::test]
    async fn behind_a_proxy_the_range_is_that_of_the_client() {
        let (probe, _) = Probe::ok();
        let proxy: Cidr = "10.0.0.0/8".parse().unwrap();
        let denied: Cidr = "192.0.2.0/24".parse().unwrap();
        let layer = layer(9).deny(Callers::new().within(ClientIp::behind([proxy]), [denied]));
        let service = layer.layer(probe);
        let via = |peer: &str, client: &str| {
            let mut request = from(peer);
            let client = client.parse().unwrap();
            request.headers_mut().insert("x-forwarded-for", client);
            request
        };
        let requests = [
            via("10.0.0.1:1", "192.0.2.1"),
            via("10.0.0.1:1", "198.51.100.1"),
            via("203.0.113.1:1", "192.0.2.1"),
            from("192.0.2.1:1"),
            request(),
        ];
        assert_eq!(
            statuses(&service, requests).await,
            [403, 200, 200, 403, 200]
        );
    }

    #[test]
    fn what_is_shown_names_no_subject() {
        let callers = within("192.0.2.0/24").subjects(["secret"]);
        let shown = format!("{:?}", layer(1).allow(callers));
        assert!(
            shown.contains("192.0.2.0/24") && !shown.contains("secret"),
            "{shown}"
        );
    }
}

mod missing_keys {
    use super::*;

    fn unauthorized(challenge: &'static str) -> RateLimitLayer {
        layer(1).missing_key(MissingKey::Unauthorized { challenge })
    }

    #[tokio::test]
    async fn a_caller_without_one_is_challenged() {
        let (probe, handle) = Probe::ok();
        let service = unauthorized("Bearer realm=\"api\"").layer(probe);
        let refused = send(&service, request()).await;
        assert_eq!(refused.status(), 401);
        assert_eq!(
            all(refused.headers(), "www-authenticate"),
            ["Bearer realm=\"api\""]
        );
        assert_eq!(problem(refused).await["title"], "rate limit key missing");
        let refused = send(&service, call()).await;
        assert_eq!(all(refused.headers(), "grpc-status"), ["16"]);
        assert_eq!(handle.calls(), 0);
    }

    #[test]
    #[should_panic(expected = "the challenge \"a\\nb\", expected printable ASCII")]
    fn a_challenge_that_cannot_be_sent_is_refused() {
        let _ = unauthorized("a\nb");
    }
}

mod shadow {
    use super::*;

    #[tokio::test]
    async fn all_is_decided_and_nobody_is_refused() {
        let (probe, handle) = Probe::new(|request: Request<Body>| {
            let decision: &Decision = request.extensions().get().unwrap();
            let shadow: &Shadow = request.extensions().get().unwrap();
            assert_eq!(decision.is_allowed(), shadow.refused().is_none());
            ready(Ok::<_, Infallible>(Response::new(Body::from("ok"))))
        });
        let limiter = limiter();
        let layer = RateLimitLayer::new(limiter.clone(), policy("api", 1));
        let service = layer.shadow(true).layer(probe);
        for refused in [false, true, true] {
            let response = send(&service, request()).await;
            assert_eq!(response.status(), 200);
            for field in ["ratelimit", "ratelimit-policy", "retry-after"] {
                assert!(all(response.headers(), field).is_empty(), "{field}");
            }
            assert!(response.extensions().get::<Decision>().is_none());
            let shadow: &Shadow = response.extensions().get().unwrap();
            let quota = matches!(shadow.refused(), Some(Reason::Quota(_)));
            assert_eq!(quota, refused);
            let decision = shadow.decision().unwrap();
            assert_eq!(decision.limits()[0].remaining, 0);
            assert_eq!(decision.is_allowed(), !refused);
        }
        assert_eq!(handle.calls(), 3);
    }

    #[tokio::test]
    async fn no_reason_refuses() {
        let limiter = limiter();
        let api = || RateLimitLayer::new(limiter.clone(), policy("api", 10)).shadow(true);
        let invalid = {
            let mut request = with("x-api-key", "a");
            request
                .headers_mut()
                .append("x-api-key", "b".parse().unwrap());
            request
        };
        let none = Callers::new().within(ClientIp::hops(0), ["192.0.2.0/24".parse().unwrap()]);
        let key = key::Header::new("x-api-key");
        let unauthorized = MissingKey::Unauthorized {
            challenge: "Bearer",
        };
        let cases = [
            (
                api().key(key.clone()).deny(none),
                from("192.0.2.1:1"),
                "Denied",
            ),
            (api().key(key.clone()), invalid, "InvalidKey"),
            (
                api().key(key.clone()).missing_key(MissingKey::Reject),
                request(),
                "MissingKey",
            ),
            (
                api().key(key.clone()).missing_key(unauthorized),
                request(),
                "Unauthorized",
            ),
            (api().key(key).cost(|_| 11), request(), "CostExceedsLimit"),
        ];
        for (layer, request, reason) in cases {
            let (probe, handle) = Probe::new(|request: Request<Body>| {
                let decision: &Decision = request.extensions().get().unwrap();
                assert_eq!(decision.source(), Source::Open, "nobody decided");
                ready(Ok::<_, Infallible>(Response::new(Body::from("ok"))))
            });
            let response = send(&layer.layer(probe), request).await;
            assert_eq!(response.status(), 200, "{reason}");
            let shadow: &Shadow = response.extensions().get().unwrap();
            let found = format!("{:?}", shadow.refused().unwrap());
            assert!(found.starts_with(reason), "{found}");
            assert!(shadow.decision().is_none(), "{reason}");
            assert_eq!(handle.calls(), 1);
        }
    }

    #[tokio::test]
    async fn it_hides_no_limit_that_is_enforced() {
        let limiter = limiter();
        let (probe, _) = Probe::new(|request: Request<Body>| {
            let decision: &Decision = request.extensions().get().unwrap();
            assert_eq!(&*decision.limits()[0].name, "enforced-32s");
            ready(Ok::<_, Infallible>(Response::new(Body::from("ok"))))
        });
        let service = ServiceBuilder::new()
            .layer(RateLimitLayer::new(limiter.clone(), policy("enforced", 2)))
            .layer(RateLimitLayer::new(limiter, policy("planned", 1)).shadow(true))
            .service(probe);
        let response = send(&service, request()).await;
        assert_eq!(
            all(response.headers(), "ratelimit-policy"),
            ["\"enforced-32s\";q=2;w=32"]
        );
        let decision: &Decision = response.extensions().get().unwrap();
        assert_eq!(&*decision.limits()[0].name, "enforced-32s");
        assert_eq!(statuses(&service, [request(), request()]).await, [200, 429]);
    }

    #[tokio::test]
    async fn what_passes_uncounted_has_nothing_to_hide() {
        let (probe, _) = Probe::ok();
        let layer = layer(1).missing_key(MissingKey::Skip).shadow(true);
        let response = send(&layer.layer(probe), request()).await;
        let shadow: &Shadow = response.extensions().get().unwrap();
        assert!(shadow.refused().is_none() && shadow.decision().is_none());
    }
}

mod beginnings {
    use super::*;

    #[tokio::test]
    async fn a_layer_in_one_line() {
        for (layer, name, window) in [
            (RateLimitLayer::per_second(1), "per-second-1s", 1),
            (RateLimitLayer::per_minute(1), "per-minute-60s", 60),
            (RateLimitLayer::per_hour(1), "per-hour-3600s", 3_600),
        ] {
            let (probe, _) = Probe::ok();
            let response = send(&layer.layer(probe), from("192.0.2.1:1")).await;
            assert_eq!(response.status(), 200);
            assert_eq!(
                all(response.headers(), "ratelimit-policy"),
                [format!("\"{name}\";q=1;w={window}")]
            );
        }
        let (probe, _) = Probe::ok();
        let service = RateLimitLayer::per_minute(1).layer(probe);
        let requests = ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1"].map(from);
        assert_eq!(statuses(&service, requests).await, [200, 429, 200]);
    }

    #[tokio::test]
    async fn with_another_limiter_it_counts_there() {
        let limiter = Limiter::new(&Backend::memory());
        let service = || {
            let (probe, _) = Probe::ok();
            let layer = RateLimitLayer::per_minute(1).limiter(limiter.clone());
            layer.layer(probe)
        };
        assert_eq!(statuses(&service(), [request()]).await, [200]);
        assert_eq!(statuses(&service(), [request()]).await, [429]);
    }

    #[test]
    #[should_panic(expected = "a limit of 0 admits nothing, expected at least 1")]
    fn nothing_is_no_limit() {
        let _ = RateLimitLayer::per_minute(0);
    }
}
