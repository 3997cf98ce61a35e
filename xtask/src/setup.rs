//! `setup`: finds a Redis server, or installs one.

use std::env;
use std::path::PathBuf;
use std::process::Command as Child;

use crate::sh::{self, Result};
use crate::{Command, Flags};

pub(crate) const COMMAND: Command = Command {
    name: "setup",
    about: "make this machine ready for the Redis tests",
    flags: &[],
    details: "
Uses REDIS_SERVER_BIN, or a redis-server or valkey-server on PATH. Where there is none it installs
redis-server with apt-get (as root or with passwordless sudo) or redis with Homebrew, and says so
first. It starts no server, leaves no service behind, and touches no server that is running.",
    run: |_: &Flags| {
        let server = redis_server()?;
        println!("ready: {}", server.display());
        Ok(())
    },
};

const VARIABLE: &str = "REDIS_SERVER_BIN";

/// The Redis or Valkey server to test with, installed now if there is none.
pub(crate) fn redis_server() -> Result<PathBuf> {
    if let Some(server) = present()? {
        return Ok(server);
    }
    install()?;
    present()?.ok_or_else(|| {
        format!("the installation ended well, but no redis-server is on PATH; set {VARIABLE}")
            .into()
    })
}

fn present() -> Result<Option<PathBuf>> {
    let Some(named) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) else {
        let known = ["redis-server", "valkey-server"];
        return Ok(known.into_iter().find_map(sh::on_path));
    };
    let mut path = PathBuf::from(named);
    if path.components().count() > 1 {
        // Cargo runs each test in the folder of its package.
        path = std::path::absolute(path)?;
    }
    if sh::succeeds(Child::new(&path).arg("--version")) {
        Ok(Some(path))
    } else {
        Err(format!("{VARIABLE}={} does not run", path.display()).into())
    }
}

fn install() -> Result {
    if sh::on_path("apt-get").is_some() {
        match privileged_shell() {
            Some(shell) => return apt_get(shell),
            None => {
                return Err(instructions(
                    "this user is not root and has no passwordless sudo",
                ));
            }
        }
    }
    if sh::on_path("brew").is_some() {
        println!("No redis-server found: installing redis with Homebrew (no service is started).");
        return sh::run(Child::new("brew").args(["install", "redis"]))
            .map_err(|error| instructions(&error.to_string()));
    }
    Err(instructions("there is neither apt-get nor Homebrew"))
}

/// A shell with root's rights, if we may have one without asking anybody.
fn privileged_shell() -> Option<Child> {
    let user_id = Child::new("id").arg("-u").output().ok()?.stdout;
    if user_id.trim_ascii() == b"0" {
        return Some(Child::new("sh"));
    }
    sh::succeeds(Child::new("sudo").args(["-n", "true"])).then(|| {
        let mut sudo = Child::new("sudo");
        sudo.args(["-n", "sh"]);
        sudo
    })
}

/// Where invoke-rc.d asks whether a service may start.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Debian's package starts a server on port 6379 when it is installed, and at every boot. A policy
/// file that answers 101 ("forbidden", see invoke-rc.d) stops the first, `update-rc.d` the second.
const APT_GET: &str = r#"
set -eu
policy=$1
aside=$policy.towerkeep
restore() {
    rm -f "$policy"
    if [ -e "$aside" ]; then mv "$aside" "$policy"; fi
}
forbidden() {
    status=0
    "$policy" redis-server start >/dev/null 2>&1 || status=$?
    [ "$status" = 101 ]
}
if ! forbidden; then
    trap restore EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ -e "$policy" ]; then mv "$policy" "$aside"; fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get -q update || echo 'apt-get update failed, going on with the package lists at hand' >&2
DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 \
    install -y --no-install-recommends redis-server
update-rc.d redis-server disable
"#;

fn apt_get(mut shell: Child) -> Result {
    println!(
        "No redis-server found: installing the package redis-server with apt-get, its service off."
    );
    sh::run(shell.args(["-c", APT_GET, "setup", POLICY]))
        .map_err(|error| instructions(&error.to_string()))
}

/// An error that says what a person has to do instead.
fn instructions(reason: &str) -> Box<dyn std::error::Error + Send + Sync> {
    format!(
        "the Redis tests need a server, and none could be installed: {reason}.\n\
         Install Redis 6.2 or newer, or Valkey 7.2 or newer:\n\
         \x20 Debian, Ubuntu   sudo apt-get install redis-server\n\
         \x20 Fedora           sudo dnf install valkey\n\
         \x20 Alpine           apk add redis\n\
         \x20 macOS            brew install redis\n\
         or point {VARIABLE} at a redis-server or valkey-server binary. It need not be running."
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::TempDir;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    #[test]
    fn the_instructions_name_the_package_and_the_variable() {
        let text = instructions("no apt-get").to_string();
        for word in [
            "no apt-get",
            "apt-get install redis-server",
            "brew install redis",
            VARIABLE,
        ] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
    }

    /// Runs the script with an apt-get that ends with `status`, and returns whether it ended well,
    /// and what the policy answered while the package was installed.
    fn install_with(policy: &Path, status: i32) -> (bool, String) {
        let bin = TempDir::new(&format!("apt-{status}")).unwrap();
        let seen = bin.path().join("seen");
        let fake = |name: &str, body: &str| {
            let file = bin.path().join(name);
            fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
        };
        fake("update-rc.d", "exit 0");
        fake(
            "apt-get",
            &format!(
                "case $* in *install*) {policy:?} redis-server start; echo $? >{seen:?}; exit {status};; esac"
            ),
        );
        let path = format!("{}:{}", bin.path().display(), env::var("PATH").unwrap());
        let mut script = Child::new("sh");
        script
            .args(["-c", APT_GET, "setup"])
            .arg(policy)
            .env("PATH", path);
        let ended_well = sh::succeeds(&mut script);
        (
            ended_well,
            fs::read_to_string(seen).unwrap().trim().to_owned(),
        )
    }

    #[test]
    fn no_service_may_start_while_the_package_is_installed() {
        let dir = TempDir::new("policy").unwrap();
        let policy = dir.path().join("policy-rc.d");
        for status in [0, 100] {
            assert_eq!(
                install_with(&policy, status),
                (status == 0, "101".to_owned())
            );
            assert!(
                !policy.exists(),
                "the temporary policy stays after status {status}"
            );
        }
    }

    #[test]
    fn a_policy_of_the_machine_is_put_back() {
        let dir = TempDir::new("policy-own").unwrap();
        let policy = dir.path().join("policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(install_with(&policy, 7), (false, "101".to_owned()));
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 0\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
