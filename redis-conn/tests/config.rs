//! The public configuration of a Redis backend: builder, URL and serde agree, refuse the same and hide the password.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use proptest::prelude::*;
use redis_conn::{
    Backend, Config, ConfigBuilder, ConfigErrors, Credentials, Endpoint, Error, ErrorKind, Family,
    FromEnvError, Login, ScaleReads, Tls, Topology,
};

fn local() -> ConfigBuilder {
    Config::builder(Endpoint::tcp("127.0.0.1", 6379))
}

fn from_json(json: &str) -> Result<Config, serde_json::Error> {
    serde_json::from_str(json)
}

#[test]
fn defaults() {
    let config = local().build().unwrap();
    assert_eq!(
        config.topology(),
        &Topology::Single(Endpoint::tcp("127.0.0.1", 6379))
    );
    assert_eq!(
        (config.username(), config.has_password(), config.db()),
        (None, false, 0)
    );
    assert_eq!(config.connect_timeout(), Duration::from_secs(10));
    assert_eq!(config.dial_timeout(), Duration::from_secs(1));
    assert_eq!(config.command_timeout(), Duration::from_secs(5));
    assert_eq!(config.keep_alive(), Some(Duration::from_secs(15)));
    assert_eq!(config.max_in_flight(), 4_096);
    assert_eq!((config.pool_size(), config.lanes()), (8, None));
    assert!(!config.is_required());
}

#[test]
fn defaults_of_topologies_and_calls() {
    let config = local().build().unwrap();
    assert_eq!((config.tls(), config.connection_name()), (None, None));
    assert_eq!(config.max_loading_timeout(), Duration::from_secs(10));
    assert_eq!(config.retry_delay_on_failover(), Duration::from_millis(100));
    let delay = config.retry_delay_on_cluster_down();
    assert_eq!(delay, Duration::from_millis(300));
    assert_eq!((config.max_redirections(), config.max_retries()), (16, 3));
    assert_eq!(config.scale_reads(), ScaleReads::Primary);
    assert_eq!(config.family(), Family::Any);
    assert!(config.ready_check() && config.no_delay());
    assert!(!config.offline_queue() && !config.lazy_connect());
}

#[test]
fn everything_can_be_set_in_code_and_in_a_file() {
    let built = Config::builder(Endpoint::tcp("10.0.0.7", 7000))
        .username("app")
        .password("s3cr3t")
        .db(2)
        .connect_timeout(Duration::from_secs(120))
        .dial_timeout(Duration::from_millis(250))
        .command_timeout(Duration::from_secs(2))
        .keep_alive(None)
        .max_in_flight(10)
        .pool_size(3)
        .lanes(4)
        .required(true)
        .build()
        .unwrap();
    let read = from_json(
        r#"{
            "host": "10.0.0.7", "port": 7000, "username": "app", "password": "s3cr3t", "db": 2,
            "connect_timeout": "2m", "dial_timeout": 250, "command_timeout": "2s", "keep_alive": false,
            "max_in_flight": 10, "pool_size": 3, "lanes": 4, "required": true
        }"#,
    );
    assert_eq!(read.unwrap(), built);
    assert!(built.has_password() && built.is_required());
    assert_eq!(
        (built.username(), built.db(), built.keep_alive()),
        (Some("app"), 2, None)
    );
    assert_eq!(
        (built.max_in_flight(), built.pool_size(), built.lanes()),
        (10, 3, Some(4))
    );
}

#[test]
fn every_option_of_topologies_and_calls() {
    let built = Config::sentinel([Endpoint::tcp("a", 26379), Endpoint::tcp("::1", 1)], "m")
        .password_file("/run/pw")
        .sentinel_username("watcher")
        .sentinel_password("s3cr3t")
        .connection_name("shop")
        .max_loading_timeout(Duration::from_secs(60))
        .retry_delay_on_failover(Duration::from_millis(50))
        .retry_delay_on_cluster_down(Duration::from_secs(1))
        .max_redirections(5)
        .max_retries(0)
        .scale_reads(ScaleReads::Any)
        .offline_queue(true)
        .ready_check(false)
        .lazy_connect(true)
        .family(Family::V6)
        .no_delay(false)
        .build()
        .unwrap();
    let read = from_json(
        r#"{
            "sentinels": ["a", "[::1]:1"], "master_name": "m", "password_file": "/run/pw",
            "sentinel_username": "watcher", "sentinel_password": "s3cr3t", "connection_name": "shop",
            "max_loading_timeout": "1m", "retry_delay_on_failover": 50, "retry_delay_on_cluster_down": "1s",
            "max_redirections": 5, "max_retries": 0, "scale_reads": "all", "offline_queue": true,
            "ready_check": false, "lazy_connect": true, "family": 6, "no_delay": false
        }"#,
    );
    assert_eq!(read.unwrap(), built);
    assert!(built.has_password());
    assert_eq!(built.connection_name(), Some("shop"));
    assert_eq!((built.max_redirections(), built.max_retries()), (5, 0));
    assert_eq!(
        (built.scale_reads(), built.family()),
        (ScaleReads::Any, Family::V6)
    );
    assert!(built.offline_queue() && built.lazy_connect());
    assert!(!built.ready_check() && !built.no_delay());
    assert_ne!(
        built.clone().into_builder().sentinel_password("x").build(),
        Ok(built)
    );
}

#[tokio::test]
async fn a_backend_from_prefixed_variables() {
    let backend = Backend::from_env_prefixed("NOBODY_SETS_").await.unwrap();
    assert_eq!(backend.kind(), "memory");
    let error = Backend::from_env_prefixed("nobody").await.unwrap_err();
    let FromEnvError::Config(errors) = error else {
        panic!("{error:?}");
    };
    assert!(
        errors
            .to_string()
            .starts_with(r#"prefix="nobody": expected 1 to 32"#)
    );
}

#[test]
fn every_switch_alone() {
    for (json, builder) in [
        (r#""offline_queue":true"#, local().offline_queue(true)),
        (r#""ready_check":false"#, local().ready_check(false)),
        (r#""lazy_connect":true"#, local().lazy_connect(true)),
        (r#""no_delay":false"#, local().no_delay(false)),
        (r#""required":true"#, local().required(true)),
        (r#""keep_alive":false"#, local().keep_alive(None)),
    ] {
        let read = from_json(&format!(r#"{{"host":"127.0.0.1",{json}}}"#)).unwrap();
        assert_eq!(read, builder.build().unwrap(), "{json}");
        assert_ne!(read, local().build().unwrap(), "{json}");
    }
}

#[test]
fn a_cluster_in_code_and_in_a_file() {
    let nodes = || vec![Endpoint::tcp("a", 6379), Endpoint::tcp("b", 7000)];
    let built = Config::cluster(nodes()).build().unwrap();
    assert_eq!(built.topology(), &Topology::Cluster { nodes: nodes() });
    assert_eq!(from_json(r#"{"nodes":["a","b:7000"]}"#).unwrap(), built);
}

#[cfg(feature = "tls")]
#[test]
fn tls_in_code_and_in_a_file() {
    let over = |tls| local().tls(tls).build().unwrap();
    for (json, tls) in [
        ("true", Some(Tls::new())),
        ("false", None),
        ("{}", Some(Tls::new())),
        (
            r#"{"server_name":"h","reject_unauthorized":false,"ca_file":"/ca","cert_file":"/c","key_file":"/k"}"#,
            Some(
                Tls::new()
                    .server_name("h")
                    .reject_unauthorized(false)
                    .ca_file("/ca")
                    .client_certificate("/c", "/k"),
            ),
        ),
    ] {
        let read = from_json(&format!(r#"{{"host":"127.0.0.1","tls":{json}}}"#)).unwrap();
        assert_eq!(read.tls(), tls.as_ref(), "{json}");
        assert_eq!(read, over(tls), "{json}");
    }
    let by_url = Config::from_url("rediss://127.0.0.1").unwrap();
    assert_eq!(by_url, over(Some(Tls::new())));
}

#[cfg(feature = "tls")]
#[test]
fn tls_that_cannot_be_is_refused() {
    let socket = Config::builder(Endpoint::unix("/run/x"))
        .tls(Tls::new())
        .build();
    let expected = "tls and socket: expected a host: a Unix socket has no TLS";
    assert_eq!(socket.unwrap_err().to_string(), expected);
    for (tls, field) in [
        (Tls::new().server_name("a b"), "tls.server_name"),
        (Tls::new().ca_file(""), "tls.ca_file"),
        (Tls::new().client_certificate("", "/k"), "tls.cert_file"),
        (Tls::new().client_certificate("/c", ""), "tls.key_file"),
    ] {
        let errors = local().tls(tls).build().expect_err(field);
        let fields: Vec<_> = errors.iter().flat_map(|error| error.variables()).collect();
        assert_eq!(fields, [field], "{errors}");
    }
    for (json, text) in [
        (
            r#"{"url":"rediss://h","tls":false}"#,
            "url and tls: expected only one of them",
        ),
        (
            r#"{"host":"h","tls":"yes"}"#,
            "expected `true`, `false`, or a table",
        ),
        (
            r#"{"host":"h","tls":{"ca":"/ca"}}"#,
            "expected `true`, `false`, or a table",
        ),
        (
            r#"{"host":"h","tls":{"cert_file":"/c"}}"#,
            "tls.cert_file and tls.key_file: expected both or none of them: a certificate needs its key",
        ),
    ] {
        let error = from_json(json).expect_err(json).to_string();
        assert!(error.contains(text), "{json}: {error}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_names_its_feature() {
    let expected = "tls: expected a build with the feature `tls` of redis-conn";
    for errors in [
        local().tls(Tls::new()).build().unwrap_err(),
        Config::from_url("rediss://h").unwrap_err(),
    ] {
        assert_eq!(errors.to_string(), expected);
    }
    let error = from_json(r#"{"host":"h","tls":true}"#).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

struct Fixed;

impl Credentials for Fixed {
    fn login(
        &self,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<Login, Box<dyn std::error::Error + Send + Sync>>>
                + Send
                + '_,
        >,
    > {
        Box::pin(async { Ok(Login::new(None, "s3cr3t")) })
    }
}

#[test]
fn a_provider_equals_itself_only() {
    let provider: Arc<dyn Credentials> = Arc::new(Fixed);
    let with = |provider: &Arc<dyn Credentials>| local().credentials(Arc::clone(provider)).build();
    let one = with(&provider).unwrap();
    assert_eq!(one, with(&provider).unwrap());
    assert_eq!(one, one.clone());
    let other: Arc<dyn Credentials> = Arc::new(Fixed);
    assert_ne!(one, with(&other).unwrap());
    assert!(one.has_password() && one.username().is_none());
}

#[test]
fn a_password_has_one_source() {
    let provider = || Arc::new(Fixed);
    for (builder, one, other) in [
        (
            local().password("pw").password_file("/x"),
            "password",
            "password_file",
        ),
        (
            local().password("pw").credentials(provider()),
            "password",
            "credentials",
        ),
        (
            local().password_file("/x").credentials(provider()),
            "password_file",
            "credentials",
        ),
        (
            local().username("me").credentials(provider()),
            "username",
            "credentials",
        ),
        (
            local().sentinel_password("pw").sentinel_password_file("/x"),
            "sentinel_password",
            "sentinel_password_file",
        ),
        (
            local()
                .sentinel_password("pw")
                .sentinel_credentials(provider()),
            "sentinel_password",
            "sentinel_credentials",
        ),
    ] {
        let errors = builder.build().expect_err(one);
        let expected = format!("{one} and {other}: expected only one of them");
        assert_eq!(errors.to_string(), expected);
    }
}

#[test]
fn a_url_and_a_password_file() {
    let read = from_json(r#"{"url":"redis://h/1","username":"me","password_file":"/x"}"#).unwrap();
    let built = Config::builder(Endpoint::tcp("h", 6379))
        .db(1)
        .username("me")
        .password_file("/x");
    assert_eq!(read, built.build().unwrap());
}

#[test]
fn a_file_names_the_server_in_one_of_three_ways() {
    for (json, url) in [
        (r#"{"host":"h"}"#, "redis://h:6379"),
        (r#"{"host":"::1","port":7000}"#, "redis://[::1]:7000"),
        (
            r#"{"socket":"/run/redis.sock","db":1}"#,
            "unix:///run/redis.sock?db=1",
        ),
        (r#"{"url":"redis://me:pw@h/3"}"#, "redis://me:pw@h/3"),
    ] {
        assert_eq!(
            from_json(json).unwrap(),
            Config::from_url(url).unwrap(),
            "{json}"
        );
    }
}

#[test]
fn a_url_can_be_refined() {
    let config = Config::from_url("redis://h").unwrap().into_builder();
    let config = config.dial_timeout(Duration::from_secs(3)).build().unwrap();
    assert_eq!(config.dial_timeout(), Duration::from_secs(3));
    assert_eq!(
        config.topology(),
        &Topology::Single(Endpoint::tcp("h", 6379))
    );
}

#[test]
fn a_wrong_file_is_refused() {
    for (json, text) in [
        (
            "{}",
            "host: expected `host`, `socket`, `nodes`, `sentinels` or `url`",
        ),
        (
            r#"{"port":1}"#,
            "host: expected `host`, `socket`, `nodes`, `sentinels` or `url`",
        ),
        (
            r#"{"host":"h","nodes":["a"]}"#,
            "host and nodes: expected only one of them",
        ),
        (
            r#"{"port":1,"nodes":["a"]}"#,
            "port and nodes: expected only one of them",
        ),
        (
            r#"{"nodes":["a"],"sentinels":["s"],"master_name":"m"}"#,
            "nodes and sentinels: expected only one of them",
        ),
        (
            r#"{"sentinels":["s"]}"#,
            "sentinels and master_name: expected both or none of them",
        ),
        (
            r#"{"host":"h","master_name":"m"}"#,
            "sentinels and master_name: expected both or none of them",
        ),
        (
            r#"{"nodes":["a:0"]}"#,
            r#"nodes="a:0": expected a host with an optional port"#,
        ),
        (
            r#"{"nodes":[]}"#,
            r#"nodes="": expected hosts with an optional port"#,
        ),
        (
            r#"{"nodes":["a"],"db":1}"#,
            r#"db="1": expected 0: a cluster has no other database"#,
        ),
        (
            r#"{"url":"redis://h","nodes":["a"]}"#,
            "url and nodes: expected only one of them",
        ),
        (
            r#"{"url":"redis://:pw@h","password_file":"/x"}"#,
            "url and password_file: expected only one of them",
        ),
        (
            r#"{"host":"h","password":"pw","password_file":"/x"}"#,
            "password and password_file: expected only one of them",
        ),
        (
            r#"{"host":"h","scale_reads":"none"}"#,
            "expected `master`, `slave`, `replica` or `all`",
        ),
        (r#"{"host":"h","family":5}"#, "expected `4`, `6`, or `0`"),
        (
            r#"{"host":"h","retry_delay_on_failover":"2m"}"#,
            "expected milliseconds, or a duration such as 100ms",
        ),
        (r#"{"host":"h","max_redirections":0}"#, "expected 1 to 100"),
        (
            r#"{"host":"h","offline_queue":"yes"}"#,
            "expected a boolean",
        ),
        (
            r#"{"host":"h","socket":"/x"}"#,
            "host and socket: expected only one of them",
        ),
        (
            r#"{"port":1,"socket":"/x"}"#,
            "port and socket: expected only one of them",
        ),
        (
            r#"{"url":"redis://h","db":1}"#,
            "url and db: expected only one of them",
        ),
        (
            r#"{"url":"redis://h:0"}"#,
            r#"url="redis://h:0": expected a port"#,
        ),
        (
            r#"{"host":"h","port":0}"#,
            r#"port="0": expected a port from 1 to 65535"#,
        ),
        (r#"{"host":"h:1"}"#, r#"host="h:1": expected a host name"#),
        (
            r#"{"socket":"run/x"}"#,
            r#"socket="run/x": expected the absolute path"#,
        ),
        (
            r#"{"host":"h","command_timeout":"soon"}"#,
            "expected milliseconds, or a duration",
        ),
        (
            r#"{"host":"h","command_timeout":0}"#,
            "expected milliseconds, or a duration",
        ),
        (
            r#"{"host":"h","command_timeout":-1}"#,
            "expected a text, a boolean or a number",
        ),
        (
            r#"{"host":"h","keep_alive":"yes"}"#,
            "expected `true`, `false`, or a duration",
        ),
        (
            r#"{"host":"h","lanes":0}"#,
            r#"lanes="0": expected 1 to 64"#,
        ),
        (r#"{"host":"h","hots":"h"}"#, "unknown field `hots`"),
    ] {
        let error = from_json(json).expect_err(json).to_string();
        assert!(error.contains(text), "{json}: {error}");
    }
}

#[test]
fn every_limit_of_the_builder() {
    let at = |endpoint| Config::builder(endpoint);
    for (builder, field) in [
        (at(Endpoint::tcp("", 1)), "host"),
        (at(Endpoint::tcp("a b", 1)), "host"),
        (at(Endpoint::tcp("a".repeat(254), 1)), "host"),
        (at(Endpoint::tcp("[::1]", 1)), "host"),
        (at(Endpoint::tcp("h", 0)), "port"),
        (at(Endpoint::unix("relative")), "socket"),
        (
            at(Endpoint::unix(format!("/{}", "x".repeat(100)))),
            "socket",
        ),
        (local().username("me"), "username"),
        (local().username("").password("pw"), "username"),
        (local().password(""), "password"),
        (local().connect_timeout(Duration::ZERO), "connect_timeout"),
        (
            local().dial_timeout(Duration::from_micros(999)),
            "dial_timeout",
        ),
        (local().command_timeout(Duration::MAX), "command_timeout"),
        (local().keep_alive(Duration::from_millis(999)), "keep_alive"),
        (local().keep_alive(Duration::MAX), "keep_alive"),
        (local().max_in_flight(0), "max_in_flight"),
        (local().max_in_flight(usize::MAX), "max_in_flight"),
        (local().pool_size(0), "pool_size"),
        (local().pool_size(u32::MAX), "pool_size"),
        (local().lanes(0), "lanes"),
        (local().lanes(65), "lanes"),
        (local().max_redirections(0), "max_redirections"),
        (local().max_redirections(101), "max_redirections"),
        (local().max_retries(101), "max_retries"),
        (
            local().retry_delay_on_failover(Duration::ZERO),
            "retry_delay_on_failover",
        ),
        (
            local().retry_delay_on_cluster_down(Duration::from_secs(61)),
            "retry_delay_on_cluster_down",
        ),
        (
            local().max_loading_timeout(Duration::ZERO),
            "max_loading_timeout",
        ),
        (local().connection_name("a b"), "connection_name"),
        (local().password_file(""), "password_file"),
        (local().sentinel_username("me"), "sentinel_username"),
        (local().sentinel_password(""), "sentinel_password"),
        (
            local().sentinel_password_file("\0"),
            "sentinel_password_file",
        ),
        (Config::cluster([]), "nodes"),
        (Config::cluster([Endpoint::tcp("a b", 1)]), "nodes"),
        (Config::cluster([Endpoint::tcp("a", 0)]), "nodes"),
        (Config::cluster([Endpoint::unix("/run/x")]), "nodes"),
        (Config::cluster([Endpoint::tcp("a", 1)]).db(1), "db"),
        (Config::sentinel([], "m"), "sentinels"),
        (Config::sentinel([Endpoint::unix("/x")], "m"), "sentinels"),
        (Config::sentinel([Endpoint::tcp("s", 1)], ""), "master_name"),
    ] {
        let errors = builder.build().expect_err(field);
        let fields: Vec<_> = errors.iter().flat_map(|error| error.variables()).collect();
        assert_eq!(fields, [field], "{errors}");
    }
    let longest = Duration::from_secs(24 * 60 * 60);
    let extremes = at(Endpoint::tcp("fe80::1%eth0", u16::MAX))
        .connect_timeout(longest)
        .dial_timeout(Duration::from_millis(1))
        .keep_alive(Duration::from_secs(1))
        .max_in_flight(1)
        .pool_size(1_024)
        .lanes(64)
        .max_redirections(100)
        .max_retries(100)
        .retry_delay_on_failover(Duration::from_millis(1))
        .retry_delay_on_cluster_down(Duration::from_secs(60));
    extremes.build().unwrap();
}

#[test]
fn all_errors_come_at_once_and_become_the_one_error() {
    let errors = Config::builder(Endpoint::tcp("", 0))
        .lanes(0)
        .build()
        .unwrap_err();
    assert_eq!(errors.to_string().lines().count(), 3);
    let first = errors.iter().next().unwrap();
    assert_eq!(
        (first.value(), first.variables().collect::<Vec<_>>()),
        (Some(""), vec!["host"])
    );
    assert!(first.expected().starts_with("a host name"));
    let error = Error::from(errors);
    assert_eq!(error.kind(), &ErrorKind::Config);
    assert!(error.to_string().contains(r#"lanes="0""#), "{error}");
}

#[test]
fn an_endpoint_is_shown_as_it_is_written() {
    for (endpoint, text) in [
        (Endpoint::tcp("h", 1), "h:1"),
        (Endpoint::tcp("::1", 1), "[::1]:1"),
        (Endpoint::unix("/run/x"), "unix:/run/x"),
    ] {
        assert_eq!(endpoint.to_string(), text);
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

fn said(result: Result<Config, ConfigErrors>) -> String {
    match result {
        Ok(config) => format!("{config:?} {:?}", config.clone().into_builder()),
        Err(errors) => format!("{errors} {errors:?} {:?}", Error::from(errors.clone())),
    }
}

proptest! {
    #[test]
    fn any_password_survives_a_url(password in "\\PC{1,40}") {
        let url = format!("redis://me:{}@h", percent_encoded(&password));
        let built = Config::builder(Endpoint::tcp("h", 6379)).username("me").password(password);
        prop_assert_eq!(Config::from_url(&url).unwrap(), built.build().unwrap());
    }

    #[test]
    fn any_text_is_a_url_or_an_error(text in "\\PC{0,40}", scheme in "(redis|rediss|unix)://") {
        for url in [&text, &format!("{scheme}{text}")] {
            let _ = said(Config::from_url(url));
        }
    }

    // The first characters keep the password from being a part of an error by chance.
    #[test]
    fn no_password_is_shown(password in "Zq[a-zA-Z0-9!#$%&*+,./:;<=>?@^_|~-]{6,40}") {
        for url in [
            format!("redis://:{password}@h"),
            format!("redis://me:{password}@h:0/x?y"),
            format!("redis://me:{password}@"),
            format!("redis://{password}@h"),
            format!("rediss://me:{password}@h"),
            format!("unix://me:{password}@relative"),
            format!("me:{password}@h"),
            format!("redis:me:{password}@h"),
            format!("redis://h?password={password}"),
        ] {
            let said = said(Config::from_url(&url));
            prop_assert!(!said.contains(&password), "{}: {}", url, said);
            let json = serde_json::json!({ "url": url, "lanes": 0 });
            if let Err(error) = serde_json::from_value::<Config>(json) {
                let said = format!("{error} {error:?}");
                prop_assert!(!said.contains(&password), "{}", said);
            }
        }
        for builder in [local().password(&*password), local().password(&*password).lanes(0)] {
            let debug = format!("{builder:?}");
            prop_assert!(!debug.contains(&password), "{}", debug);
            prop_assert!(!said(builder.build()).contains(&password));
        }
    }

    /// A number where a text belongs: serde's own error would show it.
    #[test]
    fn no_numeric_password_is_shown(password in 10_000_000_u64..) {
        for value in [serde_json::json!(password), serde_json::json!(-(password as f64))] {
            for field in ["password", "url"] {
                let json = serde_json::json!({ "host": "h", field: value });
                let error = serde_json::from_value::<Config>(json).unwrap_err();
                let said = format!("{error} {error:?}");
                prop_assert!(!said.contains(&value.to_string()), "{}", said);
            }
        }
    }
}
