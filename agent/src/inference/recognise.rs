//! Which requests are inference, by their path.

use crate::decode::{Method, RequestHead};

/// What is asked for: values of `gen_ai.operation.name`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Operation {
    /// An answer to messages.
    Chat,
    /// Text that goes on from a prompt.
    TextCompletion,
    /// Vectors.
    Embeddings,
    /// Something of a model that knows no tokens: objects in pictures, vectors of pictures.
    Predict,
}

impl Operation {
    /// The value of `gen_ai.operation.name`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
            // Not one of the conventions'.
            Self::Predict => "predict",
        }
    }

    /// Whether tokens are generated one after the other.
    pub const fn generates(self) -> bool {
        matches!(self, Self::Chat | Self::TextCompletion)
    }
}

/// How the server speaks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Dialect {
    /// ollama's own paths; NDJSON.
    Ollama,
    /// OpenAI's, which many servers speak; JSON or server-sent events.
    OpenAi,
    /// llama.cpp's own.
    LlamaCpp,
    /// Anthropic's messages.
    Anthropic,
    /// immich's machine learning.
    Immich,
    /// frigate, and the detectors that it asks.
    Frigate,
}

impl Dialect {
    /// What is known of the provider by the dialect alone: a value of `gen_ai.provider.name`.
    pub const fn provider(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
            Self::LlamaCpp => "llama_cpp",
            Self::Anthropic => "anthropic",
            Self::Immich => "immich",
            Self::Frigate => "frigate",
        }
    }
}

/// A request that is inference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kind {
    /// What is asked for.
    pub operation: Operation,
    /// How.
    pub dialect: Dialect,
}

/// Ends of paths: proxies and gateways put something before them.
const PATHS: &[(&str, Operation, Dialect)] = &[
    ("/api/generate", Operation::TextCompletion, Dialect::Ollama),
    ("/api/chat", Operation::Chat, Dialect::Ollama),
    ("/api/embed", Operation::Embeddings, Dialect::Ollama),
    ("/api/embeddings", Operation::Embeddings, Dialect::Ollama),
    ("/chat/completions", Operation::Chat, Dialect::OpenAi),
    ("/v1/completions", Operation::TextCompletion, Dialect::OpenAi),
    ("/v1/embeddings", Operation::Embeddings, Dialect::OpenAi),
    ("/v1/responses", Operation::Chat, Dialect::OpenAi),
    ("/v1/messages", Operation::Chat, Dialect::Anthropic),
    ("/completion", Operation::TextCompletion, Dialect::LlamaCpp),
    ("/infill", Operation::TextCompletion, Dialect::LlamaCpp),
    ("/v1/vision/detection", Operation::Predict, Dialect::Frigate),
];

/// Whole paths: short words that other services may have anywhere.
const WHOLE: &[(&str, Operation, Dialect)] = &[("/predict", Operation::Predict, Dialect::Immich)];

/// What a request asks of a model, if it does.
pub fn recognise(head: &RequestHead) -> Option<Kind> {
    if head.method != Method::Post {
        return None;
    }
    of_path(head.path()?)
}

fn of_path(path: &str) -> Option<Kind> {
    let path = path.trim_end_matches('/');
    let by_end = PATHS.iter().find(|(end, ..)| path.ends_with(end));
    let found = by_end.or_else(|| WHOLE.iter().find(|(whole, ..)| path == *whole));
    found.map(|(_, operation, dialect)| Kind { operation: *operation, dialect: *dialect })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/api/chat", Some((Operation::Chat, Dialect::Ollama)))]
    #[case("/ollama/api/generate", Some((Operation::TextCompletion, Dialect::Ollama)))]
    #[case("/api/embed", Some((Operation::Embeddings, Dialect::Ollama)))]
    #[case("/api/embeddings", Some((Operation::Embeddings, Dialect::Ollama)))]
    #[case("/v1/chat/completions", Some((Operation::Chat, Dialect::OpenAi)))]
    #[case("/openai/chat/completions/", Some((Operation::Chat, Dialect::OpenAi)))]
    #[case("/v1/responses", Some((Operation::Chat, Dialect::OpenAi)))]
    #[case("/v1/messages", Some((Operation::Chat, Dialect::Anthropic)))]
    #[case("/completion", Some((Operation::TextCompletion, Dialect::LlamaCpp)))]
    #[case("/predict", Some((Operation::Predict, Dialect::Immich)))]
    #[case("/shop/predict", None)]
    #[case("/v1/vision/detection", Some((Operation::Predict, Dialect::Frigate)))]
    #[case("/api/tags", None)]
    #[case("/api/chats", None)]
    #[case("/", None)]
    #[case("", None)]
    fn paths(#[case] path: &str, #[case] expected: Option<(Operation, Dialect)>) {
        assert_eq!(of_path(path).map(|kind| (kind.operation, kind.dialect)), expected);
    }
}
