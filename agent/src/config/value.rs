//! Values as text: the same notation in a file, in the environment and on the command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use globset::GlobMatcher;
use http::Uri;
use serde::{Deserialize, Deserializer, de};

use super::{Endpoint, Hooks, LogLevel, ProtocolChoice};
use crate::{
    discover::{Ports, exe_pattern},
    export::Compression,
    kernel::features::HookSet,
    print::Format,
};

/// Something that a setting can be set to.
pub(crate) trait Value: Sized {
    /// What a message says is expected.
    const EXPECTED: &'static str;

    /// Reads the notation, `None` if it is none.
    fn from_text(text: &str) -> Option<Self>;

    /// A text that is not this notation, as a message shows it: without secrets.
    fn shown(text: &str) -> String {
        text.to_owned()
    }
}

/// For `#[serde(deserialize_with = …)]`: a scalar of a file, read as everywhere else.
pub(super) fn text<'de, D: Deserializer<'de>, T: Value>(deserializer: D) -> Result<T, D::Error> {
    parsed(&String::deserialize(deserializer)?)
}

/// The same for a setting that may be absent.
pub(super) fn optional<'de, D: Deserializer<'de>, T: Value>(deserializer: D) -> Result<Option<T>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    parsed(&text).map(Some)
}

fn parsed<T: Value, E: de::Error>(text: &str) -> Result<T, E> {
    T::from_text(text).ok_or_else(|| E::custom(format_args!("expected {}, found `{}`", T::EXPECTED, T::shown(text))))
}

impl Value for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// A number of things, at least one.
impl Value for usize {
    const EXPECTED: &'static str = "a whole number, at least 1";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number| *number > 0)
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an address with a port such as `127.0.0.1:9400`";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "an absolute path";

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::from(text)).filter(|path| path.is_absolute())
    }
}

impl Value for Option<PathBuf> {
    const EXPECTED: &'static str = PathBuf::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        PathBuf::from_text(text).map(Some)
    }
}

impl Value for Duration {
    const EXPECTED: &'static str = "a time with a unit such as `200ms`, `10s` or `5m`";

    fn from_text(text: &str) -> Option<Self> {
        let (number, unit) = text.split_at_checked(text.find(|letter: char| !letter.is_ascii_digit())?)?;
        let number: u64 = number.parse().ok()?;
        let duration = match unit {
            "ms" => Self::from_millis(number),
            "s" => Self::from_secs(number),
            "m" => Self::from_secs(number.checked_mul(60)?),
            _ => return None,
        };
        // An hour is longer than any setting makes sense, and keeps sums of times from overflowing.
        (!duration.is_zero() && duration <= Self::from_hours(1)).then_some(duration)
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

impl Value for Hooks {
    const EXPECTED: &'static str = "`auto`, `fentry`, `kprobe` or `syscall`";

    fn from_text(text: &str) -> Option<Self> {
        if text == "auto" {
            return Some(Self::Auto);
        }
        let sets = [HookSet::Fentry, HookSet::Kprobe, HookSet::Syscall];
        sets.into_iter().find(|set| set.name() == text).map(Self::Only)
    }
}

impl Value for Option<Format> {
    const EXPECTED: &'static str = "`text`, `json` or `disabled`";

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "text" => Some(Format::Text),
            "json" => Some(Format::Json),
            "disabled" => None,
            _ => return None,
        })
    }
}

impl Value for Endpoint {
    const EXPECTED: &'static str = "an address such as `http://127.0.0.1:4317` (https is not built in)";

    fn from_text(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let is_plain = uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty());
        // A password would be logged wherever the endpoint is, and is sent by neither transport: headers are for that.
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        (is_plain && !has_user && uri.query().is_none()).then(|| Self { url: text.to_owned(), is_whole: false })
    }

    fn shown(text: &str) -> String {
        text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("***@{host}"))
    }
}

/// The endpoint of a flag; a file's may be absent, so it is optional in the configuration.
impl Value for Option<Endpoint> {
    const EXPECTED: &'static str = Endpoint::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        Endpoint::from_text(text).map(Some)
    }

    fn shown(text: &str) -> String {
        Endpoint::shown(text)
    }
}

impl Value for ProtocolChoice {
    const EXPECTED: &'static str = "`grpc` or `http/protobuf`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "grpc" => Some(Self::Grpc),
            "http/protobuf" => Some(Self::HttpProtobuf),
            _ => None,
        }
    }
}

impl Value for Compression {
    const EXPECTED: &'static str = "`auto`, `gzip` or `none`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "gzip" => Some(Self::Gzip),
            "none" => Some(Self::None),
            _ => None,
        }
    }
}

impl Value for GlobMatcher {
    const EXPECTED: &'static str = "a shell pattern such as `nginx`, `/usr/bin/python*` or `*{ollama,immich}*`";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| exe_pattern(text).ok()).flatten()
    }
}

impl Value for Ports {
    const EXPECTED: &'static str = "ports such as `80`, `80,443` or `8000-8999`";

    fn from_text(text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

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
    #[case("https://tempo:4317", false)]
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
        fn takes_any_text(text in ".*") {
            let _ = Duration::from_text(&text);
            let _ = Endpoint::from_text(&text);
            let _ = GlobMatcher::from_text(&text);
            let _ = Ports::from_text(&text);
        }
    }
}
