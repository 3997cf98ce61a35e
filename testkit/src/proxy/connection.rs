//! Carrying one connection.

use std::{
    future::Future,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
};

use super::{
    download::download,
    fault::{Control, Fault},
    replies::Replies,
    stats::Live,
};

/// How much is read at a time.
pub(super) const CHUNK: usize = 16 * 1024;

/// What both directions of a connection share.
pub(super) struct Link {
    pub(super) control: watch::Receiver<Control>,
    pub(super) live: Live,
    pub(super) replies: Mutex<Replies>,
    born: Born,
    lost_bytes: AtomicBool,
}

/// What had been done to live connections before this one began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Born {
    resets: u64,
    holes: u64,
}

impl Born {
    pub(super) fn now(control: &Control) -> Self {
        Self {
            resets: control.resets,
            holes: control.holes,
        }
    }
}

/// Closes `socket` with a reset.
pub(super) fn reset(socket: TcpStream) {
    // A socket that the peer has closed already needs no reset.
    let _ = socket.set_zero_linger();
    drop(socket);
}

/// Carries one connection until either side closes it, or a reset after its birth comes.
pub(super) async fn carry(
    client: TcpStream,
    upstream: impl Future<Output = io::Result<TcpStream>>,
    control: watch::Receiver<Control>,
    born: Born,
    live: Live,
) {
    let mut resets = control.clone();
    let link = Link {
        control,
        live,
        replies: Mutex::default(),
        born,
        lost_bytes: AtomicBool::new(false),
    };
    let (mut client, mut server) = (client, None);
    let reset_came = tokio::select! {
        biased;
        reset = resets.wait_for(|control| control.resets > born.resets) => reset.is_ok(),
        () = exchange(&mut client, &mut server, upstream, &link) => false,
    };
    if reset_came {
        link.live.add(|stats| stats.reset += 1);
        reset(client);
        server.into_iter().for_each(reset);
    }
}

async fn exchange(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    upstream: impl Future<Output = io::Result<TcpStream>>,
    link: &Link,
) {
    if matches!(link.fault(), Fault::Blackhole) {
        return swallow(client, link).await;
    }
    let Ok(connected) = upstream.await else {
        return;
    };
    // Coalescing would hide the boundaries that the faults set.
    let _ = (connected.set_nodelay(true), client.set_nodelay(true));
    let (server_reader, server_writer) = server.insert(connected).split();
    let (client_reader, client_writer) = client.split();
    tokio::select! {
        () = upload(client_reader, server_writer, link) => {}
        () = download(server_reader, client_writer, link) => {}
    }
}

async fn swallow(client: &mut TcpStream, link: &Link) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(len @ 1..) = client.read(&mut buffer).await {
        link.lose(len);
    }
}

/// Carries from the client to the server until the client closes.
async fn upload(mut client: ReadHalf<'_>, mut server: WriteHalf<'_>, link: &Link) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(len @ 1..) = client.read(&mut buffer).await {
        let fault = link.fault();
        if link.swallows(&fault) {
            link.lose(len);
            continue;
        }
        link.with_replies(|replies| replies.sending(&buffer[..len], &fault));
        // That the server has closed is for the other direction to find: its last replies may still
        // be on their way.
        let _ = write(&mut server, &buffer[..len], &fault, link).await;
    }
}

/// Writes `bytes`, sliced if the fault says so.
pub(super) async fn write(
    writer: &mut WriteHalf<'_>,
    bytes: &[u8],
    fault: &Fault,
    link: &Link,
) -> io::Result<()> {
    let Fault::Slice(size) = *fault else {
        return writer.write_all(bytes).await;
    };
    for slice in bytes.chunks(size.max(1)) {
        writer.write_all(slice).await?;
        link.live.add(|stats| stats.slices += 1);
        // Gives a reader on this thread the chance to see the slice alone.
        tokio::task::yield_now().await;
    }
    Ok(())
}

impl Link {
    pub(super) fn fault(&self) -> Fault {
        self.control.borrow().fault.clone()
    }

    /// Whether bytes that pass now are lost; once some were, all that follow are.
    pub(super) fn swallows(&self, fault: &Fault) -> bool {
        matches!(fault, Fault::Blackhole)
            || self.lost_bytes.load(Ordering::Relaxed)
            || self.control.borrow().holes > self.born.holes
    }

    pub(super) fn lose(&self, len: usize) {
        self.lost_bytes.store(true, Ordering::Relaxed);
        self.live.add(|stats| stats.swallowed_bytes += len as u64);
    }

    pub(super) fn with_replies<T>(&self, act: impl FnOnce(&mut Replies) -> T) -> T {
        act(&mut self.replies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
