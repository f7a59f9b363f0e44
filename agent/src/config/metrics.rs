//! Section `metrics`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{
    Config, ConfigError,
    discovery::{Globs, Text},
    environment::Environment,
    foreign,
    schema::{Of, OneOrMany},
    value::{self, Value},
};
use crate::metrics::{Aggregation, Bounds, Buckets, Feature, Features, LabelChoice, LabelRule, MetricsSettings};

/// Section `metrics`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Which metrics are made.
    #[serde(with = "value::list")]
    #[schemars(with = "OneOrMany<Features>")]
    pub features: Features,
    /// Label sets at most; more are counted together.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub max_series: usize,
    /// How long a label set is kept of which nothing is seen.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Duration>")]
    pub expire: Duration,
    /// Whether buckets of durations name the trace of a request that stands for them.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub exemplars: bool,
    /// Where buckets end.
    pub buckets: BucketsSection,
    /// Which histograms are sent by OTLP, and shown on `/metrics` to who asks for native ones.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Aggregation>")]
    pub histogram_aggregation: Aggregation,
    /// Which labels metrics have, beside those of their service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<LabelsConfig>,
}

/// An entry of `metrics.labels`. Each is applied to what those before it have left.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsConfig {
    /// Names of metrics, such as `http_*`. Metrics that are counted together have the same labels.
    pub metrics: Text<Globs>,
    /// Only these labels; `*` are all, those that are left out otherwise too (`url_path`, `client_address`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<Text<Globs>>>,
    /// Of those, not these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Text<Globs>>,
}

/// Section `metrics.buckets`.
#[expect(clippy::struct_field_names, reason = "Beyla's names")]
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketsSection {
    /// Of durations, seconds.
    #[serde(with = "value::list")]
    #[schemars(with = "OneOrMany<Bounds>")]
    pub duration_histogram: Bounds,
    /// Of the bodies of requests, bytes.
    #[serde(with = "value::list")]
    #[schemars(with = "OneOrMany<Bounds>")]
    pub request_size_histogram: Bounds,
    /// Of the bodies of responses, bytes.
    #[serde(with = "value::list")]
    #[schemars(with = "OneOrMany<Bounds>")]
    pub response_size_histogram: Bounds,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        let MetricsSettings { features, max_series, expire, exemplars, aggregation, .. } = MetricsSettings::default();
        let (buckets, labels) = (BucketsSection::default(), Vec::new());
        Self { features, max_series, expire, exemplars, buckets, histogram_aggregation: aggregation, labels }
    }
}

impl Default for BucketsSection {
    fn default() -> Self {
        let Buckets { durations, request_sizes, response_sizes } = Buckets::default();
        Self {
            duration_histogram: durations,
            request_size_histogram: request_sizes,
            response_size_histogram: response_sizes,
        }
    }
}

impl MetricsConfig {
    /// Applies the variables that are set.
    pub(super) fn apply(
        &mut self,
        environment: &Environment<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let features = [
            "COATI_AGENT_METRICS_FEATURES",
            "OTEL_EBPF_METRICS_FEATURES",
            "BEYLA_METRICS_FEATURES",
            "OTEL_EBPF_PROMETHEUS_FEATURES",
            "BEYLA_PROMETHEUS_FEATURES",
            "OTEL_EBPF_OTEL_METRICS_FEATURES",
            "BEYLA_OTEL_METRICS_FEATURES",
        ];
        if let Some((name, BeylaFeatures { features, others })) = environment.named(&features)? {
            self.features = features;
            warnings.extend(others.iter().map(|other| {
                format!(
                    "environment variable {name}: `{other}` is not supported: docs/configuration.md lists the features"
                )
            }));
        }
        environment.set(&mut self.max_series, &["COATI_AGENT_METRICS_MAX_SERIES"])?;
        environment.set(&mut self.exemplars, &["COATI_AGENT_METRICS_EXEMPLARS"])?;
        environment.set(&mut self.expire, &["COATI_AGENT_METRICS_EXPIRE"])?;
        let expire = [
            "OTEL_EBPF_METRICS_TTL",
            "BEYLA_METRICS_TTL",
            "OTEL_EBPF_PROMETHEUS_TTL",
            "BEYLA_PROMETHEUS_TTL",
            "OTEL_EBPF_OTEL_METRICS_TTL",
            "BEYLA_OTEL_METRICS_TTL",
        ];
        if let Some(GoTime(expire)) = environment.get(&expire)? {
            self.expire = expire;
        }
        let aggregations = [
            "COATI_AGENT_METRICS_HISTOGRAM_AGGREGATION",
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "OTEL_EBPF_OTEL_HISTOGRAM_AGGREGATION",
            "BEYLA_OTEL_HISTOGRAM_AGGREGATION",
        ];
        environment.set(&mut self.histogram_aggregation, &aggregations)
    }
}

impl Config {
    /// What is measured.
    pub fn metrics_settings(&self) -> MetricsSettings {
        let MetricsConfig { features, max_series, expire, exemplars, buckets, histogram_aggregation, labels } =
            self.metrics.clone();
        let selection = self.selection();
        let by_rules = selection.include.iter().filter_map(|rule| rule.treatment.exports.features);
        let by_rules = by_rules.fold(Features::NONE, Features::and);
        let patterns = |texts: &[Text<Globs>]| texts.iter().map(|text| text.pattern().clone()).collect::<Vec<_>>();
        let rules = labels.iter().map(|of| LabelRule {
            metrics: of.metrics.pattern().clone(),
            include: of.include.as_deref().map(patterns),
            exclude: patterns(&of.exclude),
        });
        let labels = LabelChoice::new(&rules.collect::<Vec<_>>());
        let BucketsSection { duration_histogram, request_size_histogram, response_size_histogram } = buckets;
        let buckets = Buckets {
            durations: duration_histogram,
            request_sizes: request_size_histogram,
            response_sizes: response_size_histogram,
        };
        let aggregation = histogram_aggregation;
        MetricsSettings { features, by_rules, labels, max_series, expire, exemplars, buckets, aggregation }
    }
}

impl Value for Features {
    const EXPECTED: &'static str = "features of metrics such as `application,application_span`, or `none`";

    fn from_text(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::NONE);
        }
        let features: Option<Self> = text
            .split(',')
            .map(|name| Feature::ALL.into_iter().find(|feature| feature.name() == name.trim()))
            .collect();
        features.filter(|features| *features != Self::NONE)
    }

    fn to_text(&self) -> String {
        let names: Vec<_> = self.iter().map(Feature::name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(",") }
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

impl Value for Aggregation {
    const EXPECTED: &'static str = "`explicit_bucket_histogram` or `base2_exponential_bucket_histogram`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "explicit_bucket_histogram" => Some(Self::Explicit),
            "base2_exponential_bucket_histogram" => Some(Self::Exponential),
            _ => None,
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Explicit => "explicit_bucket_histogram",
            Self::Exponential => "base2_exponential_bucket_histogram",
        }
        .to_owned()
    }

    fn schema() -> Json {
        value::names(&["explicit_bucket_histogram", "base2_exponential_bucket_histogram"])
    }
}

/// Beyla's list of features, some of which we have not.
pub(super) struct BeylaFeatures {
    pub(super) features: Features,
    /// Those.
    pub(super) others: Vec<String>,
}

impl BeylaFeatures {
    /// Ours among these names.
    pub(super) fn of<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let (mut features, mut others) = (Features::NONE, Vec::new());
        for name in names.map(str::trim).filter(|name| !name.is_empty()) {
            match Feature::ALL.into_iter().find(|feature| feature.name() == name) {
                Some(feature) => features = features.with(feature),
                // All that we have, but not the same thing under two names.
                None if matches!(name, "all" | "*") => {
                    let all = Feature::ALL.into_iter().filter(|feature| *feature != Feature::ApplicationSpanOtel);
                    features = all.fold(features, Features::with);
                }
                None if name == "none" => {}
                None => others.push(name.to_owned()),
            }
        }
        Self { features, others }
    }
}

impl Value for BeylaFeatures {
    const EXPECTED: &'static str = Features::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::of(text.split(',')))
    }

    fn to_text(&self) -> String {
        self.features.to_text()
    }
}

/// A time in the notation of Go.
struct GoTime(Duration);

impl Value for GoTime {
    const EXPECTED: &'static str = "a time such as `5m` or `1m30s`";

    fn from_text(text: &str) -> Option<Self> {
        foreign::duration(text).map(Self)
    }

    fn to_text(&self) -> String {
        self.0.to_text()
    }
}

impl Value for Bounds {
    const EXPECTED: &'static str = "ends of buckets, ascending, such as `0.005,0.01,0.1,1`";

    fn from_text(text: &str) -> Option<Self> {
        let bounds: Vec<f64> = text.split(',').map(|bound| bound.trim().parse().ok()).collect::<Option<_>>()?;
        let ascends = bounds.is_sorted_by(|left, right| left < right);
        (ascends && bounds.iter().all(|bound| bound.is_finite())).then(|| Self(bounds.into()))
    }

    fn to_text(&self) -> String {
        self.0.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
    }
}
