//! Scripts: sent by their digest, and by their text only where the server does not know them.

use std::{
    borrow::Cow,
    fmt,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{Call, Class, Redis, Reply};
use crate::{Error, ErrorKind};

/// A Lua script, constant for the life of the program.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    digest: OnceLock<Box<str>>,
}

impl Script {
    /// A script of this text; made once, in a `static`.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            digest: OnceLock::new(),
        }
    }

    fn digest(&self) -> &str {
        self.digest.get_or_init(|| digest(self.text).into())
    }
}

type Rewriting = dyn Fn(&str) -> (String, Vec<String>) + Send + Sync;

/// What a test makes of each script: another text, and arguments behind those of the call.
#[derive(Clone)]
pub(crate) struct Rewrite(Arc<Rewriting>);

impl Rewrite {
    pub(crate) fn new(
        rewrite: impl Fn(&str) -> (String, Vec<String>) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(rewrite))
    }
}

impl fmt::Debug for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rewrite")
    }
}

fn digest(text: &str) -> String {
    sha1_smol::Sha1::from(text).digest().to_string()
}

/// One call of a script: first its keys, then its arguments.
#[derive(Debug)]
pub struct ScriptCall<'a> {
    redis: &'a Redis,
    text: Cow<'static, str>,
    call: Call,
    /// Arguments that a test adds behind all others.
    added: Vec<String>,
}

impl Redis {
    /// Begins a call of `script` with `keys`, which all carry the same hash tag.
    #[must_use]
    pub fn script(&self, script: &'static Script, class: Class, keys: &[&str]) -> ScriptCall<'_> {
        match &self.inner.rewrite {
            None => {
                let text = Cow::Borrowed(script.text);
                self.begin(text, script.digest(), Vec::new(), class, keys)
            }
            Some(Rewrite(rewrite)) => {
                let (text, added) = rewrite(script.text);
                let digest = digest(&text);
                self.begin(Cow::Owned(text), &digest, added, class, keys)
            }
        }
    }

    fn begin(
        &self,
        text: Cow<'static, str>,
        digest: &str,
        added: Vec<String>,
        class: Class,
        keys: &[&str],
    ) -> ScriptCall<'_> {
        let call = Call::roomy("EVALSHA", class)
            .arg(digest.as_bytes())
            .int(keys.len() as u64);
        ScriptCall {
            redis: self,
            text,
            call: keys.iter().fold(call, Call::key),
            added,
        }
    }
}

impl ScriptCall<'_> {
    /// Adds an argument of any bytes.
    #[must_use]
    pub fn arg(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.call = self.call.arg(bytes);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn int(mut self, number: u64) -> Self {
        self.call = self.call.int(number);
        self
    }

    /// Sends it in one order with others, see [`Call::in_order`].
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.call = self.call.in_order();
        self
    }

    /// Sends it: `EVALSHA`, and once more as `EVAL` if the server answered that it does not know the script, which also means
    /// that it did not run.
    ///
    /// # Errors
    ///
    /// Those of a command of this class.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have been executed.
    pub async fn run(self, deadline: Duration) -> Result<Reply, Error> {
        let deadline = crate::deadline::after(deadline);
        let call = self.added.iter().fold(self.call, Call::arg);
        // Both are one call to whoever measures.
        let calling = pin!(async {
            match self.redis.answer(&call, deadline).await {
                Err(error) if is_unknown(&error) => {
                    let call = call.with_text(&self.text);
                    // In a box, so that a call of a known script does not carry the room for it.
                    Box::pin(self.redis.answer(&call, deadline)).await
                }
                answered => answered,
            }
        });
        let telemetry = &self.redis.inner.context.telemetry;
        telemetry.observe(&call, calling).await
    }
}

fn is_unknown(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Server(prefix) if &**prefix == "NOSCRIPT")
}
