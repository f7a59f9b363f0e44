//! Two traces compared, as Tempo's `/api/v2/traces/diff` does it: what is the same operation in both, and what of it
//! differs.
//!
//! ```text
//! TracesData ─► Side ─┐
//! TracesData ─► Side ─┴► pairs ─► Patch ─► Summary
//! ```

mod pairs;
mod patch;
mod side;
mod summary;
#[cfg(test)]
mod tests;
mod value;

use opentelemetry_proto::tonic::trace::v1::TracesData;
use serde::Serialize;
use thiserror::Error;

use self::pairs::Pairs;
use self::patch::Patch;
use self::side::Side;
use self::summary::Summary;

/// Longest patch beside a summary, bytes: there is all of it or nothing.
const PATCH_BESIDE_SUMMARY: usize = 64 << 10;

/// What is to be said of the differences.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Format {
    /// `trace-patch-v0`: every difference of every span.
    #[default]
    Patch,
    /// `trace-summary-v0-native`: what changed for the traces and their services.
    Summary,
    /// `trace-summary-v0-composed`: the summary, and the patch if it is short.
    Composed,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Patch, Self::Summary, Self::Composed];

    /// What requests and answers call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Patch => "trace-patch-v0",
            Self::Summary => "trace-summary-v0-native",
            Self::Composed => "trace-summary-v0-composed",
        }
    }
}

/// Why two traces were not compared.
#[derive(Debug, Error)]
pub enum DiffError {
    /// Places of spans are told from the root on: in deep traces with many differences that is much.
    #[error(
        "traces differ too much and are too deep: an answer would take more than {limit} steps from roots to spans"
    )]
    TooDeep {
        /// Most steps.
        limit: usize,
    },
    /// The answer cannot be written.
    #[error("comparison cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Composed<'t> {
    version: &'static str,
    summary: Summary<'t>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<&'t Patch<'t>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_omitted: Option<Omitted>,
}

#[derive(Serialize)]
struct Omitted {
    bytes: usize,
    reason: &'static str,
}

/// What differs in `compare` from `base`, as JSON.
pub fn diff(base: &TracesData, compare: &TracesData, format: Format) -> Result<Vec<u8>, DiffError> {
    let (base, compare) = (Side::of(base), Side::of(compare));
    let pairs = Pairs::of(&base, &compare);
    let patch = Patch::of(&base, &compare, &pairs)?;
    let summary = || Summary::of(&base, &compare, &patch);
    let answer = match format {
        Format::Patch => serde_json::to_vec(&patch)?,
        Format::Summary => serde_json::to_vec(&summary())?,
        Format::Composed => {
            let bytes = serde_json::to_vec(&patch)?.len();
            let is_short = bytes <= PATCH_BESIDE_SUMMARY;
            serde_json::to_vec(&Composed {
                version: format.name(),
                summary: summary(),
                patch: is_short.then_some(&patch),
                patch_omitted: (!is_short).then_some(Omitted { bytes, reason: "over_budget" }),
            })?
        }
    };
    Ok(answer)
}
