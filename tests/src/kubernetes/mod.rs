//! A Kubernetes API server as far as lists and watches go: what a reflector meets, good and bad.
//!
//! It keeps objects, a version that grows with each change, and what has changed. Lists come in pages with a `continue`
//! token, or whole when version 0 is asked for, as a real server answers them from its memory; watches are lines of JSON,
//! with bookmarks. A [`Fault`] spoils the next answers to a kind of request.

mod connection;
mod group;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

pub use group::Group;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Verb {
    /// One object.
    Get,
    /// All of them, or a page.
    List,
    /// What changes.
    Watch,
}

/// What goes wrong with an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It is this status.
    Status(u16),
    /// The connection ends after so many bytes of it.
    Cut(usize),
    /// It begins so much later.
    Slow(Duration),
    /// A watch is told by an event that its version is too old.
    GoneEvent,
    /// A watch ends well, at once.
    End,
    /// It is not JSON.
    Garbage,
}

/// A running server; it ends with the process, its connections when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By resource (`pods`), namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    events: Vec<Change>,
    /// What has changed up to this version is forgotten.
    forgotten: u64,
    faults: BTreeMap<(String, Verb), VecDeque<Fault>>,
    /// Resources that may not be read.
    forbidden: Vec<String>,
    /// What must stand in `Authorization`.
    token: Option<String>,
    /// Time between two bookmarks of a watch.
    bookmarks: Option<Duration>,
    /// Target of every request, in order.
    requests: Vec<String>,
    /// Watches of this number or a lower one end at once.
    cut: u64,
    watches: u64,
    is_dropped: bool,
}

#[derive(Clone, Debug)]
struct Change {
    version: u64,
    resource: String,
    kind: &'static str,
    object: Value,
}

impl ApiServer {
    /// Starts one that knows nothing.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        // Versions of a real server are large, and never 0, which means something else.
        shared.state().version = 1000;
        let accepting = Arc::clone(&shared);
        thread::Builder::new().name("api-server".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.state().is_dropped {
                    break;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || connection::serve(&stream, &shared));
            }
        })?;
        Ok(Self { address, shared })
    }

    /// Sets an object of a resource (`pods`, `services`): a new one, or another state of one that is there.
    pub fn set(&self, resource: &str, mut object: Value) {
        let mut state = self.shared.state();
        state.version += 1;
        let version = state.version;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
        }
        let key = key(resource, &object);
        let before = state.objects.insert(key, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        state.events.push(Change { version, resource: resource.to_owned(), kind, object });
        self.shared.changed.notify_all();
    }

    /// Deletes one.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> Result<()> {
        let mut state = self.shared.state();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(object) = state.objects.remove(&key) else { bail!("there is no {key:?}") };
        state.version += 1;
        let version = state.version;
        state.events.push(Change { version, resource: resource.to_owned(), kind: "DELETED", object });
        self.shared.changed.notify_all();
        Ok(())
    }

    /// The next answer to such a request that has no fault yet gets this one.
    pub fn spoil(&self, resource: &str, verb: Verb, fault: Fault) {
        self.shared.state().faults.entry((resource.to_owned(), verb)).or_default().push_back(fault);
    }

    /// Whether the resource may be read.
    pub fn allow(&self, resource: &str, allowed: bool) {
        let mut state = self.shared.state();
        state.forbidden.retain(|forbidden| forbidden != resource);
        if !allowed {
            state.forbidden.push(resource.to_owned());
        }
    }

    /// Refuses every request without this bearer token.
    pub fn require(&self, token: &str) {
        self.shared.state().token = Some(token.to_owned());
    }

    /// Forgets what has changed so far: a watch from before must be told so.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.forgotten = state.version;
        state.events.clear();
    }

    /// Sends bookmarks on every watch so often.
    pub fn send_bookmarks(&self, every: Duration) {
        self.shared.state().bookmarks = Some(every);
        self.shared.changed.notify_all();
    }

    /// Breaks the connections of all watches in the middle of an answer.
    pub fn cut(&self) {
        let mut state = self.shared.state();
        state.cut = state.watches;
        self.shared.changed.notify_all();
    }

    /// The version now.
    pub fn version(&self) -> u64 {
        self.shared.state().version
    }

    /// Targets of all requests so far, in order.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// Writes a file for `KUBECONFIG` into `folder`, for the server at `url`; `authority` is the certificate that signs its.
    pub fn kubeconfig(folder: &Path, url: &str, token: &str, authority: Option<&Path>) -> Result<PathBuf> {
        let authority =
            authority.map_or_else(String::new, |path| format!("    certificate-authority: {}\n", path.display()));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster:\n    server: {url}\n{authority}\
             users:\n- name: agent\n  user:\n    token: {token}\n\
             contexts:\n- name: test\n  context:\n    cluster: test\n    user: agent\n    namespace: coati\n"
        );
        let path = folder.join("kubeconfig");
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.state().is_dropped = true;
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = std::net::TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pod as a server would send it, ready to be changed: it runs on `node`, with one container of the id.
pub fn pod(namespace: &str, name: &str, node: &str, container: &str, address: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": namespace, "uid": uid(namespace, name),
            "creationTimestamp": "2026-11-28T08:59:55Z",
            "labels": {}, "annotations": {},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "registry.example/app:1", "resources": {}}],
            "volumes": [{"name": "token", "projected": {"sources": []}}],
        },
        "status": {
            "phase": "Running", "startTime": "2026-11-28T08:59:56Z", "hostIP": "192.0.2.1",
            "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "main", "ready": true, "restartCount": 0, "image": "registry.example/app:1", "imageID": "",
                "state": {"running": {"startedAt": "2026-11-28T08:59:57Z"}}, "lastState": {},
                "containerID": format!("containerd://{container}"),
            }],
        },
    })
}

/// A service with a cluster address.
pub fn service(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": uid(namespace, name)},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A uid that is made of the name, so that tests can tell it beforehand.
pub fn uid(namespace: &str, name: &str) -> String {
    let number = format!("{namespace}/{name}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let high = number >> 32;
    format!("{high:08x}-{:04x}-4000-8000-{number:012x}", number & 0xffff).chars().take(36).collect()
}

fn key(resource: &str, object: &Value) -> (String, String, String) {
    let text = |field: &str| {
        object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    (resource.to_owned(), text("namespace"), text("name"))
}
