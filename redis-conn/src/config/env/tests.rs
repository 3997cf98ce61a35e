mod cases;
mod topologies;

#[cfg(feature = "redis")]
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    Endpoint, Error, ErrorKind, FromEnvError, Topology,
    config::variables::{REDIS_PASSWORD, VARIABLES, Value},
};

fn read(vars: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    let os = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
    Settings::from_vars(vars.iter().map(os))
}

fn settings(vars: &[(&str, &str)]) -> Settings {
    read(vars).unwrap_or_else(|errors| panic!("{vars:?}: {errors}"))
}

fn errors(vars: &[(&str, &str)]) -> Vec<String> {
    let errors = read(vars).expect_err(&format!("{vars:?}"));
    errors.iter().map(ToString::to_string).collect()
}

#[cfg(feature = "redis")]
fn config(vars: &[(&str, &str)]) -> Config {
    match settings(vars).selected {
        Selected::Redis(config) => *config,
        other => panic!("{vars:?}: {other:?}"),
    }
}

#[test]
fn nothing_set_is_in_process() {
    for vars in [
        &[][..],
        &[("PATH", "/bin"), ("HOST", "redis")],
        &[("REDIS_HOST", ""), ("REDIS_URL", ""), ("SQLITE_PATH", "")],
        &[("REDIS_CLUSTER", "False"), ("REDIS_SENTINEL", "0")],
        &[("REDIS_REQUIRED", "false")],
    ] {
        let settings = settings(vars);
        assert!(matches!(settings.selected, Selected::Memory), "{vars:?}");
        assert_eq!((settings.namespace, settings.instance_id), (None, None));
        assert_eq!(
            (settings.notes, settings.warnings),
            (vec![], vec![]),
            "{vars:?}"
        );
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn a_file() {
    let settings = settings(&[("SQLITE_PATH", "/var/lib/x.db")]);
    let Selected::Sqlite(path) = settings.selected else {
        panic!("{:?}", settings.selected);
    };
    assert_eq!(path, PathBuf::from("/var/lib/x.db"));
}

#[test]
fn names_of_service_and_process() {
    let longest = "i".repeat(128);
    let settings = settings(&[("NAMESPACE", "shop-2"), ("INSTANCE_ID", &longest)]);
    assert_eq!(settings.namespace.as_deref(), Some("shop-2"));
    assert_eq!(settings.instance_id.as_deref(), Some(longest.as_str()));
    assert!(settings.warnings.is_empty());
}

#[cfg(feature = "redis")]
#[test]
fn a_server_in_parts() {
    let found = config(&[
        ("REDIS_HOST", "cache.internal"),
        ("REDIS_PORT", "7000"),
        ("REDIS_USERNAME", "app"),
        ("REDIS_PASSWORD", "s3cr3t"),
        ("REDIS_DB", "2"),
        ("REDIS_REQUIRED", "TRUE"),
        ("REDIS_CONNECT_TIMEOUT", "250"),
        ("REDIS_COMMAND_TIMEOUT", "2s"),
        ("REDIS_KEEP_ALIVE", "60000"),
    ]);
    let expected = Config::builder(Endpoint::tcp("cache.internal", 7000))
        .username("app")
        .password("s3cr3t")
        .db(2)
        .required(true)
        .connect_timeout(Duration::from_millis(250))
        .command_timeout(Duration::from_secs(2))
        .keep_alive(Duration::from_secs(60));
    assert_eq!(found, expected.build().unwrap());
}

#[cfg(feature = "redis")]
#[test]
fn a_server_by_url() {
    let found = config(&[
        ("REDIS_URL", "redis://app:s3cr3t@host/2"),
        ("REDIS_REQUIRED", "1"),
    ]);
    let expected = Config::from_url("redis://app:s3cr3t@host/2").unwrap();
    assert_eq!(
        found,
        expected.into_builder().required(true).build().unwrap()
    );
}

#[cfg(feature = "redis")]
#[test]
fn keep_alive_is_a_switch_or_a_duration() {
    for (text, expected) in [
        ("true", Some(Config::KEEP_ALIVE)),
        ("1", Some(Config::KEEP_ALIVE)),
        ("FALSE", None),
        ("0", None),
        ("30s", Some(Duration::from_secs(30))),
        ("30000", Some(Duration::from_secs(30))),
    ] {
        let found = config(&[("REDIS_HOST", "h"), ("REDIS_KEEP_ALIVE", text)]);
        assert_eq!(found.keep_alive(), expected, "{text}");
    }
}

#[cfg(feature = "redis")]
#[test]
fn the_documented_defaults_are_the_defaults() {
    const SERVERS: [&[(&str, &str)]; 3] = [
        &[("REDIS_HOST", "h")],
        &[("REDIS_NODE1_HOST", "h")],
        &[("REDIS_SENTINEL1_HOST", "h"), ("REDIS_MASTER_NAME", "m")],
    ];
    for server in SERVERS {
        let unset = config(server);
        for variable in VARIABLES {
            let Some(default) = variable.default() else {
                continue;
            };
            let name = names::numbered(variable.name, 1);
            let switches = ["REDIS_CLUSTER", "REDIS_SENTINEL"].contains(&&*name);
            let needs_host = variable.name.contains("{n}") && !server[0].0.starts_with(&name[..11]);
            if !name.starts_with("REDIS_") || switches || needs_host {
                continue;
            }
            let mut vars = server.to_vec();
            vars.push((&name, default));
            assert_eq!(config(&vars), unset, "{variable:?}");
        }
    }
    assert_eq!(
        Some(crate::namespace::Namespace::default().as_str()),
        NAMESPACE.default()
    );
}

#[test]
fn mistyped() {
    for (name, value, shown) in [
        (
            "REDIS_URL",
            "redis://host:0",
            r#"REDIS_URL="redis://host:0": expected a port"#,
        ),
        (
            "REDIS_URL",
            "cache.internal",
            r#"REDIS_URL="***": expected redis://"#,
        ),
        (
            "REDIS_HOST",
            "host:6379",
            r#"REDIS_HOST="host:6379": expected a host name"#,
        ),
        (
            "REDIS_HOST",
            "ho\tst",
            r#"REDIS_HOST="ho\tst": expected a host name"#,
        ),
        (
            "REDIS_HOST",
            "redis://me:pw@host",
            r#"REDIS_HOST="redis://***@host": expected a host name"#,
        ),
        (
            "REDIS_PORT",
            "70000",
            r#"REDIS_PORT="70000": expected a port from 1 to 65535 (default: 6379)"#,
        ),
        ("REDIS_PORT", "0", r#"REDIS_PORT="0": expected a port"#),
        (
            "REDIS_PORT",
            "6379 ",
            r#"REDIS_PORT="6379 ": expected a port"#,
        ),
        (
            "REDIS_DB",
            "-1",
            r#"REDIS_DB="-1": expected the number of a database"#,
        ),
        (
            "REDIS_REQUIRED",
            "yes",
            r#"REDIS_REQUIRED="yes": expected `true` or `false`"#,
        ),
        (
            "REDIS_CONNECT_TIMEOUT",
            "0",
            r#"REDIS_CONNECT_TIMEOUT="0": expected milliseconds"#,
        ),
        (
            "REDIS_CONNECT_TIMEOUT",
            "5 s",
            r#"REDIS_CONNECT_TIMEOUT="5 s": expected milliseconds"#,
        ),
        (
            "REDIS_COMMAND_TIMEOUT",
            "18446744073709551615m",
            r#"REDIS_COMMAND_TIMEOUT="18446744073709551615m": expected"#,
        ),
        (
            "REDIS_COMMAND_TIMEOUT",
            "25h",
            r#"REDIS_COMMAND_TIMEOUT="25h": expected milliseconds"#,
        ),
        (
            "REDIS_COMMAND_TIMEOUT",
            "s",
            r#"REDIS_COMMAND_TIMEOUT="s": expected milliseconds"#,
        ),
        (
            "REDIS_KEEP_ALIVE",
            "500",
            r#"REDIS_KEEP_ALIVE="500": expected `true`, `false`, or a duration from 1s"#,
        ),
        (
            "REDIS_CLUSTER",
            "yes",
            r#"REDIS_CLUSTER="yes": expected `true` or `false`"#,
        ),
        (
            "REDIS_SENTINEL",
            "2",
            r#"REDIS_SENTINEL="2": expected `true` or `false`"#,
        ),
        (
            "NAMESPACE",
            "Shop",
            r#"NAMESPACE="Shop": expected 1 to 32 characters"#,
        ),
        (
            "INSTANCE_ID",
            "a b",
            r#"INSTANCE_ID="a b": expected 1 to 128 visible ASCII"#,
        ),
    ] {
        let errors = errors(&[(name, value)]);
        assert!(errors[0].starts_with(shown), "{errors:?}");
    }
}

#[test]
fn a_long_value_is_cut_and_a_line_end_escaped() {
    let value = format!("\n{}", "é".repeat(200));
    let expected = format!(r#"INSTANCE_ID="\n{}…": "#, "é".repeat(63));
    let errors = errors(&[("INSTANCE_ID", &value)]);
    assert!(errors[0].starts_with(&expected), "{errors:?}");
}

#[test]
fn the_table_says_what_is_shown() {
    for (variable, shown) in [
        (REDIS_PASSWORD, "***"),
        (REDIS_URL, "redis://***@h"),
        (REDIS_HOST, "redis://***@h"),
    ] {
        assert_eq!(display(variable, "redis://:s3cr3t@h"), shown);
    }
    assert_eq!(display(REDIS_URL, "s3cr3t"), "***");
    assert_eq!(display(REDIS_HOST, "h"), "h");
}

#[cfg(unix)]
#[test]
fn not_utf8() {
    use std::os::unix::ffi::OsStringExt as _;

    let garbage = || OsString::from_vec(vec![b'a', 0xff]);
    for variable in VARIABLES {
        let name = names::numbered(variable.name, 1);
        let found = Settings::from_vars([(OsString::from(&name), garbage())]);
        let errors = found.expect_err(&name).to_string();
        assert_eq!(errors, format!("{name}: expected a value in UTF-8"));
    }
    let others = [(garbage(), garbage()), (OsString::from("OTHER"), garbage())];
    assert!(Settings::from_vars(others).is_ok());
}

#[test]
fn conflicts_name_both_variables() {
    for (vars, one, other) in [
        (
            &[("REDIS_URL", "redis://h"), ("REDIS_HOST", "h")][..],
            "REDIS_URL",
            "REDIS_HOST",
        ),
        (
            &[("REDIS_URL", "redis://h"), ("REDIS_PORT", "1")],
            "REDIS_URL",
            "REDIS_PORT",
        ),
        (
            &[("REDIS_URL", "redis://h"), ("REDIS_USERNAME", "u")],
            "REDIS_URL",
            "REDIS_USERNAME",
        ),
        (
            &[("REDIS_URL", "redis://h"), ("REDIS_PASSWORD", "p")],
            "REDIS_URL",
            "REDIS_PASSWORD",
        ),
        (
            &[("REDIS_URL", "redis://h"), ("REDIS_DB", "1")],
            "REDIS_URL",
            "REDIS_DB",
        ),
        (
            &[("REDIS_HOST", "h"), ("REDIS_USERNAME", "u")],
            "REDIS_USERNAME",
            "REDIS_PASSWORD",
        ),
        (
            &[("REDIS_HOST", "h"), ("SQLITE_PATH", "/x")],
            "REDIS_HOST",
            "SQLITE_PATH",
        ),
        (
            &[("REDIS_URL", "redis://h"), ("SQLITE_PATH", "/x")],
            "REDIS_URL",
            "SQLITE_PATH",
        ),
        (
            &[("REDIS_CLUSTER", "true"), ("SQLITE_PATH", "/x")],
            "REDIS_CLUSTER",
            "SQLITE_PATH",
        ),
        (
            &[("REDIS_CLUSTER", "true"), ("REDIS_SENTINEL", "true")],
            "REDIS_CLUSTER",
            "REDIS_SENTINEL",
        ),
        (
            &[("REDIS_HOST", "h"), ("REDIS_NODE1_HOST", "a")],
            "REDIS_HOST",
            "REDIS_NODE1_HOST",
        ),
        (
            &[("REDIS_URL", "redis://h"), ("REDIS_NODES", "a")],
            "REDIS_URL",
            "REDIS_NODES",
        ),
        (
            &[
                ("REDIS_CLUSTER", "true"),
                ("REDIS_URL", "redis://h"),
                ("REDIS_NODES", "a"),
            ],
            "REDIS_URL",
            "REDIS_NODES",
        ),
        (
            &[
                ("REDIS_SENTINEL", "true"),
                ("REDIS_URL", "redis://h"),
                ("REDIS_SENTINEL1_HOST", "a"),
            ],
            "REDIS_URL",
            "REDIS_SENTINEL1_HOST",
        ),
        (
            &[("REDIS_NODE1_HOST", "a"), ("REDIS_SENTINEL1_HOST", "s")],
            "REDIS_NODE1_HOST",
            "REDIS_SENTINEL1_HOST",
        ),
        (
            &[("REDIS_NODES", "a"), ("REDIS_NODE1_HOST", "a")],
            "REDIS_NODES",
            "REDIS_NODE1_HOST",
        ),
        (
            &[("REDIS_NODES", "a"), ("SQLITE_PATH", "/x")],
            "REDIS_NODES",
            "SQLITE_PATH",
        ),
        (
            &[("REDIS_SENTINEL1_HOST", "a"), ("SQLITE_PATH", "/x")],
            "REDIS_SENTINEL1_HOST",
            "SQLITE_PATH",
        ),
        (
            &[("REDIS_PARTITIONS", "a"), ("SQLITE_PATH", "/x")],
            "REDIS_PARTITIONS",
            "SQLITE_PATH",
        ),
        (
            &[("REDIS_PASSWORD", "p"), ("REDIS_PASSWORD_FILE", "/x")],
            "REDIS_PASSWORD",
            "REDIS_PASSWORD_FILE",
        ),
        (
            &[
                ("REDIS_SENTINEL_PASSWORD", "p"),
                ("REDIS_SENTINEL_PASSWORD_FILE", "/x"),
            ],
            "REDIS_SENTINEL_PASSWORD",
            "REDIS_SENTINEL_PASSWORD_FILE",
        ),
        (
            &[("REDIS_SENTINEL_USERNAME", "me")],
            "REDIS_SENTINEL_USERNAME",
            "REDIS_SENTINEL_PASSWORD",
        ),
        (
            &[("REDIS_URL", "redis://:p@h"), ("REDIS_PASSWORD_FILE", "/x")],
            "REDIS_URL",
            "REDIS_PASSWORD_FILE",
        ),
        (
            &[
                ("REDIS_URL", "redis://:p@h"),
                ("REDIS_USERNAME", "me"),
                ("REDIS_PASSWORD_FILE", "/x"),
            ],
            "REDIS_URL",
            "REDIS_USERNAME",
        ),
        (
            &[("REDIS_URL", "rediss://h"), ("REDIS_TLS", "false")],
            "REDIS_TLS",
            "REDIS_URL",
        ),
        (
            &[
                ("REDIS_CLUSTER_ENABLE_OFFLINE_QUEUE", "true"),
                ("REDIS_ENABLE_OFFLINE_QUEUE", "true"),
            ],
            "REDIS_ENABLE_OFFLINE_QUEUE",
            "REDIS_CLUSTER_ENABLE_OFFLINE_QUEUE",
        ),
        (
            &[("REDIS_REQUIRED", "true"), ("SQLITE_PATH", "/x")],
            "REDIS_REQUIRED",
            "SQLITE_PATH",
        ),
    ] {
        let errors = read(vars).expect_err(&format!("{vars:?}"));
        let named = |error: &ConfigError| error.variables().eq([one, other]);
        assert!(errors.iter().any(named), "{vars:?}: {errors}");
    }
}

#[test]
fn a_required_server_must_be_named() {
    let errors = errors(&[("REDIS_REQUIRED", "true")]);
    assert_eq!(
        errors,
        ["REDIS_REQUIRED: expected the required server to be named by REDIS_URL or REDIS_HOST"]
    );
}

#[test]
fn everything_at_once() {
    let errors = read(&[
        ("REDIS_URL", "redis://me:s3cr3t@host:x"),
        ("REDIS_PORT", "y"),
        ("REDIS_DB", "z"),
        ("REDIS_COMMAND_TIMEOUT", "soon"),
        ("REDIS_NODE2_PORT", "x"),
        ("REDIS_TLS", "maybe"),
        ("NAMESPACE", "UPPER"),
    ]);
    let errors = errors.expect_err("all of it is wrong");
    for name in [
        "REDIS_URL",
        "REDIS_PORT",
        "REDIS_DB",
        "REDIS_COMMAND_TIMEOUT",
        "REDIS_NODE2_PORT",
        "REDIS_TLS",
        "NAMESPACE",
    ] {
        assert!(
            errors.iter().any(|error| error.variables().eq([name])),
            "{name}: {errors}"
        );
    }
    assert_eq!(
        errors.to_string().lines().count(),
        errors.into_iter().count()
    );
}

#[cfg(feature = "redis")]
#[test]
fn kubernetes_is_ignored_with_one_note() {
    let injected = [
        ("REDIS_PORT", "tcp://10.0.0.1:6379"),
        ("REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
        ("REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("REDIS_PORT_6379_TCP_PORT", "6379"),
        ("REDIS_PORT_6379_TCP_PROTO", "tcp"),
        ("REDIS_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_SERVICE_PORT", "6379"),
        ("REDIS_SERVICE_PORT_MAIN", "6379"),
        ("REDIS_MASTER_PORT", "tcp://10.0.0.1:6379"),
        ("REDIS_MASTER_SERVICE_HOST", "10.0.0.1"),
    ];
    let alone = settings(&injected);
    assert!(matches!(alone.selected, Selected::Memory));
    assert_eq!(alone.warnings, [""; 0]);
    let [note] = &alone.notes[..] else {
        panic!("{:?}", alone.notes);
    };
    for (name, _) in injected {
        assert!(note.contains(name), "{note}");
    }

    for server in [("REDIS_HOST", "h"), ("REDIS_URL", "redis://h")] {
        let vars = [server, injected[0]];
        assert_eq!(
            config(&vars).topology(),
            &Topology::Single(Endpoint::tcp("h", 6379))
        );
        assert_eq!(settings(&vars).notes.len(), 1);
    }
}

#[test]
fn what_has_no_effect_is_warned_about() {
    let found = settings(&[
        ("REDIS_PORT", "6379"),
        ("REDIS_PASSWORD", "s3cr3t"),
        ("REDIS_HSOT", "h"),
        ("REDIS_NO\nSUCH", "x"),
    ]);
    assert!(matches!(found.selected, Selected::Memory));
    assert_eq!(
        found.warnings,
        [
            "no server is named by REDIS_URL or REDIS_HOST, so these have no effect: REDIS_PASSWORD, REDIS_PORT",
            "REDIS_HSOT is unknown and has no effect: did you mean REDIS_HOST?",
            "REDIS_NO\\nSUCH is unknown and has no effect",
        ]
    );
}

#[cfg(feature = "redis")]
#[test]
fn an_unknown_name_beside_a_server_is_warned_about() {
    let found = settings(&[
        ("REDIS_HOST", "h"),
        ("REDIS_PASWORD", "s3cr3t"),
        ("REDIS_PORT", "1"),
    ]);
    assert_eq!(
        found.warnings,
        ["REDIS_PASWORD is unknown and has no effect: did you mean REDIS_PASSWORD?"]
    );
}

#[test]
fn a_backend_that_cannot_be_used_is_a_matter_of_configuration() {
    let cause = std::io::Error::other("not a database");
    let corrupt = Error::new(ErrorKind::Corrupt, "/x").with_source(cause);
    let error = FromEnvError::naming("SQLITE_PATH", corrupt.clone());
    assert_eq!(
        error.to_string(),
        "SQLITE_PATH: expected something that can be used: unknown stored layout: /x: not a database"
    );
    assert!(matches!(error, FromEnvError::Config(_)));
    let error = FromEnvError::from(corrupt);
    assert_eq!(
        error.to_string(),
        "unknown stored layout: /x: not a database"
    );
    assert!(matches!(error, FromEnvError::Config(_)));
}

#[test]
fn a_backend_that_does_not_answer_is_unreachable() {
    for kind in [ErrorKind::Timeout, ErrorKind::Unavailable] {
        let error = Error::new(kind, "busy");
        for error in [
            FromEnvError::naming("SQLITE_PATH", error.clone()),
            error.into(),
        ] {
            assert!(matches!(error, FromEnvError::Unreachable(_)), "{error:?}");
            assert!(std::error::Error::source(&error).is_some());
        }
    }
}

proptest! {
    /// Wherever a password stands, nothing that is said contains it.
    #[test]
    fn no_password_is_shown(
        // The first characters keep it from being a word of an error by chance.
        password in "Zq[a-zA-Z0-9!#$%&*+,./:;<=>?@^_|~-]{6,40}",
        extra in proptest::sample::subsequence(
            vec![("REDIS_PORT", "x"), ("SQLITE_PATH", "/x"), ("REDIS_CLUSTER", "true"), ("REDIS_REQUIRED", "maybe")],
            0..=4,
        ),
        place in 0..11_usize,
    ) {
        let (name, value) = match place {
            0 => ("REDIS_PASSWORD", password.clone()),
            1 => ("REDIS_URL", format!("redis://:{password}@host")),
            2 => ("REDIS_URL", format!("redis://me:{password}@host:0/x")),
            3 => ("REDIS_URL", format!("redis://{password}@host")),
            4 => ("REDIS_URL", format!("rediss://me:{password}@host")),
            5 => ("REDIS_URL", format!("me:{password}@host")),
            6 => ("REDIS_URL", format!("redis://me:{password}")),
            7 => ("REDIS_URL", format!("redis://host?password={password}")),
            8 => ("REDIS_SENTINEL_PASSWORD", password.clone()),
            9 => ("REDIS_NODES", format!("a:1,redis://me:{password}@host")),
            _ => ("REDIS_HOST", format!("redis://me:{password}@host")),
        };
        let mut vars = extra;
        vars.push((name, &value));
        let said = match read(&vars) {
            Ok(settings) => format!("{settings:?}"),
            Err(errors) => {
                let lines = errors.to_string();
                format!("{lines}\n{errors:?}\n{:?}", FromEnvError::from(errors.clone()))
            }
        };
        prop_assert!(!said.contains(&password), "{said}");
    }
}
