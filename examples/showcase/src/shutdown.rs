//! The end: what runs may finish, what is left is cancelled, and the backend is closed last.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::routes::problem;

/// How long requests that run may take to finish.
pub(crate) const FINISH: Duration = Duration::from_secs(8);
/// How long the answers to cancelled requests may take to be sent.
const CANCEL: Duration = Duration::from_millis(500);
/// How long the backend may take to close. All three together stay under the ten seconds after
/// which an orchestrator may kill the process.
pub(crate) const CLOSE: Duration = Duration::from_secs(1);

/// Completes on SIGTERM or Ctrl-C. The handlers are in place when this function returns.
pub(crate) fn requested() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Serves `app` until `requested` completes, and then for at most `finish` until what runs is
/// finished, after which it is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    requested: impl Future<Output = ()> + Send + 'static,
    finish: Duration,
) -> io::Result<()> {
    let (cancel, cancelled) = watch::channel(false);
    let (begin, begun) = oneshot::channel();
    let app = app
        .layer(from_fn_with_state(cancelled, cancel_late))
        .into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        requested.await;
        let _ = begin.send(());
    });
    let mut server = pin!(server.into_future());
    let late = async {
        let _ = begun.await;
        sleep(finish).await;
    };
    tokio::select! {
        result = &mut server => return result,
        () = late => {}
    }
    cancel.send_replace(true);
    timeout(CANCEL, server).await.unwrap_or(Ok(()))
}

/// Middleware that answers 503 for a request which still runs when `cancelled` turns true.
async fn cancel_late(
    State(mut cancelled): State<watch::Receiver<bool>>,
    request: Request,
    next: Next,
) -> Response {
    tokio::select! {
        response = next.run(request) => response,
        Ok(_) = cancelled.wait_for(|cancelled| *cancelled) => {
            problem(StatusCode::SERVICE_UNAVAILABLE).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::future::pending;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::Notify;

    /// What a client gets whose request begins before the end and takes `work`.
    async fn answer_to(work: impl Future<Output = ()> + Clone + Send + Sync + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        client.write_all(request).await.unwrap();

        let running = Arc::new(Notify::new());
        let begins = Arc::clone(&running);
        let handler = get(async move || {
            begins.notify_one();
            work.await;
            "done"
        });
        let app = Router::new().route("/", handler);
        let requested = async move { running.notified().await };
        serve(listener, app, requested, Duration::from_millis(50))
            .await
            .unwrap();

        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        timeout(Duration::from_secs(20), read)
            .await
            .expect("an answer")
            .unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_that_runs_may_finish() {
        let answer = answer_to(std::future::ready(())).await;
        assert!(answer.ends_with("\r\n\r\ndone"), "{answer}");
    }

    #[tokio::test]
    async fn a_request_that_runs_too_long_is_answered_503() {
        let answer = answer_to(pending()).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
}
