//! One server.

use super::files::{self, PROGRAM};
use super::server::{Plan, Server};
use super::{Home, Topology, ports};
use crate::sh::Result;

pub(crate) struct Single {
    // Before the folder, so that the server is gone when its folder goes.
    server: Server,
    /// What stands before the address in the URL.
    user: String,
    _home: Home,
}

impl Single {
    /// A server as in production, with its users.
    pub(crate) fn start(home: Home) -> Result<Self> {
        let port = ports::free(1)?[0];
        let server = Server::start(&home, "redis".to_owned(), port, Plan::new(files::REDIS)?)?;
        server.wait_for_answer()?;
        Ok(Self {
            server,
            user: format!("{PROGRAM}:{}@", files::password(PROGRAM)?),
            _home: home,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}{}", self.user, self.server.address())
    }
}

impl Topology for Single {
    fn servers(&self) -> Vec<String> {
        vec![self.server.line()]
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![("REDIS_URL".to_owned(), self.url())]
    }
}
