//! One connection, and what the server has confirmed on it.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::redis::{PushInfo, PushKind, RedisError, Value, aio::AsyncPushSender};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    plan::{Home, Kind},
    switchboard::Switchboard,
};
use crate::redis::{
    dial::{Dialer, Purpose},
    fault::Failure,
    greeting::Role,
    target::{Found, Target},
};

/// How long a server that was silent may take to answer.
const PROBE: Duration = Duration::from_millis(500);

/// One connection of a listener.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) found: Found,
    pub(super) subscribed: HashSet<Arc<str>>,
    ear: Arc<Ear>,
    kind: Kind,
    fences: u64,
    deadline: Duration,
}

/// Hears what the server sends without being asked.
#[derive(Debug)]
struct Ear {
    switchboard: Arc<Switchboard>,
    home: Home,
    number: u64,
    /// Set by every push: proof of life that costs no command.
    heard: AtomicBool,
    /// The channels whose end we have asked for.
    leaving: Mutex<HashSet<Arc<str>>>,
    /// The server has ended a subscription by itself.
    broken: CancellationToken,
}

impl Session {
    /// Connects. `number` tells this connection from all others.
    pub(super) async fn open(
        target: &Target,
        dialer: &Dialer,
        switchboard: &Arc<Switchboard>,
        home: &Home,
        number: u64,
    ) -> Result<Self, Failure> {
        let ear = Arc::new(Ear {
            switchboard: Arc::clone(switchboard),
            home: home.clone(),
            number,
            heard: AtomicBool::new(false),
            leaving: Mutex::default(),
            broken: CancellationToken::new(),
        });
        let pushes = Some(pushes(Arc::clone(&ear)));
        let found = target.dial(dialer, Purpose::Bus, pushes).await?;
        // A replica takes subscriptions too, but a map that is up to date would have them move at once.
        let is_member = matches!(target, Target::Member(..));
        if is_member && found.connection.greeting.role != Role::Primary {
            return Err(Failure::away("the node of the channels is a replica now"));
        }
        Ok(Self {
            found,
            subscribed: HashSet::new(),
            ear,
            kind: home.kind,
            fences: 0,
            deadline: dialer.config().command_timeout(),
        })
    }

    /// Leaves and joins channels in one round trip; returns the channels that the server refuses.
    pub(super) async fn exchange(
        &mut self,
        leave: &[Arc<str>],
        join: &[Arc<str>],
    ) -> Result<Vec<(Arc<str>, Failure)>, Failure> {
        let mut commands = ::redis::pipe();
        for channel in leave {
            commands.cmd(self.kind.unsubscribe()).arg(&**channel);
        }
        for channel in join {
            commands.cmd(self.kind.subscribe()).arg(&**channel);
        }
        self.ear.leaving().extend(leave.iter().cloned());
        let answers = self.ask(commands, self.deadline).await?;
        self.ear.leaving().clear();
        let (left, joined) = answers.split_at(leave.len());
        for (channel, answer) in leave.iter().zip(left) {
            confirms(answer, &self.kind.unsubscribed(), channel)?;
            self.subscribed.remove(channel);
        }
        let mut refused = Vec::new();
        for (channel, answer) in join.iter().zip(joined) {
            if let Value::ServerError(refusal) = answer {
                refused.push((Arc::clone(channel), Failure::of_answer(refusal)));
            } else {
                confirms(answer, &self.kind.subscribed(), channel)?;
                self.subscribed.insert(Arc::clone(channel));
            }
        }
        Ok(refused)
    }

    /// Whether the server has said something since this was last asked, or says something now.
    pub(super) async fn is_alive(&mut self) -> bool {
        self.ear.heard.swap(false, Ordering::Relaxed)
            || self.ask(::redis::pipe(), PROBE).await.is_ok()
    }

    /// Ends when the server has ended a subscription by itself.
    pub(super) fn broken(&self) -> CancellationToken {
        self.ear.broken.clone()
    }

    /// Sends commands and returns as many answers.
    ///
    /// When a slot moves away the server ends its subscriptions with a push that looks like the answer to `SUNSUBSCRIBE`, and the
    /// client library takes it for the answer to the oldest command in flight. A fence behind the commands shows whether each
    /// answer belongs to its command.
    async fn ask(
        &mut self,
        mut commands: ::redis::Pipeline,
        deadline: Duration,
    ) -> Result<Vec<Value>, Failure> {
        self.fences += 1;
        let fence = self.fences.to_string();
        commands.cmd("PING").arg(&fence);
        let count = commands.cmd_iter().count();
        let sent = self
            .found
            .connection
            .commands
            .send_packed_commands(&commands, 0, count);
        let mut answers = match timeout(deadline, sent).await {
            Ok(answers) => answers.map_err(Failure::of_dial)?,
            Err(_) => {
                return Err(Failure::away(
                    "the server did not confirm a subscription in time",
                ));
            }
        };
        let fenced = answers
            .pop()
            .is_some_and(|answer| is_fence(&answer, &fence));
        if !fenced || answers.len() != count - 1 || self.ear.broken.is_cancelled() {
            return Err(out_of_step());
        }
        Ok(answers)
    }
}

impl Ear {
    fn leaving(&self) -> MutexGuard<'_, HashSet<Arc<str>>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, push: &PushInfo) {
        self.heard.store(true, Ordering::Relaxed);
        let [Value::BulkString(channel), rest] = push.data.as_slice() else {
            return;
        };
        let Ok(channel) = std::str::from_utf8(channel) else {
            return;
        };
        let kind = self.home.kind;
        if push.kind == kind.message() {
            if let Value::BulkString(frame) = rest {
                self.switchboard.deliver(self.number, channel, frame);
            }
        } else if push.kind == kind.subscribed() {
            // Here and not with the answer: a gap stands before the messages that follow.
            self.switchboard.confirm(&self.home, self.number, channel);
        } else if push.kind == kind.unsubscribed() && !self.leaving().contains(channel) {
            self.broken.cancel();
        }
    }
}

fn pushes(ear: Arc<Ear>) -> Arc<dyn AsyncPushSender> {
    Arc::new(move |push: PushInfo| -> Result<(), RedisError> {
        ear.hear(&push);
        Ok(())
    })
}

fn confirms(answer: &Value, wanted: &PushKind, channel: &str) -> Result<(), Failure> {
    match answer {
        Value::Push { kind, data }
            if kind == wanted
                && matches!(data.first(), Some(Value::BulkString(name)) if name == channel.as_bytes()) =>
        {
            Ok(())
        }
        _ => Err(out_of_step()),
    }
}

/// A user without the right to ask is none without the right to listen.
fn is_fence(answer: &Value, fence: &str) -> bool {
    match answer {
        Value::BulkString(text) => text == fence.as_bytes(),
        Value::SimpleString(text) => text == fence,
        Value::ServerError(refusal) => refusal.code() == "NOPERM",
        _ => false,
    }
}

fn out_of_step() -> Failure {
    Failure::away("the server ended a subscription that it had confirmed")
}
