//! What one sentinel says of the primary and of the other sentinels.

use std::time::Duration;

use ::redis::{Pipeline, Value, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout};

use crate::{
    Error,
    config::Endpoint,
    redis::{Class, fault::Failure},
    trace::event,
};

/// How long a sentinel may take to answer. It has nothing to do but to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// So many other sentinels are read from one answer.
const MOST_PEERS: usize = 64;

/// The longest name that a host can have.
const LONGEST_HOST: usize = 255;

/// Where the primary is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) endpoint: Endpoint,
    /// Grows with every failover: of two answers the one with the higher number is the later one, whoever gave it.
    pub(super) config_epoch: u64,
    /// When it was asked for.
    pub(super) asked: Instant,
}

/// Asks a sentinel where the primary called `name` is.
pub(super) async fn ask_primary(
    sentinel: &mut MultiplexedConnection,
    name: &str,
) -> Result<Answer, Failure> {
    let mut question = ::redis::pipe();
    // During a failover `MASTER` has the new epoch already and still the old address; only the second command has the new one. In
    // this order an answer that is torn by the failover is the new address with an epoch that is too low, which the next one mends.
    question.cmd("SENTINEL").arg("MASTER").arg(name);
    question
        .cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(name);
    let asked = Instant::now();
    let answers = exchange(sentinel, &question).await?;
    let [fields, address] = answers.as_slice() else {
        return Err(unreadable());
    };
    if matches!(address, Value::Nil) {
        return Err(unknown(name));
    }
    let config_epoch = read_epoch(refused(fields)?).ok_or_else(unreadable)?;
    let endpoint = read_address(refused(address)?).ok_or_else(unreadable)?;
    Ok(Answer {
        endpoint,
        config_epoch,
        asked,
    })
}

/// Asks a sentinel for the other sentinels that watch the primary called `name`.
pub(super) async fn ask_peers(
    sentinel: &mut MultiplexedConnection,
    name: &str,
) -> Result<Vec<Endpoint>, Failure> {
    let mut question = ::redis::pipe();
    question.cmd("SENTINEL").arg("SENTINELS").arg(name);
    let answers = exchange(sentinel, &question).await?;
    if let Some(Value::ServerError(refusal)) = answers.first() {
        event!(
            warn,
            "a sentinel does not tell of the others: it answered {}",
            refusal.code()
        );
    }
    Ok(answers.first().map(read_peers).unwrap_or_default())
}

/// The failure of one sentinel, with its address.
pub(super) fn at(endpoint: &Endpoint, failure: Failure) -> Failure {
    let kind = failure.error.kind().clone();
    let text = format!("the sentinel at {endpoint} does not tell where the primary is");
    Failure {
        error: Error::new(kind, text).with_source(failure.error),
        ..failure
    }
}

async fn exchange(
    sentinel: &mut MultiplexedConnection,
    question: &Pipeline,
) -> Result<Vec<Value>, Failure> {
    let count = question.cmd_iter().count();
    let answers = sentinel.send_packed_commands(question, 0, count);
    match timeout(PATIENCE, answers).await {
        Ok(Ok(answers)) => Ok(answers),
        Ok(Err(error)) => Err(Failure::lost(Class::Idempotent, error)),
        Err(_) => Err(Failure::away(format!("no answer within {PATIENCE:?}"))),
    }
}

fn refused(answer: &Value) -> Result<&Value, Failure> {
    match answer {
        Value::ServerError(refusal) => Err(Failure::of_greeting(refusal)),
        answer => Ok(answer),
    }
}

fn read_epoch(fields: &Value) -> Option<u64> {
    field(fields, "config-epoch")?.parse().ok()
}

fn read_address(address: &Value) -> Option<Endpoint> {
    let Value::Array(parts) = address else {
        return None;
    };
    let [host, port] = parts.as_slice() else {
        return None;
    };
    endpoint(text(host)?, text(port)?)
}

fn read_peers(answer: &Value) -> Vec<Endpoint> {
    let Value::Array(peers) = answer else {
        return Vec::new();
    };
    let peers = peers.iter().take(MOST_PEERS);
    peers
        .filter_map(|peer| endpoint(field(peer, "ip")?, field(peer, "port")?))
        .collect()
}

fn endpoint(host: &str, port: &str) -> Option<Endpoint> {
    let is_host = !host.is_empty()
        && host.len() <= LONGEST_HOST
        && host.bytes().all(|byte| byte.is_ascii_graphic());
    let port = port.parse().ok().filter(|port| *port != 0)?;
    is_host.then(|| Endpoint::tcp(host, port))
}

/// A field of a map, or of names and values in turn.
fn field<'a>(fields: &'a Value, wanted: &str) -> Option<&'a str> {
    let is_wanted = |name: &Value| text(name) == Some(wanted);
    let value = match fields {
        Value::Map(fields) => fields
            .iter()
            .find(|(name, _)| is_wanted(name))
            .map(|(_, value)| value),
        Value::Array(fields) => {
            let mut pairs = fields.chunks_exact(2);
            pairs.find(|pair| is_wanted(&pair[0])).map(|pair| &pair[1])
        }
        _ => None,
    };
    text(value?)
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn unknown(name: &str) -> Failure {
    Failure::config(format!(
        "REDIS_MASTER_NAME (master) is {name:?}, expected a name that the sentinels watch a primary by"
    ))
}

fn unreadable() -> Failure {
    Failure::away("a sentinel answered with something else than an address and an epoch")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn map(fields: &[(&str, &str)]) -> Value {
        Value::Map(
            fields
                .iter()
                .map(|(name, value)| (bulk(name), bulk(value)))
                .collect(),
        )
    }

    fn array(items: &[&str]) -> Value {
        Value::Array(items.iter().map(|item| bulk(item)).collect())
    }

    #[test]
    fn fields_are_read_from_either_protocol() {
        let fields = [("name", "main"), ("config-epoch", "7"), ("quorum", "2")];
        assert_eq!(read_epoch(&map(&fields)), Some(7));
        let flat: Vec<&str> = fields
            .iter()
            .flat_map(|(name, value)| [*name, *value])
            .collect();
        assert_eq!(read_epoch(&array(&flat)), Some(7));
        // A value that looks like a name is none.
        assert_eq!(
            read_epoch(&array(&["name", "config-epoch", "config-epoch", "3"])),
            Some(3)
        );
    }

    #[test]
    fn an_epoch_that_is_no_number_is_refused() {
        for epoch in ["", "-1", "x", "99999999999999999999"] {
            assert_eq!(
                read_epoch(&map(&[("config-epoch", epoch)])),
                None,
                "{epoch:?}"
            );
        }
        assert_eq!(read_epoch(&map(&[("epoch", "1")])), None);
        assert_eq!(read_epoch(&Value::Nil), None);
        assert_eq!(read_epoch(&array(&["config-epoch"])), None);
    }

    #[test]
    fn an_address_may_be_a_name() {
        for host in ["127.0.0.1", "::1", "redis-0.redis.internal"] {
            assert_eq!(
                read_address(&array(&[host, "6379"])),
                Some(Endpoint::tcp(host, 6379))
            );
        }
    }

    #[test]
    fn an_address_without_a_host_or_with_a_wrong_port_is_refused() {
        let long = "a".repeat(LONGEST_HOST + 1);
        for (host, port) in [
            ("", "6379"),
            ("a b", "6379"),
            ("a\n", "6379"),
            (long.as_str(), "6379"),
            ("a", "0"),
            ("a", "65536"),
            ("a", "-1"),
            ("a", ""),
        ] {
            assert_eq!(
                read_address(&array(&[host, port])),
                None,
                "{host:?} {port:?}"
            );
        }
        assert_eq!(read_address(&array(&["a"])), None);
        assert_eq!(read_address(&array(&["a", "1", "2"])), None);
        assert_eq!(read_address(&Value::Okay), None);
    }

    #[test]
    fn unreadable_peers_are_left_out_and_their_number_is_bounded() {
        let peer = |port: &str| map(&[("ip", "10.0.0.1"), ("port", port)]);
        let answer = Value::Array(vec![peer("1"), peer("none"), Value::Nil, peer("2")]);
        let expected = [1, 2].map(|port| Endpoint::tcp("10.0.0.1", port));
        assert_eq!(read_peers(&answer), expected);
        assert_eq!(read_peers(&Value::Nil), []);
        let crowd: Vec<Value> = (1..1_000)
            .map(|port: u16| peer(&port.to_string()))
            .collect();
        assert_eq!(read_peers(&Value::Array(crowd)).len(), MOST_PEERS);
    }

    #[test]
    fn a_failure_keeps_its_kind_and_names_the_sentinel() {
        let failure = at(&Endpoint::tcp("s1", 26379), unknown("main"));
        assert_eq!(*failure.error.kind(), crate::ErrorKind::Config);
        assert!(failure.error.to_string().contains("s1:26379"));
        let source = std::error::Error::source(&failure.error)
            .unwrap()
            .to_string();
        assert!(
            source.contains("REDIS_MASTER_NAME (master) is \"main\""),
            "{source}"
        );
    }
}
