//! The time range of a metrics query, in all the ways in which it can be written.

use super::error::ApiError;
use super::params::{Params, go_integer};
use crate::traceql::parse_duration;

/// How far back a query goes that does not say it.
const DEFAULT_SINCE_NS: u64 = 3_600 * SECOND;
const SECOND: u64 = 1_000_000_000;

/// `start`, `end` and `since`; nanoseconds since the epoch.
pub(super) fn bounds(params: &Params, now_ns: u64) -> Result<(u64, u64), ApiError> {
    let since = match params.get("since") {
        None => DEFAULT_SINCE_NS,
        Some(text) => parse_duration(text).and_then(|nanos| u64::try_from(nanos).ok()).ok_or_else(|| {
            ApiError::bad(format!("could not parse 'since' parameter: not a valid duration string: {text:?}"))
        })?,
    };
    let moment = |name: &str| {
        let read =
            |text| timestamp(text).map_err(|e| ApiError::bad(format!("could not parse '{name}' parameter: {e}")));
        params.get(name).map(read).transpose()
    };
    let end = moment("end")?.unwrap_or(now_ns);
    // What is to come has not been yet: a range that ends tomorrow starts an hour before now.
    let start = moment("start")?.unwrap_or_else(|| end.min(now_ns).saturating_sub(since));
    Ok((start, end))
}

/// `step`, nanoseconds: seconds, or a duration. None if it is not given.
pub(super) fn step(params: &Params) -> Result<Option<u64>, ApiError> {
    let Some(text) = params.get("step") else { return Ok(None) };
    if let Ok(seconds) = text.parse::<f64>() {
        let nanos = seconds * 1e9;
        if !nanos.is_finite() || nanos.abs() > i64::MAX as f64 {
            return Err(ApiError::bad(format!("cannot parse {text:?} to a valid duration. It overflows int64")));
        }
        if nanos < 0.0 {
            return Err(ApiError::bad("invalid step: must not be negative"));
        }
        return Ok(Some(nanos as u64));
    }
    let nanos =
        parse_duration(text).ok_or_else(|| ApiError::bad(format!("cannot parse {text:?} to a valid duration")))?;
    Ok(u64::try_from(nanos).ok())
}

/// A moment, nanoseconds since the epoch: seconds with a fraction, up to ten digits of seconds, more digits of
/// nanoseconds, or a date.
fn timestamp(text: &str) -> Result<u64, String> {
    if text.contains('.')
        && let Ok(seconds) = text.parse::<f64>()
    {
        // Whole milliseconds, because a float has no more digits for the present.
        let millis = (seconds * 1e3).round();
        return if (0.0..=9e15).contains(&millis) {
            Ok((millis as u64).saturating_mul(1_000_000))
        } else {
            Err(format!("{text:?} is out of range"))
        };
    }
    match go_integer("ParseInt", text) {
        Ok(number) => {
            let number = u64::try_from(number).map_err(|_| format!("{text:?} is before 1970"))?;
            Ok(if text.len() <= 10 { number.saturating_mul(SECOND) } else { number })
        }
        Err(error) => date(text).ok_or(error),
    }
}

/// Reads `2026-01-31T12:00:00.5+01:00` (RFC 3339).
fn date(text: &str) -> Option<u64> {
    let (day, time) = text.split_once(['T', 't'])?;
    let [year, month, day] = numbers(day, '-', [4, 2, 2])?;
    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = (time.get(..zone)?, time.get(zone..)?);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    if !(1..=12).contains(&month) || day == 0 || day > days_of(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let offset = match zone.strip_prefix(['+', '-']) {
        None => (zone.len() == 1).then_some(0)?,
        Some(offset) => {
            let [hours, minutes] = numbers(offset, ':', [2, 2])?;
            let seconds = (hours <= 23 && minutes <= 59).then_some(hours * 3_600 + minutes * 60)?;
            if zone.starts_with('-') { -seconds } else { seconds }
        }
    };
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    u64::try_from(seconds).ok()?.checked_mul(SECOND)?.checked_add(nanos)
}

/// Numbers of exactly so many digits.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(between);
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part =
            parts.next().filter(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Of the Gregorian calendar. Years begin in March, so that the day that some have more is their last one.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const MS: u64 = 1_000_000;

    #[rstest]
    #[case::seconds("1767225600", 1_767_225_600 * SECOND)]
    #[case::nanoseconds("1767225600123456789", 1_767_225_600_123_456_789)]
    #[case::fraction("1767225600.5", 1_767_225_600_500 * MS)]
    #[case::date("2026-01-01T00:00:00Z", 1_767_225_600 * SECOND)]
    #[case::date_with_fraction("2026-01-01T00:00:00.25Z", 1_767_225_600_250 * MS)]
    #[case::date_with_zone("2026-01-01T01:30:00+01:30", 1_767_225_600 * SECOND)]
    #[case::date_west("2025-12-31T19:00:00-05:00", 1_767_225_600 * SECOND)]
    #[case::leap_day("2024-02-29T12:00:00z", 1_709_208_000 * SECOND)]
    fn reads_moments(#[case] text: &str, #[case] nanos: u64) {
        assert_eq!(timestamp(text), Ok(nanos));
    }

    #[rstest]
    #[case::word("soon", "strconv.ParseInt: parsing \"soon\": invalid syntax")]
    #[case::negative("-5", "\"-5\" is before 1970")]
    #[case::negative_fraction("-5.5", "\"-5.5\" is out of range")]
    #[case::no_leap_day("2025-02-29T12:00:00Z", "strconv.ParseInt: parsing \"2025-02-29T12:00:00Z\": invalid syntax")]
    #[case::no_zone("2025-02-28T12:00:00", "strconv.ParseInt: parsing \"2025-02-28T12:00:00\": invalid syntax")]
    fn refuses_moments(#[case] text: &str, #[case] error: &str) {
        assert_eq!(timestamp(text), Err(error.to_owned()));
    }

    #[test]
    fn every_prefix_of_a_date_is_survived() {
        let text = "2026-01-31T12:34:56.789+01:00";
        for end in 0..text.len() {
            let whole_number = text.get(..end).is_some_and(|text| text == "2026" || text.len() < 5);
            let read = timestamp(text.get(..end).unwrap());
            assert!(whole_number || read.is_err(), "{end}: {read:?}");
        }
        assert!(timestamp(text).is_ok());
    }

    #[rstest]
    #[case::seconds("30", Some(30 * SECOND))]
    #[case::fraction("0.5", Some(500 * MS))]
    #[case::duration("1m30s", Some(90 * SECOND))]
    #[case::milliseconds("35ms", Some(35 * MS))]
    #[case::nothing("0", Some(0))]
    #[case::negative("-1s", None)]
    #[case::negative_seconds("-1", None)]
    #[case::word("long", None)]
    #[case::endless("1e300", None)]
    #[case::no_number("NaN", None)]
    fn reads_steps(#[case] text: &str, #[case] nanos: Option<u64>) {
        assert_eq!(step(&Params::of_pairs([("step", text.to_owned())])).ok().flatten(), nanos);
    }

    #[rstest]
    #[case::nothing(&[], (6_400, 10_000))]
    #[case::since(&[("since", "5m")], (9_700, 10_000))]
    #[case::end(&[("end", "9000")], (5_400, 9_000))]
    #[case::end_in_the_future(&[("end", "20000")], (6_400, 20_000))]
    #[case::both(&[("start", "1"), ("end", "2"), ("since", "1h")], (1, 2))]
    fn ranges_have_defaults(#[case] pairs: &[(&'static str, &str)], #[case] seconds: (u64, u64)) {
        let params = Params::of_pairs(pairs.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let expected = (seconds.0 * SECOND, seconds.1 * SECOND);
        assert_eq!(bounds(&params, 10_000 * SECOND).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in any::<String>(), like in "[0-9TZ:.+-]{0,32}") {
            for text in [text, like] {
                let _ = timestamp(&text);
                let _ = step(&Params::of_pairs([("step", text)]));
            }
        }

        #[test]
        fn days_follow_each_other(year in 1970i64..2500, month in 1i64..=12) {
            let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            let first = days_since_epoch(year, month, 1);
            prop_assert_eq!(first + days_of(year, month), days_since_epoch(next_year, next_month, 1));
        }
    }
}
