//! The conventions' metrics of inference.

use coati_common::wellknown::{gen_ai as key, span};

use super::Inference;
use crate::{
    decode::Role,
    metrics::{LabelValue, Labelled},
};

/// Buckets of the conventions.
pub(crate) const DURATION: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
pub(crate) const FIRST_TOKEN: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
pub(crate) const PER_TOKEN: &[f64] = &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
pub(crate) const TOKENS: &[f64] = &[
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

/// What is counted together of requests to models.
pub(crate) struct OfModel<'a> {
    pub(crate) inference: &'a Inference,
    /// The model's name, or another one if there are too many.
    pub(crate) model: &'a str,
    pub(crate) error: Option<&'a str>,
    /// Of tokens: at which end they were seen, as where both ends are on this node each tells of the same, and of what they
    /// are.
    pub(crate) tokens: Option<(Role, &'static str)>,
}

impl Labelled for OfModel<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, LabelValue<'a>)) {
        see(key::OPERATION_NAME, LabelValue::Text(self.inference.kind.operation.as_str()));
        see(key::PROVIDER_NAME, LabelValue::Text(self.inference.provider));
        see(key::REQUEST_MODEL, LabelValue::Text(self.model));
        see(span::ERROR_TYPE, LabelValue::Text(self.error.unwrap_or_default()));
        if let Some((role, kind)) = self.tokens {
            see("coati.role", LabelValue::Text(if role == Role::Server { "server" } else { "client" }));
            see("gen_ai.token.type", LabelValue::Text(kind));
        }
    }
}

/// What is measured of a request to a model.
impl Inference {
    /// The model's name, empty if it is not known.
    pub(crate) fn model(&self) -> &str {
        self.facts.request_model.as_deref().or(self.facts.response_model.as_deref()).unwrap_or_default()
    }

    /// Why it failed.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    pub(crate) const fn seconds(&self) -> f64 {
        self.duration_ns as f64 / 1e9
    }

    /// Seconds to the first token of a stream.
    pub(crate) fn first_token(&self) -> Option<f64> {
        self.first_token_ns.map(|ns| ns as f64 / 1e9)
    }

    /// Seconds from one token to the next.
    pub(crate) fn per_token(&self) -> Option<f64> {
        self.per_token_ns.map(|ns| ns / 1e9)
    }

    /// Tokens of the prompt and of the answer.
    pub(crate) fn tokens(&self) -> [(&'static str, Option<f64>); 2] {
        let count = |tokens: Option<u64>| tokens.map(|tokens| tokens as f64);
        [("input", count(self.facts.input_tokens)), ("output", count(self.facts.output_tokens))]
    }
}
