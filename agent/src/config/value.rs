//! Values as text: the same notation in a file, in the environment and on the command line.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use http::Uri;
use serde::{Deserialize, Deserializer, Serializer, de, ser};
use serde_json::{Value as Json, json};

use super::{Endpoint, Hooks, LogLevel, ProtocolChoice, RecordContent, Switch};
use crate::{
    export::{Compression, Fsync},
    kernel::features::HookSet,
    print::Format,
};

/// Something that a setting can be set to.
pub(crate) trait Value: Sized {
    /// What a message says is expected.
    const EXPECTED: &'static str;

    /// Reads the notation, `None` if it is none.
    fn from_text(text: &str) -> Option<Self>;

    /// The notation of this value.
    fn to_text(&self) -> String;

    /// The JSON Schema of the notation.
    fn schema() -> Json {
        json!({ "type": "string" })
    }

    /// A text that is not this notation, as a message shows it: without secrets.
    fn shown(text: &str) -> String {
        text.to_owned()
    }
}

fn parsed<T: Value, E: de::Error>(text: &str) -> Result<T, E> {
    T::from_text(text).ok_or_else(|| E::custom(format_args!("expected {}, found `{}`", T::EXPECTED, T::shown(text))))
}

/// What is a number or a truth value in the schema is written as one.
fn write<S: Serializer, T: Value>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let text = value.to_text();
    match T::schema().get("type").and_then(Json::as_str) {
        Some("boolean") => serializer.serialize_bool(text == "true"),
        Some("integer") => text.parse().map_or(Err(ser::Error::custom(&text)), |it| serializer.serialize_u64(it)),
        Some("number") => text.parse().map_or(Err(ser::Error::custom(&text)), |it| serializer.serialize_f64(it)),
        _ => serializer.serialize_str(&text),
    }
}

/// For `#[serde(with = …)]`: a scalar of a file, read as everywhere else.
pub(super) mod text {
    use super::{Deserialize as _, Deserializer, Serializer, Value, parsed, write};

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>, T: Value>(from: D) -> Result<T, D::Error> {
        parsed(&String::deserialize(from)?)
    }

    pub(in crate::config) fn serialize<S: Serializer, T: Value>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        write(value, to)
    }
}

/// The same for a setting that may be absent.
pub(super) mod optional {
    use super::{Deserialize as _, Deserializer, Serializer, Value, parsed, write};

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>, T: Value>(from: D) -> Result<Option<T>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        parsed(&text).map(Some)
    }

    #[expect(clippy::ref_option, reason = "serde wants it so")]
    pub(in crate::config) fn serialize<S: Serializer, T: Value>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => write(value, to),
            None => to.serialize_none(),
        }
    }
}

/// The same for a setting that is a list: `[80, 8000-8999]` is `80,8000-8999`.
pub(super) mod joined {
    use super::{Deserialize as _, Deserializer, OneOrMany, Serializer, Value, parsed};

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>, T: Value>(from: D) -> Result<Option<T>, D::Error> {
        let Some(OneOrMany(texts)) = Option::<OneOrMany>::deserialize(from)? else { return Ok(None) };
        parsed(&texts.join(",")).map(Some)
    }

    #[expect(clippy::ref_option, reason = "serde wants it so")]
    pub(in crate::config) fn serialize<S: Serializer, T: Value>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        super::optional::serialize(value, to)
    }
}

/// The same for a setting that has a default; written as a list.
pub(super) mod list {
    use super::{Deserialize as _, Deserializer, OneOrMany, Serializer, Value, parsed};

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>, T: Value>(from: D) -> Result<T, D::Error> {
        let OneOrMany(texts) = OneOrMany::deserialize(from)?;
        parsed(&texts.join(","))
    }

    pub(in crate::config) fn serialize<S: Serializer, T: Value>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        let text = value.to_text();
        let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.parse().ok()).collect();
        match numbers {
            Some(numbers) => to.collect_seq(numbers),
            None => to.collect_seq(text.split(',')),
        }
    }
}

/// A scalar, or a list of some.
struct OneOrMany(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a scalar or a list of scalars")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![number.to_string()]))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![number.to_string()]))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![number.to_string()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The schema of what one of several names stands for.
pub(super) fn names(names: &[&str]) -> Json {
    json!({ "type": "string", "enum": names })
}

impl Value for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_text(&self) -> String {
        self.to_string()
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

/// A number of things, at least one.
impl Value for usize {
    const EXPECTED: &'static str = "a whole number, at least 1";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number| *number > 0)
    }

    fn to_text(&self) -> String {
        self.to_string()
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 1 })
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an address with a port such as `127.0.0.1:9400`";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "an absolute path";

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::from(text)).filter(|path| path.is_absolute())
    }

    fn to_text(&self) -> String {
        self.to_string_lossy().into_owned()
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^/" })
    }
}

impl Value for Option<PathBuf> {
    const EXPECTED: &'static str = PathBuf::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        PathBuf::from_text(text).map(Some)
    }

    fn to_text(&self) -> String {
        self.as_ref().map(Value::to_text).unwrap_or_default()
    }

    fn schema() -> Json {
        PathBuf::schema()
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

    fn to_text(&self) -> String {
        let (ms, seconds) = (self.as_millis(), self.as_secs());
        match (ms.is_multiple_of(1000), seconds.is_multiple_of(60)) {
            (true, true) => format!("{}m", seconds / 60),
            (true, false) => format!("{seconds}s"),
            (false, _) => format!("{ms}ms"),
        }
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m)$" })
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

    fn to_text(&self) -> String {
        let name = match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        };
        name.to_owned()
    }

    fn schema() -> Json {
        names(&["error", "warn", "info", "debug", "trace"])
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

    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Only(set) => set.name().to_owned(),
        }
    }

    fn schema() -> Json {
        names(&["auto", "fentry", "kprobe", "syscall"])
    }
}

impl Value for Switch {
    const EXPECTED: &'static str = "`auto` or `off`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => None,
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::Off => "off".to_owned(),
        }
    }

    fn schema() -> Json {
        names(&["auto", "off"])
    }
}

impl Value for RecordContent {
    const EXPECTED: &'static str = "`off` or `attributes`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            "attributes" => Some(Self::Attributes),
            _ => None,
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Attributes => "attributes".to_owned(),
        }
    }

    fn schema() -> Json {
        names(&["off", "attributes"])
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

    fn to_text(&self) -> String {
        let name = match self {
            Some(Format::Text) => "text",
            Some(Format::Json) => "json",
            None => "disabled",
        };
        name.to_owned()
    }

    fn schema() -> Json {
        names(&["text", "json", "disabled"])
    }
}

impl Value for Endpoint {
    const EXPECTED: &'static str = "an address such as `http://127.0.0.1:4317` or `https://tempo.example:4317`";

    fn from_text(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        // A password would be logged wherever the endpoint is, and is sent by neither transport: headers are for that.
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        (is_http && has_host && !has_user && uri.query().is_none())
            .then(|| Self { url: text.to_owned(), is_whole: false })
    }

    fn to_text(&self) -> String {
        self.url.clone()
    }

    fn schema() -> Json {
        json!({ "type": "string", "format": "uri" })
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

    fn to_text(&self) -> String {
        self.as_ref().map(Value::to_text).unwrap_or_default()
    }

    fn schema() -> Json {
        Endpoint::schema()
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

    fn to_text(&self) -> String {
        let name = match self {
            Self::Auto => "auto",
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
        };
        name.to_owned()
    }

    fn schema() -> Json {
        names(&["auto", "grpc", "http/protobuf"])
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

    fn to_text(&self) -> String {
        let name = match self {
            Self::Auto => "auto",
            Self::Gzip => "gzip",
            Self::None => "none",
        };
        name.to_owned()
    }

    fn schema() -> Json {
        names(&["auto", "gzip", "none"])
    }
}

impl Value for Fsync {
    const EXPECTED: &'static str = "`always`, `never`, or a time such as `1s`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "always" => Some(Self::Always),
            "never" => Some(Self::Never),
            text => Duration::from_text(text).map(Self::Every),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Always => "always".to_owned(),
            Self::Never => "never".to_owned(),
            Self::Every(time) => time.to_text(),
        }
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(always|never|[0-9]+(ms|s|m))$" })
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
}
