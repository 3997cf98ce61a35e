//! Carrying from the server to the client, where most faults bite.

use std::{collections::VecDeque, future::pending};

use tokio::{
    io::AsyncReadExt as _,
    net::tcp::{ReadHalf, WriteHalf},
    time::{Instant, sleep_until},
};

use super::{
    connection::{CHUNK, Link, write},
    fault::{AfterDrop, Fault},
};

/// Held-back bytes beyond which nothing more is read, as a full socket buffer would do it.
const HELD_BACK: usize = 1024 * 1024;

/// Carries until the server closes and everything that may be delivered is.
pub(super) async fn download(mut server: ReadHalf<'_>, client: WriteHalf<'_>, link: &Link) {
    let mut control = link.control.clone();
    let mut delivery = Delivery::new(client, link);
    let mut buffer = vec![0; CHUNK];
    let mut open = true;
    while open || !delivery.queue.is_empty() {
        let (fault, version) = {
            let control = control.borrow_and_update();
            (control.fault.clone(), control.version)
        };
        delivery.obey(&fault, version);
        tokio::select! {
            changed = control.changed() => if changed.is_err() { return },
            read = server.read(&mut buffer), if open && delivery.held_back < HELD_BACK => {
                open = match read {
                    Ok(len @ 1..) => delivery.receive(&buffer[..len], &link.fault()),
                    _ => false,
                };
            }
            () = delivery.due() => if delivery.deliver(&link.fault()).await.is_err() { return },
        }
    }
    if link.swallows(&Fault::Pass) || delivery.stalled {
        // The client must not see the server's end either; its own ends the connection.
        pending::<()>().await;
    }
}

/// What waits for being delivered to the client.
struct Delivery<'a> {
    client: WriteHalf<'a>,
    link: &'a Link,
    queue: VecDeque<(Instant, Vec<u8>)>,
    held_back: usize,
    /// How many bytes may still be delivered, and whether it was counted that they were not enough.
    allowance: Option<u64>,
    counted: bool,
    version: Option<u64>,
    stalled: bool,
    random: u64,
}

impl<'a> Delivery<'a> {
    fn new(client: WriteHalf<'a>, link: &'a Link) -> Self {
        Self {
            client,
            link,
            queue: VecDeque::new(),
            held_back: 0,
            allowance: None,
            counted: false,
            version: None,
            stalled: false,
            // Fixed, so that a failure repeats itself.
            random: 0x9E37_79B9_7F4A_7C15,
        }
    }

    /// Takes notice of a fault that was set since the last time.
    fn obey(&mut self, fault: &Fault, version: u64) {
        if self.version.replace(version) != Some(version) {
            self.allowance = match fault {
                Fault::FreezeAfter(bytes) => Some(*bytes),
                _ => None,
            };
            self.counted = false;
        }
        if self.frozen() && !self.queue.is_empty() && !self.counted {
            self.counted = true;
            self.link.live.add(|stats| stats.frozen += 1);
        }
    }

    /// Queues what the server sent; returns whether more is to be read.
    fn receive(&mut self, chunk: &[u8], fault: &Fault) -> bool {
        if self.link.swallows(fault) {
            self.link.lose(chunk.len());
            return true;
        }
        let (passed, ended) = self
            .link
            .with_replies(|replies| (replies.received(chunk, fault), replies.ended()));
        let kept = passed.kept;
        if !kept.is_empty() {
            let due = self.due_time(fault);
            self.held_back += kept.len();
            self.queue.push_back((due, kept));
        }
        if passed.replies + passed.pushes > 0 {
            self.link.live.add(|stats| {
                stats.dropped_replies += passed.replies;
                stats.dropped_pushes += passed.pushes;
            });
        }
        self.stalled = ended == Some(AfterDrop::Stall);
        ended != Some(AfterDrop::Close)
    }

    /// Waits until the first of the queue may be delivered. Bytes never overtake each other: those
    /// behind it wait for it even if they are due before.
    async fn due(&self) {
        match self.queue.front() {
            Some((due, _)) if !self.frozen() => sleep_until(*due).await,
            _ => pending().await,
        }
    }

    /// Delivers the first of the queue, as far as it may.
    async fn deliver(&mut self, fault: &Fault) -> std::io::Result<()> {
        let Some((due, mut bytes)) = self.queue.pop_front() else {
            return Ok(());
        };
        self.held_back -= bytes.len();
        if self.link.swallows(fault) {
            self.link.lose(bytes.len());
            return Ok(());
        }
        if let Some(allowance) = &mut self.allowance {
            let now = usize::try_from(*allowance)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            *allowance -= now as u64;
            let rest = bytes.split_off(now);
            if !rest.is_empty() {
                self.held_back += rest.len();
                self.queue.push_front((due, rest));
            }
        }
        write(&mut self.client, &bytes, fault, self.link).await
    }

    fn frozen(&self) -> bool {
        self.allowance == Some(0)
    }

    fn due_time(&mut self, fault: &Fault) -> Instant {
        let mut due = Instant::now();
        if let Fault::Delay { base, jitter } = fault {
            self.link.live.add(|stats| stats.delayed += 1);
            due += *base + jitter.mul_f64(self.next_random());
        }
        due
    }

    /// A number from 0 to 1 (xorshift).
    fn next_random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        f64::from((self.random >> 32) as u32) / f64::from(u32::MAX)
    }
}
