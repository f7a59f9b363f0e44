//! Section `telemetry`.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{
    AuthConfig, Config, ConfigError, Endpoint, ProtocolChoice, TlsConfig,
    environment::{Environment, Headers, Milliseconds},
    schema::Of,
    value::{self, Value},
};
use crate::{
    export::{Compression, Signal},
    metrics::{OtlpMetricsSettings, Temporality},
    secret::Secret,
};

/// Section `telemetry`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// All metrics by OTLP.
    pub otlp_metrics: OtlpMetricsConfig,
}

/// Section `telemetry.otlp_metrics`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpMetricsConfig {
    /// Whether they are sent. Off, because most nodes have something that scrapes `/metrics`.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub enabled: bool,
    /// Address of an OTLP endpoint; absent, the first of the spans, with all that is said of it.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<Endpoint>>")]
    pub endpoint: Option<Endpoint>,
    /// How OTLP is spoken; absent, as spans are sent.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<ProtocolChoice>>")]
    pub protocol: Option<ProtocolChoice>,
    /// Whether requests are compressed; absent, as spans are sent.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<Compression>>")]
    pub compression: Option<Compression>,
    /// Headers of every request.
    pub headers: BTreeMap<String, Secret>,
    /// How long one request may take; absent, as of spans.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<Duration>>")]
    pub timeout: Option<Duration>,
    /// Whom to trust and who we are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Who sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthConfig>,
    /// Time between two exports.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Duration>")]
    pub interval: Duration,
    /// What of counts is sent: all since the beginning, or what is new.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Temporality>")]
    pub temporality: Temporality,
}

impl Default for OtlpMetricsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            endpoint: None,
            protocol: None,
            compression: None,
            headers: BTreeMap::new(),
            timeout: None,
            tls: None,
            auth: None,
            interval: Duration::from_mins(1),
            temporality: Temporality::Cumulative,
        }
    }
}

impl OtlpMetricsConfig {
    /// Applies the variables that are set: OpenTelemetry's, of metrics only.
    pub(super) fn apply(&mut self, environment: &Environment<'_>) -> Result<(), ConfigError> {
        if let Some(endpoint) = environment.get::<Endpoint>(&["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"])? {
            self.endpoint = Some(Endpoint { is_whole: true, ..endpoint });
            self.enabled = true;
        }
        if let Some(Exporter(is_otlp)) = environment.get(&["OTEL_METRICS_EXPORTER"])? {
            self.enabled = is_otlp;
        }
        environment.set(&mut self.enabled, &["COATI_AGENT_OTLP_METRICS"])?;
        if let Some(protocol) = environment.get(&["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"])? {
            self.protocol = Some(protocol);
        }
        if let Some(compression) = environment.get(&["OTEL_EXPORTER_OTLP_METRICS_COMPRESSION"])? {
            self.compression = Some(compression);
        }
        if let Some(Headers(headers)) = environment.get(&["OTEL_EXPORTER_OTLP_METRICS_HEADERS"])? {
            self.headers = headers.into_iter().map(|(name, value)| (name, value.into())).collect();
        }
        if let Some(Milliseconds(timeout)) = environment.get(&["OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"])? {
            self.timeout = Some(timeout);
        }
        let files = [
            environment.get(&["OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE"])?,
            environment.get(&["OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE"])?,
            environment.get(&["OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY"])?,
        ];
        if files.iter().any(Option::is_some) && self.endpoint.as_ref().is_some_and(Endpoint::is_secure) {
            let tls = self.tls.get_or_insert_default();
            for (place, file) in [&mut tls.ca_file, &mut tls.cert_file, &mut tls.key_file].into_iter().zip(files) {
                *place = file.or(place.take());
            }
        }
        if let Some(Milliseconds(interval)) = environment.get(&["OTEL_METRIC_EXPORT_INTERVAL"])? {
            self.interval = interval;
        }
        environment.set(&mut self.temporality, &["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"])
    }
}

impl Config {
    /// Where metrics are sent, if they are: to an endpoint of their own, which gets none of the secrets of others, or to the
    /// first of the spans.
    pub fn otlp_metrics(&self) -> Option<OtlpMetricsSettings> {
        let sent = &self.telemetry.otlp_metrics;
        let OtlpMetricsConfig { endpoint, protocol, compression, headers, timeout, tls, auth, .. } = sent;
        if !sent.enabled {
            return None;
        }
        let mut settings = match endpoint {
            Some(endpoint) => self.endpoint_of(endpoint, *protocol, Signal::Metrics),
            None => self.first_endpoint(*protocol, Signal::Metrics),
        };
        settings.compression = compression.unwrap_or(settings.compression);
        settings.timeout = timeout.unwrap_or(settings.timeout);
        settings.headers.extend(headers.clone());
        settings.tls = tls.clone().map(Into::into).or(settings.tls);
        settings.auth = auth.clone().map_or(settings.auth, Into::into);
        Some(OtlpMetricsSettings { endpoint: settings, interval: sent.interval, temporality: sent.temporality })
    }
}

/// `OTEL_METRICS_EXPORTER`: whether it is OTLP. `/metrics` is there in any case.
struct Exporter(bool);

impl Value for Exporter {
    const EXPECTED: &'static str = "`otlp`, `prometheus` or `none`";

    fn from_text(text: &str) -> Option<Self> {
        let known = text.split(',').all(|name| matches!(name.trim(), "otlp" | "prometheus" | "none"));
        known.then(|| Self(text.split(',').any(|name| name.trim() == "otlp")))
    }

    fn to_text(&self) -> String {
        if self.0 { "otlp" } else { "none" }.to_owned()
    }
}

impl Value for Temporality {
    const EXPECTED: &'static str = "`cumulative`, `delta` or `lowmemory`";

    fn from_text(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "cumulative" => Some(Self::Cumulative),
            // Which is the same of what is counted here.
            "delta" | "lowmemory" => Some(Self::Delta),
            _ => None,
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Cumulative => "cumulative",
            Self::Delta => "delta",
        }
        .to_owned()
    }

    fn schema() -> Json {
        value::names(&["cumulative", "delta", "lowmemory"])
    }
}
