//! The spans of commands: the fields that a database client has, and no key.

#![cfg(all(feature = "redis", feature = "tracing"))]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use redis_conn::{
    Backend, Config,
    raw::{Call, Class},
};
use support::{LONG, redis};
use testkit::RedisServer;
use tracing::{
    Instrument as _, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt as _},
    registry::Registry,
};

type Fields = BTreeMap<String, String>;

/// Remembers every span, with its target among the fields.
#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<BTreeMap<u64, Fields>>>);

impl Spans {
    fn commands(&self) -> Vec<Fields> {
        let spans = self.0.lock().unwrap();
        let commands = spans
            .values()
            .filter(|span| span["target"] == "redis_conn::command");
        commands.cloned().collect()
    }
}

impl<S: Subscriber> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Collect(Fields::new());
        attributes.record(&mut fields);
        fields
            .0
            .insert("target".into(), attributes.metadata().target().into());
        self.0.lock().unwrap().insert(id.into_u64(), fields.0);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut fields = Collect(Fields::new());
        values.record(&mut fields);
        self.0
            .lock()
            .unwrap()
            .get_mut(&id.into_u64())
            .unwrap()
            .extend(fields.0);
    }
}

struct Collect(Fields);

impl Visit for Collect {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().into(), format!("{value:?}"));
    }
}

/// Two commands, one of them refused, inside of a span with fields of the same names.
async fn traffic(server: &RedisServer) {
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let caller = tracing::info_span!("caller", server.address = "mine");
    let commands = async {
        let set = Call::new("SET", Class::Idempotent)
            .key("tk:secret-key")
            .arg("secret-value");
        redis(&backend).call(set, LONG).await.unwrap();
        let push = Call::new("LPUSH", Class::AtMostOnce)
            .key("tk:secret-key")
            .arg("secret-value");
        redis(&backend).call(push, LONG).await.unwrap_err();
    };
    commands.instrument(caller).await;
}

#[tokio::test]
async fn a_command_is_a_span_of_a_database_client() {
    let server = RedisServer::builder().allow("+lpush").start().await;
    let spans = Spans::default();
    let subscriber = Registry::default().with(spans.clone().with_filter(LevelFilter::TRACE));
    let guard = tracing::subscriber::set_default(subscriber);
    traffic(&server).await;
    drop(guard);

    let port = server.port().to_string();
    let common = [
        ("otel.kind", "client"),
        ("db.system.name", "redis"),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
        ("target", "redis_conn::command"),
    ];
    let set = [("otel.name", "SET"), ("db.operation.name", "SET")];
    let push = [
        ("otel.name", "LPUSH"),
        ("db.operation.name", "LPUSH"),
        ("otel.status_code", "ERROR"),
        ("error.type", "WRONGTYPE"),
        ("db.response.status_code", "WRONGTYPE"),
    ];
    let fields = |own: &[(&str, &str)]| -> Fields {
        let all = common.iter().chain(own);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    assert_eq!(spans.commands(), [fields(&set), fields(&push)]);
    assert!(!format!("{spans:?}").contains("secret"), "{spans:?}");
}

#[tokio::test]
async fn nobody_who_does_not_look_at_traces_pays_for_spans() {
    let server = RedisServer::builder().allow("+lpush").start().await;
    let spans = Spans::default();
    let subscriber = Registry::default().with(spans.clone().with_filter(LevelFilter::DEBUG));
    let guard = tracing::subscriber::set_default(subscriber);
    traffic(&server).await;
    drop(guard);
    assert!(spans.commands().is_empty());
    let seen = spans.0.lock().unwrap();
    assert!(seen.values().any(|span| {
        span.get("server.address")
            .is_some_and(|address| address == "mine")
    }));
}
