//! Where metrics that are made of spans go. The keys are Prometheus' and Tempo's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::value::{ByteSize, Value, text};
use super::{MIB, Secret, Unused};

/// Where series go.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorStorage {
    /// Servers that take Prometheus' remote write.
    pub remote_write: Vec<RemoteWriteConfig>,
    /// Servers that take OTLP's metrics.
    pub otlp: Vec<OtlpConfig>,
    /// Whether they are told the tenant in `X-Scope-OrgID`, if there are several.
    pub remote_write_add_org_id_header: bool,
    /// What may wait for one of them on disk; beyond it the oldest is given up.
    #[serde(deserialize_with = "text")]
    pub remote_write_queue_bytes: ByteSize,
    /// How long samples are kept in memory, for `/prometheus`.
    #[serde(deserialize_with = "text")]
    pub history: Duration,
    /// What the samples of one tenant may take, about; then the oldest are dropped.
    #[serde(deserialize_with = "text")]
    pub history_bytes: ByteSize,
    /// Tempo's, and not used.
    pub path: Unused,
    /// Tempo's, and not used.
    pub wal: Unused,
    /// Tempo's, and not used.
    pub remote_write_flush_deadline: Unused,
}

/// A server that takes Prometheus' remote write.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteWriteConfig {
    /// Such as `http://prometheus:9090/api/v1/write`.
    #[serde(deserialize_with = "text")]
    pub url: String,
    /// Sent with every request.
    pub headers: BTreeMap<String, SecretText>,
    /// User and password.
    pub basic_auth: Option<BasicAuth>,
    /// How its certificate is checked.
    pub tls_config: TlsConfig,
    /// Whether exemplars are sent.
    pub send_exemplars: bool,
    /// Whether native histograms are sent.
    pub send_native_histograms: bool,
    /// How long one request may take.
    #[serde(deserialize_with = "text")]
    pub remote_timeout: Duration,
    /// The version that it is sent.
    #[serde(deserialize_with = "text")]
    pub protobuf_message: ProtobufMessage,
    /// Which series it gets, and with which labels.
    pub write_relabel_configs: Vec<RelabelConfig>,
    /// Tempo's, and not used.
    pub name: Unused,
    /// Tempo's, and not used.
    pub queue_config: Unused,
    /// Tempo's, and not used.
    pub metadata_config: Unused,
    /// Tempo's, and not used.
    pub enable_http2: Unused,
    /// Tempo's, and not used.
    pub round_robin_dns: Unused,
}

/// A server that takes OTLP's metrics.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpConfig {
    /// Such as `http://collector:4317`, or `http://prometheus:9090/api/v1/otlp`; the path of the protocol is put behind it.
    #[serde(deserialize_with = "text")]
    pub endpoint: String,
    /// How it is spoken to.
    #[serde(deserialize_with = "text")]
    pub protocol: OtlpProtocol,
    /// Sent with every request.
    pub headers: BTreeMap<String, SecretText>,
    /// User and password.
    pub basic_auth: Option<BasicAuth>,
    /// How its certificate is checked.
    pub tls_config: TlsConfig,
    /// Whether exemplars are sent.
    pub send_exemplars: bool,
    /// Whether native histograms are sent, as exponential ones.
    pub send_native_histograms: bool,
    /// How long one request may take.
    #[serde(deserialize_with = "text")]
    pub remote_timeout: Duration,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OtlpProtocol {
    /// gRPC.
    #[default]
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// A version of remote write, called by its message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ProtobufMessage {
    /// 2.0, or 1.0 if the server does not know that.
    #[default]
    Auto,
    /// 1.0.
    WriteRequest,
    /// 2.0.
    Request2,
}

/// A rule of Prometheus' relabelling.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct RelabelConfig {
    /// What is done.
    #[serde(deserialize_with = "text")]
    pub action: RelabelAction,
    /// Labels whose values are joined and matched.
    pub source_labels: Vec<String>,
    /// What stands between the values.
    #[serde(deserialize_with = "text")]
    pub separator: String,
    /// What is matched, from the first letter to the last.
    #[serde(deserialize_with = "text")]
    pub regex: String,
    /// Label that is set.
    #[serde(deserialize_with = "text")]
    pub target_label: String,
    /// What it is set to; `$1` is what the first group matched.
    #[serde(deserialize_with = "text")]
    pub replacement: String,
    /// Of the action `hashmod`.
    pub modulus: u64,
}

/// What a rule of relabelling does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RelabelAction {
    /// Sets a label if the values match.
    #[default]
    Replace,
    /// Leaves out the series unless they match.
    Keep,
    /// Leaves out the series if they match.
    Drop,
    /// Leaves out the series unless they are the value of the label.
    KeepEqual,
    /// Leaves out the series if they are the value of the label.
    DropEqual,
    /// Sets a label to a hash of the values, modulo `modulus`.
    HashMod,
    /// Copies labels whose names match.
    LabelMap,
    /// Removes labels whose names match.
    LabelDrop,
    /// Removes labels whose names do not match.
    LabelKeep,
    /// Sets a label to the values in small letters.
    Lowercase,
    /// Sets a label to the values in capitals.
    Uppercase,
}

/// User and password.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct BasicAuth {
    /// User.
    #[serde(deserialize_with = "text")]
    pub username: String,
    /// Password.
    #[serde(deserialize_with = "text")]
    pub password: Secret,
    /// A file with the password, read at each start.
    #[serde(deserialize_with = "text")]
    pub password_file: Option<PathBuf>,
}

/// A text that no log shows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(from = "String")]
pub struct SecretText(pub Secret);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text.as_str().into())
    }
}

/// How a server's certificate is checked.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificates, in PEM, that are trusted beside the system's.
    #[serde(deserialize_with = "text")]
    pub ca_file: Option<PathBuf>,
    /// Certificate of this client, in PEM.
    #[serde(deserialize_with = "text")]
    pub cert_file: Option<PathBuf>,
    /// Its key, in PEM.
    #[serde(deserialize_with = "text")]
    pub key_file: Option<PathBuf>,
    /// Whether any certificate is taken.
    pub insecure_skip_verify: bool,
}

impl Default for GeneratorStorage {
    fn default() -> Self {
        Self {
            remote_write: Vec::new(),
            otlp: Vec::new(),
            remote_write_add_org_id_header: true,
            remote_write_queue_bytes: ByteSize(256 * MIB),
            history: Duration::from_hours(24),
            history_bytes: ByteSize(64 * MIB),
            path: Unused,
            wal: Unused,
            remote_write_flush_deadline: Unused,
        }
    }
}

impl Default for RemoteWriteConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            headers: BTreeMap::new(),
            basic_auth: None,
            tls_config: TlsConfig::default(),
            send_exemplars: true,
            send_native_histograms: true,
            remote_timeout: Duration::from_secs(30),
            protobuf_message: ProtobufMessage::Auto,
            write_relabel_configs: Vec::new(),
            name: Unused,
            queue_config: Unused,
            metadata_config: Unused,
            enable_http2: Unused,
            round_robin_dns: Unused,
        }
    }
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: OtlpProtocol::Grpc,
            headers: BTreeMap::new(),
            basic_auth: None,
            tls_config: TlsConfig::default(),
            send_exemplars: true,
            send_native_histograms: true,
            remote_timeout: Duration::from_secs(30),
        }
    }
}

impl Value for OtlpProtocol {
    const EXPECTED: &'static str = "`grpc` or `http/protobuf`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "grpc" => Some(Self::Grpc),
            "http/protobuf" => Some(Self::Http),
            _ => None,
        }
    }
}

impl Default for RelabelConfig {
    fn default() -> Self {
        Self {
            action: RelabelAction::Replace,
            source_labels: Vec::new(),
            separator: ";".to_owned(),
            regex: "(.*)".to_owned(),
            target_label: String::new(),
            replacement: "$1".to_owned(),
            modulus: 0,
        }
    }
}

impl RelabelAction {
    const ALL: [Self; 11] = [
        Self::Replace,
        Self::Keep,
        Self::Drop,
        Self::KeepEqual,
        Self::DropEqual,
        Self::HashMod,
        Self::LabelMap,
        Self::LabelDrop,
        Self::LabelKeep,
        Self::Lowercase,
        Self::Uppercase,
    ];

    /// As the file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Keep => "keep",
            Self::Drop => "drop",
            Self::KeepEqual => "keepequal",
            Self::DropEqual => "dropequal",
            Self::HashMod => "hashmod",
            Self::LabelMap => "labelmap",
            Self::LabelDrop => "labeldrop",
            Self::LabelKeep => "labelkeep",
            Self::Lowercase => "lowercase",
            Self::Uppercase => "uppercase",
        }
    }
}

impl Value for RelabelAction {
    const EXPECTED: &'static str = "`replace`, `keep`, `drop`, `keepequal`, `dropequal`, `hashmod`, `labelmap`, \
                                    `labeldrop`, `labelkeep`, `lowercase` or `uppercase`";

    fn from_text(text: &str) -> Option<Self> {
        // Prometheus does not mind capitals.
        Self::ALL.into_iter().find(|action| action.name().eq_ignore_ascii_case(text))
    }
}

impl Value for ProtobufMessage {
    const EXPECTED: &'static str = "`auto`, `io.prometheus.write.v2.Request` or `prometheus.WriteRequest`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "io.prometheus.write.v2.Request" => Some(Self::Request2),
            "prometheus.WriteRequest" => Some(Self::WriteRequest),
            _ => None,
        }
    }
}
