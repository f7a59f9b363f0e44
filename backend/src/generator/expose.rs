//! Series as text, for a server that fetches them.

use std::fmt::Write;

use coati_common::prometheus::label_value;

use super::collected::{FamilySnapshot, SeriesState, TenantSnapshot};
use super::histogram::{Exemplar, Histogram};

/// The series of a tenant in `OpenMetrics`' text format.
///
/// One that is new is shown as zero, until the next collection: who fetches it sees from where it counts. Native histograms
/// cannot be written as text; their classic form stands for them.
pub(super) fn expose(tenant: Option<&TenantSnapshot>) -> String {
    let mut text = String::new();
    if let Some(TenantSnapshot { families, external_labels, trace_id_label, .. }) = tenant {
        for family in families {
            write_family(family, external_labels, trace_id_label, &mut text);
        }
    }
    text.push_str("# EOF\n");
    text
}

fn write_family(family: &FamilySnapshot, external: &[(String, String)], trace_id_label: &str, text: &mut String) {
    // Names that begin so are for Prometheus itself, which drops them.
    let external = external.iter().filter(|(name, _)| !name.starts_with("__"));
    let external: Vec<_> = external.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let shape = &*family.shape;
    let live = || family.series.iter().filter(|series| series.state != SeriesState::Gone);
    if live().next().is_none() {
        return;
    }
    let mut labels = String::new();
    for (place, name) in shape.counters.iter().enumerate() {
        let (kind, base) = if shape.info { ("gauge", &**name) } else { ("counter", name.trim_end_matches("_total")) };
        // Writing to a string does not fail, here and below.
        let _ = writeln!(text, "# TYPE {base} {kind}");
        for series in live() {
            write_labels(&shape.labels_of(&series.key, &external), &mut labels);
            let value = series.series.counters.get(place).copied().unwrap_or_default();
            let value = if series.state == SeriesState::New && !shape.info { 0.0 } else { value };
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    }
    for (place, name) in shape.histograms.iter().enumerate() {
        let _ = writeln!(text, "# TYPE {name} histogram");
        for series in live() {
            let Some(histogram) = series.series.histograms.get(place).and_then(Option::as_deref) else { continue };
            write_labels(&shape.labels_of(&series.key, &external), &mut labels);
            let empty = Histogram { counts: vec![0.0; histogram.counts.len()], ..Histogram::default() };
            let histogram = if series.state == SeriesState::New { &empty } else { histogram };
            let comma = if labels.is_empty() { "" } else { "," };
            let mut up_to = 0.0;
            for (bucket, count) in histogram.counts.iter().enumerate() {
                up_to += count;
                let bound = shape.bounds.get(bucket).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
                let _ = write!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {up_to}");
                let exemplar = histogram.exemplars.iter().find(|(place, _)| usize::from(*place) == bucket);
                if let Some((_, Exemplar { trace_id, value })) = exemplar {
                    let _ = write!(text, " # {{{trace_id_label}=\"{}\"}} {value}", shown_trace_id(trace_id));
                }
                text.push('\n');
            }
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", histogram.sum);
            let _ = writeln!(text, "{name}_count{{{labels}}} {up_to}");
        }
    }
}

fn write_labels(labels: &[(&str, &str)], text: &mut String) {
    text.clear();
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{name}=\"");
        label_value(value, |piece| text.push_str(piece));
        text.push('"');
    }
}

/// As Tempo writes it: without zeros before it.
pub(super) fn shown_trace_id(id: &[u8; 16]) -> String {
    format!("{:x}", u128::from_be_bytes(*id))
}
