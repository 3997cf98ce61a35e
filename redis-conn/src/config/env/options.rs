//! What does not depend on where the servers are.

use super::{Environment, topology::Kind};
use crate::config::{
    Config, check,
    variables::{
        REDIS_CLUSTER_ENABLE_OFFLINE_QUEUE, REDIS_CLUSTER_MAX_REDIRECTIONS,
        REDIS_CLUSTER_RETRY_DELAY_ON_CLUSTER_DOWN, REDIS_CLUSTER_RETRY_DELAY_ON_FAILOVER,
        REDIS_CLUSTER_SCALE_READS, REDIS_COMMAND_TIMEOUT, REDIS_CONNECT_TIMEOUT,
        REDIS_CONNECTION_NAME, REDIS_ENABLE_OFFLINE_QUEUE, REDIS_ENABLE_READY_CHECK, REDIS_FAMILY,
        REDIS_KEEP_ALIVE, REDIS_LAZY_CONNECT, REDIS_MAX_LOADING_TIMEOUT,
        REDIS_MAX_RETRIES_PER_REQUEST, REDIS_NO_DELAY, REDIS_REQUIRED,
        REDIS_SENTINEL_RETRY_DELAY_ON_CLUSTER_DOWN, REDIS_SENTINEL_RETRY_DELAY_ON_FAILOVER,
        Variable,
    },
};

impl Environment {
    pub(super) fn options(&mut self, kind: Kind, config: &mut Config) {
        self.of_calls(config);
        self.of_connections(config);
        self.of_cluster(kind, config);
        self.of_sentinels(kind, config);
    }

    fn set<T>(&mut self, field: &mut T, variable: Variable, parse: fn(&str) -> Option<T>) {
        if let Some(value) = self.read(variable, parse) {
            *field = value;
        }
    }

    /// Reads it in any case; it holds only for its own topology.
    fn set_if<T>(
        &mut self,
        selected: bool,
        field: &mut T,
        variable: Variable,
        parse: fn(&str) -> Option<T>,
    ) {
        if let Some(value) = self.read(variable, parse).filter(|_| selected) {
            *field = value;
        }
    }

    fn of_calls(&mut self, config: &mut Config) {
        let flag = check::flag;
        self.set(
            &mut config.command_timeout,
            REDIS_COMMAND_TIMEOUT,
            check::timeout,
        );
        self.set(
            &mut config.max_retries,
            REDIS_MAX_RETRIES_PER_REQUEST,
            check::retries,
        );
        self.set(&mut config.offline_queue, REDIS_ENABLE_OFFLINE_QUEUE, flag);
        self.set(&mut config.required, REDIS_REQUIRED, flag);
        self.set(&mut config.lazy_connect, REDIS_LAZY_CONNECT, flag);
    }

    fn of_connections(&mut self, config: &mut Config) {
        let (flag, timeout) = (check::flag, check::timeout);
        self.set(&mut config.connect_timeout, REDIS_CONNECT_TIMEOUT, timeout);
        self.set(&mut config.ready_check, REDIS_ENABLE_READY_CHECK, flag);
        self.set(
            &mut config.max_loading_timeout,
            REDIS_MAX_LOADING_TIMEOUT,
            timeout,
        );
        self.set(&mut config.family, REDIS_FAMILY, check::family);
        self.set(&mut config.no_delay, REDIS_NO_DELAY, flag);
        if let Some(keep_alive) = self.read(REDIS_KEEP_ALIVE, check::keep_alive) {
            config.keep_alive = keep_alive.into();
        }
        config.connection_name = self.read(REDIS_CONNECTION_NAME, check::instance);
    }

    fn of_cluster(&mut self, kind: Kind, config: &mut Config) {
        let on = kind == Kind::Cluster;
        self.set_if(
            on,
            &mut config.scale_reads,
            REDIS_CLUSTER_SCALE_READS,
            check::reads,
        );
        let (count, variable) = (&mut config.max_redirections, REDIS_CLUSTER_MAX_REDIRECTIONS);
        self.set_if(on, count, variable, check::redirections);
        let (delay, variable) = (
            &mut config.retry_delay_on_cluster_down,
            REDIS_CLUSTER_RETRY_DELAY_ON_CLUSTER_DOWN,
        );
        self.set_if(on, delay, variable, check::delay);
        let (delay, variable) = (
            &mut config.retry_delay_on_failover,
            REDIS_CLUSTER_RETRY_DELAY_ON_FAILOVER,
        );
        self.set_if(on, delay, variable, check::delay);
        let own = REDIS_CLUSTER_ENABLE_OFFLINE_QUEUE;
        self.set_if(on, &mut config.offline_queue, own, check::flag);
        if self.is_set(own) && self.is_set(REDIS_ENABLE_OFFLINE_QUEUE) {
            self.conflict(REDIS_ENABLE_OFFLINE_QUEUE.name, own.name);
        }
    }

    fn of_sentinels(&mut self, kind: Kind, config: &mut Config) {
        let on = kind == Kind::Sentinel;
        let (delay, variable) = (
            &mut config.retry_delay_on_failover,
            REDIS_SENTINEL_RETRY_DELAY_ON_FAILOVER,
        );
        self.set_if(on, delay, variable, check::delay);
        let (delay, variable) = (
            &mut config.retry_delay_on_cluster_down,
            REDIS_SENTINEL_RETRY_DELAY_ON_CLUSTER_DOWN,
        );
        self.set_if(on, delay, variable, check::delay);
    }
}
