//! The quota fields of a response.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{LimitState, Unit};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");
const LEGACY_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const LEGACY_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const LEGACY_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Which quota fields a response has, admitted or refused.
///
/// All layers of a stack should have one style: two of them use the same names. A decision that nobody made
/// ([`Source::Open`](crate::Source::Open)) adds no fields: there is nothing true to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeaderStyle {
    /// `RateLimit-Policy: "api-1s";q=20;w=1` and `RateLimit: "api-1s";r=3;t=1`, as draft-ietf-httpapi-ratelimit-headers-11 has
    /// it: quota and window, what remains of it and in how many seconds more will. Nested layers add their own. A limit of
    /// concurrent requests has neither window nor time: `"api-concurrency";q=10;qu="concurrent-requests"`.
    #[default]
    Draft11,
    /// `RateLimit-Policy: 20;w=1` and `RateLimit: limit=20, remaining=3, reset=1`, as the seventh draft had it. The second field
    /// tells of the limit that has the least left; among nested layers too. It knows no limits of concurrent requests.
    Draft7,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` of the limit that has the least left, among nested layers too, but for
    /// limits of concurrent requests. What `-Reset` is, says [`LegacyReset`].
    Legacy,
    /// Those of `Draft11` and those of `Legacy`.
    Both,
    /// None of them.
    None,
}

/// What `X-RateLimit-Reset` tells. No text ever said, so clients expect either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LegacyReset {
    /// In how many seconds there is more.
    #[default]
    DeltaSeconds,
    /// When there is more, in seconds since 1970 by the clock of this process.
    UnixSeconds,
}

/// The fields that a layer writes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields {
    pub(crate) style: HeaderStyle,
    pub(crate) reset: LegacyReset,
}

impl Fields {
    /// Adds those of these limits to what layers further in have said.
    pub(crate) fn write(self, limits: &[LimitState], headers: &mut HeaderMap) {
        if limits.is_empty() {
            return;
        }
        match self.style {
            HeaderStyle::Draft11 => write_draft_11(limits, headers),
            HeaderStyle::Draft7 => write_draft_7(limits, headers),
            HeaderStyle::Legacy => self.write_legacy(limits, headers),
            HeaderStyle::Both => {
                write_draft_11(limits, headers);
                self.write_legacy(limits, headers);
            }
            HeaderStyle::None => {}
        }
    }

    /// Adds them, unless somebody has said something already.
    pub(crate) fn write_missing(self, limits: &[LimitState], headers: &mut HeaderMap) {
        let said = [POLICY, STATE, LEGACY_LIMIT, LEGACY_REMAINING, LEGACY_RESET];
        if !said.iter().any(|field| headers.contains_key(field)) {
            self.write(limits, headers);
        }
    }

    fn write_legacy(self, limits: &[LimitState], headers: &mut HeaderMap) {
        let told = headers.get(LEGACY_REMAINING);
        let told = told.and_then(|value| value.to_str().ok()?.parse().ok());
        let Some(least) = tightest(limits, told) else {
            return;
        };
        headers.insert(LEGACY_LIMIT, least.limit.into());
        headers.insert(LEGACY_REMAINING, least.remaining.into());
        let reset = match self.reset {
            LegacyReset::DeltaSeconds => least.reset_after,
            LegacyReset::UnixSeconds => since_1970().saturating_add(least.reset_after),
        };
        headers.insert(LEGACY_RESET, seconds(reset).into());
    }
}

/// Whole seconds, rounded up: whoever waits so long does not come too early.
pub(crate) fn seconds(duration: Duration) -> u64 {
    let begun = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(begun)
}

fn since_1970() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock before 1970 is one that nobody has set.
    now.unwrap_or_default()
}

/// For each response of a layer: without the machinery of formats, which took half of the time.
fn write_draft_11(limits: &[LimitState], headers: &mut HeaderMap) {
    /// What a field of most limits has room in.
    const LENGTH: usize = 64;
    let mut field = String::with_capacity(LENGTH * limits.len());
    for limit in limits {
        push_item(&mut field, limit, ";q=", limit.limit);
        match limit.unit {
            Unit::Requests => push_parameter(&mut field, ";w=", seconds(limit.window)),
            Unit::ConcurrentRequests => field.push_str(";qu=\"concurrent-requests\""),
        }
    }
    append(headers, POLICY, &field);
    field.clear();
    for limit in limits {
        push_item(&mut field, limit, ";r=", limit.remaining);
        if limit.unit == Unit::Requests {
            push_parameter(&mut field, ";t=", seconds(limit.reset_after));
        }
    }
    append(headers, STATE, &field);
}

/// A name needs no quoting by what a policy's name may be.
fn push_item(list: &mut String, limit: &LimitState, parameter: &str, value: u64) {
    separate(list);
    list.push('"');
    list.push_str(&limit.name);
    list.push('"');
    push_parameter(list, parameter, value);
}

fn push_parameter(list: &mut String, parameter: &str, value: u64) {
    list.push_str(parameter);
    list.push_str(itoa::Buffer::new().format(value));
}

fn write_draft_7(limits: &[LimitState], headers: &mut HeaderMap) {
    let mut policy = String::new();
    for limit in limits.iter().filter(|limit| has_window(limit)) {
        separate(&mut policy);
        let _ = write!(policy, "{};w={}", limit.limit, seconds(limit.window));
    }
    if !policy.is_empty() {
        append(headers, POLICY, &policy);
    }
    let told = headers.get(STATE).and_then(remaining_of_draft_7);
    if let Some(least) = tightest(limits, told) {
        let LimitState {
            limit, remaining, ..
        } = least;
        let reset = seconds(least.reset_after);
        let state = format!("limit={limit}, remaining={remaining}, reset={reset}");
        if let Ok(state) = HeaderValue::try_from(state) {
            headers.insert(STATE, state);
        }
    }
}

fn remaining_of_draft_7(state: &HeaderValue) -> Option<u64> {
    let mut members = state.to_str().ok()?.split(',');
    members.find_map(|member| member.trim().strip_prefix("remaining=")?.parse().ok())
}

/// The limit that has the least left, for fields that tell of one only; none if a layer further in has `told` of a tighter one.
fn tightest(limits: &[LimitState], told: Option<u64>) -> Option<&LimitState> {
    let limits = limits.iter().filter(|limit| has_window(limit));
    let least = limits.min_by_key(|limit| limit.remaining)?;
    told.is_none_or(|told| least.remaining < told)
        .then_some(least)
}

fn has_window(limit: &LimitState) -> bool {
    limit.unit == Unit::Requests
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push_str(", ");
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::refusal::tests::{concurrency, limit};

    const FIELDS: [HeaderName; 5] = [POLICY, STATE, LEGACY_LIMIT, LEGACY_REMAINING, LEGACY_RESET];

    fn fields(style: HeaderStyle) -> Fields {
        Fields {
            style,
            reset: LegacyReset::DeltaSeconds,
        }
    }

    fn two() -> [LimitState; 2] {
        let short = limit("api-1s", 3, Duration::from_millis(1));
        let long = LimitState {
            limit: 1_000,
            window: Duration::from_millis(3_600_500),
            ..limit("api-long", 2, Duration::from_secs(60))
        };
        [short, long]
    }

    /// The fields of layers, the innermost first, in the order of [`FIELDS`]; several of one name are joined, as HTTP does.
    fn written(style: HeaderStyle, layers: &[&[LimitState]]) -> [String; 5] {
        let mut headers = HeaderMap::new();
        for limits in layers {
            fields(style).write(limits, &mut headers);
        }
        FIELDS.map(|name| {
            let values = headers.get_all(name).iter();
            let values: Vec<&str> = values.map(|value| value.to_str().unwrap()).collect();
            values.join(", ")
        })
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(seconds(Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_nanos(1)), 1);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
        assert_eq!(seconds(Duration::from_millis(2_001)), 3);
        assert_eq!(seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn the_styles() {
        let policy = r#""api-1s";q=20;w=1, "api-long";q=1000;w=3601"#;
        let state = r#""api-1s";r=3;t=1, "api-long";r=2;t=60"#;
        for (style, expected) in [
            (HeaderStyle::Draft11, [policy, state, "", "", ""]),
            (
                HeaderStyle::Draft7,
                [
                    "20;w=1, 1000;w=3601",
                    "limit=1000, remaining=2, reset=60",
                    "",
                    "",
                    "",
                ],
            ),
            (HeaderStyle::Legacy, ["", "", "1000", "2", "60"]),
            (HeaderStyle::Both, [policy, state, "1000", "2", "60"]),
            (HeaderStyle::None, [""; 5]),
        ] {
            assert_eq!(written(style, &[&two()]), expected, "{style:?}");
            assert_eq!(written(style, &[&[]]), [""; 5], "nobody decided");
        }
    }

    #[test]
    fn concurrent_requests_have_no_window() {
        let policy = r#""api-concurrency";q=10;qu="concurrent-requests""#;
        let state = r#""api-concurrency";r=4"#;
        for (style, expected) in [
            (HeaderStyle::Draft11, [policy, state, "", "", ""]),
            (HeaderStyle::Draft7, [""; 5]),
            (HeaderStyle::Legacy, [""; 5]),
            (HeaderStyle::Both, [policy, state, "", "", ""]),
        ] {
            assert_eq!(written(style, &[&[concurrency(4)]]), expected, "{style:?}");
        }
        let mixed = [concurrency(0), limit("api-1s", 3, Duration::ZERO)];
        assert_eq!(
            written(HeaderStyle::Draft11, &[&mixed])[..2],
            [
                format!(r#"{policy}, "api-1s";q=20;w=1"#),
                r#""api-concurrency";r=0, "api-1s";r=3;t=0"#.to_owned()
            ]
        );
        assert_eq!(
            written(HeaderStyle::Draft7, &[&mixed])[..2],
            ["20;w=1", "limit=20, remaining=3, reset=0"]
        );
        assert_eq!(
            written(HeaderStyle::Legacy, &[&mixed])[2..],
            ["20", "3", "0"]
        );
    }

    #[test]
    fn what_tells_of_one_limit_tells_of_the_tightest_of_all_layers() {
        let [three, two] = two().map(|limit| [limit]);
        for layers in [[&three[..], &two[..]], [&two[..], &three[..]]] {
            let [_, state, ..] = written(HeaderStyle::Draft7, &layers);
            assert_eq!(state, "limit=1000, remaining=2, reset=60");
            assert_eq!(
                written(HeaderStyle::Legacy, &layers)[2..],
                ["1000", "2", "60"]
            );
        }
    }

    #[test]
    fn the_reset_may_be_a_point_in_time() {
        let unix = Fields {
            style: HeaderStyle::Legacy,
            reset: LegacyReset::UnixSeconds,
        };
        let mut headers = HeaderMap::new();
        let before = since_1970();
        unix.write(&[limit("api-1s", 3, Duration::from_secs(60))], &mut headers);
        let reset = headers[LEGACY_RESET].to_str().unwrap().parse().unwrap();
        let least = before.as_secs() + 60;
        assert!((least..least + 3_600).contains(&reset), "{reset}");
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        for field in FIELDS {
            let mut headers = HeaderMap::from_iter([(field, HeaderValue::from_static("own"))]);
            fields(HeaderStyle::Both).write_missing(&two(), &mut headers);
            assert_eq!(headers.len(), 1, "{headers:?}");
        }
        let mut headers = HeaderMap::new();
        fields(HeaderStyle::Both).write_missing(&two(), &mut headers);
        assert_eq!(headers.len(), FIELDS.len());
    }

    /// A bare item of Structured Fields (RFC 9651, of which these fields use no more).
    #[derive(Clone, Debug, PartialEq)]
    enum Bare {
        Integer(u64),
        String(String),
    }

    /// A bare item and its parameters.
    type Item = (Bare, Vec<(String, Bare)>);

    fn bare(text: &mut &str) -> Option<Bare> {
        if let Some(rest) = text.strip_prefix('"') {
            let (string, rest) = rest.split_once('"')?;
            // Escapes are allowed; there is none in these fields.
            let plain = |c| matches!(c, ' '..='~') && c != '\\';
            *text = rest;
            return string
                .chars()
                .all(plain)
                .then(|| Bare::String(string.to_owned()));
        }
        let end = text.find(|c: char| !c.is_ascii_digit());
        let (digits, rest) = text.split_at(end.unwrap_or(text.len()));
        *text = rest;
        // At most 15 digits.
        (digits.len() <= 15).then(|| Some(Bare::Integer(digits.parse().ok()?)))?
    }

    fn key(text: &mut &str) -> Option<String> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c);
        let end = text.find(|c| !allowed(c)).unwrap_or(text.len());
        let (key, rest) = text.split_at(end);
        *text = rest;
        key.starts_with(|c: char| c.is_ascii_lowercase() || c == '*')
            .then(|| key.to_owned())
    }

    fn item(text: &mut &str) -> Option<Item> {
        let bare_item = bare(text)?;
        let mut parameters = Vec::new();
        while let Some(rest) = text.strip_prefix(';') {
            *text = rest.trim_start_matches(' ');
            let name = key(text)?;
            *text = text.strip_prefix('=')?;
            parameters.push((name, bare(text)?));
        }
        Some((bare_item, parameters))
    }

    /// The members of a list or a dictionary.
    fn members<T>(mut text: &str, member: impl Fn(&mut &str) -> Option<T>) -> Option<Vec<T>> {
        let mut members = vec![member(&mut text)?];
        while !text.is_empty() {
            text = text.trim_start_matches([' ', '\t']).strip_prefix(',')?;
            text = text.trim_start_matches([' ', '\t']);
            members.push(member(&mut text)?);
        }
        Some(members)
    }

    fn pair(text: &mut &str) -> Option<(String, Bare)> {
        let name = key(text)?;
        *text = text.strip_prefix('=')?;
        Some((name, bare(text)?))
    }

    fn parameter(name: &str, value: u64) -> (String, Bare) {
        (name.to_owned(), Bare::Integer(value))
    }

    fn any_limit() -> impl Strategy<Value = LimitState> {
        let name = "[A-Za-z0-9_.-]{1,64}";
        let day = Duration::from_secs(86_400);
        let time = move || (0..=366 * day.as_micros() as u64).prop_map(Duration::from_micros);
        let unit = prop_oneof![Just(Unit::Requests), Just(Unit::ConcurrentRequests)];
        (name, any::<u32>(), any::<u32>(), time(), time(), unit).prop_map(
            |(name, max, remaining, window, reset_after, unit)| LimitState {
                name: name.into(),
                limit: max.into(),
                remaining: remaining.into(),
                window,
                reset_after,
                unit,
            },
        )
    }

    fn expected_policy(limit: &LimitState) -> Item {
        let mut parameters = vec![parameter("q", limit.limit)];
        parameters.push(match limit.unit {
            Unit::Requests => parameter("w", seconds(limit.window)),
            Unit::ConcurrentRequests => (
                "qu".to_owned(),
                Bare::String("concurrent-requests".to_owned()),
            ),
        });
        (Bare::String(limit.name.to_string()), parameters)
    }

    fn expected_state(limit: &LimitState) -> Item {
        let mut parameters = vec![parameter("r", limit.remaining)];
        if limit.unit == Unit::Requests {
            parameters.push(parameter("t", seconds(limit.reset_after)));
        }
        (Bare::String(limit.name.to_string()), parameters)
    }

    proptest! {
        #[test]
        fn draft_11_is_a_list_of_all_limits(limits in prop::collection::vec(any_limit(), 1..9), inner in 0..9_usize) {
            // As one layer has them, and as nested layers have them.
            let (first, rest) = limits.split_at(inner.min(limits.len()));
            let [policy, state, ..] = written(HeaderStyle::Draft11, &[first, rest]);
            let policies: Vec<Item> = limits.iter().map(expected_policy).collect();
            let states: Vec<Item> = limits.iter().map(expected_state).collect();
            prop_assert_eq!(members(&policy, item), Some(policies), "{}", policy);
            prop_assert_eq!(members(&state, item), Some(states), "{}", state);
        }

        #[test]
        fn draft_7_is_a_list_and_a_dictionary(limits in prop::collection::vec(any_limit(), 1..9)) {
            let windows: Vec<&LimitState> = limits.iter().filter(|limit| has_window(limit)).collect();
            prop_assume!(!windows.is_empty());
            let [policy, state, ..] = written(HeaderStyle::Draft7, &[&limits]);
            let policies: Vec<Item> = windows
                .iter()
                .map(|limit| (Bare::Integer(limit.limit), vec![parameter("w", seconds(limit.window))]))
                .collect();
            prop_assert_eq!(members(&policy, item), Some(policies), "{}", policy);
            let least = windows.iter().min_by_key(|limit| limit.remaining).unwrap();
            let states = vec![
                parameter("limit", least.limit),
                parameter("remaining", least.remaining),
                parameter("reset", seconds(least.reset_after)),
            ];
            prop_assert_eq!(members(&state, pair), Some(states), "{}", state);
        }
    }
}
