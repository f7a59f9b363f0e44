//! Settings that are one of a few names, and endpoints.

use std::time::Duration;

use http::Uri;
use serde_json::{Value as Json, json};

use super::{Value, names};
use crate::{
    config::{Endpoint, Hooks, LogLevel, ProtocolChoice, RecordContent, Switch},
    export::{Compression, Fsync},
    kernel::features::HookSet,
    print::Format,
};

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
