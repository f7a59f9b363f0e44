//! What is measured, and how much of it is kept.

use std::{sync::Arc, time::Duration};

use super::{
    choice::LabelChoice,
    histogram::{BYTES, SECONDS},
};

/// A group of metrics that can be switched, with the name that Beyla has for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Feature {
    /// Durations and sizes of requests.
    Application,
    /// Metrics of spans under the names that Tempo's generator has, and sizes.
    ApplicationSpan,
    /// The same under the names that OpenTelemetry's connector has.
    ApplicationSpanOtel,
    /// Sizes alone.
    ApplicationSpanSizes,
    /// Who calls whom.
    ApplicationServiceGraph,
    /// What the processes use.
    ApplicationProcess,
    /// That the node is there.
    ApplicationHost,
}

impl Feature {
    /// Every one that there is.
    pub const ALL: [Self; 7] = [
        Self::Application,
        Self::ApplicationSpan,
        Self::ApplicationSpanOtel,
        Self::ApplicationSpanSizes,
        Self::ApplicationServiceGraph,
        Self::ApplicationProcess,
        Self::ApplicationHost,
    ];

    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::ApplicationSpan => "application_span",
            Self::ApplicationSpanOtel => "application_span_otel",
            Self::ApplicationSpanSizes => "application_span_sizes",
            Self::ApplicationServiceGraph => "application_service_graph",
            Self::ApplicationProcess => "application_process",
            Self::ApplicationHost => "application_host",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// Which metrics are made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features(u16);

impl Features {
    /// None at all.
    pub const NONE: Self = Self(0);

    /// Whether this one is among them.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// Whether any of these is.
    pub fn has_any(self, features: &[Feature]) -> bool {
        features.iter().any(|feature| self.has(*feature))
    }

    /// The same with this one.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.bit())
    }

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are made, in the order of their definition.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |feature| self.has(*feature))
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        features.into_iter().fold(Self::NONE, Self::with)
    }
}

impl Default for Features {
    fn default() -> Self {
        Self::NONE.with(Feature::Application)
    }
}

/// Upper ends of buckets, ascending; values above the last have a bucket of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds(pub Arc<[f64]>);

impl From<&[f64]> for Bounds {
    fn from(bounds: &[f64]) -> Self {
        Self(bounds.into())
    }
}

/// The buckets of histograms.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    /// Of durations, seconds.
    pub durations: Bounds,
    /// Of the bodies of requests, bytes.
    pub request_sizes: Bounds,
    /// Of the bodies of responses, bytes.
    pub response_sizes: Bounds,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { durations: SECONDS.into(), request_sizes: BYTES.into(), response_sizes: BYTES.into() }
    }
}

/// Of what kind the histograms are that are sent by OTLP, and shown to who asks for native ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Aggregation {
    /// With the buckets of the configuration.
    Explicit,
    /// With buckets that find their place by themselves: Prometheus makes native histograms of them.
    Exponential,
}

/// What is measured, and how much of it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSettings {
    /// Which metrics are made, unless a rule says another thing of a process.
    pub features: Features,
    /// Those that rules ask for.
    pub by_rules: Features,
    /// Which labels they have.
    pub labels: LabelChoice,
    /// Label sets at most.
    pub max_series: usize,
    /// How long one is kept of which nothing is seen.
    pub expire: Duration,
    /// Whether buckets of durations name a request that stands for them.
    pub exemplars: bool,
    /// Where buckets end.
    pub buckets: Buckets,
    /// Which histograms are sent.
    pub aggregation: Aggregation,
}

impl MetricsSettings {
    /// All that are made of some process.
    pub const fn all_features(&self) -> Features {
        self.features.and(self.by_rules)
    }
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self {
            features: Features::default(),
            by_rules: Features::NONE,
            labels: LabelChoice::default(),
            max_series: 2000,
            expire: Duration::from_mins(5),
            exemplars: true,
            buckets: Buckets::default(),
            aggregation: Aggregation::Explicit,
        }
    }
}
