//! Requests of remote write 1.0: `prometheus.WriteRequest`, compressed with snappy.

use std::convert::Infallible;

use crate::config::RemoteWriteConfig;
use crate::generator::collected::{Collected, Point, PointValue, SeriesState, TenantSnapshot};
use crate::generator::expose::shown_trace_id;
use crate::generator::histogram::{Native, ZERO_THRESHOLD};
use crate::otlp::MessageWriter;
use crate::promql::STALE;

/// Series of a request.
const SERIES: usize = 2_000;

/// A request that is ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) samples: u32,
    /// Compressed.
    pub(super) body: Vec<u8>,
}

/// What is different for each server.
#[derive(Clone, Debug)]
pub(super) struct Encoding {
    pub(super) exemplars: bool,
    pub(super) native: bool,
    pub(super) trace_id_label: String,
}

impl Encoding {
    pub(super) fn new(config: &RemoteWriteConfig, trace_id_label: &str) -> Self {
        let (exemplars, native) = (config.send_exemplars, config.send_native_histograms);
        Self { exemplars, native, trace_id_label: trace_id_label.to_owned() }
    }

    /// The requests for what was counted of a tenant.
    pub(super) fn requests(&self, collected: &Collected, tenant: &TenantSnapshot) -> Vec<Request> {
        let mut requests = Vec::new();
        let (mut message, mut series, mut samples) = (MessageWriter::default(), 0, 0);
        tenant.points(|point| {
            if matches!(point.value, PointValue::Native { .. }) && !self.native {
                return;
            }
            samples += self.write_series(collected, point, &mut message);
            series += 1;
            if series == SERIES {
                requests.extend(finish(std::mem::take(&mut message), std::mem::take(&mut samples)));
                series = 0;
            }
        });
        requests.extend(finish(message, samples));
        requests
    }

    /// A `TimeSeries`; returns how many samples it has.
    fn write_series(&self, collected: &Collected, point: &Point<'_>, request: &mut MessageWriter) -> u32 {
        let time = collected.time_ms;
        // The moment after the last collection, at which there was nothing of it yet.
        let begin = collected.previous_ms + 1;
        let begins = point.state == SeriesState::New && point.counts && begin < time;
        let Ok(()) = request.message(1, |series| {
            for (name, value) in point.labels {
                write_label(series, name, value)?;
            }
            match point.value {
                PointValue::Float(value) => {
                    if begins {
                        write_sample(series, 0, begin)?;
                    }
                    let gone = point.state == SeriesState::Gone;
                    write_sample(series, if gone { STALE } else { value }.to_bits(), time)?;
                }
                PointValue::Native { .. } if point.state == SeriesState::Gone => {
                    write_sample(series, STALE.to_bits(), time)?;
                }
                PointValue::Native { histogram, sum } => {
                    if begins {
                        let empty =
                            Native { schema: histogram.schema, zero: 0.0, positive: std::collections::BTreeMap::new() };
                        series.message(4, |message| write_native(message, &empty, 0.0, begin))?;
                    }
                    series.message(4, |message| write_native(message, histogram, sum, time))?;
                }
            }
            if let Some(exemplar) = point.exemplar.filter(|_| self.exemplars && point.state != SeriesState::Gone) {
                series.message(3, |message| {
                    write_label(message, &self.trace_id_label, &shown_trace_id(&exemplar.trace_id))?;
                    message.fixed64(2, exemplar.value.to_bits());
                    message.varint(3, time);
                    Ok::<_, Infallible>(())
                })?;
            }
            Ok::<_, Infallible>(())
        });
        1 + u32::from(begins)
    }
}

fn finish(message: MessageWriter, samples: u32) -> Option<Request> {
    let message = message.into_bytes();
    if message.is_empty() {
        return None;
    }
    // It fails only beyond four gigabytes.
    let body = snap::raw::Encoder::new().compress_vec(&message).ok()?;
    Some(Request { samples, body })
}

fn write_label(message: &mut MessageWriter, name: &str, value: &str) -> Result<(), Infallible> {
    message.message(1, |label| {
        label.bytes(1, name.as_bytes());
        label.bytes(2, value.as_bytes());
        Ok(())
    })
}

fn write_sample(series: &mut MessageWriter, bits: u64, time_ms: u64) -> Result<(), Infallible> {
    series.message(2, |sample| {
        sample.fixed64(1, bits);
        sample.varint(2, time_ms);
        Ok(())
    })
}

/// A `Histogram` of whole numbers.
fn write_native(message: &mut MessageWriter, native: &Native, sum: f64, time_ms: u64) -> Result<(), Infallible> {
    let zero = native.zero.round() as u64;
    let counts: Vec<_> = native.positive.iter().map(|(index, count)| (*index, count.round() as i64)).collect();
    let count = zero + counts.iter().map(|(_, count)| count.unsigned_abs()).sum::<u64>();
    message.varint(1, count);
    message.fixed64(3, sum.to_bits());
    message.varint(4, zigzag(native.schema.into()));
    message.fixed64(5, ZERO_THRESHOLD.to_bits());
    message.varint(6, zero);
    // Buckets that follow each other make a span; its offset is from the end of the one before.
    let mut end = 0;
    for span in counts.chunk_by(|a, b| a.0 + 1 == b.0) {
        let first = span.first().map_or(0, |(index, _)| *index);
        message.message(11, |part| {
            part.varint(1, zigzag(i64::from(first) - end));
            part.varint(2, span.len() as u64);
            Ok::<_, Infallible>(())
        })?;
        end = i64::from(first) + span.len() as i64;
    }
    let mut before = 0;
    for (_, count) in counts {
        message.varint(12, zigzag(count - before));
        before = count;
    }
    message.varint(15, time_ms);
    Ok(())
}

const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}
