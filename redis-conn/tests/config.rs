//! The public configuration of a Redis backend: builder, URL and serde agree, refuse the same and hide the password.

use std::time::Duration;

use proptest::prelude::*;
use redis_conn::{Config, ConfigBuilder, ConfigErrors, Endpoint, Error, ErrorKind};

fn local() -> ConfigBuilder {
    Config::builder(Endpoint::tcp("127.0.0.1", 6379))
}

fn from_json(json: &str) -> Result<Config, serde_json::Error> {
    serde_json::from_str(json)
}

#[test]
fn defaults() {
    let config = local().build().unwrap();
    assert_eq!(config.endpoint(), &Endpoint::tcp("127.0.0.1", 6379));
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
    assert_eq!(config.endpoint(), &Endpoint::tcp("h", 6379));
}

#[test]
fn a_wrong_file_is_refused() {
    for (json, text) in [
        ("{}", "host: expected `host`, `socket` or `url`"),
        (r#"{"port":1}"#, "host: expected `host`, `socket` or `url`"),
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
        .lanes(64);
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
