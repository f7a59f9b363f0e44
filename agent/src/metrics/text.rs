//! The text of `/metrics`.

use std::fmt::{self, Write as _};

use super::{
    histogram::{Exemplar, Histogram},
    point::{Metric, Point, Shape, Value},
};

/// How `/metrics` is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// `OpenMetrics` 1.0: with units and exemplars.
    OpenMetrics,
    /// Prometheus' older one.
    Prometheus,
    /// Prometheus' messages: the only one with native histograms.
    Protobuf,
}

impl Format {
    /// What a client wants that sends this `Accept`: `OpenMetrics`, unless it asks for plain text and not for that. Messages
    /// only if there is something to show that has no text, and the client likes them no less.
    pub fn of(accept: &str, has_native: bool) -> Self {
        let weight = |wanted: &[&str]| {
            let kinds = accept.split(',').filter(|kind| wanted.iter().all(|part| kind.contains(part)));
            let weights =
                kinds.map(|kind| kind.split_once("q=").and_then(|(_, q)| q.trim().parse().ok()).unwrap_or(1.0));
            weights.fold(0.0, f64::max)
        };
        let of_messages =
            weight(&["application/vnd.google.protobuf", "io.prometheus.client.MetricFamily", "delimited"]);
        if has_native && of_messages > 0.0 && of_messages >= weight(&["application/openmetrics-text"]) {
            return Self::Protobuf;
        }
        let is_plain = accept.contains("text/plain") && !accept.contains("application/openmetrics-text");
        if is_plain { Self::Prometheus } else { Self::OpenMetrics }
    }

    /// Its `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// A whole page of `OpenMetrics` without exemplars in the other format: there a counter is called as its sample is.
pub fn plain(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, text)| text);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some(text) = help.take() {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The families of these points, in the order of their names.
pub(super) fn write(mut points: Vec<Point>, format: Format, out: &mut String) -> fmt::Result {
    sort(&mut points);
    let mut family = "";
    for point in &points {
        if point.metric.prometheus != family {
            family = point.metric.prometheus;
            head(&point.metric, format, out)?;
        }
        let comma = if point.prefix().is_empty() || point.labels.text.is_empty() { "" } else { "," };
        // What is told of a service has its labels among its own.
        let labels = format!("{}{comma}{}", point.prefix(), point.labels.text);
        match &point.value {
            Value::Counter(count) => writeln!(out, "{family}_total{{{labels}}} {count}")?,
            Value::Gauge(value) => writeln!(out, "{family}{{{labels}}} {value}")?,
            Value::Histogram(histogram) => histogram.write(out, family, &labels, format)?,
        }
    }
    Ok(())
}

/// By family, and then by labels.
pub(super) fn sort(points: &mut [Point]) {
    points.sort_by(|left, right| key(left).cmp(&key(right)));
}

fn key(point: &Point) -> (&str, &str, &str) {
    (point.metric.prometheus, point.prefix(), &point.labels.text)
}

fn head(metric: &Metric, format: Format, out: &mut String) -> fmt::Result {
    let Metric { prometheus: name, help, unit, shape, .. } = metric;
    let suffix = if *shape == Shape::Counter && format == Format::Prometheus { "_total" } else { "" };
    writeln!(out, "# HELP {name}{suffix} {help}.\n# TYPE {name}{suffix} {}", shape.name())?;
    // A unit that is not in the name would be wrong, and the older names are without.
    let unit = unit.open_metrics();
    let is_in_name = !unit.is_empty() && name.strip_suffix(unit).is_some_and(|name| name.ends_with('_'));
    if is_in_name && format == Format::OpenMetrics {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    Ok(())
}

impl Histogram {
    fn write(&self, out: &mut String, name: &str, labels: &str, format: Format) -> fmt::Result {
        let mut cumulative = 0;
        let bounds = self.bounds.0.iter().map(Some).chain([None]);
        let comma = if labels.is_empty() { "" } else { "," };
        for (bucket, (bound, count)) in bounds.zip(&self.counts).enumerate() {
            cumulative += count;
            write!(out, "{name}_bucket{{{labels}{comma}le=\"")?;
            match (bound, format) {
                (Some(bound), Format::OpenMetrics) => write!(out, "{bound:?}")?,
                (Some(bound), _) => write!(out, "{bound}")?,
                (None, _) => out.push_str("+Inf"),
            }
            write!(out, "\"}} {cumulative}")?;
            if let Some(exemplar) = self.exemplars.get(bucket).copied().flatten()
                && format == Format::OpenMetrics
            {
                exemplar.write(out)?;
            }
            out.push('\n');
        }
        writeln!(out, "{name}_sum{{{labels}}} {:?}", self.sum)?;
        writeln!(out, "{name}_count{{{labels}}} {cumulative}")
    }
}

impl Exemplar {
    fn write(&self, out: &mut String) -> fmt::Result {
        let Self { trace_id, span_id, value, unix_ns } = self;
        let (trace_id, span_id) = (u128::from_be_bytes(*trace_id), u64::from_be_bytes(*span_id));
        let seconds = *unix_ns as f64 / 1e9;
        write!(out, " # {{trace_id=\"{trace_id:032x}\",span_id=\"{span_id:016x}\"}} {value:?} {seconds:.3}")
    }
}
