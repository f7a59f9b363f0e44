//! `/metrics` in Prometheus' protobuf, which alone can show native histograms: messages of `io.prometheus.client`
//! (`io/prometheus/client/metrics.proto` of `client_model`), each behind its length.
//!
//! Only what is written is declared here. In that file most fields are optional, and one that is not there is zero.

use prost::Message as _;

use super::{
    exponential::Exponential,
    histogram::{Exemplar as OfRequest, Histogram},
    point::{Point, Shape, Value},
    text,
};

/// What Prometheus' own libraries take for zero: the lower end of the smallest bucket.
const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;
/// The finest buckets that Prometheus has.
const MAX_SCHEMA: i32 = 8;

/// A family of `/metrics`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MetricFamily {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(enumeration = "Kind", tag = "3")]
    kind: i32,
    #[prost(message, repeated, tag = "4")]
    metrics: Vec<Metric>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Counter = 0,
    Gauge = 1,
    Untyped = 3,
    Histogram = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "5")]
    untyped: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Buckets>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// `Counter`, `Gauge` and `Untyped` begin alike.
#[derive(Clone, PartialEq, prost::Message)]
struct Number {
    #[prost(double, tag = "1")]
    value: f64,
}

/// `Histogram`.
#[derive(Clone, PartialEq, prost::Message)]
struct Buckets {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    sum: f64,
    #[prost(message, repeated, tag = "3")]
    classic: Vec<Bucket>,
    #[prost(sint32, tag = "5")]
    schema: i32,
    #[prost(double, tag = "6")]
    zero_threshold: f64,
    #[prost(uint64, tag = "7")]
    zeros: u64,
    #[prost(message, repeated, tag = "12")]
    spans: Vec<BucketSpan>,
    /// Each count less the one before.
    #[prost(sint64, repeated, tag = "13")]
    deltas: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Bucket {
    #[prost(uint64, tag = "1")]
    cumulative: u64,
    #[prost(double, tag = "2")]
    upper: f64,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<Exemplar>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BucketSpan {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(message, optional, tag = "3")]
    time: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, prost::Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The page.
pub(crate) fn page(families: &[MetricFamily]) -> Vec<u8> {
    families.iter().flat_map(MetricFamily::encode_length_delimited_to_vec).collect()
}

/// The families of these points, in the order of their names.
pub(super) fn families(mut points: Vec<Point>) -> Vec<MetricFamily> {
    text::sort(&mut points);
    let of_families = points.chunk_by(|left, right| left.metric.prometheus == right.metric.prometheus);
    of_families.filter_map(family).collect()
}

fn family(points: &[Point]) -> Option<MetricFamily> {
    let metric = points.first()?.metric;
    let (suffix, kind) = match metric.shape {
        Shape::Counter => ("_total", Kind::Counter),
        Shape::Gauge => ("", Kind::Gauge),
        Shape::Histogram => ("", Kind::Histogram),
    };
    let of = |point: &Point| {
        let labels = [point.prefix(), &point.labels.text].map(labels).concat();
        match &point.value {
            Value::Counter(value) => Metric { labels, counter: Some(Number { value: *value }), ..Metric::default() },
            Value::Gauge(value) => Metric { labels, gauge: Some(Number { value: *value }), ..Metric::default() },
            Value::Histogram(it) => Metric { labels, histogram: Some(buckets(it)), ..Metric::default() },
        }
    };
    Some(MetricFamily {
        name: format!("{}{suffix}", metric.prometheus),
        help: format!("{}.", metric.help),
        kind: kind.into(),
        metrics: points.iter().map(of).collect(),
    })
}

fn buckets(histogram: &Histogram) -> Buckets {
    let mut cumulative = 0;
    let bounds = histogram.bounds.0.iter().copied().chain([f64::INFINITY]);
    let classic = bounds.zip(&histogram.counts).enumerate().map(|(place, (upper, count))| {
        cumulative += count;
        let exemplar = histogram.exemplars.get(place).copied().flatten().map(exemplar);
        Bucket { cumulative, upper, exemplar }
    });
    let classic = classic.collect();
    let native = histogram.exponential.as_deref().map(native).unwrap_or_default();
    Buckets { count: histogram.count(), sum: histogram.sum, classic, ..native }
}

fn native(exponential: &Exponential) -> Buckets {
    let mut exponential = exponential.clone();
    exponential.coarsen((exponential.scale - MAX_SCHEMA).max(0).unsigned_abs());
    let Exponential { scale, zeros, offset, counts } = exponential;
    let mut before = 0;
    let deltas = counts.iter().map(|count| {
        let delta = count.cast_signed() - before;
        before = count.cast_signed();
        delta
    });
    let deltas = deltas.collect();
    // Prometheus numbers buckets by their upper ends, OTLP by their lower ones.
    let span = BucketSpan { offset: offset + 1, length: u32::try_from(counts.len()).unwrap_or(u32::MAX) };
    let spans = if counts.is_empty() { Vec::new() } else { vec![span] };
    Buckets {
        schema: scale.min(MAX_SCHEMA),
        zero_threshold: ZERO_THRESHOLD,
        zeros,
        spans,
        deltas,
        ..Buckets::default()
    }
}

fn exemplar(exemplar: OfRequest) -> Exemplar {
    let OfRequest { trace_id, span_id, value, unix_ns } = exemplar;
    let label = |name: &str, value| Label { name: name.to_owned(), value };
    let (trace_id, span_id) = (u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id));
    Exemplar {
        labels: vec![label("trace_id", format!("{trace_id:032x}")), label("span_id", format!("{span_id:016x}"))],
        value,
        time: Some(Timestamp {
            seconds: (unix_ns / 1_000_000_000).cast_signed(),
            nanos: i32::try_from(unix_ns % 1_000_000_000).unwrap_or(0),
        }),
    }
}

/// The families of a page of `OpenMetrics` that has no exemplars.
pub(crate) fn of_text(page: &str) -> Vec<MetricFamily> {
    let mut families: Vec<MetricFamily> = Vec::new();
    let (mut base, mut help) = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, text)| text);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", Kind::Counter),
                "info" => ("_info", Kind::Gauge),
                "gauge" => ("", Kind::Gauge),
                "histogram" => ("", Kind::Histogram),
                _ => ("", Kind::Untyped),
            };
            base = name;
            let (name, help) = (format!("{name}{suffix}"), std::mem::take(&mut help).to_owned());
            families.push(MetricFamily { name, help, kind: kind.into(), metrics: Vec::new() });
        } else if let (Some(family), Some(sample)) = (families.last_mut(), sample(line)) {
            family.add(base, sample);
        }
    }
    families
}

/// Name, labels, value.
type Sample<'a> = (&'a str, Vec<Label>, f64);

fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, of_labels) = series.split_once('{').unwrap_or((series, "}"));
    Some((name, labels(of_labels.strip_suffix('}')?), value.parse().ok()?))
}

impl MetricFamily {
    /// Adds a sample of a family whose name in `OpenMetrics` is `base`.
    fn add(&mut self, base: &str, (name, mut labels, value): Sample<'_>) {
        if self.kind() != Kind::Histogram {
            let mut metric = Metric { labels, ..Metric::default() };
            *match self.kind() {
                Kind::Counter => &mut metric.counter,
                Kind::Gauge => &mut metric.gauge,
                Kind::Untyped | Kind::Histogram => &mut metric.untyped,
            } = Some(Number { value });
            self.metrics.push(metric);
            return;
        }
        let upper = labels.iter().position(|label| label.name == "le").map(|place| labels.remove(place).value);
        // The lines of a series follow each other.
        if self.metrics.last().is_none_or(|last| last.labels != labels) {
            self.metrics.push(Metric { labels, histogram: Some(Buckets::default()), ..Metric::default() });
        }
        let Some(buckets) = self.metrics.last_mut().and_then(|metric| metric.histogram.as_mut()) else { return };
        match (name.strip_prefix(base), upper) {
            (Some("_bucket"), Some(upper)) => {
                let upper = upper.parse().unwrap_or(f64::INFINITY);
                buckets.classic.push(Bucket { cumulative: value as u64, upper, exemplar: None });
            }
            (Some("_sum"), _) => buckets.sum = value,
            (Some("_count"), _) => buckets.count = value as u64,
            _ => {}
        }
    }
}

/// Labels as they stand between braces.
fn labels(mut text: &str) -> Vec<Label> {
    let mut labels = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let mut value = String::new();
        let mut letters = rest.char_indices();
        let mut end = rest.len();
        while let Some((place, letter)) = letters.next() {
            match letter {
                '"' => {
                    end = place + 1;
                    break;
                }
                '\\' => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, letter)) => value.push(letter),
                    None => {}
                },
                letter => value.push(letter),
            }
        }
        labels.push(Label { name: name.trim_start_matches(',').to_owned(), value });
        text = rest.get(end..).unwrap_or_default();
    }
    labels
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            histogram::SECONDS,
            settings::{Aggregation, Bounds},
        },
        *,
    };

    #[test]
    fn text_means_the_same_as_messages() {
        let page = "# HELP a Things.\n# TYPE a counter\na_total{x=\"q\\\"\\\\\\n\",y=\"\"} 2\n\
            # HELP b Room.\n# TYPE b gauge\n# UNIT b bytes\nb 1.5\n\
            # HELP c Who.\n# TYPE c info\nc_info{v=\"1\"} 1\n\
            # HELP d Time.\n# TYPE d histogram\nd_sum{k=\"a\"} 3.5\nd_count{k=\"a\"} 2\nd_bucket{le=\"1.0\",k=\"a\"} 1\nd_bucket{le=\"+Inf\",k=\"a\"} 2\n\
            d_sum{k=\"b\"} 0.0\nd_count{k=\"b\"} 0\nd_bucket{le=\"+Inf\",k=\"b\"} 0\n# EOF\n";
        let label = |name: &str, value: &str| Label { name: name.to_owned(), value: value.to_owned() };
        let family = |name: &str, help: &str, kind: Kind, metrics| MetricFamily {
            name: name.to_owned(),
            help: help.to_owned(),
            kind: kind.into(),
            metrics,
        };
        let bucket = |cumulative, upper| Bucket { cumulative, upper, exemplar: None };
        let of = |labels, count, sum, classic| {
            let histogram = Some(Buckets { count, sum, classic, ..Buckets::default() });
            Metric { labels, histogram, ..Metric::default() }
        };
        let expected = [
            family(
                "a_total",
                "Things.",
                Kind::Counter,
                vec![Metric {
                    labels: vec![label("x", "q\"\\\n"), label("y", "")],
                    counter: Some(Number { value: 2.0 }),
                    ..Metric::default()
                }],
            ),
            family("b", "Room.", Kind::Gauge, vec![Metric { gauge: Some(Number { value: 1.5 }), ..Metric::default() }]),
            family(
                "c_info",
                "Who.",
                Kind::Gauge,
                vec![Metric { labels: vec![label("v", "1")], gauge: Some(Number { value: 1.0 }), ..Metric::default() }],
            ),
            family(
                "d",
                "Time.",
                Kind::Histogram,
                vec![
                    of(vec![label("k", "a")], 2, 3.5, vec![bucket(1, 1.0), bucket(2, f64::INFINITY)]),
                    of(vec![label("k", "b")], 0, 0.0, vec![bucket(0, f64::INFINITY)]),
                ],
            ),
        ];
        assert_eq!(of_text(page), expected);
    }

    proptest! {
        /// Every value is in the bucket of Prometheus that it belongs to: `(2^((i-1)/2^schema), 2^(i/2^schema)]`.
        #[test]
        fn native_buckets_are_prometheus(values in proptest::collection::vec(1e-7..1e5_f64, 1..60)) {
            let mut histogram = Histogram::new(Bounds::from(SECONDS), Aggregation::Exponential);
            for value in &values {
                histogram.observe(*value, None);
            }
            let buckets = buckets(&histogram);
            prop_assert!(buckets.schema <= MAX_SCHEMA && buckets.spans.len() == 1);
            let base = 2_f64.powf(2_f64.powi(-buckets.schema));
            let (mut count, mut sum) = (0, 0);
            for (index, delta) in (buckets.spans[0].offset..).zip(&buckets.deltas) {
                count += delta;
                sum += count;
                let (above, to) = (base.powi(index - 1), base.powi(index));
                // Powers are not exact.
                let slack = 1e-6 * to;
                let inside = values.iter().filter(|it| **it > above + slack && **it < to - slack).count() as i64;
                let around = values.iter().filter(|it| **it > above - slack && **it < to + slack).count() as i64;
                prop_assert!(inside <= count && count <= around);
            }
            prop_assert_eq!(sum as u64, buckets.count);
        }

        #[test]
        fn any_text_is_read_or_left_out(text in ".*") {
            of_text(&text);
            labels(&text);
        }
    }
}
