//! A watch that keeps the index true, whatever happens to the API server.

use std::{
    collections::HashSet,
    fmt::Debug,
    pin::pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kube::{
    Api, Error as ClientError, Resource,
    runtime::{
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio_stream::StreamExt as _;

use super::{Shared, index::Watched};
use crate::telemetry::chain;

/// The longest wait between two tries, should `backoff` end.
const LONGEST: Duration = Duration::from_secs(30);

/// Follows all objects of `api` that `config` selects, for ever. `backoff` says how long to wait after each error.
///
/// The stream of kube lists page by page, watches from where the list was, watches again from the last event or bookmark
/// when the connection ends or is silent for too long, and lists anew when the server says in an event that this is too
/// long ago. A server that says so by the status of its answer is asked for ever; so that is looked at here.
pub(super) async fn follow<K>(api: Api<K>, config: watcher::Config, shared: &Shared, mut backoff: impl Backoff)
where
    K: Watched + Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let counters = shared.counters(K::PLURAL);
    let mut seen = HashSet::new();
    let mut away = None;
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()));
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    if take(event, &mut seen, shared) {
                        counters.synced(now());
                        if away.take().is_some() {
                            tracing::info!("{} are watched again", K::PLURAL);
                        }
                    }
                    continue;
                }
                Err(error) => error,
            };
            counters.restarts.inc();
            report(&error, K::PLURAL, &mut away);
            tokio::time::sleep(backoff.next().unwrap_or(LONGEST)).await;
            if is_gone(&error) {
                break;
            }
        }
    }
}

/// Takes what has changed; true if the index is now as the server has it.
fn take<K: Watched + Resource>(event: Event<K>, seen: &mut HashSet<Box<str>>, shared: &Shared) -> bool {
    match event {
        Event::Init => {
            seen.clear();
            false
        }
        Event::InitApply(object) => {
            seen.extend(object.meta().uid.as_deref().map(Into::into));
            shared.change(|index| object.apply(index));
            false
        }
        Event::InitDone => {
            shared.change(|index| K::keep_only(seen, index));
            *seen = HashSet::new();
            shared.counters(K::PLURAL).listed.send_replace(true);
            true
        }
        Event::Apply(object) => {
            shared.change(|index| object.apply(index));
            true
        }
        Event::Delete(object) => {
            if let Some(uid) = &object.meta().uid {
                shared.change(|index| K::delete(uid, index));
            }
            true
        }
    }
}

/// Why the server cannot be had.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Away {
    /// No answer of its own.
    Silent,
    /// An answer with this status.
    Refuses(u16),
}

/// An operator hears of it once when the server cannot be had, and once more when that has another reason; not of watches that
/// end and begin again.
fn report(error: &watcher::Error, plural: &str, away: &mut Option<Away>) {
    let reason = status(error).map_or(Away::Silent, Away::Refuses);
    let is_news = match error {
        watcher::Error::InitialListFailed(_) | watcher::Error::WatchStartFailed(_) => {
            !is_gone(error) && *away != Some(reason)
        }
        _ => false,
    };
    if !is_news {
        tracing::debug!(error = %chain(error), "the watch of {plural} begins again");
        return;
    }
    *away = Some(reason);
    if matches!(reason, Away::Refuses(401 | 403)) {
        tracing::warn!(
            error = %chain(error),
            "the API server does not allow {plural} to be watched: the agent's role needs the verbs get, list and watch"
        );
    } else {
        tracing::warn!(error = %chain(error), "{plural} cannot be watched, tried again");
    }
}

/// The server no longer knows what has changed since.
fn is_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(_)) && status(error) == Some(410)
}

fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(ClientError::Api(status))
        | watcher::Error::WatchStartFailed(ClientError::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
