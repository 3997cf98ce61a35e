//! The scripts, made of the files below lua/.

use redis_conn::raw::Script;

/// A script of these files. It is one text for the life of the program, so that servers know it.
macro_rules! script {
    ($($file:literal)+) => {
        Script::new(concat!($(include_str!(concat!("../lua/", $file, ".lua"))),+))
    };
}

pub(super) static ACQUIRE: Script = script!("head" "clock" "free" "acquire" "record" "line" "ask");
pub(super) static RELEASE: Script =
    script!("head" "clock" "free" "mine" "release" "record" "line" "leave");
pub(super) static MANY: Script = script!("head" "clock" "free" "mine" "many");
pub(super) static ALL: Script = script!("head" "clock" "free" "all");
pub(super) static RENEW: Script = script!("head" "record" "renew");
pub(super) static LOOK: Script = script!("head" "record" "look");
pub(super) static FORCE: Script = script!("head" "record" "line" "force");
