//! Sections `spans` and `routes`: what spans are made of, and which are kept.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{
    Config,
    discovery::{Globs, Text},
    schema::Of,
    value::{self, Value},
};
use crate::{
    discover::Pattern,
    span::{
        AttributeConfig, HeaderConfig, IgnoreMode, Ratio, RouteConfig, Sampler, SamplerName, SamplingConfig,
        SpanConfig, Unmatched,
    },
    stitch::StitchConfig,
};

/// Section `spans`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpansConfig {
    /// Whether the values in queries are replaced, because they may be secret.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub redact_query: bool,
    /// Whether the backend unites what the agents of several nodes see of a request, as Coati's does.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub across_nodes: bool,
    /// Shell patterns of the names, in lower case, of request headers that spans show as `http.request.header.NAME`.
    pub request_headers: Vec<Text<Globs>>,
    /// The same of responses, as `http.response.header.NAME`.
    pub response_headers: Vec<Text<Globs>>,
    /// Whether the values of such headers are shown too that let somebody in, cookies and tokens for example.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub show_sensitive_headers: bool,
    /// Which attributes spans have.
    pub attributes: AttributesConfig,
    /// Which spans are kept.
    pub sampling: SamplingSection,
    /// Requests of which spans are made in a second at most; absent, as many as there are.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<usize>>")]
    pub max_per_second: Option<usize>,
    /// How long a request is under way before what is known of it is sent as a span that its last one replaces; `off` for
    /// never. Coati's backend shows the newest of them; in others each is a span of its own.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<PartialAfter>")]
    pub partial_after: PartialAfter,
}

impl Default for SpansConfig {
    fn default() -> Self {
        let SpanConfig { redact_query, max_per_second, partial_after, .. } = SpanConfig::default();
        Self {
            redact_query,
            across_nodes: StitchConfig::default().across_nodes,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            show_sensitive_headers: false,
            attributes: AttributesConfig::default(),
            sampling: SamplingSection::default(),
            max_per_second,
            partial_after: PartialAfter(partial_after),
        }
    }
}

/// Section `spans.attributes`: shell patterns of their keys.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttributesConfig {
    /// Only these, if there are any.
    pub include: Vec<Text<Globs>>,
    /// Of those, not these.
    pub exclude: Vec<Text<Globs>>,
}

/// Section `spans.sampling`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingSection {
    /// Name of the sampler, as in `OTEL_TRACES_SAMPLER`.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<SamplerName>")]
    pub sampler: SamplerName,
    /// Part of all traces that the samplers with `ratio` in their name keep, from 0 to 1.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Ratio>")]
    pub ratio: Ratio,
    /// Whether spans of errors are kept, whatever the sampler says.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub keep_errors: bool,
    /// Spans that took at least so long are kept, whatever the sampler says; absent, none for that reason.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<Duration>>")]
    pub keep_slower_than: Option<Duration>,
}

impl Default for SamplingSection {
    fn default() -> Self {
        let SamplingConfig { sampler: Sampler { name, ratio }, keep_errors, keep_slower_than } =
            SamplingConfig::default();
        Self { sampler: name, ratio, keep_errors, keep_slower_than }
    }
}

/// `sampler` of a rule.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerConfig {
    /// Name of the sampler, as in `OTEL_TRACES_SAMPLER`.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<SamplerName>")]
    pub name: SamplerName,
    /// Part of all traces that it keeps, from 0 to 1.
    #[serde(default = "all", alias = "arg", with = "value::text")]
    #[schemars(with = "Of<Ratio>")]
    pub ratio: Ratio,
}

const fn all() -> Ratio {
    Ratio::ALL
}

impl SamplerConfig {
    pub(super) const fn sampler(self) -> Sampler {
        Sampler { name: self.name, ratio: self.ratio }
    }
}

/// Section `routes`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutesConfig {
    /// Routes that are known, such as `/api/{id}`, `/v1/:name` or `/static/*`; the first that fits a path wins.
    pub patterns: Vec<String>,
    /// Requests for paths that one of these fits are left out, health checks for example.
    pub ignored_patterns: Vec<String>,
    /// What they are left out of: `all`, `traces` or `metrics`.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<IgnoreMode>")]
    pub ignore_mode: IgnoreMode,
    /// What becomes of paths that no pattern fits: `heuristic` (ids and rare words are replaced), `wildcard` (`/**`),
    /// `path` (the path itself) or `unset` (no route). `low-cardinality` is `heuristic`.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Unmatched>")]
    pub unmatched: Unmatched,
    /// What stands for an id in a route.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Wildcard>")]
    pub wildcard_char: Wildcard,
    /// Words that a place in the path may have before further ones become ids.
    #[serde(alias = "max_path_segment_cardinality", with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub max_words: usize,
    /// Different routes of one service, those of patterns not counted; further ones are `/**`.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub max_per_service: usize,
}

impl Default for RoutesConfig {
    fn default() -> Self {
        let RouteConfig { patterns, ignored_patterns, ignore_mode, unmatched, wildcard, max_words, max_per_service } =
            RouteConfig::default();
        let wildcard_char = Wildcard(wildcard);
        Self { patterns, ignored_patterns, ignore_mode, unmatched, wildcard_char, max_words, max_per_service }
    }
}

/// How long a request is under way before its first span; `None` for never.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PartialAfter(Option<Duration>);

const OFF: &str = "off";

/// What stands for an id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wildcard(String);

impl Config {
    /// What spans are made of, and which are kept.
    pub fn span_config(&self) -> SpanConfig {
        let patterns =
            |texts: &[Text<Globs>]| texts.iter().map(|text| text.pattern().clone()).collect::<Vec<Pattern>>();
        let SpansConfig {
            redact_query,
            across_nodes: _,
            request_headers,
            response_headers,
            show_sensitive_headers,
            attributes,
            sampling: SamplingSection { sampler, ratio, keep_errors, keep_slower_than },
            max_per_second,
            partial_after,
        } = &self.spans;
        let RoutesConfig {
            patterns: known,
            ignored_patterns,
            ignore_mode,
            unmatched,
            wildcard_char,
            max_words,
            max_per_service,
        } = &self.routes;
        SpanConfig {
            redact_query: *redact_query,
            routes: RouteConfig {
                patterns: known.clone(),
                ignored_patterns: ignored_patterns.clone(),
                ignore_mode: *ignore_mode,
                unmatched: *unmatched,
                wildcard: wildcard_char.0.clone(),
                max_words: *max_words,
                max_per_service: *max_per_service,
            },
            headers: HeaderConfig {
                request: patterns(request_headers),
                response: patterns(response_headers),
                shows_sensitive: *show_sensitive_headers,
            },
            attributes: AttributeConfig {
                include: patterns(&attributes.include),
                exclude: patterns(&attributes.exclude),
            },
            sampling: SamplingConfig {
                sampler: Sampler { name: *sampler, ratio: *ratio },
                keep_errors: *keep_errors,
                keep_slower_than: *keep_slower_than,
            },
            max_per_second: *max_per_second,
            partial_after: partial_after.0,
        }
    }
}

impl Value for PartialAfter {
    const EXPECTED: &'static str = "a time with a unit such as `10s` or `1m`, or `off`";

    fn from_text(text: &str) -> Option<Self> {
        if text == OFF { Some(Self(None)) } else { Duration::from_text(text).map(|after| Self(Some(after))) }
    }

    fn to_text(&self) -> String {
        self.0.map_or_else(|| OFF.to_owned(), |after| after.to_text())
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m)|off)$" })
    }
}

impl Value for SamplerName {
    const EXPECTED: &'static str = "`always_on`, `always_off`, `traceidratio`, `parentbased_always_on`, \
                                    `parentbased_always_off` or `parentbased_traceidratio`";

    fn from_text(text: &str) -> Option<Self> {
        Self::from_name(text)
    }

    fn to_text(&self) -> String {
        self.as_str().to_owned()
    }

    fn schema() -> Json {
        json!({ "type": "string", "enum": Self::ALL.map(Self::as_str) })
    }
}

impl Value for Ratio {
    const EXPECTED: &'static str = "a number from 0 to 1";

    fn from_text(text: &str) -> Option<Self> {
        Self::new(text.parse().ok()?)
    }

    fn to_text(&self) -> String {
        self.get().to_string()
    }

    fn schema() -> Json {
        json!({ "type": "number", "minimum": 0, "maximum": 1 })
    }
}

impl Value for IgnoreMode {
    const EXPECTED: &'static str = "`all`, `traces` or `metrics`";

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "all" => Self::All,
            "traces" => Self::Traces,
            "metrics" => Self::Metrics,
            _ => return None,
        })
    }

    fn to_text(&self) -> String {
        let name = match self {
            Self::All => "all",
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        };
        name.to_owned()
    }

    fn schema() -> Json {
        json!({ "type": "string", "enum": ["all", "traces", "metrics"] })
    }
}

impl Value for Unmatched {
    const EXPECTED: &'static str = "`heuristic`, `wildcard`, `path`, `unset` or `low-cardinality`";

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "heuristic" | "low-cardinality" => Self::Heuristic,
            "wildcard" => Self::Wildcard,
            "path" => Self::Path,
            "unset" => Self::Unset,
            _ => return None,
        })
    }

    fn to_text(&self) -> String {
        let name = match self {
            Self::Heuristic => "heuristic",
            Self::Wildcard => "wildcard",
            Self::Path => "path",
            Self::Unset => "unset",
        };
        name.to_owned()
    }

    fn schema() -> Json {
        json!({ "type": "string", "enum": ["heuristic", "low-cardinality", "wildcard", "path", "unset"] })
    }
}

impl Value for Wildcard {
    const EXPECTED: &'static str = "a text of 1 to 16 characters without a slash such as `{id}` or `*`";

    fn from_text(text: &str) -> Option<Self> {
        let is_short = (1..=16).contains(&text.chars().count()) && !text.contains('/');
        is_short.then(|| Self(text.to_owned()))
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^[^/]{1,16}$" })
    }
}
