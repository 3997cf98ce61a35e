//! Whose request it is: the matrix of client addresses, and subjects of any bytes, through the layer on the memory backend.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, request::Parts};
use http_body_util::Full;
use proptest::prelude::*;
use redis_conn::{Backend, Subject};
use testkit::Probe;
use tower::{Layer as _, ServiceExt as _};
use tower_ratelimit_redis::{
    Limiter, MissingKey, Policy, RateLimitLayer,
    key::{self, Cidr, ClientIp, ForwardedFrom, Key, KeyExtractor, PeerAddr, PeerIp},
};

type Body = Full<Bytes>;

const X_FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED: &str = "forwarded";

fn request() -> Request<Body> {
    Request::new(Body::default())
}

fn from(peer: IpAddr) -> Request<Body> {
    let mut request = request();
    request
        .extensions_mut()
        .insert(PeerAddr((peer, 1024).into()));
    request
}

fn with(mut request: Request<Body>, name: &'static str, value: impl AsRef<[u8]>) -> Request<Body> {
    let value = HeaderValue::from_bytes(value.as_ref()).unwrap();
    request.headers_mut().append(name, value);
    request
}

/// A request through proxies, of which the last calls from `peer`.
fn through(peer: &str, name: &'static str, lines: &[&str]) -> Request<Body> {
    let request = from(peer.parse().unwrap());
    let add = |request, line: &&str| with(request, name, line);
    lines.iter().fold(request, add)
}

/// One request for each key, for longer than the test takes.
fn limits() -> (Limiter, Policy) {
    let policy = Policy::new("api").limit(1, Duration::from_secs(86_400));
    (Limiter::new(&Backend::memory()), policy.build().unwrap())
}

/// Sends requests one after the other to a new service, and returns their status codes.
async fn statuses(
    extractor: impl KeyExtractor,
    requests: impl IntoIterator<Item = Request<Body>>,
) -> Vec<u16> {
    let (limiter, policy) = limits();
    let layer = RateLimitLayer::new(limiter, policy).key(extractor);
    let (probe, _) = Probe::ok();
    let service = layer.missing_key(MissingKey::Reject).layer(probe);
    let mut found = Vec::new();
    for request in requests {
        let response = service.clone().oneshot(request).await.unwrap();
        found.push(response.status().as_u16());
    }
    found
}

/// Whether this request, and it alone, used up the limit of `subject`.
async fn charges(extractor: impl KeyExtractor, request: Request<Body>, subject: &[u8]) -> bool {
    let (limiter, policy) = limits();
    let layer = RateLimitLayer::new(limiter.clone(), policy.clone()).key(extractor);
    let (probe, _) = Probe::ok();
    let response = layer.layer(probe).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let left = limiter.peek(&policy, Subject::new(subject)).await.unwrap();
    !left.is_allowed()
}

fn behind(ranges: &[&str]) -> ClientIp {
    ClientIp::behind(ranges.iter().map(|range| range.parse::<Cidr>().unwrap()))
}

mod clients {
    use super::*;

    struct Case {
        peer: &'static str,
        lines: &'static [&'static str],
        client: &'static str,
    }

    const fn case(
        peer: &'static str,
        lines: &'static [&'static str],
        client: &'static str,
    ) -> Case {
        Case {
            peer,
            lines,
            client,
        }
    }

    async fn all(rule: &ClientIp, name: &'static str, cases: &[Case]) {
        for Case {
            peer,
            lines,
            client,
        } in cases
        {
            let request = through(peer, name, lines);
            let subject = format!("ip:{client}");
            assert!(
                charges(rule.clone(), request, subject.as_bytes()).await,
                "{peer} {lines:?}: expected {client}, by {rule:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_no_proxy_is_the_client_whatever_it_says() {
        let cases = [
            case("198.51.100.1", &[], "198.51.100.1"),
            case("198.51.100.1", &["203.0.113.9"], "198.51.100.1"),
            case("198.51.100.1", &["203.0.113.9, 10.0.0.1"], "198.51.100.1"),
            case("198.51.100.1", &["unknown", "10.0.0.1"], "198.51.100.1"),
            case("2001:db8:1::9", &["203.0.113.9"], "2001:db8:1::"),
        ];
        all(&behind(&["10.0.0.0/8"]), X_FORWARDED_FOR, &cases).await;
        all(&behind(&[]), X_FORWARDED_FOR, &cases).await;
        all(&ClientIp::hops(0), X_FORWARDED_FOR, &cases).await;
    }

    #[tokio::test]
    async fn one_trusted_hop() {
        let cases = [
            case("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            case("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9"),
            case("10.0.0.1", &["  203.0.113.9\t"], "203.0.113.9"),
            case("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            case("10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9"),
            case("10.0.0.1", &["2001:db8:1:2::9"], "2001:db8:1:2::"),
            case("10.0.0.1", &["[2001:db8:1:2::9]:4711"], "2001:db8:1:2::"),
            // Forged by the client.
            case("10.0.0.1", &["192.0.2.7, 203.0.113.9"], "203.0.113.9"),
            case("10.0.0.1", &["192.0.2.7", "203.0.113.9"], "203.0.113.9"),
            case("10.0.0.1", &["10.0.0.1,203.0.113.9"], "203.0.113.9"),
            case("10.0.0.1", &["\", 203.0.113.9"], "203.0.113.9"),
            // The proxy asks by itself.
            case("10.0.0.1", &[], "10.0.0.1"),
        ];
        all(&behind(&["10.0.0.1"]), X_FORWARDED_FOR, &cases).await;
        all(&behind(&["10.0.0.0/8"]), X_FORWARDED_FOR, &cases).await;
        all(&ClientIp::hops(1), X_FORWARDED_FOR, &cases).await;
    }

    #[tokio::test]
    async fn two_trusted_hops() {
        let cases = [
            case("10.0.0.1", &["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            case("10.0.0.1", &["203.0.113.9", "10.0.0.2"], "203.0.113.9"),
            case(
                "10.0.0.1",
                &["192.0.2.7, 203.0.113.9, 10.0.0.2"],
                "203.0.113.9",
            ),
            case(
                "10.0.0.1",
                &["192.0.2.7", "203.0.113.9", "10.0.0.2:80"],
                "203.0.113.9",
            ),
            case(
                "10.0.0.1",
                &["192.0.2.7, 203.0.113.9", "10.0.0.2"],
                "203.0.113.9",
            ),
            case(
                "10.0.0.1",
                &["192.0.2.7", "203.0.113.9, 10.0.0.2"],
                "203.0.113.9",
            ),
            // Nobody before the second proxy.
            case("10.0.0.1", &["10.0.0.2"], "10.0.0.2"),
        ];
        all(&behind(&["10.0.0.1", "10.0.0.2"]), X_FORWARDED_FOR, &cases).await;
        all(&ClientIp::hops(2), X_FORWARDED_FOR, &cases).await;
        let proxies = behind(&["2001:db8:ffff::/48", "10.0.0.2"]);
        let cases = [case(
            "2001:db8:ffff::1",
            &["203.0.113.9, 10.0.0.2"],
            "203.0.113.9",
        )];
        all(&proxies, X_FORWARDED_FOR, &cases).await;
    }

    /// A range knows a way that is shorter than usual; a count does not.
    #[tokio::test]
    async fn a_client_that_calls_the_second_proxy_itself() {
        let lines: &[&str] = &["192.0.2.7, 203.0.113.9"];
        let cases = [case("10.0.0.1", lines, "203.0.113.9")];
        all(&behind(&["10.0.0.0/8"]), X_FORWARDED_FOR, &cases).await;
        let cases = [case("10.0.0.1", lines, "192.0.2.7")];
        all(&ClientIp::hops(2), X_FORWARDED_FOR, &cases).await;
    }

    #[tokio::test]
    async fn what_is_no_address_leads_no_further_to_the_left() {
        let cases = [
            case("10.0.0.1", &["192.0.2.7, unknown"], "10.0.0.1"),
            case("10.0.0.1", &["192.0.2.7, _hidden"], "10.0.0.1"),
            case("10.0.0.1", &["192.0.2.7, "], "10.0.0.1"),
            case("10.0.0.1", &["192.0.2.7", ""], "10.0.0.1"),
            case("10.0.0.1", &["192.0.2.7, garbage"], "10.0.0.1"),
            case("10.0.0.1", &["192.0.2.7, 203.0.113.9 10.0.0.2"], "10.0.0.1"),
            case("10.0.0.1", &["192.0.2.7, 203.0.113.999"], "10.0.0.1"),
            case("10.0.0.1", &["192.0.2.7, unknown, 10.0.0.2"], "10.0.0.2"),
            case(
                "10.0.0.1",
                &["192.0.2.7", "unknown", "10.0.0.2"],
                "10.0.0.2",
            ),
            case(
                "10.0.0.1",
                &["192.0.2.7, 10.0.0.3, \u{7f0}, 10.0.0.2"],
                "10.0.0.2",
            ),
        ];
        all(&behind(&["10.0.0.0/8"]), X_FORWARDED_FOR, &cases).await;
        all(&ClientIp::hops(3), X_FORWARDED_FOR, &cases).await;
    }

    #[tokio::test]
    async fn forwarded() {
        let cases = [
            case("10.0.0.1", &["for=203.0.113.9"], "203.0.113.9"),
            case(
                "10.0.0.1",
                &["For=\"203.0.113.9:4711\";proto=https"],
                "203.0.113.9",
            ),
            case(
                "10.0.0.1",
                &["for=\"[2001:db8:1:2::9]:4711\""],
                "2001:db8:1:2::",
            ),
            case(
                "10.0.0.1",
                &["by=10.0.0.1 ; FOR=\"[2001:db8:1:2::9]\""],
                "2001:db8:1:2::",
            ),
            case(
                "10.0.0.1",
                &["host=\"a,b;for=192.0.2.7\";for=203.0.113.9"],
                "203.0.113.9",
            ),
            case(
                "10.0.0.1",
                &["for=203.0.113.9, for=10.0.0.2"],
                "203.0.113.9",
            ),
            case(
                "10.0.0.1",
                &["for=192.0.2.7,for=203.0.113.9", "for=10.0.0.2"],
                "203.0.113.9",
            ),
            // Forged by the client.
            case(
                "10.0.0.1",
                &["for=\"192.0.2.7, for=203.0.113.9, for=10.0.0.2"],
                "203.0.113.9",
            ),
            case(
                "10.0.0.1",
                &["for=\"", "for=203.0.113.9", "for=10.0.0.2"],
                "203.0.113.9",
            ),
            // Nobody is named.
            case("10.0.0.1", &["for=192.0.2.7, for=unknown"], "10.0.0.1"),
            case(
                "10.0.0.1",
                &["for=192.0.2.7, for=\"_hidden:_p\""],
                "10.0.0.1",
            ),
            case("10.0.0.1", &["for=192.0.2.7, proto=https"], "10.0.0.1"),
            case(
                "10.0.0.1",
                &["for=192.0.2.7, for=203.0.113.9;for=192.0.2.7"],
                "10.0.0.1",
            ),
            case(
                "10.0.0.1",
                &["for=192.0.2.7, for=\"203.0.113.9"],
                "10.0.0.1",
            ),
            case("10.0.0.1", &["for=192.0.2.7, 203.0.113.9"], "10.0.0.1"),
            case(
                "10.0.0.1",
                &["for=192.0.2.7, for=_a, for=10.0.0.2"],
                "10.0.0.2",
            ),
            case("198.51.100.1", &["for=203.0.113.9"], "198.51.100.1"),
        ];
        let rule = behind(&["10.0.0.0/8"]).header(ForwardedFrom::Forwarded);
        all(&rule, FORWARDED, &cases).await;
        let cases = [case(
            "10.0.0.1",
            &["for=192.0.2.7, for=203.0.113.9, for=x"],
            "10.0.0.1",
        )];
        let rule = ClientIp::hops(2).header(ForwardedFrom::Forwarded);
        all(&rule, FORWARDED, &cases).await;
    }

    #[tokio::test]
    async fn the_other_header_is_not_read() {
        let cases = [case("10.0.0.1", &["192.0.2.7"], "10.0.0.1")];
        let rule = behind(&["10.0.0.0/8"]).header(ForwardedFrom::Forwarded);
        all(&rule, X_FORWARDED_FOR, &cases).await;
        let cases = [case("10.0.0.1", &["for=192.0.2.7"], "10.0.0.1")];
        all(&behind(&["10.0.0.0/8"]), FORWARDED, &cases).await;
    }

    #[tokio::test]
    async fn a_network_of_another_size() {
        let rule = behind(&["10.0.0.0/8"]).ipv4_prefix(24).ipv6_prefix(48);
        let cases = [
            case("10.0.0.1", &["203.0.113.9"], "203.0.113.0/24"),
            case("10.0.0.1", &["2001:db8:1:2::9"], "2001:db8:1::/48"),
            // The proxies are known by their whole addresses.
            case("11.0.0.1", &["203.0.113.9"], "11.0.0.0/24"),
        ];
        all(&rule, X_FORWARDED_FOR, &cases).await;
        let peer = PeerIp::default().ipv4_prefix(24).ipv6_prefix(48);
        for (ip, subject) in [
            ("203.0.113.9", "ip:203.0.113.0/24"),
            ("::ffff:203.0.113.9", "ip:203.0.113.0/24"),
            ("2001:db8:1:2::9", "ip:2001:db8:1::/48"),
        ] {
            let request = from(ip.parse().unwrap());
            assert!(charges(peer, request, subject.as_bytes()).await, "{ip}");
        }
    }

    #[tokio::test]
    async fn an_attacker_has_one_limit_whatever_it_prepends() {
        let rule = behind(&["10.0.0.0/8"]);
        let forged = (0..9).map(|forged| {
            let line = format!("192.0.2.{forged}, 203.0.113.9");
            through("10.0.0.1", X_FORWARDED_FOR, &[&line])
        });
        let mut expected = [429; 9];
        expected[0] = 200;
        assert_eq!(statuses(rule, forged).await, expected);
    }

    #[tokio::test]
    async fn without_a_peer_there_is_no_key() {
        let forged = with(request(), X_FORWARDED_FOR, "203.0.113.9");
        assert_eq!(statuses(behind(&["0.0.0.0/0"]), [forged]).await, [400]);
        let forged = with(request(), X_FORWARDED_FOR, "203.0.113.9");
        assert_eq!(statuses(ClientIp::hops(1), [forged]).await, [400]);
    }
}

mod attackers {
    use super::*;

    /// How a proxy appends the address that it was called from.
    #[derive(Clone, Debug)]
    struct Append {
        own_line: bool,
        separator: &'static str,
        /// Which of the ways to write an address.
        style: usize,
    }

    fn appends() -> impl Strategy<Value = Append> {
        let separator = prop::sample::select(vec![",", ", ", " ,\t"]);
        (any::<bool>(), separator, 0_usize..4).prop_map(|(own_line, separator, style)| Append {
            own_line,
            separator,
            style,
        })
    }

    /// What a client may send: bytes, marks that mean something, and entries that look as if proxies had written them.
    fn lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let text = prop_oneof![
            r#"[-for=:;,"\\ \[\]0-9a-f.\t]{0,60}"#,
            r#"((for=)?"?(10\.0\.0\.2|192\.0\.2\.7|unknown|_x|\[::1\]:1)"?[,;]? ?){0,9}"#,
        ];
        let line = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            text.prop_map(String::into_bytes),
        ];
        prop::collection::vec(line, 0..4)
    }

    fn entry(source: ForwardedFrom, ip: IpAddr, style: usize) -> String {
        let bare = ip.to_string();
        let bracketed = match ip {
            IpAddr::V4(_) => bare.clone(),
            IpAddr::V6(_) => format!("[{bare}]"),
        };
        match (source, style) {
            (ForwardedFrom::XForwardedFor, 0) => bare,
            (ForwardedFrom::XForwardedFor, 1) => bracketed,
            (ForwardedFrom::XForwardedFor, _) => format!("{bracketed}:4711"),
            (_, 0) => format!("for=\"{bracketed}\""),
            (_, 1) => format!("For=\"{bracketed}:4711\";proto=https"),
            (_, 2) => format!(r#"host="a\",\\";for="{bracketed}";by=_me"#),
            (_, _) => format!("for=\"{bracketed}\" ; host=\"x, for=192.0.2.7\""),
        }
    }

    fn key(rule: &impl KeyExtractor, request: Request<Body>) -> Option<Key> {
        let (mut parts, _) = request.into_parts();
        let mut found = pin!(rule.extract(&mut parts));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(found) = found.as_mut().poll(&mut context) else {
            panic!("nothing to wait for");
        };
        found.unwrap()
    }

    /// The lines that arrive when a client sends `lines` through proxies.
    fn arrive(
        mut lines: Vec<Vec<u8>>,
        source: ForwardedFrom,
        callers: &[IpAddr],
        appends: &[Append],
    ) -> Vec<Vec<u8>> {
        for (caller, append) in callers.iter().zip(appends) {
            let entry = entry(source, *caller, append.style);
            match lines.last_mut() {
                Some(line) if !append.own_line => {
                    line.extend_from_slice(append.separator.as_bytes());
                    line.extend_from_slice(entry.as_bytes());
                }
                _ => lines.push(entry.into_bytes()),
            }
        }
        lines
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 4_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn nothing_that_a_client_sends_changes_its_key(
            lines in lines(),
            client: IpAddr,
            appends in prop::collection::vec(appends(), 1..4),
            source in prop::sample::select(vec![ForwardedFrom::XForwardedFor, ForwardedFrom::Forwarded]),
        ) {
            let proxies: Cidr = "10.0.0.0/8".parse().unwrap();
            prop_assume!(!proxies.contains(client));
            let proxy = |number: usize| IpAddr::from(Ipv4Addr::new(10, 0, 0, number as u8));
            // Each appends the address of the one before: the client, then the other proxies.
            let callers: Vec<_> = [client].into_iter().chain((1..appends.len()).map(proxy)).collect();
            let lines = arrive(lines, source, &callers, &appends);
            let name = match source {
                ForwardedFrom::Forwarded => FORWARDED,
                _ => X_FORWARDED_FOR,
            };
            let request = || {
                let mut request = from(proxy(appends.len()));
                for line in &lines {
                    // What no header can have is what no proxy would have passed on.
                    let line: Vec<_> = line.iter().filter(|byte| !byte.is_ascii_control() || **byte == b'\t').copied().collect();
                    request = with(request, name, line);
                }
                request
            };
            // As if it had come without any proxy.
            let expected = key(&PeerIp::default(), from(client));
            prop_assert!(expected.is_some());
            let rule = ClientIp::behind([proxies]).header(source);
            prop_assert!(key(&rule, request()) == expected, "by ranges, {:?}", lines);
            let rule = ClientIp::hops(appends.len()).header(source);
            prop_assert!(key(&rule, request()) == expected, "by hops, {:?}", lines);
        }
    }
}

mod subjects {
    use super::*;

    #[derive(Clone)]
    struct User {
        id: u64,
    }

    #[tokio::test]
    async fn any_bytes_are_a_key_of_their_own() {
        let long = "x".repeat(4_096);
        let values: [&[u8]; 12] = [
            b"{",
            b"}",
            b"{}",
            b"}{",
            b"{a}",
            b"{a}b",
            b"a",
            b"\xff",
            b"\xff\xfe",
            "\u{fffd}".as_bytes(),
            long.as_bytes(),
            &long.as_bytes()[1..],
        ];
        let header = || key::Header::new("x-api-key");
        let requests = || values.map(|value| with(request(), "x-api-key", value));
        let both = requests().into_iter().chain(requests());
        let expected = [[200; 12], [429; 12]].concat();
        assert_eq!(statuses(header(), both).await, expected);
        for value in values {
            let subject = [b"header:x-api-key:", value].concat();
            let request = with(request(), "x-api-key", value);
            assert!(charges(header(), request, &subject).await, "{value:?}");
        }
        let empty = with(request(), "x-api-key", "");
        assert_eq!(statuses(header(), [empty]).await, [400]);
    }

    #[tokio::test]
    async fn a_path_is_a_key_without_its_query() {
        let get = |uri: &str| {
            let mut request = request();
            *request.uri_mut() = uri.parse().unwrap();
            request
        };
        let path = key::Path::default();
        assert!(charges(path, get("/users/42?page=2"), b"path:/users/42").await);
        assert!(charges(path, get("http://host/a"), b"path:/a").await);
        assert!(charges(path, get("/%7Bid%7D"), b"path:/%7Bid%7D").await);
        assert_eq!(
            statuses(path, ["/a", "/a?x", "/b", "/%61"].map(get)).await,
            [200, 429, 200, 200]
        );
        let mut connect = get("host:443");
        *connect.method_mut() = Method::CONNECT;
        assert_eq!(statuses(path, [connect]).await, [400]);
    }

    #[tokio::test]
    async fn a_value_of_the_extensions_is_a_key() {
        let user = || key::Extension::new(|user: &User| user.id.to_string());
        let of = |id| {
            let mut request = request();
            request.extensions_mut().insert(User { id });
            request
        };
        assert!(charges(user(), of(42), b"extension:42").await);
        assert_eq!(
            statuses(user(), [of(1), of(1), of(2), request()]).await,
            [200, 429, 200, 400]
        );
        let shown = format!("{:?}", user());
        assert!(shown.contains("User"), "{shown}");
    }

    #[tokio::test]
    async fn the_subject_of_the_extensions_is_a_key() {
        let of = |subject: &[u8]| {
            let mut request = request();
            request.extensions_mut().insert(Subject::new(subject));
            request
        };
        let subject = key::SubjectExtension::default();
        assert!(charges(subject, of(b"user-42"), b"subject:user-42").await);
        assert_eq!(
            statuses(subject, [of(b"\xff"), of(b"\xff"), of(b""), request()]).await,
            [200, 429, 200, 400]
        );
        // Who may choose a name does not take the limit of an address.
        let either = subject.or(PeerIp::default());
        let peer = from("192.0.2.1".parse().unwrap());
        let requests = [of(b"ip:192.0.2.1"), of(b"192.0.2.1"), peer];
        assert_eq!(statuses(either, requests).await, [200; 3]);
    }

    #[tokio::test]
    async fn three_are_told_apart_and_needed_all() {
        let three = || {
            (
                key::Header::new("a"),
                key::Header::new("b"),
                |parts: &mut Parts| parts.extensions.get::<User>().map(|_| "c"),
            )
        };
        let all = |a: &str, b: &str| {
            let mut request = with(with(request(), "a", a), "b", b);
            request.extensions_mut().insert(User { id: 1 });
            request
        };
        let key = Key::pair("header:a:x", Key::pair("header:b:y", "c"));
        let subject = Subject::from(key);
        assert!(charges(three(), all("x", "y"), subject.as_bytes()).await);
        let mut no_third = all("x", "y");
        no_third.extensions_mut().clear();
        let requests = [
            all("x", "y"),
            all("x", "y"),
            all("y", "x"),
            all("x", ""),
            all("", "y"),
            no_third,
        ];
        assert_eq!(
            statuses(three(), requests).await,
            [200, 429, 200, 400, 400, 400]
        );
    }
}
