use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::config::{Endpoint, LogLevel};

#[rstest]
#[case("200ms", Some(Duration::from_millis(200)))]
#[case("10s", Some(Duration::from_secs(10)))]
#[case("5m", Some(Duration::from_mins(5)))]
#[case("60m", Some(Duration::from_hours(1)))]
#[case("61m", None)]
#[case("0s", None)]
#[case("10", None)]
#[case("s", None)]
#[case("", None)]
#[case("1.5s", None)]
#[case("-1s", None)]
#[case("10 s", None)]
#[case("99999999999999999999s", None)]
#[case("18446744073709551615m", None)]
fn durations(#[case] text: &str, #[case] expected: Option<Duration>) {
    assert_eq!(Duration::from_text(text), expected);
}

#[rstest]
#[case("http://127.0.0.1:4317", true)]
#[case("http://tempo:4318/otlp", true)]
#[case("http://[::1]:4317", true)]
#[case("https://tempo:4317", true)]
#[case("ftp://tempo:4317", false)]
#[case("tempo:4317", false)]
#[case("http://", false)]
#[case("http://tempo?x=1", false)]
#[case("http://user:password@tempo:4317", false)]
#[case("", false)]
fn endpoints(#[case] text: &str, #[case] good: bool) {
    assert_eq!(Endpoint::from_text(text).is_some(), good);
}

#[rstest]
#[case("INFO", Some(LogLevel::Info))]
#[case("debug", Some(LogLevel::Debug))]
#[case("loud", None)]
fn levels(#[case] text: &str, #[case] expected: Option<LogLevel>) {
    assert_eq!(LogLevel::from_text(text), expected);
}

proptest! {
    #[test]
    fn durations_are_written_as_they_are_read(ms in 1..3_600_000_u64) {
        let duration = Duration::from_millis(ms);
        prop_assert_eq!(Duration::from_text(&duration.to_text()), Some(duration));
    }

    #[test]
    fn takes_any_text(text in ".*") {
        let _ = Duration::from_text(&text);
        let _ = Endpoint::from_text(&text);
    }
}
