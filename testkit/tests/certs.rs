//! Certificates and the server that shows them, asked by the server's own client.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{path::Path, process::Command};

use testkit::{Authority, Certificate, RedisServer};

/// What `redis-cli` says to a PING over TLS, trusting `ca`.
fn ping(server: &RedisServer, ca: &Path, client: Option<&Certificate>) -> String {
    let mut cli = Command::new("redis-cli");
    cli.args(["-h", "localhost", "-p", &server.tls_port().to_string()]);
    cli.arg("--tls").arg("--cacert").arg(ca);
    if let Some(client) = client {
        cli.arg("--cert").arg(client.cert_file());
        cli.arg("--key").arg(client.key_file());
    }
    let output = cli.arg("PING").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_server_shows_a_certificate_that_only_its_authority_vouches_for() {
    let authority = Authority::new();
    let certificate = authority.server(&["localhost", "127.0.0.1"]);
    let server = RedisServer::builder()
        .open()
        .tls(&certificate)
        .start()
        .await;
    assert_eq!(ping(&server, &authority.ca_file(), None), "PONG");
    let stranger = ping(&server, &Authority::new().ca_file(), None);
    assert!(stranger.contains("certificate verify failed"), "{stranger}");

    // The files outlive what made them, and the plain port still answers.
    let ca = certificate.ca_file();
    drop((authority, certificate));
    server.restart().await;
    assert_eq!(ping(&server, &ca, None), "PONG");
    assert_eq!(server.keys().await, [""; 0]);
    let url = format!("rediss://localhost:{}", server.tls_port());
    assert_eq!(server.tls_url("localhost"), url);
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let expired = authority.expired_server(&["localhost"]);
    let server = RedisServer::builder().tls(&expired).start().await;
    let refused = ping(&server, &authority.ca_file(), None);
    assert!(refused.contains("certificate verify failed"), "{refused}");
}

#[tokio::test]
async fn a_client_can_be_asked_for_its_own_certificate() {
    let authority = Authority::new();
    let server = RedisServer::builder()
        .open()
        .tls(&authority.server(&["localhost"]))
        .tls_client_auth(true)
        .start()
        .await;
    let ca = authority.ca_file();
    let client = authority.client("app");
    assert_eq!(ping(&server, &ca, Some(&client)), "PONG");
    let without = ping(&server, &ca, None);
    assert_ne!(without, "PONG");
    let foreign = Authority::new().client("app");
    assert_ne!(ping(&server, &ca, Some(&foreign)), "PONG");
}
