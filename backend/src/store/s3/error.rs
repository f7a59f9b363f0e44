//! What a bucket's errors mean.

use crate::store::{Source, StoreError};
use crate::telemetry::chain;

/// What the store, or the way to it, said; one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

/// A failure that may pass.
pub(super) fn unavailable(path: &str, source: impl Into<Source>) -> StoreError {
    StoreError::Unavailable { path: path.to_owned(), source: source.into() }
}

/// What an error of a read or a deletion means.
pub(super) fn of(path: &str, error: &object_store::Error) -> StoreError {
    use object_store::Error;
    let path = path.to_owned();
    // The client keeps the status and the store's own word for what is wrong in its text only.
    let text = chain(error);
    let says = |word: &str| text.contains(word);
    let status = status(&text);
    let source = Told(one_line(&text)).into();
    match error {
        Error::NotFound { .. } if !says("NoSuchBucket") => StoreError::NotFound { path },
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreError::AlreadyExists { path },
        _ if status == Some(507) || says("QuotaExceeded") || says("StorageFull") => StoreError::Full { path, source },
        Error::NotFound { .. }
        | Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::NotImplemented { .. } => StoreError::Denied { path, source },
        // `RequestTimeout` comes with the status 400.
        _ if says("RequestTimeout") => StoreError::Unavailable { path, source },
        _ if matches!(status, Some(300..=407 | 409..=428 | 430..=499 | 501)) || says("(code: AccessDenied)") => {
            StoreError::Denied { path, source }
        }
        _ => StoreError::Unavailable { path, source },
    }
}

/// What an error of a write or a listing means: what is not there is the bucket.
pub(super) fn of_write(path: &str, error: &object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => {
            StoreError::Denied { path: path.to_owned(), source: Told(one_line(&chain(error))).into() }
        }
        error => of(path, error),
    }
}

/// The HTTP status in an error's text.
fn status(text: &str) -> Option<u16> {
    if text.contains("Received redirect without LOCATION") {
        return Some(301);
    }
    text.split_once("status code: ")?.1.get(..3)?.parse().ok()
}

/// Without the document that some stores send: its code and its message tell enough.
fn one_line(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0)
    };
    let before = text.split('<').next().unwrap_or_default().trim_end_matches([' ', ':']);
    let told = match (element("Code"), element("Message").filter(|message| !message.is_empty())) {
        (Some(code), Some(message)) => format!("{before}: {code} ({message})"),
        (Some(code), None) => format!("{before}: {code}"),
        (None, _) => text.to_owned(),
    };
    told.split_whitespace().collect::<Vec<_>>().join(" ")
}
