//! The other end of the conversation.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinHandle};

use super::{SUBJECT, Stack};
use crate::bound::within;

/// An empty message: not compressed, of length 0.
pub(super) const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) http: StatusCode,
    pub(super) grpc: Option<i32>,
}

/// One connection to a server; it ends when this is dropped.
pub(super) struct Client {
    addr: SocketAddr,
    sender: Sender,
    driver: JoinHandle<()>,
}

enum Sender {
    Http(http1::SendRequest<Full<Bytes>>),
    Grpc(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub(super) async fn connect<S: Stack>(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the server listens");
        let io = TokioIo::new(stream);
        let (sender, driver) = if S::GRPC {
            let shaken = http2::handshake(TokioExecutor::new(), io).await;
            let (sender, connection) = shaken.expect("the server speaks HTTP/2");
            // The server's end of the connection is no failure of the client.
            (
                Sender::Grpc(sender),
                tokio::spawn(async { drop(connection.await) }),
            )
        } else {
            let shaken = http1::handshake(io).await;
            let (sender, connection) = shaken.expect("the server speaks HTTP/1");
            (
                Sender::Http(sender),
                tokio::spawn(async { drop(connection.await) }),
            )
        };
        Self {
            addr,
            sender,
            driver,
        }
    }

    /// Sends a request for `method` on behalf of `subject`, and reads the whole answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping this cancels the request.
    pub(super) async fn answer(&mut self, method: &str, subject: &str) -> Answer {
        within("an answer", self.exchange(method, subject)).await
    }

    async fn exchange(&mut self, method: &str, subject: &str) -> Answer {
        let path = format!("/{}/{method}", super::tonic::SERVICE);
        let response = self.send(&path, subject).await.expect("the server answers");
        let (head, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .expect("the server sends the whole body");
        let status = head.headers.get("grpc-status");
        let status = status.or_else(|| body.trailers()?.get("grpc-status"));
        let grpc = status.map(|code| {
            let code = code.to_str().ok().and_then(|code| code.parse().ok());
            code.expect("grpc-status is a number")
        });
        Answer {
            http: head.status,
            grpc,
        }
    }

    async fn send(&mut self, path: &str, subject: &str) -> hyper::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(Method::POST)
            .header(SUBJECT, subject);
        match &mut self.sender {
            Sender::Http(sender) => {
                let request = request
                    .uri(path)
                    .header("host", self.addr.to_string())
                    .body(Full::default())
                    .expect("the parts of the request are valid");
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Grpc(sender) => {
                let request = request
                    .uri(format!("http://{}{path}", self.addr))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(Full::from(EMPTY_MESSAGE))
                    .expect("the parts of the request are valid");
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
