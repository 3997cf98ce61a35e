//! A JSON text, as far as a dashboard needs it.

use std::fmt;

/// A value. Objects keep the order of their members.
#[derive(Clone, Debug)]
pub(super) enum Json {
    Text(String),
    Number(usize),
    Bool(bool),
    List(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

pub(super) fn text(text: impl Into<String>) -> Json {
    Json::Text(text.into())
}

pub(super) fn object<const N: usize>(members: [(&'static str, Json); N]) -> Json {
    Json::Object(members.into())
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)?;
        f.write_str("\n")
    }
}

impl Json {
    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        match self {
            Self::Text(text) => write_text(f, text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::List(items) => {
                let items = items.iter().map(|item| ("", item));
                write_parts(f, depth, ["[", "]"], &items.collect::<Vec<_>>())
            }
            Self::Object(members) => {
                let members = members.iter().map(|(name, value)| (*name, value));
                write_parts(f, depth, ["{", "}"], &members.collect::<Vec<_>>())
            }
        }
    }

    fn is_simple(&self) -> bool {
        match self {
            Self::Text(_) | Self::Number(_) | Self::Bool(_) => true,
            Self::List(items) => items.is_empty(),
            Self::Object(members) => members.is_empty(),
        }
    }
}

/// On one line where that stays simple.
fn write_parts(
    f: &mut fmt::Formatter<'_>,
    depth: usize,
    [open, close]: [&str; 2],
    parts: &[(&str, &Json)],
) -> fmt::Result {
    let one_line = parts.len() <= 4 && parts.iter().all(|(_, value)| value.is_simple());
    let space = |depth: usize| match one_line {
        true if parts.is_empty() => String::new(),
        true => " ".to_owned(),
        false => format!("\n{}", "  ".repeat(depth)),
    };
    f.write_str(open)?;
    for (n, (name, value)) in parts.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        write!(f, "{comma}{}", space(depth + 1))?;
        if !name.is_empty() {
            write!(f, "\"{name}\": ")?;
        }
        value.write(f, depth + 1)?;
    }
    write!(f, "{}{close}", space(depth))
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_simple_is_written_on_one_line() {
        let value = object([
            ("a", text("say \"x\\y\"\n")),
            ("b", Json::List(vec![Json::Number(1), Json::Bool(true)])),
            (
                "c",
                Json::List(vec![object([("d", Json::List(Vec::new()))])]),
            ),
        ]);
        let expected = r#"{
  "a": "say \"x\\y\"\u000a",
  "b": [ 1, true ],
  "c": [
    { "d": [] }
  ]
}
"#;
        assert_eq!(value.to_string(), expected);
    }
}
