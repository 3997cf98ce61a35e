//! Who may name whom: invariants 1, 2, 3 and 5.

use super::sources::{Source, Sources};
use super::{Finding, code};

/// The files of a layer, which know the handle and no store.
const LAYER_FILES: &[&str] = &[
    "layer.rs",
    "service.rs",
    "future.rs",
    "body.rs",
    "reject.rs",
];
const DRIVERS: &[&str] = &["redis", "bb8", "bb8_redis", "rusqlite"];
const STORES: &[&str] = &["store", "MemoryStore", "SqliteStore", "RedisStore"];
const PROTOCOLS: &[&str] = &[
    "http",
    "http_body",
    "http_body_util",
    "hyper",
    "hyper_util",
    "tower",
    "tower_layer",
    "tower_service",
    "tower_http",
    "axum",
    "axum_core",
    "tonic",
];

pub(super) fn layers_name_no_store(sources: &Sources) -> Vec<Finding> {
    let layers = sources
        .library_code()
        .filter(|source| LAYER_FILES.contains(&source.name()));
    let words = [DRIVERS, STORES].concat();
    layers
        .flat_map(|source| named(source, &words, "invariant 1"))
        .collect()
}

pub(super) fn stores_name_no_http(sources: &Sources) -> Vec<Finding> {
    let stores = sources
        .library_code()
        .filter(|source| source.path.contains("/src/store/"));
    stores
        .flat_map(|source| named(source, PROTOCOLS, "invariant 2"))
        .collect()
}

pub(super) fn connection_names_no_tower(sources: &Sources) -> Vec<Finding> {
    let connection = sources
        .library_code()
        .filter(|source| source.top() == "redis-conn");
    connection
        .flat_map(|source| named(source, PROTOCOLS, "invariant 3"))
        .collect()
}

fn named(source: &Source, words: &[&str], rule: &'static str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, code) in code::lines(&source.text) {
        for word in words.iter().filter(|word| code::names(&code, word)) {
            findings.push(Finding {
                file: source.path.clone(),
                line,
                what: format!("names `{word}`"),
                rule,
            });
        }
    }
    findings
}

/// A driver's type in a public signature would make its next major version a breaking change of
/// ours. What redis-conn re-exports from `raw` is outside of semver, and exempt.
pub(super) fn signatures_name_no_driver(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    let raw = raw_names(sources);
    for source in sources.library_code().filter(|source| source.path != RAW) {
        let mut owner = String::new();
        for (line, signature) in public_signatures(&code::lines(&source.text)) {
            if !signature.starts_with(' ') {
                owner.clone_from(&signature);
            }
            if raw.iter().any(|name| code::names(&owner, name)) {
                continue;
            }
            for driver in DRIVERS
                .iter()
                .filter(|driver| names_crate(&signature, driver))
            {
                findings.push(Finding {
                    file: source.path.clone(),
                    line,
                    what: format!("a public signature names `{driver}::`"),
                    rule: "invariant 3",
                });
            }
        }
    }
    findings
}

const RAW: &str = "redis-conn/src/raw.rs";

/// The items that `raw` re-exports.
fn raw_names(sources: &Sources) -> Vec<String> {
    let Some(raw) = sources.get(RAW) else {
        return Vec::new();
    };
    let code: String = code::lines(&raw.text)
        .into_iter()
        .map(|(_, code)| code + "\n")
        .collect();
    let uses = code
        .split("pub use")
        .skip(1)
        .filter_map(|rest| rest.split(';').next());
    uses.flat_map(|path| {
        path.rsplit("::")
            .next()
            .unwrap_or_default()
            .split(['{', '}', ','])
    })
    .map(|name| name.trim().to_owned())
    .filter(|name| !name.is_empty())
    .collect()
}

/// What `pub` and `impl ... for` begin, up to its body, joined into one line.
fn public_signatures(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut signatures = Vec::new();
    for (at, (line, code)) in lines.iter().enumerate() {
        let start = code.trim_start();
        if start.starts_with("pub ") || start.starts_with("impl ") || start.starts_with("impl<") {
            let mut signature = String::new();
            for (_, code) in &lines[at..] {
                let end = code.find(['{', ';']);
                signature += &code[..end.unwrap_or(code.len())];
                // A field of a struct ends with a comma, which inside `(...)` ends nothing.
                let field = code.trim_end().ends_with(',') && !signature.contains('(');
                if end.is_some() || field {
                    break;
                }
            }
            signatures.push((*line, signature));
        }
    }
    signatures
}

/// Whether `code` has a path into the crate `name`, and not into a module of ours of that name.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].strip_suffix("::").unwrap_or(&code[..at]);
        !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

/// The clone of a service need not be ready: `call` has to take the instance that was polled.
pub(super) fn inner_is_replaced(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources
        .library_code()
        .filter(|source| source.name() == "service.rs")
    {
        let lines = code::lines(&source.text);
        if lines.iter().any(|(_, code)| code.contains("mem::replace")) {
            continue;
        }
        for (line, _) in lines
            .iter()
            .filter(|(_, code)| code.contains("inner.clone()"))
        {
            findings.push(Finding {
                file: source.path.clone(),
                line: *line,
                what: "`inner.clone()` without `mem::replace`".to_owned(),
                rule: "invariant 5",
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_layer_that_names_a_store_is_found() {
        let text = "use redis_conn::Backend;\n// redis is fine here\nuse redis::Client;\n\
                    use crate::store::Store;\n#[cfg(test)]\nmod tests {\nuse rusqlite::X;\n}\n";
        let sources = Sources::of(&[("lib/src/layer.rs", text), ("lib/src/limiter.rs", text)]);
        assert_eq!(lines_of(&layers_name_no_store(&sources)), [3, 4]);
    }

    #[test]
    fn a_store_that_names_http_is_found() {
        let text =
            "use redis::Client;\nuse http::Request;\nfn http_date() {}\nuse tower_service::S;\n";
        let sources = Sources::of(&[
            ("lib/src/store/redis.rs", text),
            ("lib/src/headers.rs", text),
        ]);
        assert_eq!(lines_of(&stores_name_no_http(&sources)), [2, 4]);
    }

    #[test]
    fn a_connection_that_names_tower_is_found() {
        let text = "const A: &str = \"http\";\nuse tower::Service;\n";
        let sources = Sources::of(&[("redis-conn/src/a.rs", text), ("lib/src/a.rs", text)]);
        assert_eq!(lines_of(&connection_names_no_tower(&sources)), [2]);
    }

    #[test]
    fn a_public_signature_that_names_a_driver_is_found() {
        let text = "pub(crate) fn a(c: redis::Client) {}\n\
                    pub fn b(\n    client: redis::Client,\n) {}\n\
                    impl From<redis::RedisError> for Error {}\n\
                    pub struct C {\n    pub connection: rusqlite::Connection,\n    own: redis::Client,\n}\n\
                    pub fn d() -> crate::redis::Lane { redis::cmd() }\n";
        let sources = Sources::of(&[("lib/src/a.rs", text)]);
        assert_eq!(lines_of(&signatures_name_no_driver(&sources)), [2, 5, 7]);
        assert!(names_crate("pub fn a() -> ::redis::Value", "redis"));
    }

    #[test]
    fn what_raw_exports_may_name_a_driver() {
        let raw = "pub use crate::sqlite::{Schema, Tx};\npub use rusqlite as sql;\n";
        let text = "impl Tx {\n    pub fn sql(&self) -> &rusqlite::Transaction {}\n}\n\
                    impl Other {\n    pub fn sql(&self) -> &rusqlite::Transaction {}\n}\n";
        let sources = Sources::of(&[(RAW, raw), ("redis-conn/src/tx.rs", text)]);
        assert_eq!(lines_of(&signatures_name_no_driver(&sources)), [5]);
    }

    #[test]
    fn a_call_on_a_fresh_clone_is_found() {
        let bad = "let inner = self.inner.clone();\nasync move { inner.call(request) }\n";
        let good =
            "let next = self.inner.clone();\nlet inner = mem::replace(&mut self.inner, next);\n";
        let sources = Sources::of(&[("a/src/service.rs", bad), ("b/src/service.rs", good)]);
        let findings = inner_is_replaced(&sources);
        assert_eq!(lines_of(&findings), [1]);
        assert_eq!(findings[0].file, "a/src/service.rs");
    }
}
