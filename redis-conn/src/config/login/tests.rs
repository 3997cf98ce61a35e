use std::{
    error::Error as _,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;
use crate::{Config, ConfigBuilder, Credentials, Endpoint, config::credentials::LoginFuture};

fn local() -> ConfigBuilder {
    Config::builder(Endpoint::tcp("127.0.0.1", 6379))
}

fn login(username: Option<&str>, password: &str) -> Option<Login> {
    Some(Login::new(username.map(str::to_owned), password))
}

/// Gives another password each time.
struct Rotating(AtomicUsize);

impl Credentials for Rotating {
    fn login(&self) -> LoginFuture<'_> {
        Box::pin(async {
            let turn = self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Login::new(Some("app".to_owned()), format!("turn-{turn}")))
        })
    }
}

struct Failing(&'static str);

impl Credentials for Failing {
    fn login(&self) -> LoginFuture<'_> {
        Box::pin(async { Err(self.0.into()) })
    }
}

struct Empty;

impl Credentials for Empty {
    fn login(&self) -> LoginFuture<'_> {
        Box::pin(async { Ok(Login::new(None, "")) })
    }
}

#[tokio::test]
async fn nothing_and_a_fixed_password() {
    assert_eq!(local().build().unwrap().login().await.unwrap(), None);
    let config = local().username("me").password("pw").build().unwrap();
    let found = config.login().await.unwrap();
    assert_eq!(found, login(Some("me"), "pw"));
    assert_eq!(config.sentinel_login().await.unwrap(), None);
}

#[tokio::test]
async fn a_file_is_read_at_every_login() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    let config = local().username("me").password_file(&path).build().unwrap();
    let config = config.into_builder().sentinel_password_file(&path);
    let config = config.build().unwrap();
    for (content, password) in [
        ("first", "first"),
        ("second\n", "second"),
        ("third\r\n", "third"),
        (" fourth \n\n", " fourth \n"),
    ] {
        fs::write(&path, content).unwrap();
        let found = config.login().await.unwrap();
        assert_eq!(found, login(Some("me"), password), "{content:?}");
        let found = config.sentinel_login().await.unwrap();
        assert_eq!(found, login(None, password), "{content:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_without_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    let config = local().password_file(&path).build().unwrap();
    let long = b"s3cr3t".repeat(20_000);
    let contents: [(Option<&[u8]>, &str); 5] = [
        (None, "No such file"),
        (Some(b""), "it is empty"),
        (Some(b"\r\n"), "it is empty"),
        (Some(b"s3cr3t\xff"), "UTF-8"),
        (Some(&long), "it is longer than 64 KiB"),
    ];
    for (content, cause) in contents {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let error = config.login().await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Config);
        let expected = format!(
            "wrong configuration: password_file={path:?}: expected a file that holds a password"
        );
        assert_eq!(error.to_string(), expected);
        assert!(
            error.source().unwrap().to_string().contains(cause),
            "{error:?}"
        );
        assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");
    }
}

#[tokio::test]
async fn a_provider_is_asked_at_every_login() {
    let servers = Arc::new(Rotating(AtomicUsize::new(0)));
    let sentinels = Arc::new(Rotating(AtomicUsize::new(7)));
    let config = Config::sentinel([Endpoint::tcp("s", 26379)], "m")
        .credentials(servers)
        .sentinel_credentials(sentinels)
        .build()
        .unwrap();
    assert!(config.has_password());
    for turn in 0..3 {
        let found = config.login().await.unwrap();
        assert_eq!(found, login(Some("app"), &format!("turn-{turn}")));
    }
    let found = config.sentinel_login().await.unwrap();
    assert_eq!(found, login(Some("app"), "turn-7"));
}

#[tokio::test]
async fn a_provider_may_fail() {
    let config = local().credentials(Arc::new(Failing("the vault is sealed")));
    let error = config.build().unwrap().login().await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
    assert_eq!(error.source().unwrap().to_string(), "the vault is sealed");

    let config = local().credentials(Arc::new(Empty)).build().unwrap();
    let error = config.login().await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Config);
}

#[test]
fn no_output_contains_a_password() {
    let login = Login::new(Some("me".to_owned()), "s3cr3t");
    assert_eq!(
        format!("{login:?}"),
        r#"Login { username: Some("me"), password: *** }"#
    );
}
