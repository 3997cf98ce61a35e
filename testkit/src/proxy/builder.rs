//! Describing a proxy before it starts.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{FaultProxy, Upstream};

/// How many clients may wait to be accepted.
const BACKLOG: u32 = 1024;

/// What a [`FaultProxy`] is started with.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct FaultProxyBuilder {
    sockets: Sockets,
}

impl FaultProxyBuilder {
    /// Gives every socket of the proxy, towards clients and towards the server, buffers of about this many bytes for
    /// either direction, as far as the system goes along: whoever sends a lot must wait for its reader soon.
    pub fn buffers(mut self, bytes: u32) -> Self {
        self.sockets.buffers = Some(bytes);
        self
    }

    /// Starts a proxy in front of `upstream` that lets everything pass.
    pub async fn start(self, upstream: impl Into<Upstream>) -> FaultProxy {
        let listener = self.sockets.listen();
        let listener = listener.expect("the loopback has a free port");
        FaultProxy::serve(listener, upstream.into(), self.sockets)
    }
}

/// How the sockets of a proxy are made.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sockets {
    buffers: Option<u32>,
}

impl Sockets {
    /// The sockets that it accepts inherit its buffers.
    fn listen(self) -> io::Result<TcpListener> {
        let socket = self.sized(TcpSocket::new_v4()?)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        socket.listen(BACKLOG)
    }

    pub(super) async fn connect(self, upstream: SocketAddr) -> io::Result<TcpStream> {
        let socket = match upstream {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        self.sized(socket)?.connect(upstream).await
    }

    fn sized(self, socket: TcpSocket) -> io::Result<TcpSocket> {
        if let Some(bytes) = self.buffers {
            socket.set_recv_buffer_size(bytes)?;
            socket.set_send_buffer_size(bytes)?;
        }
        Ok(socket)
    }
}
