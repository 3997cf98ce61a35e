//! Every row of the table: alone, mistyped, and where it has no effect.

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::{
    ConfigBuilder, Family, ScaleReads, Tls,
    config::variables::{Scope, VARIABLES},
};

type Vars = &'static [(&'static str, &'static str)];

const NOTHING: Vars = &[];
const SINGLE: Vars = &[("REDIS_HOST", "h")];
const CLUSTER: Vars = &[("REDIS_NODES", "a,b,c")];
const SENTINEL: Vars = &[("REDIS_SENTINEL1_HOST", "s"), ("REDIS_MASTER_NAME", "m")];
#[cfg(feature = "tls")]
const OVER_TLS: (&str, &str) = ("REDIS_URL", "rediss://h");
/// Without the feature the options of TLS are read all the same.
#[cfg(not(feature = "tls"))]
const OVER_TLS: (&str, &str) = ("REDIS_URL", "redis://h");
const ENCRYPTED: Vars = &[OVER_TLS];
const WITH_KEY: Vars = &[OVER_TLS, ("REDIS_TLS_KEY_FILE", "/key")];
const WITH_CERT: Vars = &[OVER_TLS, ("REDIS_TLS_CERT_FILE", "/cert")];

struct Case {
    /// As it stands in the table.
    name: &'static str,
    beside: Vars,
    value: &'static str,
    effect: Effect,
    mistyped: &'static [&'static str],
}

enum Effect {
    /// On what the variables beside it say.
    Change(fn(ConfigBuilder) -> ConfigBuilder),
    /// The configuration as a whole.
    Whole(fn() -> ConfigBuilder),
    /// Only together with the feature `tls`.
    Tls(fn(Tls) -> Tls),
    Other(fn(&Settings) -> bool),
}

use Effect::{Change, Other, Whole};

const fn case(
    name: &'static str,
    beside: Vars,
    value: &'static str,
    effect: Effect,
    mistyped: &'static [&'static str],
) -> Case {
    Case {
        name,
        beside,
        value,
        effect,
        mistyped,
    }
}

const FLAGS: &[&str] = &["yes", "2", "on", " true"];
const HOSTS: &[&str] = &["h:1", "a b", "[::1]", "a,b"];
const PORTS: &[&str] = &["0", "65536", "+1", "x"];
const TIMES: &[&str] = &["0", "25h", "5 s", "-1", "s"];
const DELAYS: &[&str] = &["0", "61s", "soon", "-1"];
const NAMES: &[&str] = &["a b", "é", "\t"];
/// Any text is one.
const ANY: &[&str] = &[];

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn nodes(hosts: &[(&str, u16)]) -> ConfigBuilder {
    Config::cluster(hosts.iter().map(|(host, port)| Endpoint::tcp(*host, *port)))
}

fn sentinels(hosts: &[(&str, u16)]) -> ConfigBuilder {
    Config::sentinel(
        hosts.iter().map(|(host, port)| Endpoint::tcp(*host, *port)),
        "m",
    )
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    case("REDIS_URL", NOTHING, "redis://me:pw@h:7000/2", Whole(|| Config::builder(Endpoint::tcp("h", 7000)).username("me").password("pw").db(2)), ANY),
    case("REDIS_HOST", NOTHING, "h", Whole(|| Config::builder(Endpoint::tcp("h", 6379))), HOSTS),
    case("REDIS_PORT", SINGLE, "7000", Whole(|| Config::builder(Endpoint::tcp("h", 7000))), PORTS),
    case("REDIS_USERNAME", &[("REDIS_HOST", "h"), ("REDIS_PASSWORD", "pw")], "me", Change(|b| b.username("me")), ANY),
    case("REDIS_PASSWORD", SINGLE, "pw", Change(|b| b.password("pw")), ANY),
    case("REDIS_PASSWORD_FILE", SINGLE, "/run/pw", Change(|b| b.password_file("/run/pw")), ANY),
    case("REDIS_DB", SINGLE, "2", Change(|b| b.db(2)), &["-1", "x", "4294967296"]),
    case("REDIS_CLUSTER", SINGLE, "true", Whole(|| nodes(&[("h", 6379)])), FLAGS),
    case("REDIS_NODES", NOTHING, "a:1, b,[::1]:3", Whole(|| nodes(&[("a", 1), ("b", 6379), ("::1", 3)])), &["a:0", "a,,b", "a b", "::1", "a:1:2"]),
    case("REDIS_NODE{n}_HOST", NOTHING, "a", Whole(|| nodes(&[("a", 6379)])), HOSTS),
    case("REDIS_NODE{n}_PORT", &[("REDIS_NODE1_HOST", "a")], "7000", Whole(|| nodes(&[("a", 7000)])), PORTS),
    case("REDIS_CLUSTER_SCALE_READS", CLUSTER, "slave", Change(|b| b.scale_reads(ScaleReads::Replica)), &["none", "slaves"]),
    case("REDIS_CLUSTER_MAX_REDIRECTIONS", CLUSTER, "5", Change(|b| b.max_redirections(5)), &["0", "101", "x", "+1"]),
    case("REDIS_CLUSTER_RETRY_DELAY_ON_CLUSTER_DOWN", CLUSTER, "250", Change(|b| b.retry_delay_on_cluster_down(ms(250))), DELAYS),
    case("REDIS_CLUSTER_RETRY_DELAY_ON_FAILOVER", CLUSTER, "1s", Change(|b| b.retry_delay_on_failover(ms(1_000))), DELAYS),
    case("REDIS_CLUSTER_ENABLE_OFFLINE_QUEUE", CLUSTER, "true", Change(|b| b.offline_queue(true)), FLAGS),
    case("REDIS_SENTINEL", &[("REDIS_SENTINEL1_HOST", "s"), ("REDIS_MASTER_NAME", "m"), ("REDIS_HOST", "h")], "true", Whole(|| sentinels(&[("s", 26379)])), FLAGS),
    case("REDIS_SENTINEL{n}_HOST", &[("REDIS_MASTER_NAME", "m")], "s", Whole(|| sentinels(&[("s", 26379)])), HOSTS),
    case("REDIS_SENTINEL{n}_PORT", SENTINEL, "26380", Whole(|| sentinels(&[("s", 26380)])), PORTS),
    case("REDIS_MASTER_NAME", &[("REDIS_SENTINEL1_HOST", "s")], "m", Whole(|| sentinels(&[("s", 26379)])), NAMES),
    case("REDIS_SENTINEL_USERNAME", &[("REDIS_SENTINEL1_HOST", "s"), ("REDIS_MASTER_NAME", "m"), ("REDIS_SENTINEL_PASSWORD", "pw")], "me", Change(|b| b.sentinel_username("me")), ANY),
    case("REDIS_SENTINEL_PASSWORD", SENTINEL, "pw", Change(|b| b.sentinel_password("pw")), ANY),
    case("REDIS_SENTINEL_PASSWORD_FILE", SENTINEL, "/run/pw", Change(|b| b.sentinel_password_file("/run/pw")), ANY),
    case("REDIS_SENTINEL_RETRY_DELAY_ON_FAILOVER", SENTINEL, "50ms", Change(|b| b.retry_delay_on_failover(ms(50))), DELAYS),
    case("REDIS_SENTINEL_RETRY_DELAY_ON_CLUSTER_DOWN", SENTINEL, "1m", Change(|b| b.retry_delay_on_cluster_down(ms(60_000))), DELAYS),
    case("REDIS_TLS", SINGLE, "true", Effect::Tls(|tls| tls), FLAGS),
    case("REDIS_TLS_SERVERNAME", ENCRYPTED, "redis.example.com", Effect::Tls(|tls| tls.server_name("redis.example.com")), HOSTS),
    case("REDIS_TLS_REJECT_UNAUTHORIZED", ENCRYPTED, "false", Effect::Tls(|tls| tls.reject_unauthorized(false)), FLAGS),
    case("REDIS_TLS_CA_FILE", ENCRYPTED, "/ca", Effect::Tls(|tls| tls.ca_file("/ca")), ANY),
    case("REDIS_TLS_CERT_FILE", WITH_KEY, "/cert", Effect::Tls(|tls| tls.client_certificate("/cert", "/key")), ANY),
    case("REDIS_TLS_KEY_FILE", WITH_CERT, "/key", Effect::Tls(|tls| tls.client_certificate("/cert", "/key")), ANY),
    case("REDIS_REQUIRED", SINGLE, "TRUE", Change(|b| b.required(true)), FLAGS),
    case("REDIS_LAZY_CONNECT", SINGLE, "1", Change(|b| b.lazy_connect(true)), FLAGS),
    case("REDIS_CONNECT_TIMEOUT", SINGLE, "250", Change(|b| b.connect_timeout(ms(250))), TIMES),
    case("REDIS_COMMAND_TIMEOUT", SINGLE, "2s", Change(|b| b.command_timeout(ms(2_000))), TIMES),
    case("REDIS_ENABLE_READY_CHECK", SINGLE, "false", Change(|b| b.ready_check(false)), FLAGS),
    case("REDIS_MAX_LOADING_TIMEOUT", SINGLE, "1m", Change(|b| b.max_loading_timeout(ms(60_000))), TIMES),
    case("REDIS_MAX_RETRIES_PER_REQUEST", SINGLE, "0", Change(|b| b.max_retries(0)), &["101", "x", "-1"]),
    case("REDIS_ENABLE_OFFLINE_QUEUE", SINGLE, "true", Change(|b| b.offline_queue(true)), FLAGS),
    case("REDIS_FAMILY", SINGLE, "6", Change(|b| b.family(Family::V6)), &["5", "IPv4", "46"]),
    case("REDIS_KEEP_ALIVE", SINGLE, "false", Change(|b| b.keep_alive(None)), &["500", "10h", "yes"]),
    case("REDIS_NO_DELAY", SINGLE, "false", Change(|b| b.no_delay(false)), FLAGS),
    case("REDIS_CONNECTION_NAME", SINGLE, "taskflow-app", Change(|b| b.connection_name("taskflow-app")), NAMES),
    #[cfg(feature = "sqlite")]
    case("SQLITE_PATH", NOTHING, "/x", Other(|s| matches!(&s.selected, Selected::Sqlite(path) if path.to_str() == Some("/x"))), ANY),
    #[cfg(not(feature = "sqlite"))]
    case("SQLITE_PATH", NOTHING, "", Other(|s| matches!(s.selected, Selected::Memory)), ANY),
    case("NAMESPACE", NOTHING, "shop", Other(|s| s.namespace.as_deref() == Some("shop")), &["Shop", "a_b", "a b"]),
    case("INSTANCE_ID", NOTHING, "shop-1", Other(|s| s.instance_id.as_deref() == Some("shop-1")), NAMES),
];

impl Case {
    fn variable(&self) -> Variable {
        let found = VARIABLES.iter().find(|variable| variable.name == self.name);
        *found.unwrap_or_else(|| panic!("{} is not in the table", self.name))
    }

    /// The name as somebody writes it.
    fn written(&self) -> String {
        names::numbered(self.name, 1)
    }

    fn vars<'a>(&'a self, name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
        let beside = self.beside.iter().copied();
        beside.chain([(name, value)]).collect()
    }
}

#[test]
fn every_row_has_one_case() {
    let cases: Vec<_> = CASES.iter().map(|case| case.name).collect();
    let rows: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(cases, rows);
}

#[cfg(feature = "redis")]
#[test]
fn alone() {
    for case in CASES {
        let name = case.written();
        let vars = case.vars(&name, case.value);
        match case.effect {
            Change(change) => {
                let base = config(case.beside);
                let changed = change(base.clone().into_builder()).build().unwrap();
                assert_eq!(config(&vars), changed, "{vars:?}");
                assert_ne!(base, changed, "{vars:?}");
            }
            Whole(whole) => assert_eq!(config(&vars), whole().build().unwrap(), "{vars:?}"),
            Effect::Tls(change) => assert_tls(&vars, change),
            Other(holds) => assert!(holds(&settings(&vars)), "{vars:?}"),
        }
    }
}

#[cfg(feature = "tls")]
fn assert_tls(vars: &[(&str, &str)], change: fn(Tls) -> Tls) {
    let expected = Config::builder(Endpoint::tcp("h", 6379)).tls(change(Tls::new()));
    assert_eq!(config(vars), expected.build().unwrap(), "{vars:?}");
}

#[cfg(all(feature = "redis", not(feature = "tls")))]
fn assert_tls(vars: &[(&str, &str)], _: fn(Tls) -> Tls) {
    if vars.contains(&("REDIS_TLS", "true")) {
        let expected = "REDIS_TLS: expected a build with the feature `tls` of redis-conn";
        assert_eq!(errors(vars), [expected]);
    } else {
        let warnings = settings(vars).warnings;
        assert!(warnings[0].starts_with("TLS is off"), "{warnings:?}");
    }
}

#[cfg(feature = "redis")]
#[test]
fn the_documented_example_can_be_used() {
    for case in CASES.iter().filter(|case| case.name != "SQLITE_PATH") {
        let (Value::Default(value) | Value::Example(value)) = case.variable().value;
        if case.name == "REDIS_CLUSTER" || case.name == "REDIS_SENTINEL" {
            continue;
        }
        let name = case.written();
        settings(&case.vars(&name, value));
    }
}

#[test]
fn a_mistyped_value_is_named_with_what_is_expected() {
    for case in CASES {
        let name = case.written();
        for wrong in case.mistyped {
            let expected = ConfigError::new(name.clone(), wrong, reason(case.variable()));
            let errors = read(&case.vars(&name, wrong)).expect_err(wrong);
            let found = errors.iter().any(|error| *error == expected);
            assert!(found, "{expected}: {errors}");
            // A value without a server is a mistake, too.
            let errors = read(&[(&name, wrong)]).expect_err(wrong);
            assert!(errors.iter().any(|error| *error == expected), "{expected}");
        }
    }
}

#[test]
fn only_free_text_cannot_be_mistyped() {
    let free = CASES.iter().filter(|case| case.mistyped.is_empty());
    let free: BTreeSet<_> = free.map(|case| case.name).collect();
    let expected = [
        // Has a test of its own, because what is expected depends on what is wrong.
        "REDIS_URL",
        "REDIS_USERNAME",
        "REDIS_PASSWORD",
        "REDIS_PASSWORD_FILE",
        "REDIS_SENTINEL_USERNAME",
        "REDIS_SENTINEL_PASSWORD",
        "REDIS_SENTINEL_PASSWORD_FILE",
        "REDIS_TLS_CA_FILE",
        "REDIS_TLS_CERT_FILE",
        "REDIS_TLS_KEY_FILE",
        "SQLITE_PATH",
    ];
    assert_eq!(free, BTreeSet::from(expected));
}

#[test]
fn only_what_chooses_a_backend_always_has_an_effect() {
    let always = VARIABLES.iter().filter(|row| row.scope == Scope::Always);
    let always: Vec<_> = always.map(|row| row.name).collect();
    let expected = [
        "REDIS_CLUSTER",
        "REDIS_SENTINEL",
        "REDIS_REQUIRED",
        "SQLITE_PATH",
        "NAMESPACE",
        "INSTANCE_ID",
    ];
    assert_eq!(always, expected);
}

/// What else is set, with which the variable has no effect.
#[cfg(feature = "redis")]
fn without_effect(scope: Scope) -> Option<Vars> {
    match scope {
        Scope::Always => None,
        Scope::Server => Some(NOTHING),
        Scope::Tls | Scope::Sentinel => Some(SINGLE),
        Scope::Cluster => Some(&[("REDIS_HOST", "h"), ("REDIS_CLUSTER", "false")]),
        Scope::Single => Some(&[
            ("REDIS_SENTINEL", "true"),
            ("REDIS_SENTINEL1_HOST", "s"),
            ("REDIS_MASTER_NAME", "m"),
        ]),
    }
}

#[cfg(feature = "redis")]
#[test]
fn without_effect_is_warned_about() {
    for case in CASES {
        // These choose, or contradict, or need another one beside them.
        let chooses = ["REDIS_URL", "REDIS_SENTINEL{n}_HOST"].contains(&case.name);
        let is_half = [
            "REDIS_USERNAME",
            "REDIS_SENTINEL_USERNAME",
            "REDIS_TLS_CERT_FILE",
            "REDIS_TLS_KEY_FILE",
        ]
        .contains(&case.name)
            || case.name.ends_with("{n}_PORT");
        let Some(beside) = without_effect(case.variable().scope).filter(|_| !chooses && !is_half)
        else {
            continue;
        };
        if case.name == "REDIS_TLS" && !cfg!(feature = "tls") {
            continue;
        }
        let name = case.written();
        let vars: Vec<_> = beside
            .iter()
            .copied()
            .chain([(&*name, case.value)])
            .collect();
        let warnings = settings(&vars).warnings;
        let named = |warning: &String| {
            let (_, names) = warning.split_once("so these have no effect: ").unwrap();
            names.split(", ").any(|found| found == name)
        };
        assert!(warnings.iter().any(named), "{vars:?}: {warnings:?}");
        assert_eq!(settings(beside).warnings, [""; 0], "{beside:?}");
        if !beside.is_empty() {
            assert_eq!(config(&vars), config(beside), "{vars:?}");
        }
    }
}
