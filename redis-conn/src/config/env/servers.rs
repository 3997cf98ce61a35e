//! A server as a URL or in parts, who we are to it, and how the way there is encrypted.

use super::Environment;
use crate::config::{
    Config, Endpoint, Secret, Tls, Topology, check,
    credentials::{Account, PasswordFile},
    url::{self, Target},
    variables::{
        REDIS_DB, REDIS_HOST, REDIS_PASSWORD, REDIS_PASSWORD_FILE, REDIS_PORT,
        REDIS_SENTINEL_PASSWORD, REDIS_SENTINEL_PASSWORD_FILE, REDIS_SENTINEL_USERNAME, REDIS_TLS,
        REDIS_TLS_CA_FILE, REDIS_TLS_CERT_FILE, REDIS_TLS_KEY_FILE, REDIS_TLS_REJECT_UNAUTHORIZED,
        REDIS_TLS_SERVERNAME, REDIS_URL, REDIS_USERNAME, Variable,
    },
};

impl Environment {
    pub(super) fn server(&mut self) -> Config {
        let in_parts = self.in_parts();
        let sentinel_account = self.account(
            REDIS_SENTINEL_USERNAME,
            REDIS_SENTINEL_PASSWORD,
            REDIS_SENTINEL_PASSWORD_FILE,
        );
        let target = self.target();
        self.check_parts(target.as_ref());
        let config = match target {
            Some(target) => with_file(Config::at(target), in_parts.account),
            None => in_parts,
        };
        Config {
            sentinel_account,
            ..config
        }
    }

    fn in_parts(&mut self) -> Config {
        let host = self.read(REDIS_HOST, check::host).unwrap_or_default();
        let port = self.read(REDIS_PORT, check::port);
        let endpoint = Endpoint::tcp(host, port.unwrap_or(Endpoint::DEFAULT_PORT));
        Config {
            account: self.account(REDIS_USERNAME, REDIS_PASSWORD, REDIS_PASSWORD_FILE),
            db: self.read(REDIS_DB, check::db).unwrap_or_default(),
            ..Config::unchecked(Topology::Single(endpoint))
        }
    }

    fn target(&mut self) -> Option<Target> {
        match url::parse(self.text(REDIS_URL)?) {
            Ok(target) => Some(target),
            Err(expected) => {
                self.wrong(REDIS_URL.name, REDIS_URL, expected);
                None
            }
        }
    }

    fn account(&mut self, username: Variable, password: Variable, file: Variable) -> Account {
        if self.is_set(password) && self.is_set(file) {
            self.conflict(password.name, file.name);
        }
        if self.is_set(username) && !self.is_set(password) && !self.is_set(file) {
            let expected = "both or none of them: a user needs a password";
            self.fault([username.name, password.name], expected);
        }
        let named_by = self.prefixed(file.name);
        let path = self.read(file, check::path);
        Account {
            username: self.read(username, check::text),
            password: self.read(password, |text| Some(Secret::new(text))),
            file: path.map(|path| PasswordFile::new(named_by, path)),
            provider: None,
        }
    }

    /// A URL says all of it, except that a password may be in a file.
    fn check_parts(&mut self, target: Option<&Target>) {
        if !self.is_set(REDIS_URL) {
            return;
        }
        let knows_us = target.is_some_and(|target| target.password.is_some());
        let needs_us = self.is_set(REDIS_PASSWORD_FILE) && !knows_us;
        for (part, conflicts) in [
            (REDIS_HOST, true),
            (REDIS_PORT, true),
            (REDIS_USERNAME, !needs_us),
            (REDIS_PASSWORD, true),
            (REDIS_PASSWORD_FILE, knows_us),
            (REDIS_DB, true),
        ] {
            if conflicts && self.is_set(part) {
                self.conflict(REDIS_URL.name, part.name);
            }
        }
    }

    pub(super) fn tls(&mut self, config: &mut Config) {
        let switch = self.read(REDIS_TLS, check::flag);
        let by_url = config.tls.is_some();
        let options = self.tls_options();
        if switch == Some(false) && by_url {
            self.conflict(REDIS_TLS.name, REDIS_URL.name);
        }
        let by = if by_url { REDIS_URL } else { REDIS_TLS };
        if !by_url && switch != Some(true) {
            return;
        }
        if let Topology::Single(Endpoint::Unix(_)) = config.topology {
            self.fault([REDIS_TLS.name, REDIS_URL.name], check::TLS_OVER_TCP);
        }
        if !cfg!(feature = "tls") {
            self.fault([by.name], check::TLS_FEATURE);
        }
        config.tls = Some(options);
    }

    fn tls_options(&mut self) -> Tls {
        let mut tls = Tls::new();
        if let Some(name) = self.read(REDIS_TLS_SERVERNAME, check::host) {
            tls = tls.server_name(name);
        }
        if let Some(reject) = self.read(REDIS_TLS_REJECT_UNAUTHORIZED, check::flag) {
            tls = tls.reject_unauthorized(reject);
        }
        if let Some(path) = self.read(REDIS_TLS_CA_FILE, check::path) {
            tls = tls.ca_file(path);
        }
        let cert = self.read(REDIS_TLS_CERT_FILE, check::path);
        match (cert, self.read(REDIS_TLS_KEY_FILE, check::path)) {
            (Some(cert), Some(key)) => tls.client_certificate(cert, key),
            (None, None) => tls,
            _ => {
                let names = [REDIS_TLS_CERT_FILE.name, REDIS_TLS_KEY_FILE.name];
                self.fault(names, check::CERT_AND_KEY);
                tls
            }
        }
    }
}

/// Where both have something, a conflict was reported.
fn with_file(config: Config, account: Account) -> Config {
    if config.has_password() || account.file.is_none() {
        return config;
    }
    Config { account, ..config }
}
