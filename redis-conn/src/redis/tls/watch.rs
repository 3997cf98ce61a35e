//! Listening for the reason that a server gives when it ends a connection.
//!
//! With TLS 1.3 our side of the handshake is complete before the server has looked at our certificate: a refusal comes in place of
//! the first answer, where the client library knows only that the connection ended.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use super::refusal;
use crate::redis::socket::{BoxSocket, Ending};

/// More than the records of a refusal take.
const REFUSAL: usize = 256;

/// An encrypted connection that notes why the server ended it.
pub(super) struct Watched {
    stream: TlsStream<BoxSocket>,
    ending: Ending,
    /// The server has answered, so it takes us.
    accepted: bool,
}

impl Watched {
    pub(super) fn new(stream: TlsStream<BoxSocket>, ending: Ending) -> Self {
        Self {
            stream,
            ending,
            accepted: false,
        }
    }

    fn note(&self, error: &io::Error) {
        if let Some(refusal) = refusal::of_ending(error) {
            // The first reason is the reason.
            let _ = self.ending.set(refusal);
        }
    }

    /// A socket that takes nothing more may hold the refusal that explains it.
    fn look_for_refusal(&mut self, context: &mut Context<'_>) {
        let mut bytes = [0; REFUSAL];
        let read = Pin::new(&mut self.stream).poll_read(context, &mut ReadBuf::new(&mut bytes));
        if let Poll::Ready(Err(error)) = read {
            self.note(&error);
        }
    }

    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &written {
            self.note(error);
            if !self.accepted {
                self.look_for_refusal(context);
            }
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        match &read {
            Poll::Ready(Err(error)) => self.note(error),
            Poll::Ready(Ok(())) => self.accepted |= buffer.filled().len() > before,
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.written(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
