//! Section `receive`.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Config, ConfigError,
    environment::Environment,
    schema::{Of, OneOrMany},
    value::{self, Value},
};
use crate::receive::ReceiveSettings;

/// Section `receive`: OTLP from SDKs on this node.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReceiveSection {
    /// Where spans of SDKs are received; each address speaks gRPC and HTTP. Absent, nothing is.
    #[serde(with = "value::joined", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<OneOrMany<Addresses>>")]
    pub listen: Option<Addresses>,
    /// Bytes of one request at most, unpacked.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub max_request_bytes: usize,
    /// Whether what the SDK did not say of its process, container and pod is added.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub enrich: bool,
}

impl Default for ReceiveSection {
    fn default() -> Self {
        Self { listen: None, max_request_bytes: 4 << 20, enrich: true }
    }
}

/// Addresses to listen on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses(Vec<SocketAddr>);

impl Value for Addresses {
    const EXPECTED: &'static str = "addresses with a port such as `127.0.0.1:4317,127.0.0.1:4318`";

    fn from_text(text: &str) -> Option<Self> {
        let addresses = text.split(',').map(str::trim).filter(|address| !address.is_empty());
        addresses.map(|address| address.parse().ok()).collect::<Option<_>>().map(Self)
    }

    fn to_text(&self) -> String {
        self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

impl ReceiveSection {
    /// Applies the variables that are set.
    pub(super) fn apply(&mut self, environment: &Environment<'_>) -> Result<(), ConfigError> {
        if let Some(addresses) = environment.get(&["COATI_AGENT_RECEIVE_LISTEN"])? {
            self.listen = Some(addresses);
        }
        environment.set(&mut self.max_request_bytes, &["COATI_AGENT_RECEIVE_MAX_REQUEST_BYTES"])?;
        environment.set(&mut self.enrich, &["COATI_AGENT_RECEIVE_ENRICH"])
    }
}

impl Config {
    /// Where OTLP is received, if it is.
    pub fn receive_settings(&self) -> Option<ReceiveSettings> {
        let ReceiveSection { listen, max_request_bytes, enrich } = &self.receive;
        let Addresses(listen) = listen.as_ref().filter(|Addresses(listen)| !listen.is_empty())?;
        let (max_request_bytes, enrich) = (*max_request_bytes, *enrich);
        Some(ReceiveSettings { listen: listen.clone(), max_request_bytes, enrich })
    }
}
