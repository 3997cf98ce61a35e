//! Reading credentials: whenever a connection is made, and not before.

use std::{
    error::Error as StdError,
    fmt,
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use tokio_util::task::AbortOnDropHandle;

use super::{
    credentials::{Account, Login, PasswordFile, Provider},
    secret::Secret,
};
use crate::{Error, ErrorKind};

/// A file that is longer holds no password.
const LONGEST_FILE: u64 = 64 * 1024;

impl Account {
    pub(super) async fn login(&self) -> Result<Option<Login>, Error> {
        let password = match self {
            Self {
                provider: Some(provider),
                ..
            } => return provider.login().await.map(Some),
            Self {
                file: Some(file), ..
            } => file.read().await?,
            Self {
                password: Some(password),
                ..
            } => password.clone(),
            _ => return Ok(None),
        };
        Ok(Some(Login {
            username: self.username.clone(),
            password,
        }))
    }
}

impl PasswordFile {
    async fn read(&self) -> Result<Secret, Error> {
        let path = self.path().to_owned();
        // A file can be on a disk that is slow or away.
        let read = tokio::task::spawn_blocking(move || read_text(&path));
        let text = match read.await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return Err(self.unusable().with_source(error)),
            Err(ended) => return Err(self.unusable().with_source(ended)),
        };
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let password = line.strip_suffix('\r').unwrap_or(line);
        if password.is_empty() {
            return Err(self.unusable().with_source(io::Error::other("it is empty")));
        }
        Ok(Secret::new(password))
    }

    fn unusable(&self) -> Error {
        let (name, path) = (&self.named_by, self.path());
        Error::new(
            ErrorKind::Config,
            format!("{name}={path:?}: expected a file that holds a password"),
        )
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?
        .take(LONGEST_FILE + 1)
        .read_to_string(&mut text)?;
    if read as u64 > LONGEST_FILE {
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    Ok(text)
}

impl Provider {
    async fn login(&self) -> Result<Login, Error> {
        let provider = Arc::clone(&self.0);
        // A task of its own: a provider that panics must end no more than this attempt.
        let asked = AbortOnDropHandle::new(tokio::spawn(async move { provider.login().await }));
        let answered = asked.await.map_err(|_| {
            let text = "no credentials were provided: the provider panicked";
            Error::new(ErrorKind::Unavailable, text)
        })?;
        let login = answered.map_err(|cause| {
            Error::new(ErrorKind::Unavailable, "no credentials were provided")
                .with_source(ProviderError(cause))
        })?;
        if login.password().is_empty() {
            let text = "the credentials that were provided have an empty password";
            return Err(Error::new(ErrorKind::Config, text));
        }
        Ok(login)
    }
}

/// A boxed error is none itself.
#[derive(Debug)]
struct ProviderError(Box<dyn StdError + Send + Sync>);

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for ProviderError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests;
