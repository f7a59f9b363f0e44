//! Libraries of the node's processes that are probed, those of TLS and CUDA's driver: which files they are in, and the
//! probes in these files. Programs written in Go have a TLS library of their own in them; of these, of those with event
//! loops, and of Python, it is also looked for what tells which request they ask others for.
//!
//! A process is looked at a few times after it has begun to run its program, because it loads its libraries then, and
//! when the kernel says that it speaks TLS, or the driver that it uses a GPU, and no probe was there. The probes are those of a file: whichever process maps
//! it, they are attached once, and taken out some time after the last one is gone.

mod go;
mod habits;
mod library;
mod maps;
mod nginx;
mod node;
mod python;
mod uvloop;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

pub(crate) use go::fuzz as fuzz_go_code;
use habits::Habits;
use library::{Kind, Library, Probes, Runtime};
pub use library::{Unusable, Wanted};
use maps::{FileId, Mapped};
pub(crate) use nginx::fuzz as fuzz_nginx_code;
pub(crate) use node::fuzz as fuzz_node_code;

use crate::{
    capture::Source,
    discover::ProcTree,
    ebpf::{Attachment, Detaching},
};

/// When a process is looked at, counted from when it began to run its program.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// How long probes stay in a file that no process uses: the next one may be a short one.
const LINGER: Duration = Duration::from_mins(5);
/// How often it is looked whether processes are still there; their exit records may be among the lost ones.
const CHECK: Duration = Duration::from_mins(1);
/// Files without a library, and builds, that are remembered.
const REMEMBERED: usize = 4096;

/// What was counted of each kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LibraryCounters {
    /// TLS libraries, programs, and Python's library.
    pub tls: FileCounters,
    /// CUDA's driver library.
    pub cuda: FileCounters,
}

impl LibraryCounters {
    const fn of(&mut self, kind: Kind) -> &mut FileCounters {
        match kind {
            Kind::OpenSsl | Kind::GnuTls | Kind::Node | Kind::Executable | Kind::Python | Kind::Uvloop => &mut self.tls,
            Kind::Cuda => &mut self.cuda,
        }
    }
}

/// What was counted of files.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FileCounters {
    /// Files that have probes now.
    pub files: usize,
    /// Files that got none: they cannot be read.
    pub unreadable: u64,
    /// They are called like the library and have none of its functions.
    pub no_functions: u64,
    /// The kernel refuses.
    pub refused: u64,
}

/// The libraries of the node's processes that are probed.
#[derive(Debug)]
pub struct Libraries {
    tree: ProcTree,
    wanted: Wanted,
    /// Processes that are to be looked at, by when.
    due: BTreeSet<(u64, u32)>,
    processes: HashMap<u32, Process>,
    files: HashMap<FileId, Probed>,
    /// Files that are not to be read again, for who does no more than was known then.
    others: HashMap<FileId, (Habits, Option<Runtime>)>,
    /// Processes that were told of as asking others.
    askers: HashSet<u32>,
    /// Processes that were told of as doing so while they answer several.
    crowded: HashSet<u32>,
    /// Where the functions lie, by the name that the linker gave the build (containers have copies of the same file), what its
    /// processes do, and whether the file had no probes yet.
    builds: HashMap<(Vec<u8>, Habits, bool), Arc<Probes>>,
    /// Processes with a TLS library that have ended and whose sessions the kernel may still know.
    gone: HashSet<u32>,
    /// Processes that were found to have CUDA's driver library.
    cuda_users: Vec<u32>,
    counters: LibraryCounters,
    checked_ns: u64,
}

/// A process that is looked at, or has a library.
#[derive(Debug, Default)]
struct Process {
    /// Looks so far.
    looks: usize,
    since_ns: u64,
    habits: Habits,
    files: Vec<FileId>,
}

/// A file that has probes, or was refused them.
#[derive(Debug)]
struct Probed {
    kind: Kind,
    attachment: Option<Attachment>,
    /// What the kernel programs are told of its processes.
    runtime: Option<Runtime>,
    /// What it has probes for.
    habits: Habits,
    /// Its probes are being taken out.
    leaving: Option<Detaching>,
    users: HashSet<u32>,
    unused_ns: Option<u64>,
}

impl Probed {
    /// No process has used it for a while.
    fn is_unused(&self, now_ns: u64) -> bool {
        let has_lingered = |since_ns| Duration::from_nanos(now_ns.saturating_sub(since_ns)) >= LINGER;
        self.leaving.is_some() || self.unused_ns.is_some_and(has_lingered)
    }
}

impl Libraries {
    /// None is known yet.
    pub fn new(tree: ProcTree, wanted: Wanted) -> Self {
        Self {
            tree,
            wanted,
            due: BTreeSet::new(),
            processes: HashMap::new(),
            files: HashMap::new(),
            others: HashMap::new(),
            askers: HashSet::new(),
            crowded: HashSet::new(),
            builds: HashMap::new(),
            gone: HashSet::new(),
            cuda_users: Vec::new(),
            counters: LibraryCounters::default(),
            checked_ns: 0,
        }
    }

    /// Looks at the processes that run already, and of which no file is known. Files that no process has for which
    /// `is_observed` says yes get no probes: whoever calls their functions would pay for nothing.
    pub fn look_at_all(&mut self, now_ns: u64, source: &mut dyn Source, is_observed: &mut dyn FnMut(u32) -> bool) {
        for tgid in self.tree.all() {
            if self.processes.get(&tgid).is_some_and(|process| !process.files.is_empty()) {
                continue;
            }
            self.processes.insert(tgid, Process { looks: LOOKS.len(), since_ns: now_ns, ..Process::default() });
            self.look(tgid, now_ns, source, is_observed);
        }
    }

    /// The process has begun to run another program.
    pub fn started(&mut self, tgid: u32, now_ns: u64) {
        self.release(tgid, now_ns);
        self.processes.insert(tgid, Process { since_ns: now_ns, ..Process::default() });
        self.plan(tgid);
    }

    /// The driver says that the process uses a GPU. If its library is not known, it has loaded it late.
    pub fn uses_gpu(&mut self, tgid: u32, now_ns: u64) {
        let known = |id: &FileId| self.files.get(id).is_some_and(|file| file.kind == Kind::Cuda);
        let process = self.processes.get(&tgid);
        if self.wanted.cuda && !process.is_some_and(|process| process.files.iter().any(known)) {
            let process = self.processes.entry(tgid).or_default();
            (process.looks, process.since_ns) = (0, now_ns);
            self.due.insert((now_ns, tgid));
        }
    }

    /// The process speaks TLS, and no probe has seen it.
    pub fn speaks(&mut self, tgid: u32, now_ns: u64) {
        let process = self.processes.entry(tgid).or_default();
        process.habits.speaks_tls = true;
        // Now, and again as if it had just begun: it may be about to load its library.
        (process.looks, process.since_ns) = (0, now_ns);
        self.due.insert((now_ns, tgid));
    }

    /// The process sends a request. To be called for each.
    pub fn asks(&mut self, tgid: u32, now_ns: u64) {
        if self.wanted.asking() && self.askers.insert(tgid) {
            self.does(tgid, now_ns, Habits { asks: true, ..Habits::default() });
        }
    }

    /// The process sends a request while it answers several. To be called for each.
    pub fn is_crowded(&mut self, tgid: u32, now_ns: u64) {
        if self.wanted.python && self.crowded.insert(tgid) {
            self.does(tgid, now_ns, Habits { is_crowded: true, ..Habits::default() });
        }
    }

    fn does(&mut self, tgid: u32, now_ns: u64, habits: Habits) {
        let process = self.processes.entry(tgid).or_insert_with(|| Process {
            // It has begun long ago: one look will do.
            looks: LOOKS.len(),
            since_ns: now_ns,
            ..Process::default()
        });
        process.habits = process.habits.with(habits);
        self.due.insert((now_ns, tgid));
    }

    /// The process has ended.
    pub fn ended(&mut self, tgid: u32, now_ns: u64) {
        self.release(tgid, now_ns);
    }

    /// Looks at the processes whose time has come, as [`Self::look_at_all`] does. `source` is where probes are attached. To be
    /// called often.
    pub fn tick(&mut self, now_ns: u64, source: &mut dyn Source, is_observed: &mut dyn FnMut(u32) -> bool) {
        while let Some((due_ns, tgid)) = self.due.pop_first() {
            if due_ns > now_ns {
                self.due.insert((due_ns, tgid));
                break;
            }
            self.look(tgid, now_ns, source, is_observed);
        }
    }

    /// Takes probes out of files that are no longer used. To be called every second or so.
    pub fn forget_unused(&mut self, now_ns: u64) {
        if Duration::from_nanos(now_ns.saturating_sub(self.checked_ns)) >= CHECK {
            self.checked_ns = now_ns;
            let gone: Vec<_> = self.processes.keys().copied().filter(|tgid| !self.tree.has(*tgid)).collect();
            for tgid in gone {
                self.release(tgid, now_ns);
            }
            self.askers.retain(|tgid| self.tree.has(*tgid));
            self.crowded.retain(|tgid| self.tree.has(*tgid));
        }
        for file in self.files.values_mut().filter(|file| file.leaving.is_none() && file.is_unused(now_ns)) {
            file.leaving = file.attachment.take().map(Attachment::detach);
        }
        self.files.retain(|_, file| !file.is_unused(now_ns) || file.leaving.as_ref().is_some_and(|it| !it.is_over()));
    }

    /// Leaves all probes to the end of the process, which takes them out one by one. A thread that takes one out and is killed
    /// meanwhile leaves it in the kernel (`uprobe_unregister_nosync`, kernel/events/uprobes.c).
    pub fn leave(mut self) {
        for file in self.files.drain().map(|(_, file)| file) {
            file.attachment.into_iter().for_each(Attachment::leave);
        }
    }

    /// The processes with a TLS library that have ended since this was last asked.
    pub fn take_gone(&mut self) -> HashSet<u32> {
        std::mem::take(&mut self.gone)
    }

    /// The processes that were found to have CUDA's driver library since this was last asked.
    pub fn take_cuda_users(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.cuda_users)
    }

    /// What was counted so far.
    pub fn counters(&self) -> LibraryCounters {
        let mut counters = self.counters;
        for file in self.files.values().filter(|file| file.attachment.is_some()) {
            counters.of(file.kind).files += 1;
        }
        counters
    }

    /// Sets the time of the next look, if there is to be one.
    fn plan(&mut self, tgid: u32) {
        let Some(process) = self.processes.get(&tgid) else { return };
        match LOOKS.get(process.looks) {
            Some(after) => {
                let due_ns = process.since_ns.saturating_add(after.as_nanos() as u64);
                self.due.insert((due_ns, tgid));
            }
            None if process.files.is_empty() => {
                self.processes.remove(&tgid);
            }
            None => {}
        }
    }

    fn look(&mut self, tgid: u32, now_ns: u64, source: &mut dyn Source, is_observed: &mut dyn FnMut(u32) -> bool) {
        let Some(process) = self.processes.get_mut(&tgid) else { return };
        process.looks += 1;
        let habits = process.habits;
        let Some(maps) = self.tree.maps(tgid) else {
            self.release(tgid, now_ns);
            return;
        };
        let executable = self.tree.executable(tgid);
        let candidates = library::candidates(&maps::files(&maps), executable.as_deref(), habits.asks, self.wanted);
        for (mapped, kind) in candidates {
            // Asked of those alone that may have a library: it is not known of all others yet.
            let is_wanted = is_observed(tgid)
                // It works for the process that started it, as `llama-server` does for `ollama`.
                || kind == Kind::Cuda && self.tree.ancestors(tgid).into_iter().any(&mut *is_observed);
            if is_wanted
                && self.probe(tgid, &mapped, kind, habits, source)
                && let Some(process) = self.processes.get_mut(&tgid)
                && !process.files.contains(&mapped.id)
            {
                process.files.push(mapped.id);
                if kind == Kind::Cuda {
                    self.cuda_users.push(tgid);
                }
            }
        }
        self.plan(tgid);
    }

    /// Whether the file has probes, or would have if the kernel did not refuse them.
    fn probe(&mut self, tgid: u32, mapped: &Mapped, kind: Kind, habits: Habits, source: &mut dyn Source) -> bool {
        if let Some(file) = self.files.get_mut(&mapped.id) {
            if file.leaving.is_some() {
                // There is another look.
                return false;
            }
            file.users.insert(tgid);
            file.unused_ns = None;
            watch(source, tgid, mapped, file.runtime);
            if !kind.depends_on_habits() || file.habits.covers(habits) {
                return true;
            }
        }
        let before = self.files.get(&mapped.id);
        let (is_first, known) = (before.is_none(), before.map(|file| file.habits).unwrap_or_default());
        let habits_now = habits;
        let habits = habits.beyond(known);
        if is_first
            && let Some((known, runtime)) = self.others.get(&mapped.id)
            && (known.covers(habits) || !kind.depends_on_habits())
        {
            watch(source, tgid, mapped, *runtime);
            return false;
        }
        let found = self.open(tgid, mapped).ok_or(Unusable::Unreadable).and_then(|(path, file)| {
            let probes = self.probes(&file, mapped, kind, habits, is_first)?;
            Ok((path, probes))
        });
        let (path, probes) = match found {
            Ok(found) => found,
            Err(why) => {
                if let Some(file) = self.files.get_mut(&mapped.id) {
                    // What it had is all that there is.
                    file.habits = habits_now.with(known);
                    return true;
                }
                match why {
                    // Most executables have no TLS in them.
                    Unusable::NoFunctions if kind == Kind::Executable => {}
                    Unusable::NoFunctions => self.counters.of(kind).no_functions += 1,
                    Unusable::Unreadable if !self.tree.has(tgid) => return false,
                    Unusable::Unreadable => self.counters.of(kind).unreadable += 1,
                }
                self.leave_out(mapped.id, habits, None);
                return false;
            }
        };
        if probes.points.is_empty() {
            watch(source, tgid, mapped, probes.runtime);
            if let Some(file) = self.files.get_mut(&mapped.id) {
                file.habits = habits_now.with(known);
                return true;
            }
            self.leave_out(mapped.id, habits, probes.runtime);
            return false;
        }
        let mut runtime = probes.runtime;
        let attachment = match source.attach_probes(&path, &probes.points) {
            Ok(attachment) => {
                tracing::info!(file = mapped.path, probes = probes.points.len(), "probes are in a library");
                Some(attachment)
            }
            Err(_) if !self.tree.has(tgid) => return false,
            Err(error) => {
                self.counters.of(kind).refused += 1;
                let error: &dyn std::error::Error = &error;
                tracing::warn!(file = mapped.path, error, "a library gets no probes");
                // Contexts whose making is not seen would be taken for others.
                runtime = runtime.filter(|runtime| !matches!(runtime, Runtime::Python(_)));
                None
            }
        };
        watch(source, tgid, mapped, runtime);
        let users = HashSet::from([tgid]);
        let new = Probed { kind, attachment: None, runtime, habits: known, leaving: None, users, unused_ns: None };
        let file = self.files.entry(mapped.id).or_insert(new);
        file.runtime = file.runtime.or(runtime);
        file.habits = habits_now.with(known);
        file.attachment = match (file.attachment.take(), attachment) {
            (Some(before), Some(more)) => Some(before.with(more)),
            (before, more) => before.or(more),
        };
        true
    }

    /// The file is not read again for who does no more.
    fn leave_out(&mut self, id: FileId, habits: Habits, runtime: Option<Runtime>) {
        if self.others.len() >= REMEMBERED {
            self.others.clear();
        }
        self.others.insert(id, (habits, runtime));
    }

    /// The very file that is mapped, whatever is at its path now, and in whichever mount namespace.
    fn open(&self, tgid: u32, mapped: &Mapped) -> Option<(PathBuf, File)> {
        let paths = [self.tree.map_file(tgid, &mapped.range), self.tree.in_root(tgid, &mapped.path)];
        paths.into_iter().find_map(|path| {
            let file = File::open(&path).ok()?;
            Some((path, file))
        })
    }

    /// What goes into the file. What it exports of TLS does only if it `is_first` of its probes.
    fn probes(
        &mut self,
        file: &File,
        mapped: &Mapped,
        kind: Kind,
        habits: Habits,
        is_first: bool,
    ) -> Result<Arc<Probes>, Unusable> {
        let library = Library::of(file, &mapped.path, kind)?;
        // Of most shared libraries it does not matter what their processes do.
        let habits = if kind.depends_on_habits() { habits } else { Habits::default() };
        let build_id = library.build_id().map(|id| (id, habits, is_first));
        if let Some(probes) = build_id.as_ref().and_then(|id| self.builds.get(id)) {
            return Ok(Arc::clone(probes));
        }
        let probes = Arc::new(library.probes(habits, is_first, self.wanted)?);
        if let Some(id) = build_id {
            if self.builds.len() >= REMEMBERED {
                self.builds.clear();
            }
            self.builds.insert(id, Arc::clone(&probes));
        }
        Ok(probes)
    }

    /// The process uses none of its files any more.
    fn release(&mut self, tgid: u32, now_ns: u64) {
        self.askers.remove(&tgid);
        self.crowded.remove(&tgid);
        let Some(process) = self.processes.remove(&tgid) else { return };
        if !process.files.is_empty() {
            self.gone.insert(tgid);
        }
        for id in process.files {
            if let Some(file) = self.files.get_mut(&id) {
                file.users.remove(&tgid);
                if file.users.is_empty() {
                    file.unused_ns = Some(now_ns);
                }
            }
        }
    }
}

/// Tells the kernel programs what runs the process's program.
fn watch(source: &mut dyn Source, tgid: u32, mapped: &Mapped, runtime: Option<Runtime>) {
    match runtime {
        Some(Runtime::Go(layout)) => source.watch_goroutines(tgid, layout),
        Some(Runtime::Nginx { stream }) => source.watch_nginx(tgid, stream),
        Some(Runtime::Node { async_id }) => source.watch_node(tgid, async_id),
        Some(Runtime::Python(python)) => {
            if let Some(interpreter) = python.interpreter(mapped) {
                source.watch_python(tgid, interpreter);
            }
        }
        None => {}
    }
}

#[cfg(test)]
mod tests;
