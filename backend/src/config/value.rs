//! Values as text: the same notation in a file, in the environment and on the command line.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Something that a setting can be set to.
pub(super) trait Value: Sized {
    /// What a message says is expected.
    const EXPECTED: &'static str;

    /// Reads the notation, `None` if it is none.
    fn from_text(text: &str) -> Option<Self>;
}

/// For `#[serde(deserialize_with = …)]`: a scalar of a file, read as everywhere else.
pub(super) fn text<'de, D: Deserializer<'de>, T: Value>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    T::from_text(&text).ok_or_else(|| de::Error::custom(format_args!("expected {}, found `{text}`", T::EXPECTED)))
}

/// The same for a value that may be missing.
pub(super) fn optional_text<'de, D: Deserializer<'de>, T: Value>(deserializer: D) -> Result<Option<T>, D::Error> {
    text(deserializer).map(Some)
}

/// A time in the notation of the file.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    Duration::from_text(text)
}

/// A number of bytes, at least one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// As an amount of memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that leaves no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = UNITS.iter().find(|(_, size)| self.0.is_multiple_of(*size));
        fitting.map_or(Ok(()), |(unit, size)| write!(f, "{}{unit}", self.0 / size))
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogLevel {
    /// Only what needs somebody.
    Error,
    /// And what is odd.
    Warn,
    /// And what happens seldom.
    Info,
    /// And what happens often.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a directory";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an address with a port such as `0.0.0.0:3200`";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for Duration {
    const EXPECTED: &'static str = "a time with a unit such as `90m`, `36h` or `7d`";

    fn from_text(text: &str) -> Option<Self> {
        let (number, unit) = text.split_at_checked(text.find(|letter: char| !letter.is_ascii_digit())?)?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let millis = millis.checked_mul(number.parse().ok()?)?;
        // Times are added to nanoseconds since 1970 in 64 bits; a century leaves room.
        (1..=100 * 365 * 86_400_000).contains(&millis).then(|| Self::from_millis(millis))
    }
}

impl Value for ByteSize {
    const EXPECTED: &'static str = "a size with a unit such as `512KiB`, `256MiB` or `10GiB`";

    fn from_text(text: &str) -> Option<Self> {
        let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits)?;
        let size = if unit.is_empty() { 1 } else { UNITS.iter().find(|(name, _)| *name == unit)?.1 };
        number.parse::<u64>().ok()?.checked_mul(size).filter(|bytes| *bytes > 0).map(Self)
    }
}

impl Value for LogLevel {
    const EXPECTED: &'static str = "`error`, `warn`, `info`, `debug` or `trace`";

    fn from_text(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("2000ms", Some(2))]
    #[case("90s", Some(90))]
    #[case("36h", Some(129_600))]
    #[case("7d", Some(604_800))]
    #[case("36500d", Some(3_153_600_000))]
    #[case("36501d", None)]
    #[case("0s", None)]
    #[case("7", None)]
    #[case("d", None)]
    #[case("-1d", None)]
    #[case("1.5h", None)]
    #[case("18446744073709551615d", None)]
    fn durations(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(Duration::from_text(text), expected.map(Duration::from_secs));
    }

    #[rstest]
    #[case("10GiB", Some(10 << 30))]
    #[case("1048576", Some(1 << 20))]
    #[case("7B", Some(7))]
    #[case("0MiB", None)]
    #[case("1GB", None)]
    #[case("1 GiB", None)]
    #[case("GiB", None)]
    #[case("18446744073709551615KiB", None)]
    fn sizes(#[case] text: &str, #[case] expected: Option<u64>) {
        assert_eq!(ByteSize::from_text(text), expected.map(ByteSize));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = Duration::from_text(&text);
            let _ = ByteSize::from_text(&text);
        }

        #[test]
        fn a_size_is_read_as_it_is_shown(bytes in 1_u64..) {
            let size = ByteSize(bytes);
            prop_assert_eq!(ByteSize::from_text(&size.to_string()), Some(size));
        }
    }
}
