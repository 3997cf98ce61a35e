//! The scripts, made of the files below lua/.

use redis_conn::raw::Script;

use crate::{Policy, counter::Kind};

/// A script of these files. It is one text for the life of the program, so that servers know it.
macro_rules! script {
    ($($file:literal)+) => {
        Script::new(concat!($(include_str!(concat!("../lua/", $file, ".lua"))),+))
    };
}

/// A script that decides by one algorithm: whether a value ends with the time, and whether its states are of one length.
macro_rules! one {
    ($name:literal, timed: $timed:literal, $length:literal) => {
        Script::new(concat!(
            include_str!("../lua/head.lua"),
            include_str!(concat!("../lua/", $name, ".lua")),
            "local sole, timed, count, ",
            $length,
            " = true, ",
            $timed,
            ", ",
            $name,
            ", ",
            $name,
            "_size\n",
            include_str!("../lua/check.lua"),
        ))
    };
}

/// A script that knows all algorithms.
macro_rules! all {
    ($($file:literal)+) => {
        script!("head" "strict" "sliding" "gcra" "log" "fixed" "leases" "all" $($file)+)
    };
}

// One for the policies of each algorithm, since a script that knows fewer is faster, and one that knows all.
pub(super) static STRICT: Script = one!("strict", timed: true, "length, size");
pub(super) static SLIDING: Script = one!("sliding", timed: false, "length, size");
pub(super) static GCRA: Script = one!("gcra", timed: true, "length, size");
pub(super) static LOG: Script = one!("log", timed: false, "size, length");
pub(super) static FIXED: Script = one!("fixed", timed: false, "length, size");
pub(super) static LEASES: Script = one!("leases", timed: false, "size, length");
pub(super) static ALL: Script = all!("check");
pub(super) static REFUND: Script = all!("walk" "refund");
pub(super) static PERMITS: Script = all!("walk" "permits");
pub(super) static BLOCK: Script = all!("walk" "block");
pub(super) static REPLACE: Script = script!("replace");

/// The script that decides by the algorithms of this policy.
pub(super) fn deciding(policy: &Policy) -> &'static Script {
    let mut kinds = policy.limits().iter().map(|limit| limit.kind);
    let first = kinds.next();
    match first.filter(|first| kinds.all(|kind| kind == *first)) {
        Some(Kind::Strict) => &STRICT,
        Some(Kind::Sliding) => &SLIDING,
        Some(Kind::Gcra) => &GCRA,
        Some(Kind::Log) => &LOG,
        Some(Kind::FixedAligned | Kind::FixedFirst) => &FIXED,
        Some(Kind::Leases) => &LEASES,
        None => &ALL,
    }
}
