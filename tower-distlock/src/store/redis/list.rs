//! Which locks are held.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, stream};
use redis_conn::{
    Error,
    raw::{Call, Class, Dedicated},
};
use tokio::time::Instant;

use super::{CONCURRENT, Keys, LAYOUT, RedisStore, left, wire::corrupt};
use crate::name::{escape, unescape};

impl RedisStore {
    /// The names of those that are held, as far as a tag tells them.
    pub(super) async fn held_with(
        &self,
        prefix: &str,
        until: Instant,
    ) -> Result<Vec<String>, Error> {
        // The keys of `*` without its brace.
        let pattern = self.backend.key(LAYOUT, &escape(prefix.as_bytes()), "held");
        let pattern = pattern.replace("}:held", "*}:held");
        let begins = self.backend.key(LAYOUT, "", "");
        let begins = begins.trim_end_matches("}:");
        let mut tags = BTreeSet::new();
        // On connections of their own: nobody else's command waits behind a long search.
        for mut server in self.server.redis.dedicated_to_each(left(until)).await? {
            for key in scan(&mut server, &pattern, until).await? {
                let tag = key.strip_prefix(begins);
                tags.extend(tag.and_then(|tag| tag.strip_suffix("}:held").map(str::to_owned)));
            }
            server.release();
        }
        let looks: Vec<_> = tags.iter().map(|tag| self.is_held(tag, until)).collect();
        let looks = stream::iter(looks).buffered(CONCURRENT);
        let looked: Vec<_> = looks.collect().await;
        looked.into_iter().filter_map(Result::transpose).collect()
    }

    async fn is_held(&self, tag: &str, until: Instant) -> Result<Option<String>, Error> {
        let keys = Keys::new(&self.backend, tag);
        let seen = self.look_at(&keys, left(until)).await?;
        Ok((!seen.holders.is_empty()).then(|| unescape(tag)))
    }
}

async fn scan(server: &mut Dedicated, pattern: &str, until: Instant) -> Result<Vec<String>, Error> {
    let (mut cursor, mut keys) = (b"0".to_vec(), Vec::new());
    loop {
        let scan = Call::new("SCAN", Class::Idempotent).arg(&cursor);
        let scan = scan.arg("MATCH").arg(pattern).arg("COUNT").int(1_000);
        let [next, found] = server.call(scan, left(until)).await?.array()?;
        for key in found.list()? {
            let key = key.bytes()?.ok_or_else(corrupt)?;
            keys.push(String::from_utf8_lossy(&key).into_owned());
        }
        cursor = next.bytes()?.ok_or_else(corrupt)?;
        if cursor == b"0" {
            return Ok(keys);
        }
    }
}
