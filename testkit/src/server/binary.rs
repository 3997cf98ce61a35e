//! Which server binary the tests run.

use std::{env, path::PathBuf};

/// `REDIS_SERVER_BIN`, else `redis-server`, else `valkey-server` on the `PATH`.
pub(super) fn find() -> PathBuf {
    if let Some(chosen) = env::var_os("REDIS_SERVER_BIN").filter(|chosen| !chosen.is_empty()) {
        let chosen = PathBuf::from(chosen);
        assert!(
            chosen.is_file(),
            "REDIS_SERVER_BIN={} is no file; unset it and run `cargo xtask setup`",
            chosen.display()
        );
        return chosen;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| env::split_paths(&path).map(move |dir| dir.join(name)))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!("neither redis-server nor valkey-server is on the PATH: run `cargo xtask setup`")
        })
}
