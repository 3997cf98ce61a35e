//! Who may do what on a server or a sentinel.

use super::Mode;

const USERS: &str = include_str!("../../../deploy/users.acl");
const SENTINEL_USERS: &str = include_str!("../../../deploy/sentinel.acl");

/// The user that services are in production. URLs of the fixtures have it in them.
pub const USER: &str = "towerkeep";

/// The password of [`USER`], on servers and on sentinels.
pub const PASSWORD: &str = "change-me-towerkeep";

/// The user that a server with users knows the fixture by.
pub(crate) const ADMIN: &str = "testkit";
const ADMIN_PASSWORD: &str = "testkit";

/// Where the users of a server come from.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    /// The users of production. [`USER`] may do these as well, words of an ACL.
    Production { allowed: Vec<String> },
    /// There is the default user only, who may do everything, with this password if any.
    Open { password: Option<String> },
    /// The users of a test, lines of an ACL file.
    Users(String),
}

/// What somebody logs in with.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    /// Nobody is the default user.
    pub(crate) user: Option<&'static str>,
    pub(crate) password: String,
}

impl Default for Access {
    fn default() -> Self {
        Self::Production {
            allowed: Vec::new(),
        }
    }
}

impl Access {
    /// Lets [`USER`] do what `words` say as well.
    ///
    /// # Panics
    ///
    /// If the users are not those of production.
    pub(crate) fn allow(&mut self, words: &str) {
        let Self::Production { allowed } = self else {
            panic!("allow() adds to the users of production, and this fixture has others");
        };
        allowed.push(words.to_owned());
    }

    /// The users as lines of an ACL file, if there is one, with that of the fixture among them.
    pub(super) fn file(&self, mode: &Mode) -> Option<String> {
        let users = match self {
            Self::Production { allowed } => production(mode, allowed),
            Self::Open { .. } => return None,
            Self::Users(users) => users.clone(),
        };
        let users = users.trim_end();
        Some(format!(
            "{users}\nuser {ADMIN} on >{ADMIN_PASSWORD} ~* &* +@all\n"
        ))
    }

    /// What the code under test logs in with, if the fixture knows.
    pub(super) fn service(&self) -> Option<Login> {
        match self {
            Self::Production { .. } => Some(Login::new(USER, PASSWORD)),
            Self::Open { password } => default_user(password.as_ref()),
            Self::Users(_) => None,
        }
    }

    /// What the fixture itself logs in with.
    pub(crate) fn admin(&self) -> Option<Login> {
        match self {
            Self::Production { .. } | Self::Users(_) => Some(Login::new(ADMIN, ADMIN_PASSWORD)),
            Self::Open { password } => default_user(password.as_ref()),
        }
    }

    /// What servers and sentinels log in to each other with: in production `user`, who is there for
    /// that, with the password of the same form as all the others.
    pub(crate) fn peer(&self, user: &'static str) -> Option<Login> {
        match self {
            Self::Production { .. } => Some(Login::new(user, format!("change-me-{user}"))),
            Self::Open { .. } | Self::Users(_) => self.admin(),
        }
    }
}

impl Login {
    fn new(user: &'static str, password: impl Into<String>) -> Self {
        Self {
            user: Some(user),
            password: password.into(),
        }
    }

    /// What comes before the host in a URL.
    pub(super) fn userinfo(&self) -> String {
        let user = self.user.unwrap_or_default();
        format!("{user}:{}@", percent_encode(&self.password))
    }
}

fn default_user(password: Option<&String>) -> Option<Login> {
    password.map(|password| Login {
        user: None,
        password: password.clone(),
    })
}

fn production(mode: &Mode, allowed: &[String]) -> String {
    let users = match mode {
        Mode::Single | Mode::Cluster => USERS,
        Mode::Sentinel(_) => SENTINEL_USERS,
    };
    let service = format!("user {USER} ");
    let line = |line: &str| match line.starts_with(&service) {
        true => format!("{line} {}\n", allowed.join(" ")),
        false => format!("{line}\n"),
    };
    users.lines().map(line).collect()
}

fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
