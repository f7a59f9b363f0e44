//! What is known of the processes of the node.
//!
//! Records name processes by number. The first record of an unknown one makes the agent look into `/proc`; what it
//! finds is kept until the process runs another program or ends.

mod attributes;
mod container;
mod docker;
pub(crate) mod elf;
mod language;
mod name;
mod pattern;
mod proc_tree;
mod resource;
mod selection;
mod sockets;
mod unit;
mod usage;

use std::{collections::hash_map, sync::Arc, time::Duration};

use coati_common::wellknown::resource::CONTAINER_NAME;
use foldhash::{HashMap, HashMapExt as _};
use opentelemetry_proto::tonic::{common::v1::any_value::Value, resource::v1::Resource};

pub use pattern::Pattern;
pub use proc_tree::ProcTree;
pub use resource::Host;
pub use selection::{Exports, Pids, PodFacts, Ports, Rule, Selection, Subject, Treatment};
pub use usage::Usage;

use crate::{kubernetes::Kubernetes, span::Sampler};
use proc_tree::Facts;

/// A process whose connections are observed.
#[derive(Clone, Debug)]
pub struct Process {
    /// Process id as the agent sees it.
    pub tgid: u32,
    /// `service.name`.
    pub service_name: String,
    /// Everything that its spans are sent under, `service.name` included.
    pub resource: Resource,
    /// How its spans are sampled, if not as all others.
    pub sampler: Option<Sampler>,
    /// What is made of its requests.
    pub exports: Exports,
}

impl Process {
    /// A text of its resource, empty if there is none.
    pub fn attribute(&self, key: &str) -> &str {
        let found = self.resource.attributes.iter().find(|attribute| attribute.key == key);
        match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
            Some(Value::StringValue(text)) => text,
            _ => "",
        }
    }
}

/// Processes that are kept at once; one more pushes out one that has ended, or any.
const MAX_PROCESSES: usize = 8192;

/// How long a process is kept after its end: its last spans are finished later than it is.
const KEEP_ENDED: Duration = Duration::from_secs(10);

/// How often it is looked whether processes are still there; their exit records may be among the lost ones.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// How long a process that no rule selects because of what may change is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// How often a process whose pod was not known is looked up again, if anything has become known meanwhile.
const POD_AGAIN: Duration = Duration::from_secs(1);

/// The processes of the node, by their id.
///
/// Times are nanoseconds of `CLOCK_MONOTONIC`, as in the records.
#[derive(Debug)]
pub struct Processes {
    lookup: Lookup,
    entries: HashMap<u32, Entry>,
    looked_ns: u64,
}

/// What is kept of a process.
#[derive(Debug, Default)]
struct Entry {
    /// Path in its exec record, a name for a process that is gone before it could be looked at.
    executed: Option<Box<str>>,
    /// Set when it was asked for.
    known: Option<Known>,
    ended_ns: Option<u64>,
}

#[derive(Debug)]
struct Known {
    process: Arc<Process>,
    subject: Subject,
    /// Set while Kubernetes may have more to say of it.
    incomplete: Option<Box<Incomplete>>,
    selected: bool,
    selected_ns: u64,
}

/// A process in a container whose pod is not known, or not yet which of the pod's containers it is.
#[derive(Debug)]
struct Incomplete {
    facts: Facts,
    /// What Kubernetes had said when it was asked last, and when that was.
    generation: u64,
    asked_ns: u64,
}

/// How a process is looked at.
#[derive(Debug)]
struct Lookup {
    tree: ProcTree,
    host: Host,
    selection: Selection,
    kubernetes: Option<Kubernetes>,
}

impl Processes {
    /// No process is known yet; `tree` is asked for each as it turns up.
    pub fn new(tree: ProcTree, selection: Selection) -> Self {
        let host = Host::of(&tree);
        let lookup = Lookup { tree, host, selection, kubernetes: None };
        Self { lookup, entries: HashMap::new(), looked_ns: 0 }
    }

    /// Names processes after their pods.
    #[must_use]
    pub fn in_pods(mut self, kubernetes: Option<Kubernetes>) -> Self {
        self.lookup.kubernetes = kubernetes;
        self
    }

    /// The process with this id. Always gives one: of a process that has ended already, what its exec record told.
    pub fn get(&mut self, tgid: u32, now_ns: u64) -> Arc<Process> {
        Arc::clone(&self.known(tgid, now_ns).process)
    }

    /// Whether the rules say that spans are made of this process.
    pub fn is_selected(&mut self, tgid: u32, now_ns: u64) -> bool {
        if self.known(tgid, now_ns).selected {
            return true;
        }
        // Seldom, and so not asked of all others: the rules are gone through.
        let asks_again = self.may_be_selected_later();
        let known = self.known(tgid, now_ns);
        let age = Duration::from_nanos(now_ns.saturating_sub(known.selected_ns));
        if !asks_again || age < ASK_AGAIN {
            return false;
        }
        known.selected_ns = now_ns;
        let subject = known.subject.clone();
        if self.lookup.treatment(&subject).is_none() {
            return false;
        }
        // The rule may give it another name.
        if let Some(entry) = self.entries.get_mut(&tgid) {
            entry.known = None;
        }
        self.known(tgid, now_ns).selected
    }

    /// Whether the rules say that metrics are made of this process, and no spans.
    pub fn has_metrics_only(&mut self, tgid: u32, now_ns: u64) -> bool {
        self.lookup.selection.has_metrics_only() && !self.known(tgid, now_ns).process.exports.traces
    }

    /// Other rules. Every process is looked at anew when it is next asked for; of those that have ended what is known
    /// stays, as there is nothing to look at any more.
    pub fn set_selection(&mut self, selection: Selection) {
        self.lookup.selection = selection;
        for entry in self.entries.values_mut().filter(|entry| entry.ended_ns.is_none()) {
            entry.known = None;
        }
    }

    /// Whether there is a process with this id now.
    pub fn is_running(&self, tgid: u32) -> bool {
        self.lookup.tree.has(tgid)
    }

    /// The processes that started it, the parent first, without the first process of the node.
    pub fn ancestors(&self, tgid: u32) -> Vec<u32> {
        self.lookup.tree.ancestors(tgid)
    }

    /// Whether a process that is not selected may become so without running another program.
    pub fn may_be_selected_later(&self) -> bool {
        self.lookup.selection.may_change()
    }

    /// The process has begun to run another program, by this path.
    pub fn executed(&mut self, tgid: u32, path: &str) {
        self.make_room(tgid);
        self.entries.insert(tgid, Entry { executed: Some(path.into()), ..Entry::default() });
    }

    /// The process has ended. One that nobody asked for is forgotten at once.
    pub fn ended(&mut self, tgid: u32, now_ns: u64) {
        if let hash_map::Entry::Occupied(mut entry) = self.entries.entry(tgid) {
            if entry.get().known.is_some() {
                entry.get_mut().ended_ns = Some(now_ns);
            } else {
                entry.remove();
            }
        }
    }

    /// Forgets the processes that have ended a while ago. To be called every second or so.
    pub fn forget_ended(&mut self, now_ns: u64) {
        if Duration::from_nanos(now_ns.saturating_sub(self.looked_ns)) >= LOOK_AGAIN {
            self.looked_ns = now_ns;
            for (tgid, entry) in &mut self.entries {
                if entry.ended_ns.is_none() && !self.lookup.tree.has(*tgid) {
                    entry.ended_ns = Some(now_ns);
                }
            }
        }
        self.entries.retain(|_, entry| {
            entry.ended_ns.is_none_or(|ended_ns| Duration::from_nanos(now_ns.saturating_sub(ended_ns)) < KEEP_ENDED)
        });
    }

    /// How many processes are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if no process is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn known(&mut self, tgid: u32, now_ns: u64) -> &mut Known {
        self.make_room(tgid);
        let Entry { executed, known, ended_ns: _ } = self.entries.entry(tgid).or_default();
        let known = known.get_or_insert_with(|| self.lookup.process(tgid, executed.as_deref(), now_ns));
        self.lookup.complete(tgid, known, now_ns);
        known
    }

    fn make_room(&mut self, tgid: u32) {
        if self.entries.len() < MAX_PROCESSES || self.entries.contains_key(&tgid) {
            return;
        }
        let ended = self.entries.iter().find(|(_, entry)| entry.ended_ns.is_some()).map(|(tgid, _)| *tgid);
        // Any: a live process that is needed again is read again.
        if let Some(victim) = ended.or_else(|| self.entries.keys().next().copied()) {
            self.entries.remove(&victim);
        }
    }
}

impl Lookup {
    fn process(&self, tgid: u32, executed: Option<&str>, now_ns: u64) -> Known {
        let facts = self.tree.read(tgid);
        let subject = match &facts {
            Some(facts) => facts.subject(tgid, executed),
            None => Subject { tgid, executable_path: executed.unwrap_or_default().into(), ..Subject::default() },
        };
        let treatment = self.treatment(&subject);
        let selected = treatment.is_some();
        let treatment = treatment.unwrap_or_default();
        let (process, incomplete) = match facts {
            Some(facts) => self.describe(tgid, facts, &treatment, now_ns),
            None => (resource::describe_gone(&self.host, tgid, executed, &treatment), None),
        };
        Known { process: Arc::new(process), subject, incomplete, selected, selected_ns: now_ns }
    }

    fn describe(
        &self,
        tgid: u32,
        facts: Facts,
        treatment: &Treatment,
        now_ns: u64,
    ) -> (Process, Option<Box<Incomplete>>) {
        let container = facts.group.container_id.as_deref();
        let asked = self.kubernetes.as_ref().filter(|_| container.is_some()).map(|kubernetes| {
            // Before it is asked: what becomes known meanwhile is asked for again.
            let generation = kubernetes.generation();
            (generation, kubernetes.find(container, facts.group.pod_uid.as_deref()))
        });
        let Some((generation, found)) = asked else {
            return (resource::describe(&self.host, tgid, &facts, None, treatment), None);
        };
        let process = resource::describe(&self.host, tgid, &facts, found.as_ref(), treatment);
        let is_complete = found.is_some_and(|found| found.is_complete());
        let incomplete = Incomplete { facts, generation, asked_ns: now_ns };
        (process, (!is_complete).then(|| Box::new(incomplete)))
    }

    /// Asks Kubernetes again if it did not know all; a pod that was started a moment ago is known a moment later.
    fn complete(&self, tgid: u32, known: &mut Known, now_ns: u64) {
        let (Some(kubernetes), Some(incomplete)) = (&self.kubernetes, &known.incomplete) else { return };
        let age = Duration::from_nanos(now_ns.saturating_sub(incomplete.asked_ns));
        if age < POD_AGAIN || kubernetes.generation() == incomplete.generation {
            return;
        }
        let Some(incomplete) = known.incomplete.take() else { return };
        // Rules may ask for what has become known.
        let treatment = self.treatment(&known.subject);
        known.selected = treatment.is_some();
        let treatment = treatment.unwrap_or_default();
        let (process, incomplete) = self.describe(tgid, incomplete.facts, &treatment, now_ns);
        known.incomplete = incomplete;
        // Spans are grouped by this: it is another one only if something has changed.
        let treatment = |process: &Process| (process.sampler, process.exports);
        if process.resource != known.process.resource || treatment(&process) != treatment(&known.process) {
            known.process = Arc::new(process);
        }
    }

    /// What the rules say of a process; `None` if it is not observed.
    fn treatment(&self, subject: &Subject) -> Option<Treatment> {
        self.selection.treatment(subject, || self.tree.listening_ports(subject.tgid), || self.pod(subject))
    }

    /// What Kubernetes says of it so far, or Docker.
    fn pod(&self, subject: &Subject) -> PodFacts {
        let Subject { container_id, container_name, pod_uid, .. } = subject;
        let kubernetes = self.kubernetes.as_ref().filter(|_| container_id.is_some());
        let found = kubernetes.and_then(|it| it.find(container_id.as_deref(), pod_uid.as_deref()));
        let mut facts = found.map(|found| found.facts()).unwrap_or_default();
        facts.attributes.extend(container_name.iter().map(|name| (CONTAINER_NAME.to_owned(), name.to_string())));
        facts
    }
}

#[cfg(test)]
mod tests;
