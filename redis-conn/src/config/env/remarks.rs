//! What is not wrong, but probably not meant.

use std::collections::BTreeSet;

use super::{
    Environment, Selected, names,
    topology::{Choice, Kind},
};
use crate::config::{
    error::shown,
    variables::{Scope, VARIABLES},
};

impl Environment {
    pub(super) fn notes(&self) -> Vec<String> {
        if self.injected.is_empty() {
            return Vec::new();
        }
        let names = list(&self.injected);
        vec![format!(
            "ignored, because Kubernetes sets them for a Service: {names}"
        )]
    }

    pub(super) fn warnings(&self, choice: &Choice, selected: &Selected) -> Vec<String> {
        let mut warnings = Vec::new();
        if choice.named_by.is_empty() {
            let idle = self.set_in(|scope| scope != Scope::Always);
            let why = format!("no server is named by {}", self.examples());
            warnings.extend(without_effect(&why, &idle));
        } else {
            warnings.extend(self.idle(choice.kind, selected));
        }
        warnings.extend(self.unknown.iter().map(|name| self.unknown(name)));
        warnings
    }

    /// The options of what was not chosen.
    fn idle(&self, kind: Kind, selected: &Selected) -> Vec<String> {
        let has_nodes = !self.nodes_named().is_empty();
        let has_tls = matches!(selected, Selected::Redis(config) if config.tls.is_some());
        let unused = [
            (Scope::Cluster, kind != Kind::Cluster, "this is no cluster"),
            (
                Scope::Sentinel,
                kind != Kind::Sentinel,
                "no sentinel is asked",
            ),
            (Scope::Tls, !has_tls, "TLS is off"),
            (
                Scope::Single,
                kind == Kind::Sentinel || (kind == Kind::Cluster && has_nodes),
                "the servers are named one by one",
            ),
        ];
        let unused = unused.into_iter().filter(|(_, is_unused, _)| *is_unused);
        unused
            .filter_map(|(scope, _, why)| without_effect(why, &self.set_in(|of| of == scope)))
            .collect()
    }

    /// The variables of these scopes that are set, as they were written.
    fn set_in(&self, is_meant: impl Fn(Scope) -> bool) -> BTreeSet<String> {
        let meant = VARIABLES.iter().filter(|variable| is_meant(variable.scope));
        let patterns: Vec<&str> = meant.map(|variable| variable.name).collect();
        let is_one = |name: &str| {
            let is_this = |of: &&str| *of == name || names::number(of, name).is_some();
            patterns.iter().any(is_this)
        };
        let set = self.texts.keys().filter(|name| is_one(name));
        set.map(|name| self.prefixed(name)).collect()
    }

    fn unknown(&self, name: &str) -> String {
        let written = self.prefixed(name);
        let written = shown(&written).escape_debug().to_string();
        match names::nearest(name) {
            Some(meant) => {
                let meant = self.prefixed(&meant);
                format!("{written} is unknown and has no effect: did you mean {meant}?")
            }
            None => format!("{written} is unknown and has no effect"),
        }
    }
}

fn without_effect(why: &str, names: &BTreeSet<String>) -> Option<String> {
    let listed = list(names);
    (!names.is_empty()).then(|| format!("{why}, so these have no effect: {listed}"))
}

fn list(names: &BTreeSet<String>) -> String {
    let escaped = |name: &String| name.escape_debug().to_string();
    let names: Vec<String> = names.iter().map(escaped).collect();
    names.join(", ")
}
