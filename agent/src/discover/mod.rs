//! What is known of the processes of the node.
//!
//! Records name processes by number. The first record of an unknown one makes the agent look into `/proc`; what it
//! finds is kept until the process runs another program or ends.

mod attributes;
mod container;
pub(crate) mod elf;
mod language;
mod name;
mod pattern;
mod proc_tree;
mod resource;
mod selection;

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use opentelemetry_proto::tonic::resource::v1::Resource;

pub use pattern::Pattern;
pub use proc_tree::ProcTree;
pub use resource::Host;
pub use selection::{Pids, PodFacts, Ports, Rule, Selection, Subject, Treatment};

use crate::span::Sampler;

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
}

/// Processes that are kept at once; one more pushes out one that has ended, or any.
const MAX_PROCESSES: usize = 8192;

/// How long a process is kept after its end: its last spans are finished later than it is.
const KEEP_ENDED: Duration = Duration::from_secs(10);

/// How often it is looked whether processes are still there; their exit records may be among the lost ones.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// How long a process that no rule selects because of what may change is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

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
    selected: bool,
    selected_ns: u64,
}

/// How a process is looked at.
#[derive(Debug)]
struct Lookup {
    tree: ProcTree,
    host: Host,
    selection: Selection,
}

impl Processes {
    /// No process is known yet; `tree` is asked for each as it turns up.
    pub fn new(tree: ProcTree, selection: Selection) -> Self {
        let host = Host::of(&tree);
        Self { lookup: Lookup { tree, host, selection }, entries: HashMap::new(), looked_ns: 0 }
    }

    /// The process with this id. Always gives one: of a process that has ended already, what its exec record told.
    pub fn get(&mut self, tgid: u32, now_ns: u64) -> Arc<Process> {
        Arc::clone(&self.known(tgid, now_ns).process)
    }

    /// Whether the rules say that spans are made of this process.
    pub fn is_selected(&mut self, tgid: u32, now_ns: u64) -> bool {
        let asks_again = self.may_be_selected_later();
        let known = self.known(tgid, now_ns);
        let age = Duration::from_nanos(now_ns.saturating_sub(known.selected_ns));
        if known.selected || !asks_again || age < ASK_AGAIN {
            return known.selected;
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
        known.get_or_insert_with(|| self.lookup.process(tgid, executed.as_deref(), now_ns))
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
        let process = match &facts {
            Some(facts) => resource::describe(&self.host, tgid, facts, &treatment),
            None => resource::describe_gone(&self.host, tgid, executed, &treatment),
        };
        Known { process: Arc::new(process), selected, selected_ns: now_ns, subject }
    }

    /// What the rules say of a process; `None` if it is not observed.
    fn treatment(&self, subject: &Subject) -> Option<Treatment> {
        self.selection.treatment(subject, || self.tree.listening_ports(subject.tgid), PodFacts::default)
    }
}

#[cfg(test)]
mod tests;
