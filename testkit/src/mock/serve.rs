//! Serving the mock's connections.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    Shared,
    defaults::Session,
    message::{Answer, Request},
};
use crate::proxy::resp::Framer;

/// What a connection is told by the test.
#[derive(Debug)]
pub(super) enum Order {
    Send(Vec<u8>),
    Close,
}

pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                let (number, orders) = shared.admit();
                connections.spawn(serve(client, number, orders, Arc::clone(&shared)));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(
    mut client: TcpStream,
    number: usize,
    mut orders: mpsc::UnboundedReceiver<Order>,
    shared: Arc<Shared>,
) {
    let mut conversation = Conversation::new(number, &shared);
    let mut buffer = vec![0; 16 * 1024];
    let mut open = true;
    while open {
        let mut out = Vec::new();
        tokio::select! {
            read = client.read(&mut buffer) => match read {
                Ok(len @ 1..) => open = conversation.hear(&buffer[..len], &mut out),
                _ => break,
            },
            order = orders.recv() => match order {
                Some(Order::Send(bytes)) => out = bytes,
                Some(Order::Close) | None => break,
            },
        }
        open &= client.write_all(&out).await.is_ok();
    }
    shared.dismiss(number);
}

struct Conversation<'a> {
    number: usize,
    shared: &'a Shared,
    framer: Framer,
    frame: Vec<u8>,
    session: Session,
}

impl<'a> Conversation<'a> {
    fn new(number: usize, shared: &'a Shared) -> Self {
        Self {
            number,
            shared,
            framer: Framer::default(),
            frame: Vec::new(),
            session: Session::default(),
        }
    }

    /// Answers the requests that end in `chunk`; returns whether the connection stays open.
    fn hear(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) -> bool {
        while !chunk.is_empty() {
            let taken = self.framer.take(chunk);
            self.frame.extend_from_slice(&chunk[..taken]);
            chunk = &chunk[taken..];
            if !self.framer.at_boundary() {
                continue;
            }
            let request = Request::parse(self.number, &std::mem::take(&mut self.frame));
            if !request.args.is_empty() && !self.answer(request, out) {
                return false;
            }
        }
        true
    }

    fn answer(&mut self, request: Request, out: &mut Vec<u8>) -> bool {
        let mut answer = self.shared.decide(&request);
        if answer == Answer::Default {
            answer = self.session.answer(&request, &self.shared.guise());
        }
        answer.encode(self.session.resp3, out);
        self.shared.record(request);
        answer != Answer::Close
    }
}
