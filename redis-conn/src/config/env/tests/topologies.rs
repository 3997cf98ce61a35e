//! Which servers the variables name together.

use super::*;

#[cfg(feature = "redis")]
fn hosts(vars: &[(&str, &str)]) -> Vec<String> {
    let config = config(vars);
    let seeds = config.topology().seeds().iter();
    seeds.map(ToString::to_string).collect()
}

#[cfg(feature = "redis")]
#[test]
fn numbered_and_listed() {
    for (vars, kind, expected) in [
        (
            &[
                ("REDIS_NODE1_HOST", "a"),
                ("REDIS_NODE1_PORT", "7000"),
                ("REDIS_NODE2_HOST", "::1"),
                ("REDIS_NODE3_HOST", "c"),
            ][..],
            "redis-cluster",
            &["a:7000", "[::1]:6379", "c:6379"][..],
        ),
        (
            &[("REDIS_CLUSTER", "true"), ("REDIS_URL", "redis://:pw@h:1")],
            "redis-cluster",
            &["h:1"],
        ),
        (
            &[
                ("REDIS_SENTINEL1_HOST", "a"),
                ("REDIS_SENTINEL2_HOST", "b"),
                ("REDIS_SENTINEL2_PORT", "1"),
                ("REDIS_MASTER_NAME", "m"),
            ],
            "redis-sentinel",
            &["a:26379", "b:1"],
        ),
        // All of it in one file: the switch decides.
        (
            &[
                ("REDIS_CLUSTER", "true"),
                ("REDIS_HOST", "h"),
                ("REDIS_NODE1_HOST", "a"),
                ("REDIS_SENTINEL1_HOST", "s"),
                ("REDIS_MASTER_NAME", "m"),
            ],
            "redis-cluster",
            &["a:6379"],
        ),
        (
            &[
                ("REDIS_SENTINEL", "true"),
                ("REDIS_HOST", "h"),
                ("REDIS_NODE1_HOST", "a"),
                ("REDIS_SENTINEL1_HOST", "s"),
                ("REDIS_MASTER_NAME", "m"),
            ],
            "redis-sentinel",
            &["s:26379"],
        ),
        (
            &[
                ("REDIS_CLUSTER", "false"),
                ("REDIS_SENTINEL", "0"),
                ("REDIS_HOST", "h"),
                ("REDIS_NODE1_HOST", "a"),
                ("REDIS_SENTINEL1_HOST", "s"),
            ],
            "redis-single",
            &["h:6379"],
        ),
    ] {
        assert_eq!(hosts(vars), expected, "{vars:?}");
        assert_eq!(config(vars).topology().kind(), kind, "{vars:?}");
    }
}

#[cfg(feature = "redis")]
#[test]
fn more_than_nine_are_in_the_order_of_their_numbers() {
    let names: Vec<_> = (1..=11).map(|n| format!("REDIS_NODE{n}_HOST")).collect();
    let values: Vec<_> = (1..=11).map(|n| format!("h{n}")).collect();
    let vars: Vec<_> = names
        .iter()
        .zip(&values)
        .map(|(n, v)| (&**n, &**v))
        .collect();
    let expected: Vec<_> = (1..=11).map(|n| format!("h{n}:6379")).collect();
    assert_eq!(hosts(&vars), expected);
}

#[test]
fn what_is_missing_or_too_much() {
    for (vars, expected) in [
        (
            &[("REDIS_CLUSTER", "true")][..],
            "REDIS_CLUSTER: expected a node to be named by REDIS_NODES, REDIS_NODE1_HOST, REDIS_URL or REDIS_HOST",
        ),
        (
            &[("REDIS_SENTINEL", "true"), ("REDIS_MASTER_NAME", "m")],
            "REDIS_SENTINEL: expected the sentinels to be named by REDIS_SENTINEL1_HOST",
        ),
        (
            &[("REDIS_SENTINEL1_HOST", "s")],
            "REDIS_MASTER_NAME: expected the name under which the sentinels know the server",
        ),
        (
            &[
                ("REDIS_NODE1_HOST", "a"),
                ("REDIS_NODE3_HOST", "c"),
                ("REDIS_NODE4_HOST", "d"),
            ],
            "REDIS_NODE2_HOST and REDIS_NODE3_HOST: expected numbers from 1 without a gap: the first of these is not set",
        ),
        (
            &[("REDIS_SENTINEL2_HOST", "s"), ("REDIS_MASTER_NAME", "m")],
            "REDIS_SENTINEL1_HOST and REDIS_SENTINEL2_HOST: expected numbers from 1 without a gap: the first of these is not set",
        ),
        (
            &[("REDIS_NODE1_HOST", "a"), ("REDIS_NODE2_PORT", "1")],
            "REDIS_NODE2_HOST and REDIS_NODE2_PORT: expected both or none of them: a port needs a host",
        ),
        (
            &[("REDIS_NODES", "a"), ("REDIS_DB", "1")],
            "REDIS_DB: expected database 0: a cluster has no other",
        ),
        (
            &[("REDIS_CLUSTER", "1"), ("REDIS_URL", "redis://h/1")],
            "REDIS_URL: expected database 0: a cluster has no other",
        ),
        (
            &[("REDIS_CLUSTER", "1"), ("REDIS_URL", "unix:///run/x")],
            "REDIS_CLUSTER and REDIS_URL: expected a host: the nodes of a cluster have no Unix sockets",
        ),
        (
            &[("REDIS_TLS_CERT_FILE", "/x")],
            "REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE: expected both or none of them: a certificate needs its key",
        ),
        (
            &[("REDIS_TLS_KEY_FILE", "/x")],
            "REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE: expected both or none of them: a certificate needs its key",
        ),
        (
            &[("REDIS_TLS", "true"), ("REDIS_URL", "unix:///run/x")],
            "REDIS_TLS and REDIS_URL: expected a host: a Unix socket has no TLS",
        ),
        (
            &[("REDIS_PARTITIONS", "a:1,b:2")],
            "REDIS_PARTITIONS=\"a:1,b:2\": expected a single server, a cluster or sentinels: independent nodes are not available yet in this version",
        ),
    ] {
        let errors = errors(vars);
        let expected_here = errors.iter().filter(|error| *error == expected);
        assert_eq!(expected_here.count(), 1, "{expected}: {errors:?}");
        if cfg!(feature = "redis") && !expected.contains("TLS") {
            assert_eq!(errors.len(), 1, "{errors:?}");
        }
    }
}

#[cfg(feature = "redis")]
#[test]
fn a_password_may_be_in_a_file_beside_a_url() {
    let found = config(&[
        ("REDIS_URL", "redis://h/1"),
        ("REDIS_USERNAME", "me"),
        ("REDIS_PASSWORD_FILE", "/run/pw"),
    ]);
    let expected = Config::builder(Endpoint::tcp("h", 6379)).db(1);
    let expected = expected.username("me").password_file("/run/pw");
    assert_eq!(found, expected.build().unwrap());
}

#[cfg(feature = "redis")]
#[test]
fn few_nodes_and_any_certificate_are_warned_about() {
    for (vars, expected) in [
        (&[("REDIS_HOST", "h")][..], None),
        (
            &[("REDIS_NODES", "a,b")],
            Some("nodes of the cluster that are named: 2."),
        ),
        (&[("REDIS_NODES", "a,b,c")], None),
        (
            &[("REDIS_SENTINEL1_HOST", "s"), ("REDIS_MASTER_NAME", "m")],
            Some("sentinels that are named: 1."),
        ),
        #[cfg(feature = "tls")]
        (
            &[
                ("REDIS_URL", "rediss://h"),
                ("REDIS_TLS_REJECT_UNAUTHORIZED", "false"),
            ],
            Some("TLS accepts any certificate"),
        ),
        #[cfg(feature = "tls")]
        (&[("REDIS_URL", "rediss://h")], None),
    ] {
        let warnings = config(vars).warnings();
        assert_eq!(
            warnings.len(),
            usize::from(expected.is_some()),
            "{warnings:?}"
        );
        let found = warnings.first().map_or("", String::as_str);
        assert!(
            found.starts_with(expected.unwrap_or_default()),
            "{vars:?}: {warnings:?}"
        );
    }
}

#[cfg(feature = "redis")]
#[test]
fn who_is_not_asked_is_warned_about() {
    let found = settings(&[
        ("REDIS_CLUSTER", "true"),
        ("REDIS_HOST", "h"),
        ("REDIS_PORT", "1"),
        ("REDIS_NODES", "a"),
        ("REDIS_SENTINEL1_HOST", "s"),
        ("REDIS_SENTINEL_RETRY_DELAY_ON_FAILOVER", "100"),
    ]);
    assert_eq!(
        found.warnings,
        [
            "no sentinel is asked, so these have no effect: REDIS_SENTINEL1_HOST, REDIS_SENTINEL_RETRY_DELAY_ON_FAILOVER",
            "the servers are named one by one, so these have no effect: REDIS_HOST, REDIS_PORT",
        ]
    );
}

fn prefixed(prefix: &str, vars: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    let os = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
    Settings::from_vars_prefixed(prefix, vars.iter().map(os))
}

#[cfg(feature = "redis")]
#[test]
fn only_names_with_the_prefix_count() {
    let found = prefixed(
        "CACHE_",
        &[
            ("REDIS_URL", "redis://other"),
            ("NAMESPACE", "other"),
            ("CACHE_REDIS_NODE1_HOST", "h"),
            ("CACHE_NAMESPACE", "shop"),
            ("CACHE_REDIS_PORT", "tcp://10.0.0.1:6379"),
            ("CACHE_REDIS_HSOT", "x"),
            ("CACHE_REDIS_MASTER_NAME", "m"),
        ],
    )
    .unwrap();
    let Selected::Redis(config) = &found.selected else {
        panic!("{found:?}");
    };
    let expected = Config::cluster([Endpoint::tcp("h", 6379)]);
    assert_eq!(**config, expected.build().unwrap());
    assert_eq!(found.namespace.as_deref(), Some("shop"));
    assert_eq!(
        found.notes,
        ["ignored, because Kubernetes sets them for a Service: CACHE_REDIS_PORT"]
    );
    assert_eq!(
        found.warnings,
        [
            "no sentinel is asked, so these have no effect: CACHE_REDIS_MASTER_NAME",
            "CACHE_REDIS_HSOT is unknown and has no effect: did you mean CACHE_REDIS_HOST?",
        ]
    );
    assert_eq!(found.name(SQLITE_PATH), "CACHE_SQLITE_PATH");
}

/// Whatever is wrong, no error names a variable that was not looked at.
#[test]
fn errors_name_the_prefixed_variables() {
    for (vars, expected) in [
        (
            &[("CACHE_REDIS_PORT", "x")][..],
            "CACHE_REDIS_PORT=\"x\": expected a port from 1 to 65535 (default: 6379)",
        ),
        (
            &[("CACHE_REDIS_REQUIRED", "true")],
            "CACHE_REDIS_REQUIRED: expected the required server to be named by CACHE_REDIS_URL or CACHE_REDIS_HOST",
        ),
        (
            &[
                ("CACHE_REDIS_REQUIRED", "true"),
                ("CACHE_SQLITE_PATH", "/x"),
            ],
            "CACHE_REDIS_REQUIRED and CACHE_SQLITE_PATH: expected only one of them: CACHE_REDIS_REQUIRED=true forbids the embedded backends",
        ),
        (
            &[("CACHE_REDIS_URL", "redis://h"), ("CACHE_REDIS_HOST", "h")],
            "CACHE_REDIS_URL and CACHE_REDIS_HOST: expected only one of them",
        ),
        (
            &[("CACHE_REDIS_CLUSTER", "true")],
            "CACHE_REDIS_CLUSTER: expected a node to be named by CACHE_REDIS_NODES, CACHE_REDIS_NODE1_HOST, CACHE_REDIS_URL or CACHE_REDIS_HOST",
        ),
        (
            &[("CACHE_REDIS_SENTINEL", "true")],
            "CACHE_REDIS_SENTINEL: expected the sentinels to be named by CACHE_REDIS_SENTINEL1_HOST",
        ),
        (
            &[("CACHE_REDIS_NODE2_HOST", "a")],
            "CACHE_REDIS_NODE1_HOST and CACHE_REDIS_NODE2_HOST: expected numbers from 1 without a gap: the first of these is not set",
        ),
        (
            &[("CACHE_REDIS_PARTITIONS", "x")],
            "CACHE_REDIS_PARTITIONS=\"x\": expected a single server, a cluster or sentinels: independent nodes are not available yet in this version",
        ),
    ] {
        let errors = prefixed("CACHE_", vars).expect_err(expected);
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert!(
            errors.iter().any(|error| error == expected),
            "{expected}: {errors:?}"
        );
        for error in &errors {
            let without = error
                .replace("CACHE_REDIS_", "")
                .replace("CACHE_SQLITE_", "");
            assert!(!without.contains("REDIS_"), "{error}");
        }
    }
}

#[test]
fn a_prefix_has_a_form() {
    let longest = format!("{}_", "A".repeat(31));
    for prefix in ["CACHE_", "_", "A1_", &longest] {
        assert!(prefixed(prefix, &[]).is_ok(), "{prefix}");
    }
    let too_long = format!("{}_", "A".repeat(32));
    for prefix in [
        "", "CACHE", "cache_", "CACHE-_", "CÄCHE_", "A B_", &too_long,
    ] {
        let errors = prefixed(prefix, &[]).expect_err(prefix).to_string();
        let expected = "expected 1 to 32 characters of `[A-Z0-9_]` that end with `_`";
        assert!(
            errors.starts_with("prefix=") && errors.ends_with(expected),
            "{errors}"
        );
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn an_unreadable_password_file_is_named_as_it_was_written() {
    let vars = [
        ("CACHE_REDIS_HOST", "h"),
        ("CACHE_REDIS_PASSWORD_FILE", "/nowhere/pw"),
    ];
    let Selected::Redis(config) = prefixed("CACHE_", &vars).unwrap().selected else {
        panic!("a server is named");
    };
    let error = config.login().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "wrong configuration: CACHE_REDIS_PASSWORD_FILE=\"/nowhere/pw\": expected a file that holds a password"
    );
}
