//! Requests to models.

use std::collections::HashSet;

use super::{
    histogram::Exemplar,
    names::Kind,
    series::{At, Store},
    service::Known,
    settings::MetricsSettings,
};
use crate::{
    decode::Role,
    inference::{Inference, OfModel},
};

/// Models that get a series of their own: their names come from outside.
const MODELS: usize = 100;

/// The names of models that were seen.
#[derive(Debug, Default)]
pub(super) struct Models(HashSet<String>);

impl Models {
    fn name<'a>(&mut self, name: &'a str) -> &'a str {
        if self.0.contains(name) || self.0.len() < MODELS && self.0.insert(name.to_owned()) { name } else { "other" }
    }

    /// Counts a request, seen at its server or at its client. False if there was no room for a label set.
    pub(super) fn count(
        &mut self,
        inference: &Inference,
        role: Role,
        own: &Known,
        at: &At,
        store: &mut Store,
        settings: &MetricsSettings,
    ) -> bool {
        let model = self.name(inference.model());
        let of = OfModel { inference, model, error: None, tokens: None };
        let mut fits = true;
        if role == Role::Server {
            let error = inference.error();
            let of_request = OfModel { error, ..of };
            fits &= store.add(Kind::Model, own, &of_request, &[Some(inference.seconds())], at, settings);
            let pace = [inference.first_token(), inference.per_token()];
            // An answer that is an error has no tokens.
            if error.is_none() && pace != [None, None] {
                let first = pace.first().copied().flatten();
                let exemplar = first.and_then(|value| Some(Exemplar { value, ..at.exemplar? }));
                let at = At { exemplar, ..*at };
                fits &= store.add(Kind::ModelPace, own, &of, &pace, &at, settings);
            }
        }
        for (kind, tokens) in inference.tokens().into_iter().filter(|(_, tokens)| tokens.is_some()) {
            let of_tokens = OfModel { tokens: Some((role, kind)), ..of };
            let at = At { exemplar: None, ..*at };
            fits &= store.add(Kind::ModelTokens, own, &of_tokens, &[tokens], &at, settings);
        }
        fits
    }
}
