//! The store of the Redis backend: one script call for each decision.

mod batch;
mod scripts;
mod server;
mod wire;

use std::{sync::Arc, time::Duration};

use redis_conn::{
    Backend, Error, Subject,
    raw::{Call, Class, Redis},
};
use tokio::time::Instant;

use self::{
    batch::{Gates, Request},
    scripts::{BLOCK, PERMITS, REFUND},
    server::Server,
};
use super::{Asked, Permits, Store};
use crate::{
    Decision, Policy,
    counter::{Charge, Charged},
    counters::{Ask, corrupt},
};

/// Counts under one key for each policy and subject. The server's clock decides.
#[derive(Debug)]
pub(crate) struct RedisStore {
    backend: Backend,
    server: Arc<Server>,
    /// None where each call is sent by itself.
    gates: Option<Arc<Gates>>,
}

impl RedisStore {
    pub(crate) fn new(backend: &Backend, redis: &Redis, coalesce: bool) -> Self {
        let one_server = matches!(backend.kind(), "redis-single" | "redis-sentinel");
        Self {
            backend: backend.clone(),
            server: Arc::new(Server {
                redis: redis.clone(),
            }),
            gates: coalesce.then(|| Arc::new(Gates::new(one_server))),
        }
    }

    fn key(&self, policy: &Policy, subject: &Subject) -> String {
        super::key(&self.backend, policy, subject)
    }
}

impl Store for RedisStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let request = Request {
            policy: policy.clone(),
            key: self.key(policy, subject).into(),
            asked,
            until: Instant::now() + deadline,
        };
        match &self.gates {
            // Each permit has a name of its own, and a look may be sent twice.
            Some(gates) if !policy.has_leases() && asked.charge.units > 0 => {
                batch::decide(&self.server, gates, request).await
            }
            // In a box, so that those who wait do not carry the room for it.
            _ => Box::pin(self.server.decide(&request)).await,
        }
    }

    async fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let request = Request {
            policy: policy.clone(),
            key: self.key(policy, subject).into(),
            asked: Asked::new(Ask::All, Charge::of(0)),
            until: Instant::now() + deadline,
        };
        let (now, _, counters) = self.server.check(&request).await?;
        Ok(Decision::look(policy, &counters, now, cost))
    }

    async fn refund(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
        deadline: Duration,
    ) -> Result<(), Error> {
        let key = self.key(policy, subject);
        let call = self
            .server
            .redis
            .script(&REFUND, Class::AtMostOnce, &[&key]);
        let reply = call
            .int(units.into())
            .int(charged.at.at)
            .int(charged.ahead.into())
            .run(deadline)
            .await?;
        let [_, value] = reply.array()?;
        match value.int() {
            Ok(_) => Err(corrupt()),
            Err(_) => Ok(()),
        }
    }

    async fn block(
        &self,
        policy: &Policy,
        subject: &Subject,
        time: Duration,
        deadline: Duration,
    ) -> Result<(), Error> {
        let key = self.key(policy, subject);
        let call = self.server.redis.script(&BLOCK, Class::Idempotent, &[&key]);
        let call = call
            .int(super::micros(time))
            .int(policy.revision().into())
            .int(policy.keep());
        match call.run(deadline).await?.int()? {
            1 => Ok(()),
            _ => Err(corrupt()),
        }
    }

    async fn permits(
        &self,
        policy: &Policy,
        subject: &Subject,
        what: Permits,
        names: &[u64],
        deadline: Duration,
    ) -> Result<Vec<bool>, Error> {
        let key = self.key(policy, subject);
        let lease = policy.lease().unwrap_or_default();
        let names: Vec<u8> = names.iter().flat_map(|name| name.to_le_bytes()).collect();
        let call = self
            .server
            .redis
            .script(&PERMITS, Class::Idempotent, &[&key]);
        let call = call
            .int(u64::from(what == Permits::Renew))
            .int(super::micros(lease))
            .arg(names);
        let held = call.run(deadline).await?;
        let held = held.list().map_err(|_| corrupt())?;
        held.iter().map(|held| Ok(held.int()? == 1)).collect()
    }

    async fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<(), Error> {
        let delete = Call::new("DEL", Class::Idempotent).key(self.key(policy, subject));
        self.server.redis.call(delete, deadline).await.map(drop)
    }
}
