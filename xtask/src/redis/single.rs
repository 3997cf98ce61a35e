//! One server.

use super::files::{self, PROGRAM};
use super::resp::Client;
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
        let server = start(&home, Plan::new(files::REDIS)?)?;
        server.wait_for_answer()?;
        Ok(Self {
            server,
            user: format!("{PROGRAM}:{}@", files::password(PROGRAM)?),
            _home: home,
        })
    }

    /// A server on which everybody may do everything, for measurements of any client and any key.
    pub(crate) fn start_without_users(home: Home) -> Result<Self> {
        let mut plan = Plan::new(files::REDIS)?;
        plan.add("aclfile \"\"");
        let server = start(&home, plan)?;
        server.wait("the first answer", || {
            Client::connect_without_user(server.port())?
                .call(&["PING"])
                .map(|_| true)
        })?;
        Ok(Self {
            server,
            user: String::new(),
            _home: home,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}{}", self.user, self.server.address())
    }
}

fn start(home: &Home, plan: Plan) -> Result<Server> {
    let port = ports::free(1)?[0];
    Server::start(home, "redis".to_owned(), port, plan)
}

impl Topology for Single {
    fn servers(&self) -> Vec<String> {
        vec![self.server.line()]
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![("REDIS_URL".to_owned(), self.url())]
    }
}
