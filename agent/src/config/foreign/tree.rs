//! What another program's file says: names, values, and the lines that they are in.

use std::{fmt, path::Path};

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value as Json};
use serde_saphyr::Spanned;

use crate::config::{ConfigError, file};

/// A value and its line, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) data: Data,
}

/// A value. Numbers and truth values are text: what they mean is known where they are used.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    Nothing,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    /// Something that would have to be computed; its text.
    Expression(String),
}

impl Node {
    /// Reads YAML.
    pub(super) fn of_yaml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let root: Spanned<Raw> = serde_saphyr::from_str(text).map_err(|error| file::yaml_error(&error, path, ""))?;
        Ok(root.into())
    }

    pub(super) fn map(&self) -> &[(String, Self)] {
        match &self.data {
            Data::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The entries of a list; a single value is a list of one.
    pub(super) fn list(&self) -> &[Self] {
        match &self.data {
            Data::List(items) => items,
            Data::Nothing => &[],
            _ => std::slice::from_ref(self),
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.map().iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// The same as JSON, all scalars as texts.
    pub(super) fn json(&self) -> Json {
        match &self.data {
            Data::Nothing => Json::Null,
            Data::Text(text) | Data::Expression(text) => Json::String(text.clone()),
            Data::List(items) => Json::Array(items.iter().map(Self::json).collect()),
            Data::Map(entries) => {
                Json::Object(entries.iter().map(|(key, node)| (key.clone(), node.json())).collect::<Map<_, _>>())
            }
        }
    }
}

/// A value whose line is around it.
enum Raw {
    Nothing,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(String, Spanned<Raw>)>),
}

impl From<Spanned<Raw>> for Node {
    fn from(spanned: Spanned<Raw>) -> Self {
        let data = match spanned.value {
            Raw::Nothing => Data::Nothing,
            Raw::Text(text) => Data::Text(text),
            Raw::List(items) => Data::List(items.into_iter().map(Self::from).collect()),
            Raw::Map(entries) => Data::Map(entries.into_iter().map(|(key, value)| (key, value.into())).collect()),
        };
        Self { line: spanned.referenced.line(), data }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Raw;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Nothing)
            }

            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Nothing)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
                Raw::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Raw::List(list))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(Raw::Map(map))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
