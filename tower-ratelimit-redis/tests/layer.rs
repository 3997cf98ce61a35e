//! The layer, on the memory backend. What depends on the store is in contract.rs, on every backend.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod requests;

use std::{convert::Infallible, future::ready, task::Poll, time::Duration};

use http::{Request, Response, StatusCode, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use requests::{Body, all, from, layer, limiter, policy, problem, request, send, statuses, with};
use serde_json::{Value, json};
use testkit::{Probe, ProbeHandle, assert_auto_traits, drop_at_every_await, probe::Readiness};
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _};
use tower_ratelimit_redis::{
    Decision, HeaderStyle, Limiter, MissingKey, Policy, RateLimit, RateLimitLayer, ResponseBody,
    ResponseFuture, Source,
    key::{self, Key, KeyError, KeyExtractor},
};

fn audit() -> redis_conn::Audit {
    redis_conn::Audit::new("test", "to begin anew")
}

mod contract {
    use super::*;

    #[test]
    fn the_types_can_be_shared_and_sent() {
        assert_auto_traits::<RateLimitLayer>();
        assert_auto_traits::<RateLimitLayer<key::Or<key::Header, key::PeerIp>>>();
        assert_auto_traits::<RateLimit<tower::util::BoxCloneSyncService<Request<Body>, (), ()>>>();
        assert_auto_traits::<Limiter>();
        assert_auto_traits::<Decision>();
        assert_auto_traits::<ResponseBody<Body>>();
        fn is_send<T: Send>(_: &T) {}
        let (probe, _) = Probe::ok();
        let mut service = layer(1).layer(probe);
        let mut ready = std::pin::pin!(service.ready());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Ok(service)) = ready.as_mut().poll(&mut context) else {
            panic!("the probe is ready at once");
        };
        is_send(&service.call(request()));
    }

    #[test]
    fn what_is_shown_names_no_subject() {
        let (probe, _) = Probe::<testkit::probe::OkHandler<Body>>::ok();
        let layer = layer(1).key(|_: &mut Parts| Some("secret"));
        let shown = format!("{layer:?} {:?}", layer.layer(probe));
        assert!(shown.contains("RateLimitLayer") && shown.contains("api"));
        assert!(!shown.contains("secret"));
    }

    #[tokio::test]
    async fn a_dropped_request_leaves_nothing() {
        let (probe, handle) = Probe::new(|_: Request<Body>| async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Response::new(Body::from("ok")))
        });
        handle.set_readiness(Readiness::PendingTimes(1));
        let layer = layer(1_000).key(Slow);
        let service = layer.layer(probe);
        // The backend has one that follows its state.
        let tasks = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        let polls = drop_at_every_await(
            || service.clone().oneshot(request()),
            |_| {
                assert_eq!(handle.live_futures(), 0);
                assert_eq!(handle.live_instances(), 1);
            },
        )
        .await;
        assert!(polls >= 5, "{polls} polls: readiness, key, handler");
        handle.assert_clean();
        let left = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        assert_eq!(left, tasks);
    }

    /// An extractor that has to wait.
    struct Slow;

    impl KeyExtractor for Slow {
        async fn extract(&self, _: &mut Parts) -> Result<Option<Key>, KeyError> {
            tokio::task::yield_now().await;
            Ok(Some(Key::from("slow")))
        }
    }

    #[tokio::test]
    #[should_panic(expected = "resumed after completion")]
    async fn a_future_that_is_done_must_not_be_polled() {
        let (probe, _) = Probe::ok();
        let service = layer(1).layer(probe);
        statuses(&service, [request()]).await;
        let mut future: ResponseFuture<_, Body> =
            service.clone().ready().await.unwrap().call(request());
        let mut future = std::pin::Pin::new(&mut future);
        future.as_mut().await.unwrap();
        future.await.unwrap();
    }
}

mod responses {
    use super::*;

    #[tokio::test]
    async fn quota_fields_are_on_admitted_and_refused_responses() {
        let limits = Policy::new("api")
            .limit(2, Duration::from_millis(32_500))
            .limit(5, Duration::from_secs(3_600));
        let layer = RateLimitLayer::new(limiter(), limits.build().unwrap());
        let (probe, _) = Probe::ok();
        let service = layer.layer(probe);
        let policy = r#""api-32500ms";q=2;w=33, "api-3600s";q=5;w=3600"#;
        for (status, short, long) in [(200, 1, 4), (200, 0, 3), (429, 0, 3)] {
            let response = send(&service, request()).await;
            assert_eq!(response.status(), status);
            assert_eq!(all(response.headers(), "ratelimit-policy"), [policy]);
            let [state] = all(response.headers(), "ratelimit")[..] else {
                panic!("one field: {:?}", response.headers());
            };
            let (t_short, t_long) = times(state, short, long);
            assert!((33..=34).contains(&t_short), "{state}");
            assert!((3_601..=3_713).contains(&t_long), "{state}");
            let retry = all(response.headers(), "retry-after");
            if status == 200 {
                assert!(retry.is_empty());
            } else {
                assert_eq!(
                    retry,
                    [t_short.to_string()],
                    "not earlier than the quota returns"
                );
            }
        }
    }

    fn times(state: &str, short: u64, long: u64) -> (u64, u64) {
        let rest = state
            .strip_prefix(&format!("\"api-32500ms\";r={short};t="))
            .unwrap();
        let (first, rest) = rest.split_once(", ").unwrap();
        let last = rest
            .strip_prefix(&format!("\"api-3600s\";r={long};t="))
            .unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    }

    #[tokio::test]
    async fn retry_after_is_rounded_up_to_at_least_a_second() {
        let policy = Policy::new("api").limit(1, Duration::from_millis(1));
        let (probe, _) = Probe::ok();
        let layer = RateLimitLayer::new(limiter(), policy.build().unwrap());
        let service = layer.layer(probe);
        assert_eq!(statuses(&service, [request()]).await, [200]);
        let refused = send(&service, request()).await;
        assert_eq!(all(refused.headers(), "retry-after"), ["1"]);
    }

    #[tokio::test]
    async fn a_refusal_is_a_problem_document() {
        let limits = Policy::new("api")
            .limit(1, Duration::from_secs(1))
            .limit(9, Duration::from_secs(9));
        let (probe, handle) = Probe::ok();
        let layer = RateLimitLayer::new(limiter(), limits.build().unwrap());
        let service = layer.layer(probe);
        assert_eq!(statuses(&service, [request()]).await, [200]);
        let refused = send(&service, request()).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(!refused.body().is_end_stream());
        assert!(refused.body().size_hint().exact().is_some());
        let expected = json!({
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "title": "request quota exceeded",
            "status": 429,
            "violated-policies": ["api-1s"],
        });
        assert_eq!(problem(refused).await, expected);
        assert_eq!(handle.calls(), 1);
    }

    #[tokio::test]
    async fn an_admitted_body_is_passed_through() {
        let (probe, _) = Probe::ok();
        let response = send(&layer(1).layer(probe), request()).await;
        assert_eq!(response.body().size_hint().exact(), Some(2));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "ok");
        assert!(ResponseBody::<Body>::default().is_end_stream());
    }

    #[tokio::test]
    async fn a_grpc_call_is_refused_in_its_own_terms() {
        let (probe, _) = Probe::ok();
        let service = layer(1).key(key::Header::new("x-api-key")).layer(probe);
        let call = |content_type: &str| {
            let mut request = with("content-type", content_type);
            *request.method_mut() = http::Method::POST;
            request
        };
        assert_eq!(statuses(&service, [call("application/grpc")]).await, [200]);
        for content_type in ["application/grpc", "application/grpc+proto"] {
            let refused = send(&service, call(content_type)).await;
            assert_eq!(refused.status(), 200);
            assert_eq!(all(refused.headers(), "content-type"), ["application/grpc"]);
            assert_eq!(all(refused.headers(), "grpc-status"), ["8"]);
            assert_eq!(
                all(refused.headers(), "grpc-message"),
                ["request quota exceeded"]
            );
            assert!(refused.body().is_end_stream());
        }
        let looks_alike = with("content-type", "application/grpc");
        for request in [call("application/json"), looks_alike] {
            assert_eq!(send(&service, request).await.status(), 429);
        }
        // A browser cannot see trailers: there the status is in the body.
        let refused = send(&service, call("application/grpc-web")).await;
        assert_eq!(refused.status(), 200);
        let body = refused.into_body().collect().await.unwrap().to_bytes();
        assert!(body[5..].starts_with(b"grpc-status:8\r\n"));
    }

    #[tokio::test]
    async fn styles() {
        let fields = [
            "ratelimit-policy",
            "ratelimit",
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
        ];
        for (style, expected) in [
            (HeaderStyle::Draft11, [1, 1, 0, 0, 0]),
            (HeaderStyle::Legacy, [0, 0, 1, 1, 1]),
            (HeaderStyle::Both, [1; 5]),
            (HeaderStyle::None, [0; 5]),
        ] {
            let (probe, _) = Probe::ok();
            let service = layer(1).headers(style).layer(probe);
            for _ in 0..2 {
                let response = send(&service, request()).await;
                assert_eq!(
                    fields.map(|field| all(response.headers(), field).len()),
                    expected
                );
            }
        }
    }

    #[tokio::test]
    async fn the_older_fields_tell_of_the_tightest_limit() {
        let limits = Policy::new("api")
            .limit(10, Duration::from_secs(32))
            .limit(2, Duration::from_secs(64));
        let layer = RateLimitLayer::new(limiter(), limits.build().unwrap());
        let (probe, _) = Probe::ok();
        let response = send(&layer.headers(HeaderStyle::Legacy).layer(probe), request()).await;
        assert_eq!(all(response.headers(), "x-ratelimit-limit"), ["2"]);
        assert_eq!(all(response.headers(), "x-ratelimit-remaining"), ["1"]);
    }

    #[tokio::test]
    async fn the_decision_goes_both_ways() {
        let (probe, _) = Probe::new(|request: Request<Body>| {
            let decision: &Decision = request.extensions().get().unwrap();
            let left = decision.limits()[0].remaining;
            ready(Ok::<_, Infallible>(Response::new(Body::from(
                left.to_string(),
            ))))
        });
        let service = layer(2).layer(probe);
        let response = send(&service, request()).await;
        let decision: Decision = response.extensions().get().cloned().unwrap();
        assert_eq!(
            (decision.is_allowed(), decision.source()),
            (true, Source::Store)
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "1");

        send(&service, request()).await;
        let refused = send(&service, request()).await;
        let decision: &Decision = refused.extensions().get().unwrap();
        assert!(!decision.is_allowed() && decision.retry_after().is_some());
    }
}

mod nested {
    use super::*;

    fn nest(
        outer: (&str, u64),
        inner: (&str, u64),
        style: HeaderStyle,
    ) -> (
        impl Service<
            Request<Body>,
            Response = Response<ResponseBody<ResponseBody<Body>>>,
            Error = Infallible,
        > + Clone,
        ProbeHandle,
    ) {
        let limiter = limiter();
        let layer =
            |(name, max)| RateLimitLayer::new(limiter.clone(), policy(name, max)).headers(style);
        let (probe, handle) = Probe::ok();
        let service = ServiceBuilder::new()
            .layer(layer(outer))
            .layer(layer(inner))
            .service(probe);
        (service, handle)
    }

    #[tokio::test]
    async fn each_layer_adds_its_fields() {
        let (service, _) = nest(("address", 10), ("user", 2), HeaderStyle::Both);
        for (status, address, user) in [(200, 9, 1), (200, 8, 0), (429, 7, 0)] {
            let response = send(&service, request()).await;
            assert_eq!(response.status(), status);
            let policies = all(response.headers(), "ratelimit-policy");
            assert_eq!(
                policies,
                ["\"user-32s\";q=2;w=32", "\"address-32s\";q=10;w=32"]
            );
            let states = [
                format!("\"user-32s\";r={user};t=33"),
                format!("\"address-32s\";r={address};t=33"),
            ];
            assert_eq!(all(response.headers(), "ratelimit"), states);
            // The older fields tell of the tightest.
            assert_eq!(
                all(response.headers(), "x-ratelimit-remaining"),
                [user.to_string()]
            );
            let decision: &Decision = response.extensions().get().unwrap();
            assert_eq!(
                &*decision.limits()[0].name,
                "user-32s",
                "that of the innermost"
            );
        }
    }

    #[tokio::test]
    async fn the_older_fields_tell_of_the_tightest_also_when_it_is_outermost() {
        let (service, _) = nest(("address", 2), ("user", 10), HeaderStyle::Legacy);
        let response = send(&service, request()).await;
        assert_eq!(all(response.headers(), "x-ratelimit-remaining"), ["1"]);
        assert_eq!(all(response.headers(), "x-ratelimit-limit"), ["2"]);
    }

    #[tokio::test]
    async fn two_policies_of_one_name_are_a_fault() {
        let (service, handle) = nest(("api", 10), ("api", 5), HeaderStyle::Draft11);
        let response = send(&service, request()).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let problem: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(problem["detail"], "two layers have a policy named \"api\"");
        assert_eq!(handle.calls(), 0);
    }
}

mod keys {
    use super::*;

    #[tokio::test]
    async fn addresses_are_apart_and_ipv6_counts_by_network() {
        let (probe, _) = Probe::ok();
        let service = layer(1).layer(probe);
        let peers = [
            ("192.0.2.1:1000", 200),
            ("192.0.2.1:2000", 429),
            ("[::ffff:192.0.2.1]:1000", 429),
            ("192.0.2.2:1000", 200),
            ("[2001:db8:1:2::1]:1000", 200),
            ("[2001:db8:1:2:ffff::1]:1000", 429),
            ("[2001:db8:1:3::1]:1000", 200),
        ];
        for (peer, status) in peers {
            assert_eq!(statuses(&service, [from(peer)]).await, [status], "{peer}");
        }
    }

    #[cfg(feature = "axum")]
    #[tokio::test]
    async fn the_address_may_come_from_axum() {
        let (probe, _) = Probe::ok();
        let service = layer(1).missing_key(MissingKey::Reject).layer(probe);
        let info = || {
            let mut request = request();
            let peer: std::net::SocketAddr = "192.0.2.1:1000".parse().unwrap();
            request
                .extensions_mut()
                .insert(axum::extract::ConnectInfo(peer));
            request
        };
        assert_eq!(statuses(&service, [info(), info()]).await, [200, 429]);
        assert_eq!(statuses(&service, [from("192.0.2.1:1")]).await, [429]);
    }

    #[tokio::test]
    async fn a_header_is_a_key() {
        let (probe, handle) = Probe::ok();
        let layer = layer(1).key(key::Header::new("x-api-key"));
        let service = layer.missing_key(MissingKey::Reject).layer(probe);
        let key = |value: &str| with("x-api-key", value);
        assert_eq!(
            statuses(&service, [key("a"), key("a"), key("b")]).await,
            [200, 429, 200]
        );
        assert_eq!(statuses(&service, [request(), key("")]).await, [400, 400]);
        let mut twice = key("c");
        twice
            .headers_mut()
            .append("x-api-key", "d".parse().unwrap());
        let refused = send(&service, twice).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        let problem = problem(refused).await;
        assert_eq!(
            problem["detail"],
            "the header x-api-key was sent more than once"
        );
        assert_eq!(handle.calls(), 2);
    }

    #[tokio::test]
    async fn the_subject_of_a_key_is_the_documented_one() {
        let (limiter, policy) = (limiter(), policy("api", 1));
        let layer = RateLimitLayer::new(limiter.clone(), policy.clone())
            .key(key::Header::new("x-api-key").or(key::PeerIp::default()));
        let (probe, _) = Probe::ok();
        let service = layer.layer(probe);
        let requests = || {
            [
                with("x-api-key", "k"),
                from("192.0.2.1:1"),
                from("[2001:db8::1]:1"),
            ]
        };
        assert_eq!(statuses(&service, requests()).await, [200; 3]);
        for subject in ["header:x-api-key:k", "ip:192.0.2.1", "ip:2001:db8::"] {
            assert!(!limiter.peek(&policy, subject).await.unwrap().is_allowed());
            limiter.reset(&policy, subject, &audit()).await.unwrap();
        }
        assert_eq!(statuses(&service, requests()).await, [200; 3]);
    }

    #[tokio::test]
    async fn a_key_of_one_kind_is_none_of_another() {
        let (probe, _) = Probe::ok();
        let layer = layer(1).key(key::Header::new("ip").or(key::PeerIp::default()));
        let service = layer.layer(probe);
        let requests = [
            with("ip", "192.0.2.1"),
            from("192.0.2.1:1"),
            with("ip", "anonymous"),
            request(),
        ];
        assert_eq!(statuses(&service, requests).await, [200; 4]);
    }

    #[tokio::test]
    async fn a_pair_needs_both_and_tells_them_apart() {
        let (probe, _) = Probe::ok();
        let pair = (key::Header::new("a"), key::Header::new("b"));
        let service = layer(1)
            .key(pair)
            .missing_key(MissingKey::Reject)
            .layer(probe);
        let both = |a: &str, b: &str| {
            let mut request = with("a", a);
            request.headers_mut().insert("b", b.parse().unwrap());
            request
        };
        let requests = [
            both("x:y", "z"),
            both("x", "y:z"),
            both("x", "y:z"),
            with("a", "x"),
            with("b", "x"),
        ];
        assert_eq!(
            statuses(&service, requests).await,
            [200, 200, 429, 400, 400]
        );
    }

    #[tokio::test]
    async fn a_closure_is_an_extractor() {
        #[derive(Clone)]
        struct User(u64);
        let (probe, _) = Probe::ok();
        let user = |parts: &mut Parts| {
            let User(id) = parts.extensions.get()?;
            Some(Key::from(format!("user:{id}")))
        };
        let service = layer(1).key(user).layer(probe);
        let of = |id| {
            let mut request = request();
            request.extensions_mut().insert(User(id));
            request
        };
        assert_eq!(
            statuses(&service, [of(1), of(1), of(2)]).await,
            [200, 429, 200]
        );
    }

    #[tokio::test]
    async fn a_missing_key() {
        for (missing, expected) in [
            (MissingKey::Shared, [200, 429, 429]),
            (MissingKey::Skip, [200, 200, 200]),
            (MissingKey::Reject, [400, 400, 400]),
        ] {
            let (probe, _) = Probe::ok();
            let service = layer(1).missing_key(missing).layer(probe);
            let requests = || [request(), request(), request()];
            assert_eq!(statuses(&service, requests()).await, expected);
            assert_eq!(statuses(&service, [from("192.0.2.1:1")]).await, [200]);
        }
        // What passes uncounted has nothing to show.
        let (probe, _) = Probe::ok();
        let service = layer(1).missing_key(MissingKey::Skip).layer(probe);
        let response = send(&service, request()).await;
        assert!(all(response.headers(), "ratelimit").is_empty());
        assert!(response.extensions().get::<Decision>().is_none());
    }
}

#[cfg(feature = "axum")]
mod extractor {
    use axum::{Router, body::Body, routing::get};
    use tower_ratelimit_redis::DecisionRejection;

    use super::*;

    async fn left(decision: Decision) -> String {
        decision.limits()[0].remaining.to_string()
    }

    async fn perhaps(decision: Option<Decision>) -> String {
        decision.is_some().to_string()
    }

    async fn get_text(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_handler_takes_the_decision() {
        let router = Router::new()
            .route("/left", get(left))
            .route("/perhaps", get(perhaps))
            .layer(layer(9));
        assert_eq!(
            get_text(&router, "/left").await,
            (StatusCode::OK, "8".into())
        );
        assert_eq!(
            get_text(&router, "/perhaps").await,
            (StatusCode::OK, "true".into())
        );
    }

    #[tokio::test]
    async fn without_the_layer_the_rejection_names_it() {
        let router = Router::new()
            .route("/left", get(left))
            .route("/perhaps", get(perhaps));
        let (status, text) = get_text(&router, "/left").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(text, DecisionRejection::default().body_text());
        assert!(text.contains("RateLimitLayer"));
        assert_eq!(
            get_text(&router, "/perhaps").await,
            (StatusCode::OK, "false".into())
        );
    }
}
