//! Who is at the other end of a connection.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use opentelemetry_proto::tonic::common::v1::KeyValue;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    discover::{ProcTree, Processes, Selection},
    kubernetes::Kubernetes,
};

/// Connections that are looked up at once: each takes a few milliseconds of `/proc`.
const LOOKUPS: usize = 2;
/// How long what is known of a connection holds.
const KNOWN_FOR: Duration = Duration::from_mins(5);
/// The same where nothing is known, or its pod is not yet.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);

/// Looks up who sends.
#[derive(Clone)]
pub struct Senders(Option<Arc<Lookup>>);

struct Lookup {
    tree: ProcTree,
    selection: Selection,
    kubernetes: Option<Kubernetes>,
    turns: Semaphore,
}

impl fmt::Debug for Senders {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Senders").field(&self.0.is_some()).finish()
    }
}

/// What was found out of a sender.
#[derive(Clone, Debug, Default)]
pub(super) struct Sender {
    /// Attributes of its resource, none if it is not known or not to be described.
    pub(super) attributes: Arc<[KeyValue]>,
    /// The process, if it is known and to be described.
    pub(super) tgid: Option<u32>,
}

/// A connection, and what is known of its other end.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    known: Arc<Mutex<Option<(Sender, Instant)>>>,
}

impl Connection {
    pub(super) fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, known: Arc::default() }
    }
}

impl Senders {
    /// Looks processes up in `tree`, and names them as `selection` and Kubernetes do.
    pub fn new(tree: ProcTree, selection: Selection, kubernetes: Option<Kubernetes>) -> Self {
        Self(Some(Arc::new(Lookup { tree, selection, kubernetes, turns: Semaphore::new(LOOKUPS) })))
    }

    /// Looks nobody up.
    pub const fn none() -> Self {
        Self(None)
    }

    /// What is known of who has opened `connection`.
    pub(super) async fn find(&self, connection: &Connection) -> Sender {
        let Some(lookup) = &self.0 else { return Sender::default() };
        let known = || connection.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_fresh = |known: &(Sender, Instant)| Instant::now() < known.1;
        if let Some((sender, _)) = known().filter(is_fresh) {
            return sender;
        }
        // Closed by nobody.
        let Ok(_turn) = lookup.turns.acquire().await else { return Sender::default() };
        // Another request on the connection may have asked meanwhile.
        if let Some((sender, _)) = known().filter(is_fresh) {
            return sender;
        }
        let (of, local, remote) = (Arc::clone(lookup), connection.local, connection.remote);
        let found = tokio::task::spawn_blocking(move || of.look_up(local, remote)).await.unwrap_or_default();
        let holds = if found.is_complete { KNOWN_FOR } else { UNKNOWN_FOR };
        *connection.known.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((found.sender.clone(), Instant::now() + holds));
        found.sender
    }

    /// Names processes, one after the other.
    pub(super) fn names(&self) -> impl FnMut(u32) -> String + use<> {
        let (lookup, mut processes) = (self.0.clone(), None);
        move |tgid| {
            let Some(lookup) = &lookup else { return String::new() };
            let processes = processes.get_or_insert_with(|| lookup.processes());
            processes.get(tgid, 0).service_name.clone()
        }
    }
}

#[derive(Default)]
struct Found {
    sender: Sender,
    is_complete: bool,
}

impl Lookup {
    fn look_up(&self, local: SocketAddr, remote: SocketAddr) -> Found {
        let Some(tgid) = self.tree.owner_of(remote, local) else {
            return self.by_address(remote);
        };
        let mut processes = self.processes();
        // Programs that carry the telemetry of others are not observed, and what they carry is not theirs.
        if !processes.is_selected(tgid, 0) {
            return Found { is_complete: true, ..Found::default() };
        }
        let attributes = processes.get(tgid, 0).resource.attributes.clone();
        let has = |key: &str| attributes.iter().any(|attribute| attribute.key == key);
        let is_complete = self.kubernetes.is_none() || !has("container.id") || has("k8s.container.name");
        Found { sender: Sender { attributes: attributes.into(), tgid: Some(tgid) }, is_complete }
    }

    /// A pod whose process is not to be found: who it is, at least.
    fn by_address(&self, remote: SocketAddr) -> Found {
        let found = self.kubernetes.as_ref().and_then(|kubernetes| kubernetes.pod_at(remote.ip()));
        let attributes = found.map(|found| found.resource()).unwrap_or_default().into();
        Found { sender: Sender { attributes, tgid: None }, is_complete: false }
    }

    fn processes(&self) -> Processes {
        Processes::new(self.tree.clone(), self.selection.clone()).in_pods(self.kubernetes.clone())
    }
}
