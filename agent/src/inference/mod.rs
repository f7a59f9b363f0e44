//! Requests to models: which model, how many tokens, and where the time went.
//!
//! [`recognise`](recognise()) tells by method and path which requests may be inference; of those the decoder keeps the start and the
//! end of both bodies ([`Bodies`](crate::decode::Bodies)), and `content` reads models and token counts in them. Times are those of the
//! kernel; `first_token` knows events that come before there is a token. How the rest is divided into loading, prompt and
//! generation is what the server says of it. Prompts and answers are read here and kept nowhere, unless that is switched on. docs/gpu.md
//! lists what spans say.

mod content;
mod first_token;
mod json;
mod messages;
mod metrics;
mod recognise;

#[cfg(test)]
pub(crate) mod tests;

use coati_common::wellknown::{gen_ai as key, span::ERROR_TYPE};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, any_value::Value},
    trace::v1::{Span, Status, span::SpanKind, status::StatusCode},
};

use crate::{
    decode::{Bodies, Exchange, Role},
    discover::Process,
    span::{Attributes, Clock, FinishedSpan},
};
use content::Facts;
use messages::Messages;
pub(crate) use metrics::{DURATION, FIRST_TOKEN, OfModel, PER_TOKEN, TOKENS};
pub use recognise::{Dialect, Kind, Operation, recognise};

/// A model that takes longer than this to be there was loaded for the request.
const COLD_LOAD_NS: u64 = 500_000_000;
/// Phases shorter than this get no span.
const PHASE_NS: u64 = 1_000;

/// How requests to models are looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InferenceConfig {
    /// Whether they are.
    pub enabled: bool,
    /// Whether spans have prompts and answers.
    pub records_content: bool,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self { enabled: true, records_content: false }
    }
}

/// A part of the time that a request took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Phase {
    name: &'static str,
    start_ns: u64,
    end_ns: u64,
}

/// What is known of an inference request. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    kind: Kind,
    facts: Facts,
    provider: &'static str,
    is_stream: bool,
    duration_ns: u64,
    error: Option<String>,
    /// The same, if nothing but the answer's body says it.
    error_in_answer: Option<String>,
    /// From the request's first byte to the first one behind the response's head, of a stream.
    first_chunk_ns: Option<u64>,
    /// The same to the first event that has a token.
    first_token_ns: Option<u64>,
    /// From one token to the next, mean.
    per_token_ns: Option<f64>,
    phases: Vec<Phase>,
    /// Only if they are to be recorded.
    messages: Option<Messages>,
}

impl Inference {
    /// What `exchange` was, if it was inference, done by or asked for by `process`.
    pub fn of(exchange: &Exchange, process: &Process, config: InferenceConfig) -> Option<Self> {
        config.enabled.then_some(())?;
        let kind = exchange.request.model?;
        let bodies = exchange.bodies.as_deref()?;
        let facts = Facts::read(bodies);
        if kind.operation != Operation::Predict && !facts.is_inference() {
            return None;
        }
        let begin_ns = exchange.origin.begin_ns;
        let end_ns = exchange.end_ns;
        let is_stream = kind.operation.generates()
            && facts.asks_stream.unwrap_or(kind.dialect == Dialect::Ollama || exchange.response_chunks > 3);
        let first_chunk_ns = bodies.response_first_ns.filter(|_| is_stream);
        let first_event_ns = || bodies.moved_ns(first_token::place(&bodies.response)?);
        let first_ns = first_chunk_ns.map(|chunk_ns| first_event_ns().unwrap_or(chunk_ns));
        let tokens = facts.output_tokens.filter(|_| exchange.failure.is_none());
        let status = exchange.response.as_ref().map_or(0, |response| response.status);
        let error = (status >= 400).then(|| status.to_string());
        let error = error.or_else(|| exchange.failure.map(|failure| failure.as_str().to_owned()));
        let error_in_answer = facts.error.clone().filter(|_| error.is_none());
        Some(Self {
            kind,
            provider: provider(kind, &facts, exchange, process),
            is_stream,
            duration_ns: end_ns.saturating_sub(begin_ns),
            error: error.or_else(|| error_in_answer.clone()),
            error_in_answer,
            first_chunk_ns: first_chunk_ns.map(|first_ns| first_ns.saturating_sub(begin_ns)),
            first_token_ns: first_ns.map(|first_ns| first_ns.saturating_sub(begin_ns)),
            per_token_ns: per_token(first_ns, end_ns, tokens),
            phases: phases(&facts, begin_ns, first_ns, end_ns),
            messages: config
                .records_content
                .then(|| Messages::read(bodies, exchange.request_body_bytes, exchange.response_body_bytes)),
            facts,
        })
    }

    /// Tokens that were generated.
    pub const fn output_tokens(&self) -> Option<u64> {
        self.facts.output_tokens
    }

    /// Adds what is known to the request's span.
    pub fn describe(&self, span: &mut Span) {
        let facts = &self.facts;
        let mut attributes = Attributes(std::mem::take(&mut span.attributes));
        attributes.text(key::OPERATION_NAME, self.kind.operation.as_str());
        attributes.text(key::PROVIDER_NAME, self.provider);
        for (name, value) in [(key::REQUEST_MODEL, &facts.request_model), (key::RESPONSE_MODEL, &facts.response_model)]
        {
            if let Some(value) = value {
                attributes.text(name, value.as_str());
            }
        }
        if self.kind.operation.generates() {
            attributes.push(key::REQUEST_STREAM, Value::BoolValue(self.is_stream));
        }
        for (name, value) in [(key::INPUT_TOKENS, facts.input_tokens), (key::OUTPUT_TOKENS, facts.output_tokens)] {
            if let Some(value) = value {
                attributes.count(name, value);
            }
        }
        if let Some(reason) = &facts.finish_reason {
            let value = AnyValue { value: Some(Value::StringValue(reason.clone())) };
            attributes.push(key::FINISH_REASONS, Value::ArrayValue(ArrayValue { values: vec![value] }));
        }
        for (name, ns) in [
            (key::TIME_TO_FIRST_CHUNK, self.first_chunk_ns),
            (key::COATI_TIME_TO_FIRST_TOKEN, self.first_token_ns),
            (key::COATI_LOAD_DURATION, facts.load_ns),
            (key::COATI_PROMPT_DURATION, facts.prompt_ns),
            (key::COATI_GENERATION_DURATION, facts.generation_ns),
        ] {
            if let Some(ns) = ns {
                attributes.seconds(name, ns);
            }
        }
        if let Some(ns) = self.per_token_ns {
            attributes.double(key::COATI_TIME_PER_TOKEN, ns / 1e9);
        }
        if let Some(rate) = self.tokens_per_second() {
            attributes.double(key::COATI_TOKENS_PER_SECOND, rate);
        }
        if let Some(load_ns) = facts.load_ns {
            attributes.push(key::COATI_COLD_LOAD, Value::BoolValue(load_ns >= COLD_LOAD_NS));
        }
        if let Some(error) = &self.error_in_answer {
            attributes.text(ERROR_TYPE, error.as_str());
            span.status = Some(Status { code: StatusCode::Error.into(), message: String::new() });
        }
        if let Some(messages) = &self.messages {
            for (name, text) in [
                (key::INPUT_MESSAGES, messages.input()),
                (key::OUTPUT_MESSAGES, messages.output(facts.finish_reason.as_deref())),
            ] {
                if let Some(text) = text {
                    attributes.text(name, text);
                }
            }
            for (name, is_cut) in [
                (key::COATI_INPUT_TRUNCATED, messages.is_input_cut),
                (key::COATI_OUTPUT_TRUNCATED, messages.is_output_cut),
            ] {
                if is_cut {
                    attributes.push(name, Value::BoolValue(true));
                }
            }
        }
        span.attributes = attributes.0;
    }

    /// Spans of the phases, below the span of the server that went through them.
    pub fn phases(&self, of: &FinishedSpan, clock: Clock) -> Vec<FinishedSpan> {
        if of.span.kind != SpanKind::Server as i32 {
            return Vec::new();
        }
        let phases = (1..).zip(&self.phases).filter(|(_, phase)| phase.end_ns - phase.start_ns >= PHASE_NS);
        let span = |(number, phase): (u8, &Phase)| {
            let span = Span {
                name: phase.name.to_owned(),
                kind: SpanKind::Internal.into(),
                trace_id: of.span.trace_id.clone(),
                span_id: child_id(&of.span.span_id, number),
                parent_span_id: of.span.span_id.clone(),
                trace_state: of.span.trace_state.clone(),
                flags: of.span.flags & 0xff,
                start_time_unix_nano: clock.unix_ns(phase.start_ns),
                end_time_unix_nano: clock.unix_ns(phase.end_ns),
                ..Span::default()
            };
            FinishedSpan { process: of.process.clone(), span }
        };
        phases.map(span).collect()
    }

    /// While tokens are generated: by the server's own time for it, else from the first token to the last.
    fn tokens_per_second(&self) -> Option<f64> {
        let tokens = self.facts.output_tokens? as f64;
        match (self.facts.generation_ns, self.per_token_ns) {
            (Some(ns), _) if ns > 0 => Some(tokens * 1e9 / ns as f64),
            (_, Some(per_token_ns)) if per_token_ns > 0.0 => Some(1e9 / per_token_ns),
            _ => None,
        }
    }
}

/// Reads the bytes as each of the bodies: for the fuzz target.
pub(crate) fn read_any(bytes: &[u8]) {
    let part: Box<[u8]> = bytes.into();
    let (request, response) = (part.clone(), part.clone());
    let bodies = Bodies { request, response, response_end: part, ..Bodies::default() };
    let _ = Facts::read(&bodies);
    let _ = first_token::place(&bodies.response);
    let _ = Messages::read(&bodies, None, None);
}

/// The first token ends a pause, so there are as many pauses as further tokens.
fn per_token(first_ns: Option<u64>, end_ns: u64, tokens: Option<u64>) -> Option<f64> {
    let further = tokens?.checked_sub(1).filter(|further| *further > 0)?;
    Some(end_ns.checked_sub(first_ns?)? as f64 / further as f64)
}

/// Where the time went: what the server says of loading and of the prompt lies before the first token, generation behind
/// it. What is left at the start is the queue. Without a stream the first token is as long before the end as generation took.
fn phases(facts: &Facts, begin_ns: u64, first_ns: Option<u64>, end_ns: u64) -> Vec<Phase> {
    let first_ns = first_ns.or_else(|| Some(end_ns.saturating_sub(facts.generation_ns?)));
    let Some(first_ns) = first_ns.map(|first_ns| first_ns.clamp(begin_ns, end_ns)) else { return Vec::new() };
    let prompt_ns = first_ns.saturating_sub(facts.prompt_ns.unwrap_or(0)).max(begin_ns);
    let load_ns = prompt_ns.saturating_sub(facts.load_ns.unwrap_or(0)).max(begin_ns);
    let is_divided = facts.prompt_ns.is_some() || facts.load_ns.is_some();
    let mut phases = Vec::new();
    let mut phase = |name, start_ns, end_ns| phases.push(Phase { name, start_ns, end_ns });
    if is_divided {
        phase("queue", begin_ns, load_ns);
        phase("load", load_ns, prompt_ns);
        phase("prompt", prompt_ns, first_ns);
    } else {
        // Nobody says how long which of them took.
        phase("time to first token", begin_ns, first_ns);
    }
    phase("generation", first_ns, end_ns);
    phases.retain(|phase| phase.start_ns < phase.end_ns);
    phases
}

/// Who serves: what only one server says, else the name of the process or host, else the dialect.
fn provider(kind: Kind, facts: &Facts, exchange: &Exchange, process: &Process) -> &'static str {
    if let Some(provider) = facts.provider {
        return provider;
    }
    let name = match exchange.origin.role {
        Role::Server => process.service_name.as_str(),
        Role::Client => exchange.request.host().unwrap_or_default(),
    };
    let known = [("vllm", "vllm"), ("ollama", "ollama"), ("llama", "llama_cpp")];
    let by_name = known.into_iter().find(|(part, _)| name.to_ascii_lowercase().contains(part));
    match (kind.dialect, by_name) {
        (Dialect::OpenAi | Dialect::Anthropic, Some((_, provider))) => provider,
        (dialect, _) => dialect.provider(),
    }
}

/// An id that no other span of the trace has: the parent's is random.
fn child_id(parent: &[u8], number: u8) -> Vec<u8> {
    let parent = parent.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let mixed = (parent ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    mixed.max(1).to_be_bytes().to_vec()
}
