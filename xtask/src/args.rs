//! The arguments of one command: the flags it knows, and nothing else.

/// What a command may be told.
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) value: Value,
    pub(crate) about: &'static str,
}

/// What follows a flag.
#[derive(Clone, Copy)]
pub(crate) enum Value {
    None,
    /// Any text, called so in the help.
    Any(&'static str),
    OneOf(&'static [&'static str]),
}

impl Value {
    /// How the help shows it.
    pub(crate) fn placeholder(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Any(name) => format!(" {name}"),
            Self::OneOf(values) => format!(" {}", values.join("|")),
        }
    }
}

/// The flags that one command was called with, all of them known to it.
#[derive(Debug)]
pub(crate) struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// Reads `--flag`, `--flag VALUE` and `--flag=VALUE`; an error says what was expected.
    pub(crate) fn parse(known: &[Flag], args: &[String]) -> Result<Self, String> {
        let mut given: Vec<(&'static str, String)> = Vec::new();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let (name, joined) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            let flag = known
                .iter()
                .find(|flag| flag.name == name)
                .ok_or_else(|| format!("does not take `{arg}`"))?;
            if given.iter().any(|(given, _)| *given == name) {
                return Err(format!("takes `{name}` once"));
            }
            let value = match (flag.value, joined) {
                (Value::None, None) => String::new(),
                (Value::None, Some(_)) => return Err(format!("takes `{name}` without a value")),
                (_, joined) => joined.or_else(|| rest.next().cloned()).unwrap_or_default(),
            };
            given.push((flag.name, checked(flag, value)?));
        }
        Ok(Self(given))
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.value(flag).is_some()
    }

    pub(crate) fn value(&self, flag: &str) -> Option<&str> {
        let given = self.0.iter().find(|(given, _)| *given == flag);
        given.map(|(_, value)| value.as_str())
    }
}

fn checked(flag: &Flag, value: String) -> Result<String, String> {
    let name = flag.name;
    match flag.value {
        Value::Any(kind) if value.is_empty() || value.starts_with("--") => {
            Err(format!("takes `{name} {kind}`, but {kind} is missing"))
        }
        Value::OneOf(values) if !values.contains(&value.as_str()) => Err(format!(
            "takes `{name}` with one of {}, not {value:?}",
            values.join(", ")
        )),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag {
            name: "--plain",
            value: Value::None,
            about: "",
        },
        Flag {
            name: "--mode",
            value: Value::OneOf(&["one", "two"]),
            about: "",
        },
        Flag {
            name: "--dir",
            value: Value::Any("DIR"),
            about: "",
        },
    ];

    fn parse(args: &[&str]) -> Result<Flags, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Flags::parse(FLAGS, &args)
    }

    #[test]
    fn values_are_read_in_both_forms() {
        let flags = parse(&["--mode", "two", "--dir=a=b", "--plain"]).unwrap();
        assert_eq!(flags.value("--mode"), Some("two"));
        assert_eq!(flags.value("--dir"), Some("a=b"));
        assert!(flags.has("--plain"));
        assert!(!parse(&[]).unwrap().has("--plain"));
    }

    #[test]
    fn errors_say_what_was_expected() {
        for (args, expected) in [
            (&["--other"][..], "does not take `--other`"),
            (&["up"], "does not take `up`"),
            (
                &["--mode", "three"],
                "takes `--mode` with one of one, two, not \"three\"",
            ),
            (&["--mode"], "takes `--mode` with one of one, two, not \"\""),
            (&["--dir"], "takes `--dir DIR`, but DIR is missing"),
            (
                &["--dir", "--plain"],
                "takes `--dir DIR`, but DIR is missing",
            ),
            (&["--plain=yes"], "takes `--plain` without a value"),
            (&["--plain", "--plain"], "takes `--plain` once"),
        ] {
            assert_eq!(parse(args).unwrap_err(), expected);
        }
    }
}
