//! Who we are to a server, and where its password comes from.

use std::{
    borrow::Cow,
    error::Error as StdError,
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use super::secret::Secret;

/// A user and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Secret,
}

impl Login {
    /// The ACL user, or `None` for the server's default user, and the password. No output of it contains the password.
    pub fn new(username: Option<String>, password: impl Into<String>) -> Self {
        Self {
            username,
            password: Secret::new(password),
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// For the handshake, and for nothing else.
    #[cfg(feature = "redis")]
    pub(crate) fn password(&self) -> &str {
        self.password.reveal()
    }
}

/// Where credentials come from that change while a process runs. It is asked whenever a connection is made, inside the time that
/// a dial may take.
///
/// ```
/// use std::{error::Error, future::Future, pin::Pin};
/// use redis_conn::{Credentials, Login};
///
/// struct Vault;
///
/// impl Credentials for Vault {
///     fn login(&self) -> Pin<Box<dyn Future<Output = Result<Login, Box<dyn Error + Send + Sync>>> + Send + '_>> {
///         Box::pin(async { Ok(Login::new(Some("app".into()), "the password of this hour")) })
///     }
/// }
/// ```
pub trait Credentials: Send + Sync + 'static {
    /// What to log in with now.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being known. The dial fails, and is tried again later. The error appears in health answers and logs:
    /// it must not contain a secret.
    fn login(&self) -> LoginFuture<'_>;
}

pub(super) type LoginFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Login, Box<dyn StdError + Send + Sync>>> + Send + 'a>>;

/// What is known about us: a user, and at most one source of a password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) file: Option<PasswordFile>,
    pub(super) provider: Option<Provider>,
}

impl Account {
    pub(super) fn has_password(&self) -> bool {
        self.password.is_some() || self.file.is_some() || self.provider.is_some()
    }
}

/// A file whose content is a password, and the variable or field that names it.
#[derive(Clone, Debug, Eq)]
pub(super) struct PasswordFile {
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "nothing logs in"))]
    pub(super) named_by: Cow<'static, str>,
    path: PathBuf,
}

/// Who named the file does not change what it is.
impl PartialEq for PasswordFile {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl PasswordFile {
    pub(super) fn new(named_by: impl Into<Cow<'static, str>>, path: impl Into<PathBuf>) -> Self {
        Self {
            named_by: named_by.into(),
            path: path.into(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Compared by identity: two providers are the same if they are one.
#[derive(Clone)]
pub(super) struct Provider(pub(super) Arc<dyn Credentials>);

impl PartialEq for Provider {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0))
    }
}

impl Eq for Provider {}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Provider")
    }
}
