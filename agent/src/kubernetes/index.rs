//! Pods and services as they are looked up: by container, by control group, by address.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::{
    object,
    pod::{Places, Pod},
};

/// Pods and services that are kept; a node has a few hundred pods at most, a cluster a few thousand services.
const MAX_PODS: usize = 4096;
const MAX_SERVICES: usize = 16_384;
/// Pods that are kept after they were deleted, for the last spans of their processes.
const KEEP_DELETED: usize = 128;
/// Containers of a pod that are kept; those that were replaced by a restart too.
const KEEP_CONTAINERS: usize = 64;

/// What a peer is called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its `service.name`.
    pub name: Arc<str>,
    /// Its `service.namespace`.
    pub namespace: Arc<str>,
}

/// The pods of this node and the services of the cluster.
#[derive(Debug, Default)]
pub(super) struct Index {
    pods: HashMap<Box<str>, Entry>,
    /// Uid of the pod and name of the container, by its id.
    containers: HashMap<Box<str>, (Box<str>, Arc<str>)>,
    /// Uids of static pods, by the hash that their control groups are named after.
    groups: HashMap<Box<str>, Box<str>>,
    services: HashMap<Box<str>, Vec<IpAddr>>,
    /// Whose an address is: the uid of a pod or service, and its name.
    addresses: HashMap<IpAddr, (Box<str>, Peer)>,
    /// Uids of pods that are deleted and kept, the oldest first.
    deleted: VecDeque<Box<str>>,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    /// Ids, the oldest first.
    containers: VecDeque<Box<str>>,
    addresses: Vec<IpAddr>,
    is_deleted: bool,
}

/// An object that is watched. Each function says whether anything has changed.
pub(super) trait Watched {
    /// What there are several of.
    const PLURAL: &'static str;

    /// The object is there, and is so now.
    fn apply(&self, index: &mut Index) -> bool;

    /// The object with this uid is gone.
    fn delete(uid: &str, index: &mut Index) -> bool;

    /// The uids of all objects.
    fn all(index: &Index) -> Vec<Box<str>>;

    /// Those that are in `uids` are all that there are.
    fn keep_only(uids: &HashSet<Box<str>>, index: &mut Index) -> bool {
        let gone = Self::all(index).into_iter().filter(|uid| !uids.contains(uid));
        gone.fold(false, |changed, uid| Self::delete(&uid, index) | changed)
    }
}

impl Index {
    /// The pod and the container of a process, by the id of the container, else by what its control group says of the pod.
    pub(super) fn find(&self, container: Option<&str>, group: Option<&str>) -> Option<(Arc<Pod>, Option<Arc<str>>)> {
        let by_container = || {
            let (uid, name) = self.containers.get(container?)?;
            Some((Arc::clone(&self.pods.get(uid)?.pod), Some(Arc::clone(name))))
        };
        let by_group = || {
            let group = group?;
            let entry = self.pods.get(group).or_else(|| self.pods.get(self.groups.get(group)?))?;
            Some((Arc::clone(&entry.pod), entry.pod.only_container.as_deref().map(Arc::from)))
        };
        by_container().or_else(by_group)
    }

    /// Who has this address.
    pub(super) fn peer(&self, address: IpAddr) -> Option<&Peer> {
        self.addresses.get(&address.to_canonical()).map(|(_, peer)| peer)
    }

    /// The pod that has this address, and its only container.
    pub(super) fn pod_at(&self, address: IpAddr) -> Option<(Arc<Pod>, Option<Arc<str>>)> {
        let (uid, _) = self.addresses.get(&address.to_canonical())?;
        let pod = Arc::clone(&self.pods.get(uid)?.pod);
        let container = pod.only_container.as_deref().map(Arc::from);
        Some((pod, container))
    }

    /// How many pods there are.
    pub(super) fn pods(&self) -> usize {
        self.pods.len() - self.deleted.len()
    }

    /// How many services there are.
    pub(super) fn services(&self) -> usize {
        self.services.len()
    }

    fn apply_pod(&mut self, pod: Pod, places: Places) -> bool {
        let uid = pod.uid.clone();
        let is_new = !self.pods.contains_key(&uid);
        if is_new && self.pods.len() >= MAX_PODS {
            return false;
        }
        let entry = self.pods.entry(uid.clone()).or_insert_with(|| Entry {
            pod: Arc::new(pod.clone()),
            containers: VecDeque::new(),
            addresses: Vec::new(),
            is_deleted: false,
        });
        let mut changed = is_new || entry.is_deleted;
        if entry.is_deleted {
            entry.is_deleted = false;
            self.deleted.retain(|deleted| *deleted != uid);
        }
        if *entry.pod != pod {
            entry.pod = Arc::new(pod);
            changed = true;
        }
        for (id, name) in places.containers {
            let known = self.containers.insert(id.clone(), (uid.clone(), name.into()));
            if known.is_none() {
                entry.containers.push_back(id);
                changed = true;
            }
        }
        while entry.containers.len() > KEEP_CONTAINERS {
            if let Some(id) = entry.containers.pop_front() {
                self.containers.remove(&id);
            }
        }
        if let Some(hash) = &entry.pod.config_hash {
            self.groups.insert(hash.clone(), uid.clone());
        }
        let peer = Peer { name: entry.pod.service_name().into(), namespace: entry.pod.service_namespace().into() };
        let before = std::mem::replace(&mut entry.addresses, places.addresses.clone());
        changed |= before != places.addresses;
        self.set_addresses(&uid, &before, &places.addresses, &peer);
        changed
    }

    fn delete_pod(&mut self, uid: &str) -> bool {
        let Some(entry) = self.pods.get_mut(uid).filter(|entry| !entry.is_deleted) else { return false };
        entry.is_deleted = true;
        // Another pod may have them any time.
        let addresses = std::mem::take(&mut entry.addresses);
        self.free_addresses(uid, &addresses);
        self.deleted.push_back(uid.into());
        if self.deleted.len() > KEEP_DELETED
            && let Some(entry) = self.deleted.pop_front().and_then(|oldest| self.pods.remove(&oldest))
        {
            for id in &entry.containers {
                self.containers.remove(id);
            }
            if let Some(hash) = &entry.pod.config_hash {
                // A static pod that was made anew has the same file and so the same hash.
                if self.groups.get(hash).is_some_and(|uid| *uid == entry.pod.uid) {
                    self.groups.remove(hash);
                }
            }
        }
        true
    }

    fn set_addresses(&mut self, uid: &str, before: &[IpAddr], now: &[IpAddr], peer: &Peer) {
        let gone: Vec<_> = before.iter().filter(|address| !now.contains(address)).copied().collect();
        self.free_addresses(uid, &gone);
        for address in now {
            self.addresses.insert(address.to_canonical(), (uid.into(), peer.clone()));
        }
    }

    /// Unless somebody else has got them meanwhile.
    fn free_addresses(&mut self, uid: &str, addresses: &[IpAddr]) {
        for address in addresses {
            let address = address.to_canonical();
            if self.addresses.get(&address).is_some_and(|(owner, _)| **owner == *uid) {
                self.addresses.remove(&address);
            }
        }
    }
}

impl Watched for object::Pod {
    const PLURAL: &'static str = "pods";

    fn apply(&self, index: &mut Index) -> bool {
        Pod::of(self).is_some_and(|pod| index.apply_pod(pod, Places::of(self)))
    }

    fn delete(uid: &str, index: &mut Index) -> bool {
        index.delete_pod(uid)
    }

    fn all(index: &Index) -> Vec<Box<str>> {
        index.pods.iter().filter(|(_, entry)| !entry.is_deleted).map(|(uid, _)| uid.clone()).collect()
    }
}

impl Watched for object::Service {
    const PLURAL: &'static str = "services";

    fn apply(&self, index: &mut Index) -> bool {
        let metadata = &self.metadata;
        let (Some(uid), Some(name), Some(namespace)) = (&metadata.uid, &metadata.name, &metadata.namespace) else {
            return false;
        };
        // A headless service has the word `None` here.
        let texts = self.spec.cluster_ip.iter().chain(&self.spec.cluster_ips);
        let mut addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Self::delete(uid, index);
        }
        let is_new = !index.services.contains_key(uid.as_str());
        if is_new && index.services.len() >= MAX_SERVICES {
            return false;
        }
        let before = index.services.insert(uid.as_str().into(), addresses.clone()).unwrap_or_default();
        let peer = Peer { name: name.as_str().into(), namespace: namespace.as_str().into() };
        index.set_addresses(uid, &before, &addresses, &peer);
        before != addresses
    }

    fn delete(uid: &str, index: &mut Index) -> bool {
        let Some(addresses) = index.services.remove(uid) else { return false };
        index.free_addresses(uid, &addresses);
        true
    }

    fn all(index: &Index) -> Vec<Box<str>> {
        index.services.keys().cloned().collect()
    }
}
