//! What the layer costs an admitted request in process: one after the other, of 10,000 peers.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bench::runtime;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::Full;
use redis_conn::Backend;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_ratelimit_redis::{HeaderStyle, Limiter, Policy, RateLimitLayer, key::PeerAddr};

const PEERS: u64 = 10_000;

type Body = Full<Bytes>;

fn answer(_: Request<Body>) -> Ready<Result<Response<Body>, Infallible>> {
    ready(Ok(Response::new(Body::from("ok"))))
}

fn plain() -> RateLimitLayer {
    let policy = Policy::new("bench")
        .limit(1_000_000_000, Duration::from_secs(60))
        .build()
        .expect("a policy");
    RateLimitLayer::new(Limiter::new(&Backend::memory()), policy)
}

async fn requests<S>(mut service: S, total: u64) -> Duration
where
    S: Service<Request<Body>, Error = Infallible>,
{
    let begin = Instant::now();
    for n in 0..total {
        let mut request = Request::new(Body::default());
        let peer = Ipv4Addr::from_bits((10 << 24) + (n % PEERS) as u32);
        request
            .extensions_mut()
            .insert(PeerAddr((peer, 1_024).into()));
        let ready = service.ready().await.expect("it never fails");
        black_box(ready.call(request).await.is_ok());
    }
    begin.elapsed()
}

fn layer(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("layer");
    group.throughput(Throughput::Elements(1));
    group.bench_function("none", |bencher| {
        bencher
            .to_async(&runtime)
            .iter_custom(|total| requests(service_fn(answer), total));
    });
    let cases = [
        ("admitted", plain()),
        (
            "admitted, without quota fields",
            plain().headers(HeaderStyle::None),
        ),
        ("admitted, settled by head", plain().settle(|_| Some(1))),
        ("admitted, in shadow mode", plain().shadow(true)),
    ];
    for (name, layer) in cases {
        group.bench_function(name, |bencher| {
            bencher
                .to_async(&runtime)
                .iter_custom(|total| requests(layer.layer(service_fn(answer)), total));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(20);
    targets = layer
}
criterion_main!(benches);
