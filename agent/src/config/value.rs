//! Values as text: the same notation in a file, in the environment and on the command line.

mod choice;
#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serializer, de, ser};
use serde_json::{Value as Json, json};

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
