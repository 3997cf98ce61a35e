//! One layer value, mounted on every stack that the family supports.
//!
//! [`run`] mounts clones of one layer on an axum `Router`, on plain hyper and on a tonic server, each
//! behind a real socket, and holds the same conversation with each:
//!
//! 1. as many requests as the layer is expected to admit; each reaches the handler,
//! 2. one more, which the layer must refuse; it does not reach the handler,
//! 3. one that its client gives up while the handler runs; the handler's future must be dropped, and
//!    no task may be left once the server has ended.
//!
//! Every request carries the header [`SUBJECT`] with a value of its own per stack for steps 1 and 2,
//! such as `axum`, and another one for step 3, such as `axum-cancelled`. A layer that counts by that
//! header has its full budget in each conversation.
//!
//! ```no_run
//! use http::StatusCode;
//! use testkit::stacks::{self, Expect};
//! # use tower::layer::util::Identity;
//!
//! # async fn demo() {
//! # let layer = Identity::new();
//! // 8 is RESOURCE_EXHAUSTED.
//! let refused = Expect { admit: 3, refused_http: StatusCode::TOO_MANY_REQUESTS, refused_grpc: 8 };
//! stacks::run(layer, refused).await;
//! # }
//! ```

mod axum;
mod client;
mod handler;
mod hyper;
mod tasks;
mod tonic;

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
};

use http::StatusCode;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

pub use self::{axum::Axum, handler::Handler, hyper::Hyper, tonic::Tonic};
use self::{
    client::{Answer, Client},
    tasks::Tasks,
};
use crate::bound::within;

/// The header that tells the subjects apart.
pub const SUBJECT: &str = "x-stack";

/// What the layer under test is expected to do with each subject.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    /// How many requests it admits before it refuses one.
    pub admit: usize,
    /// The status of a refusal in HTTP.
    pub refused_http: StatusCode,
    /// The `grpc-status` of a refusal in gRPC, where the HTTP status is 200.
    pub refused_grpc: i32,
}

/// A stack that layers can be mounted on.
pub trait Stack: Send + 'static {
    /// Its name, which is also its subject.
    const NAME: &'static str;
    /// Whether it speaks gRPC, that is, HTTP/2 with trailers.
    const GRPC: bool;
}

/// A layer that fits on a stack; every layer with the bounds that the stack itself demands does.
pub trait Mount<S: Stack>: Clone + Send + Sync + 'static {
    /// Serves `handler` behind this layer until `stop` is done and all connections are closed.
    fn serve(
        self,
        handler: Handler,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send;
}

/// Holds the conversation on all three stacks, with clones of `layer`.
///
/// # Panics
///
/// If the layer does anything else than expected.
pub async fn run<L>(layer: L, expect: Expect)
where
    L: Mount<Axum> + Mount<Hyper> + Mount<Tonic>,
{
    run_on::<Axum, _>(layer.clone(), expect).await;
    run_on::<Hyper, _>(layer.clone(), expect).await;
    run_on::<Tonic, _>(layer, expect).await;
}

/// Holds the conversation on one stack.
///
/// # Panics
///
/// If the layer does anything else than expected.
pub async fn run_on<S: Stack, L: Mount<S>>(layer: L, expect: Expect) {
    let tasks = Tasks::now();
    let server = Server::start::<S, L>(layer.clone()).await;
    admitted_and_refused::<S>(&server, expect).await;
    server.stop().await;

    // What the layer starts at its first use and keeps is no leak of the cancelled request.
    let tasks = tasks.settle().await;
    let server = Server::start::<S, L>(layer).await;
    cancelled::<S>(&server).await;
    server.stop().await;
    tasks.assert_none_left(S::NAME).await;
}

async fn admitted_and_refused<S: Stack>(server: &Server, expect: Expect) {
    let mut client = Client::connect::<S>(server.addr).await;
    let admitted = Answer {
        http: StatusCode::OK,
        grpc: S::GRPC.then_some(0),
    };
    for number in 1..=expect.admit {
        let answer = client.answer("Answer", S::NAME).await;
        assert_eq!(
            answer,
            admitted,
            "{}: request {number} must be admitted",
            S::NAME
        );
        assert_eq!(
            server.handler.stats().calls,
            number,
            "{}: the handler's calls",
            S::NAME
        );
    }
    let refused = if S::GRPC {
        Answer {
            http: StatusCode::OK,
            grpc: Some(expect.refused_grpc),
        }
    } else {
        Answer {
            http: expect.refused_http,
            grpc: None,
        }
    };
    let answer = client.answer("Answer", S::NAME).await;
    assert_eq!(
        answer,
        refused,
        "{}: one more request must be refused",
        S::NAME
    );
    let calls = server.handler.stats().calls;
    assert_eq!(
        calls,
        expect.admit,
        "{}: a refused request reached the handler",
        S::NAME
    );
}

async fn cancelled<S: Stack>(server: &Server) {
    let mut client = Client::connect::<S>(server.addr).await;
    let subject = format!("{}-cancelled", S::NAME);
    tokio::select! {
        answer = client.answer("Wait", &subject) => {
            panic!("{}: a request whose handler still runs was answered {answer:?}", S::NAME)
        }
        _ = server.handler.wait_for(|stats| stats.waiting == 1) => {}
    }
    // The client's end of the request is dropped by now.
    let stats = server.handler.wait_for(|stats| stats.waiting == 0).await;
    assert_eq!(
        stats.calls,
        1,
        "{}: the cancelled request ran again",
        S::NAME
    );
}

/// A server on a free port of 127.0.0.1.
struct Server {
    addr: SocketAddr,
    handler: Handler,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Server {
    async fn start<S: Stack, L: Mount<S>>(layer: L) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("the loopback has a free port");
        let addr = listener
            .local_addr()
            .expect("a bound socket has an address");
        let handler = Handler::default();
        let (stop, stopped) = oneshot::channel();
        let stopped = async move {
            // A dropped sender stops the server as well.
            let _ = stopped.await;
        };
        let served = tokio::spawn(layer.serve(handler.clone(), listener, stopped));
        Self {
            addr,
            handler,
            stop,
            served,
        }
    }

    async fn stop(self) {
        drop(self.stop);
        within("the server's end", self.served)
            .await
            .expect("the server does not panic");
    }
}
