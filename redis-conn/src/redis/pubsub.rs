//! One connection per process for everything that is subscribed to.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::redis::{PushInfo, PushKind, RedisError, Value, aio::AsyncPushSender};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    backoff::Backoff,
    classify,
    dial::{Connection, Dialer},
};
use crate::{Error, ErrorKind, bus::Hub, engine::closed, trace::event};

/// A connection that said nothing for so long is asked; a silent one would lose messages without a trace.
const QUIET: Duration = Duration::from_secs(2);
/// How many channels one command asks for.
const CHUNK: usize = 1_000;
const PROBE: Duration = Duration::from_millis(500);

/// The way to the task that owns the connection.
#[derive(Debug)]
pub(super) struct PubSub {
    requests: mpsc::UnboundedSender<Request>,
    error: watch::Receiver<Option<Error>>,
}

/// Tells whether the server confirmed.
type Answer = oneshot::Sender<Result<(), Error>>;

#[derive(Debug)]
enum Request {
    Listen(Arc<str>, Answer),
    Unlisten(Arc<str>),
}

impl PubSub {
    /// Starts the task. It connects when the first channel is asked for.
    pub(super) fn start(
        dialer: Arc<Dialer>,
        hub: Arc<Hub>,
        closed: CancellationToken,
        tasks: &TaskTracker,
        runtime: &Handle,
    ) -> Self {
        let (requests, inbox) = mpsc::unbounded_channel();
        let (status, error) = watch::channel(None);
        let task = Task {
            dialer,
            heard: Arc::new(AtomicBool::new(false)),
            hub,
            inbox,
            waiting: Vec::new(),
            status,
        };
        tasks.spawn_on(
            async move { closed.run_until_cancelled(task.run()).await },
            runtime,
        );
        Self { requests, error }
    }

    /// Returns when the server has confirmed the subscription.
    pub(super) async fn listen(&self, channel: &Arc<str>, deadline: Duration) -> Result<(), Error> {
        let (answer, confirmed) = oneshot::channel();
        let request = Request::Listen(Arc::clone(channel), answer);
        self.requests.send(request).map_err(|_| closed())?;
        match timeout(deadline, confirmed).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err(closed())),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "the subscription was not confirmed before the deadline",
            )),
        }
    }

    /// Why nobody who listens hears anything now.
    pub(super) fn error(&self) -> Option<Error> {
        self.error.borrow().clone()
    }

    pub(super) fn unlisten(&self, channel: &Arc<str>) {
        let _ = self.requests.send(Request::Unlisten(Arc::clone(channel)));
    }
}

/// Owns the connection and the set of confirmed channels.
#[derive(Debug)]
struct Task {
    dialer: Arc<Dialer>,
    hub: Arc<Hub>,
    /// Set by every push: proof of life that costs no command.
    heard: Arc<AtomicBool>,
    inbox: mpsc::UnboundedReceiver<Request>,
    /// Asked for, to be confirmed by the next connection.
    waiting: Vec<(Arc<str>, Answer)>,
    status: watch::Sender<Option<Error>>,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        // Whether messages may have been missed since the consumers were last told so.
        let mut missed = false;
        loop {
            if self.hub.is_empty() && self.waiting.is_empty() {
                missed = false;
                self.status.send_replace(None);
                if !self.next_request().await {
                    return;
                }
                continue;
            }
            match self.connect().await {
                Ok(session) => {
                    backoff.reset();
                    self.status.send_replace(None);
                    if std::mem::replace(&mut missed, true) {
                        self.hub.gap();
                    }
                    self.serve(session).await;
                    event!(warn, "the subscriptions lost their connection");
                    let text = "the connection of the subscriptions was lost";
                    let lost = Error::new(ErrorKind::Unavailable, text);
                    self.status.send_replace(Some(lost));
                }
                Err(error) => {
                    event!(warn, "the subscriptions are not connected: {error}");
                    let pause = backoff.after(&error);
                    self.status.send_replace(Some(error.clone()));
                    self.refuse_until(Instant::now() + pause, &error).await;
                }
            }
        }
    }

    /// Takes one request while there is no connection; `false` when the backend is gone.
    async fn next_request(&mut self) -> bool {
        match self.inbox.recv().await {
            Some(Request::Listen(channel, answer)) => self.waiting.push((channel, answer)),
            Some(Request::Unlisten(_)) => {}
            None => return false,
        }
        true
    }

    /// While the server is away a new subscription fails at once instead of waiting for its deadline.
    async fn refuse_until(&mut self, end: Instant, cause: &Error) {
        let refusal =
            || Err(Error::new(ErrorKind::Unavailable, "not subscribed").with_source(cause.clone()));
        self.waiting
            .drain(..)
            .for_each(|(_, answer)| drop(answer.send(refusal())));
        while let Ok(Some(request)) = tokio::time::timeout_at(end, self.inbox.recv()).await {
            if let Request::Listen(_, answer) = request {
                let _ = answer.send(refusal());
            }
        }
    }

    /// Connects and has every channel confirmed that somebody listens to.
    async fn connect(&mut self) -> Result<Session, Error> {
        let mut session = Session {
            connection: self.dialer.dial(Some(self.pushes())).await?,
            confirmed: HashSet::new(),
            deadline: self.dialer.config().command_timeout(),
        };
        let mut channels = self.hub.names();
        channels.extend(self.waiting.iter().map(|(channel, _)| Arc::clone(channel)));
        let refused = session.subscribe_all(channels).await?;
        for (channel, refusal) in &refused {
            event!(warn, "the server refuses a subscription: {refusal}");
            // Its subscribers must not believe that nothing is published.
            self.hub.end(channel);
        }
        for (channel, answer) in self.waiting.drain(..) {
            let refusal = refused.iter().find(|(name, _)| *name == channel);
            let _ = answer.send(refusal.map_or(Ok(()), |(_, refusal)| Err(refusal.clone())));
        }
        Ok(session)
    }

    fn pushes(&self) -> Arc<dyn AsyncPushSender> {
        let (hub, heard) = (Arc::clone(&self.hub), Arc::clone(&self.heard));
        Arc::new(move |push: PushInfo| -> Result<(), RedisError> {
            heard.store(true, Ordering::Relaxed);
            if push.kind == PushKind::Message
                && let [Value::BulkString(channel), Value::BulkString(frame)] = push.data.as_slice()
                && let Ok(channel) = std::str::from_utf8(channel)
            {
                hub.deliver(channel, frame);
            }
            Ok(())
        })
    }

    /// Serves requests until the connection ends or stops answering.
    async fn serve(&mut self, mut session: Session) {
        let mut probes = interval_at(Instant::now() + QUIET, QUIET);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let kept = tokio::select! {
                _ = &mut session.connection.driver => false,
                request = self.inbox.recv() => match request {
                    Some(request) => self.answer(&mut session, request).await,
                    None => false,
                },
                _ = probes.tick() => self.heard.swap(false, Ordering::Relaxed) || session.ping().await,
            };
            if !kept {
                return;
            }
        }
    }

    /// `false` if the connection failed.
    async fn answer(&self, session: &mut Session, request: Request) -> bool {
        match request {
            Request::Listen(channel, answer) => {
                let subscribed = session.subscribe(&channel).await;
                let kept = subscribed.as_ref().err().is_none_or(is_refusal);
                let _ = answer.send(subscribed);
                kept
            }
            // Another subscriber may have come meanwhile.
            Request::Unlisten(channel) if self.hub.has(&channel) => true,
            Request::Unlisten(channel) => session.unsubscribe(&channel).await.is_ok(),
        }
    }
}

/// One connection and what the server confirmed on it.
#[derive(Debug)]
struct Session {
    connection: Connection,
    confirmed: HashSet<Arc<str>>,
    deadline: Duration,
}

impl Session {
    /// Has all channels confirmed, in as few round trips as the server allows; returns those that it refuses.
    async fn subscribe_all(
        &mut self,
        channels: Vec<Arc<str>>,
    ) -> Result<Vec<(Arc<str>, Error)>, Error> {
        let mut refused = Vec::new();
        for chunk in channels.chunks(CHUNK) {
            let names: Vec<&str> = chunk.iter().map(|channel| &**channel).collect();
            let confirmation = self.connection.commands.subscribe(names);
            match confirmed(timeout(self.deadline, confirmation).await) {
                Ok(()) => self.confirmed.extend(chunk.iter().cloned()),
                // The server refuses all for the sake of one.
                Err(error) if is_forbidden(&error) => {
                    for channel in chunk {
                        match self.subscribe(channel).await {
                            Err(error) if is_forbidden(&error) => {
                                refused.push((Arc::clone(channel), error));
                            }
                            subscribed => subscribed?,
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    async fn subscribe(&mut self, channel: &Arc<str>) -> Result<(), Error> {
        if !self.confirmed.contains(channel) {
            let confirmation = self.connection.commands.subscribe(&**channel);
            confirmed(timeout(self.deadline, confirmation).await)?;
            self.confirmed.insert(Arc::clone(channel));
        }
        Ok(())
    }

    async fn unsubscribe(&mut self, channel: &Arc<str>) -> Result<(), Error> {
        if self.confirmed.remove(channel) {
            let confirmation = self.connection.commands.unsubscribe(&**channel);
            confirmed(timeout(self.deadline, confirmation).await)?;
        }
        Ok(())
    }

    async fn ping(&mut self) -> bool {
        let ping = ::redis::cmd("PING");
        let answer = self.connection.commands.send_packed_command(&ping);
        matches!(timeout(PROBE, answer).await, Ok(Ok(_)))
    }
}

/// Asking again would not help.
fn is_forbidden(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Server(code) if &**code == "NOPERM")
}

/// The server answered: the connection is as good as before.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Server(_))
}

fn confirmed(
    answer: Result<Result<(), RedisError>, tokio::time::error::Elapsed>,
) -> Result<(), Error> {
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(classify::dial(error)),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            "the server did not confirm a subscription in time",
        )),
    }
}
