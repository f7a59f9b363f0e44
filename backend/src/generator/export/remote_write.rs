//! Prometheus' remote write: 2.0, or 1.0 for servers that do not know it.

use std::io;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use reqwest::Response;

use super::connection::{Connection, Settings, retry_after, shown};
use super::message::{RequestWriter, SamplesOf, SeriesOf, to_version_1};
use super::queue::Queued;
use super::relabel::Relabeling;
use super::send::Outcome;
use super::{ExportError, Format, Request, SERIES, TenantHeaders};
use crate::config::{ProtobufMessage, RemoteWriteConfig};
use crate::generator::collected::{Collected, Point, PointValue, SeriesState, TenantSnapshot};
use crate::generator::expose::shown_trace_id;
use crate::generator::histogram::Native;
use crate::promql::STALE;
use crate::telemetry::chain;
use crate::tenant::TENANT_HEADER;

/// Content types and version headers of the two versions.
const VERSION_1: (&str, &str) = ("application/x-protobuf", "0.1.0");
const VERSION_2: (&str, &str) = ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0");

/// What is different for each server.
#[derive(Clone, Debug)]
pub(super) struct Encoding {
    exemplars: bool,
    native: bool,
    relabeling: Relabeling,
}

impl Encoding {
    pub(super) fn new(config: &RemoteWriteConfig) -> Result<Self, ExportError> {
        let relabeling = Relabeling::new(&config.write_relabel_configs)
            .map_err(|(place, error)| super::setting(&format!("write_relabel_configs[{place}]"), error))?;
        let (exemplars, native) = (config.send_exemplars, config.send_native_histograms);
        Ok(Self { exemplars, native, relabeling })
    }

    /// The requests for what was counted of a tenant.
    pub(super) fn requests(&self, collected: &Collected, tenant: &TenantSnapshot) -> Vec<Request> {
        let mut requests = Vec::new();
        let (mut message, mut series, mut samples) = (RequestWriter::default(), 0, 0);
        tenant.points(|point| {
            if matches!(point.value, PointValue::Native { .. }) && !self.native {
                return;
            }
            let written = if self.relabeling.is_empty() {
                self.write((collected, tenant), point, point.labels.iter().copied(), &mut message)
            } else {
                let Some(labels) = self.relabeling.apply(point.labels) else { return };
                let labels = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                self.write((collected, tenant), point, labels, &mut message)
            };
            samples += written;
            series += 1;
            if series == SERIES {
                requests.extend(finish(std::mem::take(&mut message), std::mem::take(&mut samples)));
                series = 0;
            }
        });
        requests.extend(finish(message, samples));
        requests
    }

    /// Writes a series; returns how many samples it has.
    fn write<'l>(
        &self,
        (collected, tenant): (&Collected, &TenantSnapshot),
        point: &Point<'_>,
        labels: impl Iterator<Item = (&'l str, &'l str)>,
        message: &mut RequestWriter,
    ) -> u32 {
        let time = collected.time_ms;
        let gone = point.state == SeriesState::Gone;
        let begin = point.begins(tenant, time);
        let trace_id = point.exemplar.map(|exemplar| shown_trace_id(&exemplar.trace_id)).unwrap_or_default();
        let wanted = point.exemplar.filter(|_| self.exemplars && !gone);
        let exemplar = wanted.map(|exemplar| (&*tenant.trace_id_label, trace_id.as_str(), exemplar.value, time));
        let of = SeriesOf { kind: point.kind, help: point.help, created_ms: point.created_ms, exemplar };
        match point.value {
            PointValue::Native { histogram, sum } if !gone => {
                let empty = Native { schema: histogram.schema, zero: 0.0, positive: std::collections::BTreeMap::new() };
                let samples = begin.map(|begin| (begin, &empty, 0.0)).into_iter().chain([(time, histogram, sum)]);
                message.series(labels, of, SamplesOf::Natives(&samples.collect::<Vec<_>>()));
            }
            PointValue::Native { .. } => message.series(labels, of, SamplesOf::Floats(&[(time, STALE)])),
            PointValue::Float(value) => {
                let value = if gone { STALE } else { value };
                let samples = begin.map(|begin| (begin, 0.0)).into_iter().chain([(time, value)]);
                message.series(labels, of, SamplesOf::Floats(&samples.collect::<Vec<_>>()));
            }
        }
        1 + u32::from(begin.is_some())
    }
}

fn finish(message: RequestWriter, samples: u32) -> Option<Request> {
    if message.is_empty() {
        return None;
    }
    // It fails only beyond four gigabytes.
    let body = snap::raw::Encoder::new().compress_vec(&message.finish()).ok()?;
    Some(Request { samples, format: Format::RemoteWrite2, body })
}

/// A server that takes remote write.
#[derive(Debug)]
pub(super) struct Server {
    connection: Connection,
    message: ProtobufMessage,
    /// Whether it is known to take no 2.0.
    only_1: bool,
    tells_tenant: bool,
    headers: TenantHeaders,
}

/// What a server said of a request that it took, or took in part.
#[derive(Debug)]
struct Written {
    /// Samples and histograms.
    samples: u32,
}

impl Server {
    pub(super) fn new(
        config: &RemoteWriteConfig,
        tells_tenant: bool,
        headers: TenantHeaders,
    ) -> Result<Self, ExportError> {
        let connection = Connection::new(&Settings::of_remote_write(config))?;
        Ok(Self { connection, message: config.protobuf_message, only_1: false, tells_tenant, headers })
    }

    pub(super) async fn send(&mut self, queued: &Queued) -> Outcome {
        let prefers_1 = self.only_1 || self.message == ProtobufMessage::WriteRequest;
        match queued.format {
            Format::RemoteWrite1 => self.post(queued, queued.body.clone(), VERSION_1).await,
            Format::RemoteWrite2 if !prefers_1 => self.post(queued, queued.body.clone(), VERSION_2).await,
            Format::RemoteWrite2 => match version_1(&queued.body) {
                Ok(body) => self.post(queued, body, VERSION_1).await,
                Err(error) => Outcome::Refused { why: error.to_string(), samples: queued.samples },
            },
            Format::Otlp => Outcome::Refused { why: "queued for another server".to_owned(), samples: queued.samples },
        }
    }

    async fn post(&mut self, queued: &Queued, body: Vec<u8>, (content_type, version): (&str, &str)) -> Outcome {
        let is_2 = version == VERSION_2.1;
        let mut request = self.connection.post(body);
        request = request.header(CONTENT_ENCODING, "snappy").header(CONTENT_TYPE, content_type);
        request = request.header("x-prometheus-remote-write-version", version);
        if self.tells_tenant {
            request = request.header(TENANT_HEADER, &queued.tenant);
        }
        if let Some(headers) = self.headers.of(&queued.tenant) {
            // In place of others that are called so.
            request = request.headers(headers);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                // Another one may stand there when it is back.
                self.only_1 = false;
                return Outcome::Later { why: chain(&error.without_url()), after: None };
            }
        };
        let (status, written) = (response.status(), written(response.headers()));
        let may_fall_back = is_2 && self.message == ProtobufMessage::Auto;
        if status == StatusCode::UNSUPPORTED_MEDIA_TYPE && may_fall_back {
            return self.fall_back(&status.to_string());
        }
        if status.is_success() {
            return match written {
                _ if !is_2 => Outcome::Taken,
                Some(Written { samples }) if samples >= queued.samples => Outcome::Taken,
                Some(Written { samples }) => Outcome::Refused {
                    why: format!("{status}: only {samples} of {} samples were written", queued.samples),
                    samples: queued.samples - samples,
                },
                // A server that knows only 1.0 and does not look at the content type finds an empty message in this one.
                None if may_fall_back => self.fall_back(&format!("{status} without a count of what was written")),
                None => Outcome::Refused {
                    why: format!("{status} without a count of what was written: no server of remote write 2.0"),
                    samples: queued.samples,
                },
            };
        }
        self.not_taken(queued, response, written).await
    }

    async fn not_taken(&self, queued: &Queued, response: Response, written: Option<Written>) -> Outcome {
        let (status, after) = (response.status(), retry_after(&response));
        let why = format!("{status}: {}", shown(response).await);
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Outcome::Later { why, after };
        }
        let written = written.map_or(0, |written| written.samples);
        Outcome::Refused { why, samples: queued.samples.saturating_sub(written) }
    }

    fn fall_back(&mut self, why: &str) -> Outcome {
        self.only_1 = true;
        Outcome::Again { why: format!("{why}: it gets remote write 1.0 from now on") }
    }
}

/// What the headers say; none if there are none.
fn written(headers: &HeaderMap) -> Option<Written> {
    let count = |what: &str| -> Option<u32> {
        headers.get(format!("x-prometheus-remote-write-{what}-written"))?.to_str().ok()?.parse().ok()
    };
    let [samples, histograms, exemplars] = ["samples", "histograms", "exemplars"].map(count);
    let any = samples.or(histograms).or(exemplars).is_some();
    any.then(|| Written { samples: samples.unwrap_or_default().saturating_add(histograms.unwrap_or_default()) })
}

/// A compressed message of version 2.0 as one of version 1.0.
pub(super) fn version_1(body: &[u8]) -> io::Result<Vec<u8>> {
    let message = snap::raw::Decoder::new().decompress_vec(body)?;
    let message = to_version_1(&message).map_err(io::Error::other)?;
    Ok(snap::raw::Encoder::new().compress_vec(&message)?)
}
