//! The conventions' metrics of inference on `/metrics`.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use coati_common::wellknown::gen_ai as key;
use prometheus_client::{
    metrics::{
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::Inference;
use crate::decode::Role;

/// Buckets of the conventions.
const DURATION: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const PER_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Models that get a series of their own: their names come from outside.
const MODELS: usize = 100;

type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Copy, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<Labels, Histogram, Buckets>;

/// Histograms of inference; every clone counts into the same cells.
#[derive(Clone, Debug)]
pub struct InferenceMetrics {
    duration: Histograms,
    first_token: Histograms,
    per_token: Histograms,
    tokens: Histograms,
    models: Arc<Mutex<HashSet<String>>>,
}

impl Default for InferenceMetrics {
    fn default() -> Self {
        let histograms = |buckets| Histograms::new_with_constructor(Buckets(buckets));
        Self {
            duration: histograms(&DURATION),
            first_token: histograms(&FIRST_TOKEN),
            per_token: histograms(&PER_TOKEN),
            tokens: histograms(&TOKENS),
            models: Arc::default(),
        }
    }
}

impl InferenceMetrics {
    /// Adds the metrics to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "gen_ai_server_request_duration",
            "Time that inference requests took",
            seconds(),
            self.duration.clone(),
        );
        registry.register_with_unit(
            "gen_ai_server_time_to_first_token",
            "Time to the first token of a stream",
            seconds(),
            self.first_token.clone(),
        );
        registry.register_with_unit(
            "gen_ai_server_time_per_output_token",
            "Time from one token to the next",
            seconds(),
            self.per_token.clone(),
        );
        registry.register("gen_ai_client_token_usage", "Tokens of prompts and answers", self.tokens.clone());
    }

    /// Counts a request, seen at its server or at its client.
    pub fn count(&self, inference: &Inference, role: Role) {
        let facts = &inference.facts;
        let model = facts.request_model.as_deref().or(facts.response_model.as_deref());
        let mut labels: Labels = vec![
            (key::LABEL_OPERATION_NAME, inference.kind.operation.as_str().to_owned()),
            (key::LABEL_PROVIDER_NAME, inference.provider.to_owned()),
            (key::LABEL_REQUEST_MODEL, self.model(model.unwrap_or_default())),
        ];
        if role == Role::Server {
            let mut of_request = labels.clone();
            of_request.extend(inference.error.iter().map(|error| ("error_type", error.clone())));
            observe(&self.duration, &of_request, Some(inference.duration_ns as f64 / 1e9));
            if inference.error.is_none() {
                observe(&self.first_token, &labels, inference.first_token_ns.map(|ns| ns as f64 / 1e9));
                observe(&self.per_token, &labels, inference.per_token_ns.map(|ns| ns / 1e9));
            }
        }
        // Where both ends are on this node, each tells of the same tokens.
        labels.push(("coati_role", if role == Role::Server { "server" } else { "client" }.to_owned()));
        for (kind, tokens) in [("input", facts.input_tokens), ("output", facts.output_tokens)] {
            let mut labels = labels.clone();
            labels.push(("gen_ai_token_type", kind.to_owned()));
            observe(&self.tokens, &labels, tokens.map(|tokens| tokens as f64));
        }
    }

    fn model(&self, name: &str) -> String {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if models.contains(name) || models.len() < MODELS && models.insert(name.to_owned()) {
            name.to_owned()
        } else {
            "other".to_owned()
        }
    }
}

fn observe(histograms: &Histograms, labels: &Labels, value: Option<f64>) {
    if let Some(value) = value {
        histograms.get_or_create(labels).observe(value);
    }
}
