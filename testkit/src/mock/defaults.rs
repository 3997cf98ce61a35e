//! What the mock says unless told otherwise.

use std::{collections::BTreeSet, net::SocketAddr};

use super::message::{Answer, Request};
use crate::cluster::RedisCluster;

/// What the mock passes itself off as.
#[derive(Debug, Clone)]
pub(super) struct Guise {
    pub(super) version: String,
    pub(super) mode: String,
    pub(super) replica: bool,
    pub(super) slots: Vec<(u16, u16, SocketAddr)>,
}

/// What the mock remembers of one connection.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) resp3: bool,
    channels: BTreeSet<Vec<u8>>,
    patterns: BTreeSet<Vec<u8>>,
    shard_channels: BTreeSet<Vec<u8>>,
}

impl Session {
    /// The default answer to `request`.
    pub(super) fn answer(&mut self, request: &Request, guise: &Guise) -> Answer {
        let command = request.arg(0).to_ascii_uppercase();
        match command.as_str() {
            "HELLO" => self.hello(request, guise),
            "PING" if request.args.len() > 1 => Answer::bulk(request.arg(1)),
            "PING" => Answer::simple("PONG"),
            "AUTH" | "SELECT" | "READONLY" | "READWRITE" | "ASKING" | "QUIT" => Answer::ok(),
            "CLIENT" if request.is("CLIENT ID") => connection_id(request),
            "CLIENT" => Answer::ok(),
            "COMMAND" => Answer::Array(Vec::new()),
            "CLUSTER" => guise.cluster(request),
            "ROLE" => guise.role(),
            "INFO" => guise.info(),
            "PUBLISH" | "SPUBLISH" => Answer::Int(0),
            subscribes if subscribes.ends_with("SUBSCRIBE") => self.subscription(request),
            other => Answer::error(format!("ERR unknown command '{other}'")),
        }
    }

    fn hello(&mut self, request: &Request, guise: &Guise) -> Answer {
        match request.arg(1).as_str() {
            "" => {}
            "2" => self.resp3 = false,
            "3" => self.resp3 = true,
            _ => return Answer::error("NOPROTO unsupported protocol version"),
        }
        let role = if guise.replica { "replica" } else { "master" };
        let fields = [
            ("server", Answer::bulk("redis")),
            ("version", Answer::bulk(guise.version.clone())),
            ("proto", Answer::Int(if self.resp3 { 3 } else { 2 })),
            ("id", connection_id(request)),
            ("mode", Answer::bulk(guise.mode.clone())),
            ("role", Answer::bulk(role)),
            ("modules", Answer::Array(Vec::new())),
        ];
        let field = |(name, value)| (Answer::bulk(name), value);
        Answer::Map(fields.into_iter().map(field).collect())
    }

    /// Confirms each channel, as Redis does, with a frame of its own.
    fn subscription(&mut self, request: &Request) -> Answer {
        let kind = request.arg(0).to_ascii_lowercase();
        let leaves = kind.contains("unsubscribe");
        let mut named = request.args[1..].to_vec();
        if named.is_empty() && leaves {
            named.extend(self.set(&kind).iter().cloned());
        }
        let mut out = Vec::new();
        for channel in &named {
            let set = self.set(&kind);
            if leaves {
                set.remove(channel);
            } else {
                set.insert(channel.clone());
            }
            let frame = self.confirmation(&kind, Answer::Bulk(channel.clone()));
            frame.encode(self.resp3, &mut out);
        }
        if named.is_empty() {
            self.confirmation(&kind, Answer::Null)
                .encode(self.resp3, &mut out);
        }
        Answer::Raw(out)
    }

    fn confirmation(&self, kind: &str, channel: Answer) -> Answer {
        let count = match kind {
            "ssubscribe" | "sunsubscribe" => self.shard_channels.len(),
            _ => self.channels.len() + self.patterns.len(),
        };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Answer::Push(vec![Answer::bulk(kind), channel, Answer::Int(count)])
    }

    fn set(&mut self, kind: &str) -> &mut BTreeSet<Vec<u8>> {
        match kind {
            "psubscribe" | "punsubscribe" => &mut self.patterns,
            "ssubscribe" | "sunsubscribe" => &mut self.shard_channels,
            _ => &mut self.channels,
        }
    }
}

impl Guise {
    fn cluster(&self, request: &Request) -> Answer {
        match request.arg(1).to_ascii_uppercase().as_str() {
            "SLOTS" => Answer::Array(self.slots.iter().map(slot_range).collect()),
            "INFO" => Answer::bulk("cluster_enabled:1\r\ncluster_state:ok\r\n"),
            "KEYSLOT" => Answer::Int(RedisCluster::slot_of(request.arg(2)).into()),
            other => Answer::error(format!("ERR unknown subcommand '{other}'")),
        }
    }

    fn role(&self) -> Answer {
        let words = if self.replica {
            vec![
                Answer::bulk("slave"),
                Answer::bulk("127.0.0.1"),
                Answer::Int(6379),
                Answer::bulk("connected"),
                Answer::Int(0),
            ]
        } else {
            vec![
                Answer::bulk("master"),
                Answer::Int(0),
                Answer::Array(Vec::new()),
            ]
        };
        Answer::Array(words)
    }

    fn info(&self) -> Answer {
        let role = if self.replica { "slave" } else { "master" };
        Answer::bulk(format!(
            "# Server\r\nredis_version:{}\r\nredis_mode:{}\r\n\r\n\
             # Replication\r\nrole:{role}\r\n",
            self.version, self.mode
        ))
    }
}

fn connection_id(request: &Request) -> Answer {
    Answer::Int(i64::try_from(request.connection + 1).unwrap_or(i64::MAX))
}

fn slot_range((first, last, addr): &(u16, u16, SocketAddr)) -> Answer {
    let node = vec![
        Answer::bulk(addr.ip().to_string()),
        Answer::Int(addr.port().into()),
        // A node's id has forty digits.
        Answer::bulk(format!("{:040x}", addr.port())),
        Answer::Array(Vec::new()),
    ];
    Answer::Array(vec![
        Answer::Int((*first).into()),
        Answer::Int((*last).into()),
        Answer::Array(node),
    ])
}
