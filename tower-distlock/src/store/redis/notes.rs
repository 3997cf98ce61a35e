//! Notes under a key each, in the slot of the lock. The server's clock ends them.

use std::time::Duration;

use redis_conn::{
    Error,
    raw::{Call, Class, Script, ScriptCall},
};

use super::{LAYOUT, RedisStore, run};
use crate::{
    name::Name,
    store::notes::{Kind, Note, Notes, bytes},
};

static ADVANCE: Script = Script::new(include_str!("../lua/note_advance.lua"));
static CONCLUDE: Script = Script::new(include_str!("../lua/note_conclude.lua"));

impl RedisStore {
    fn note_key(&self, name: &Name, kind: Kind) -> String {
        self.backend.key(LAYOUT, name.tag(), kind.rest())
    }

    /// Sent again it does the same: who asks tells its own note by the value.
    fn noting(
        &self,
        script: &'static Script,
        key: &str,
        note: &Note,
        keep: Duration,
    ) -> ScriptCall<'_> {
        let millis = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        self.server
            .redis
            .script(script, Class::Idempotent, &[key])
            .arg(bytes::digits(note.slot))
            .arg(bytes::encode(note))
            .int(millis.max(1))
    }
}

impl Notes for RedisStore {
    async fn advance(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> Result<Option<Note>, Error> {
        let key = self.note_key(name, kind);
        let call = self.noting(&ADVANCE, &key, note, keep);
        let stored = run(call, deadline).await?.bytes()?;
        stored.map(|stored| bytes::decode(&stored)).transpose()
    }

    async fn conclude(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> Result<bool, Error> {
        let key = self.note_key(name, kind);
        let call = self.noting(&CONCLUDE, &key, note, keep);
        match run(call, deadline).await?.int()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(bytes::corrupt()),
        }
    }

    async fn note(
        &self,
        name: &Name,
        kind: Kind,
        deadline: Duration,
    ) -> Result<Option<Note>, Error> {
        let get = Call::new("GET", Class::Idempotent).key(self.note_key(name, kind));
        let stored = self.server.redis.call(get, deadline).await?.bytes()?;
        stored.map(|stored| bytes::decode(&stored)).transpose()
    }
}
