//! `io.prometheus.write.v2.Request`, the message of remote write 2.0, written field by field; and what of it a server gets
//! that knows only version 1.0.

use std::collections::HashMap;
use std::convert::Infallible;

use foldhash::fast::RandomState;
use prost::Message;

use crate::generator::collected::PointKind;
use crate::generator::histogram::{Native, ZERO_THRESHOLD};
use crate::otlp::MessageWriter;

/// A request that grows. Each text is in it once.
#[derive(Debug, Default)]
pub(super) struct RequestWriter {
    numbers: HashMap<Box<str>, u32, RandomState>,
    symbols: MessageWriter,
    series: MessageWriter,
}

/// A series to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeriesOf<'a> {
    pub(super) kind: PointKind,
    pub(super) help: &'a str,
    /// When it was zero, milliseconds since the epoch; 0 if that is not known.
    pub(super) created_ms: u64,
    /// Label and value, value, and time.
    pub(super) exemplar: Option<(&'a str, &'a str, f64, u64)>,
}

/// Times and values.
#[derive(Clone, Copy, Debug)]
pub(super) enum SamplesOf<'a> {
    Floats(&'a [(u64, f64)]),
    /// Each with its sum.
    Natives(&'a [(u64, &'a Native, f64)]),
}

impl RequestWriter {
    pub(super) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Adds a series; labels are sorted.
    pub(super) fn series<'l>(
        &mut self,
        labels: impl Iterator<Item = (&'l str, &'l str)>,
        of: SeriesOf<'_>,
        samples: SamplesOf<'_>,
    ) {
        let mut references = Vec::new();
        for (name, value) in labels {
            references.extend([self.number(name), self.number(value)]);
        }
        let help = self.number(of.help);
        let exemplar =
            of.exemplar.map(|(name, value, number, time)| ([self.number(name), self.number(value)], number, time));
        let SeriesOf { kind, created_ms, .. } = of;
        let Ok(()) = self.series.message(5, |series| {
            write_packed(series, &references)?;
            match samples {
                SamplesOf::Floats(samples) => {
                    for (time, value) in samples {
                        series.message(2, |sample| {
                            sample.fixed64(1, value.to_bits());
                            sample.varint(2, *time);
                            // Here from release candidate 4 of the specification on; before that beside the samples.
                            write_created(sample, 3, created_ms);
                            Ok::<_, Infallible>(())
                        })?;
                    }
                }
                SamplesOf::Natives(samples) => {
                    for (time, native, sum) in samples {
                        series.message(3, |message| {
                            write_native(message, native, *sum, *time)?;
                            write_created(message, 17, created_ms);
                            Ok::<_, Infallible>(())
                        })?;
                    }
                }
            }
            if let Some((references, value, time)) = exemplar {
                series.message(4, |message| {
                    write_packed(message, &references)?;
                    message.fixed64(2, value.to_bits());
                    message.varint(3, time);
                    Ok::<_, Infallible>(())
                })?;
            }
            series.message(5, |metadata| {
                metadata.varint(1, metric_type(kind));
                metadata.varint(3, help.into());
                Ok::<_, Infallible>(())
            })?;
            write_created(series, 6, created_ms);
            Ok::<_, Infallible>(())
        });
    }

    /// The message, as it was written up to now.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut message = self.symbols.into_bytes();
        message.extend(self.series.into_bytes());
        message
    }

    fn number(&mut self, text: &str) -> u32 {
        if self.numbers.is_empty() {
            // The first one is empty, so that 0 stands for none.
            self.symbols.bytes(4, b"");
            self.numbers.insert("".into(), 0);
        }
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.numbers.len() as u32;
        self.symbols.bytes(4, text.as_bytes());
        self.numbers.insert(text.into(), number);
        number
    }
}

/// `Metadata.MetricType`.
const fn metric_type(kind: PointKind) -> u64 {
    match kind {
        PointKind::Counter => 1,
        PointKind::Histogram => 3,
        PointKind::Info => 6,
    }
}

fn write_created(message: &mut MessageWriter, field: u32, created_ms: u64) {
    if created_ms > 0 {
        message.varint(field, created_ms);
    }
}

fn write_packed(message: &mut MessageWriter, references: &[u32]) -> Result<(), Infallible> {
    message.message(1, |packed| {
        for reference in references {
            packed.element(u64::from(*reference));
        }
        Ok(())
    })
}

/// A `Histogram` of whole numbers, the same in both versions.
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

/// What of a request of version 2.0 there is in one of 1.0. Histograms are the same bytes in both.
#[derive(Clone, PartialEq, Message)]
struct Request2 {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<Series2>,
}

#[derive(Clone, PartialEq, Message)]
struct Series2 {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    histograms: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<Exemplar2>,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar2 {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

/// The message of version 1.0 of one of version 2.0; neither is compressed.
pub(super) fn to_version_1(message: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    let Request2 { symbols, timeseries } = Request2::decode(message)?;
    let mut request = MessageWriter::with_capacity(2 * message.len());
    for Series2 { labels_refs, samples, histograms, exemplars } in timeseries {
        let Ok(()) = request.message(1, |series| {
            write_labels(series, &symbols, &labels_refs)?;
            for Sample { value, timestamp } in samples {
                series.message(2, |sample| {
                    sample.fixed64(1, value.to_bits());
                    sample.varint(2, timestamp as u64);
                    Ok::<_, Infallible>(())
                })?;
            }
            for Exemplar2 { labels_refs, value, timestamp } in exemplars {
                series.message(3, |exemplar| {
                    write_labels(exemplar, &symbols, &labels_refs)?;
                    exemplar.fixed64(2, value.to_bits());
                    exemplar.varint(3, timestamp as u64);
                    Ok::<_, Infallible>(())
                })?;
            }
            for histogram in &histograms {
                series.bytes(4, histogram);
            }
            Ok::<_, Infallible>(())
        });
    }
    Ok(request.into_bytes())
}

fn write_labels(message: &mut MessageWriter, symbols: &[String], references: &[u32]) -> Result<(), Infallible> {
    let text = |reference: u32| symbols.get(reference as usize).map(String::as_str).unwrap_or_default();
    for pair in references.chunks_exact(2) {
        let [name, value] = pair else { continue };
        message.message(1, |label| {
            label.bytes(1, text(*name).as_bytes());
            label.bytes(2, text(*value).as_bytes());
            Ok::<_, Infallible>(())
        })?;
    }
    Ok(())
}
