//! The maps that the programs and the agent share.

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::{Ebpf, Pod};
use coati_common::counter;
use coati_common::cuda::{Mark, Process, UNFINISHED};
use coati_common::event::Connection;
use coati_common::go::{CALL_BYTES, GoroutineId, Layout, SEND_BYTES};
use coati_common::loss::Loss;
use coati_common::process;
use coati_common::python::Interpreter;
use coati_common::tls::{Session, SessionId};

/// A map is missing or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The object has no such map.
    #[error("the kernel programs have no map `{name}`")]
    Missing {
        /// Name of the map.
        name: &'static str,
    },
    /// The kernel refuses an operation on a map.
    #[error("the kernel refuses the map `{name}`")]
    Refused {
        /// Name of the map.
        name: &'static str,
        /// What the kernel says.
        #[source]
        source: MapError,
    },
}

/// [`Connection`] as a value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Value(Connection);

// SAFETY: `Connection` is `repr(C)`, made of integers only, without padding (a test in `coati-common` counts its bytes).
unsafe impl Pod for Value {}

/// [`SessionId`] as a key of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Id(SessionId);

/// [`Session`] as a value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Kept(Session);

/// [`GoroutineId`] as a key of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Goroutine(GoroutineId);

// SAFETY: as above.
unsafe impl Pod for Goroutine {}

/// [`Layout`] as a value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Fields(Layout);

// SAFETY: as above.
unsafe impl Pod for Fields {}

/// [`Interpreter`] as a value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Python(Interpreter);

// SAFETY: as above.
unsafe impl Pod for Python {}

/// [`Process`] as a value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Cuda(Process);

// SAFETY: as above.
unsafe impl Pod for Cuda {}

// SAFETY: as above.
unsafe impl Pod for Id {}

// SAFETY: as above.
unsafe impl Pod for Kept {}

/// How often an entry is read in which a mark is being written, which takes less than a reading.
const CUDA_READS: usize = 4;

/// What the programs and the agent share.
pub struct Maps {
    /// The ring buffer with the records.
    pub records: RingBuf<MapData>,
    following: Array<MapData, u32>,
    connections: HashMap<MapData, u64, Value>,
    sessions: HashMap<MapData, Id, Kept>,
    goroutines: HashMap<MapData, Goroutine, [u8; CALL_BYTES]>,
    go_sends: HashMap<MapData, Goroutine, [u8; SEND_BYTES]>,
    go_processes: HashMap<MapData, u32, Fields>,
    nginx_processes: HashMap<MapData, u32, u32>,
    node_processes: HashMap<MapData, u32, u32>,
    python_processes: HashMap<MapData, u32, Python>,
    cuda: HashMap<MapData, u32, Cuda>,
    processes: HashMap<MapData, u32, u8>,
    skipped: Array<MapData, u32>,
    losses: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        Ok(Self {
            records: take(ebpf, "RECORDS")?,
            following: take(ebpf, "FOLLOWING")?,
            connections: take(ebpf, "CONNECTIONS")?,
            sessions: take(ebpf, "SESSIONS")?,
            goroutines: take(ebpf, "GOROUTINES")?,
            go_sends: take(ebpf, "GO_SENDS")?,
            go_processes: take(ebpf, "GO_PROCESSES")?,
            nginx_processes: take(ebpf, "NGINX_PROCESSES")?,
            node_processes: take(ebpf, "NODE_PROCESSES")?,
            python_processes: take(ebpf, "PYTHON_PROCESSES")?,
            cuda: take(ebpf, "CUDA")?,
            processes: take(ebpf, "PROCESSES")?,
            skipped: take(ebpf, "SKIPPED")?,
            losses: take(ebpf, "LOSSES")?,
            counters: take(ebpf, "COUNTERS")?,
        })
    }

    /// All programs are there: connections begin to be followed.
    pub(super) fn follow(&mut self) -> Result<(), MapsError> {
        self.following.set(0, 1, 0).map_err(|source| MapsError::Refused { name: "FOLLOWING", source })
    }

    /// The connection at the socket address `socket`, if it is still followed.
    pub fn connection(&self, socket: u64) -> Result<Option<Connection>, MapsError> {
        match self.connections.get(&socket, 0) {
            Ok(Value(connection)) => Ok(Some(connection)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MapsError::Refused { name: "CONNECTIONS", source }),
        }
    }

    /// Connections that are followed now.
    pub fn connections(&self) -> usize {
        self.connections.keys().flatten().count()
    }

    /// Forgets the TLS sessions of processes that are gone; what is left of their connections. Those whose socket is known
    /// have ended with it.
    pub fn forget_sessions(&mut self, gone: impl Fn(u32) -> bool) -> Result<Vec<Connection>, MapsError> {
        let left = |Id(id): &Id| gone(id.tgid);
        let ids: Vec<_> = self.sessions.keys().flatten().filter(left).collect();
        let mut connections = Vec::new();
        for id in ids {
            if let Ok(Kept(session)) = self.sessions.get(&id, 0) {
                connections.extend(self.connection(session.key)?);
                let _gone_is_fine = self.connections.remove(&session.key);
            }
            let _gone_is_fine = self.sessions.remove(&id);
        }
        // What was waited for when they were killed.
        let left = |Goroutine(id): &Goroutine| gone(id.tgid);
        for goroutine in self.goroutines.keys().flatten().filter(left).collect::<Vec<_>>() {
            let _gone_is_fine = self.goroutines.remove(&goroutine);
        }
        for goroutine in self.go_sends.keys().flatten().filter(left).collect::<Vec<_>>() {
            let _gone_is_fine = self.go_sends.remove(&goroutine);
        }
        Ok(connections)
    }

    /// The process is written in Go, and this is where its goroutines have their numbers. The programs forget it with the process.
    pub fn watch_goroutines(&mut self, tgid: u32, layout: Layout) {
        // With more processes than there is room for, the calls of some have no parent.
        let _full = self.go_processes.insert(tgid, Fields(layout), 0);
        let _full = self.mark(tgid, process::GO);
    }

    /// The process runs nginx, and this is where a request has its HTTP/2 stream; 0 if that is not known. The programs forget it
    /// with the process.
    pub fn watch_nginx(&mut self, tgid: u32, stream: u32) {
        // As above, of requests that come by HTTP/2.
        let _full = self.nginx_processes.insert(tgid, stream, 0);
    }

    /// The process runs Node.js, and this is where its objects have their async ids; 0 if that is not known. The same.
    pub fn watch_node(&mut self, tgid: u32, async_id: u32) {
        let _full = self.node_processes.insert(tgid, async_id, 0);
    }

    /// The process runs Python, and this is where it keeps what its threads do. The same.
    pub fn watch_python(&mut self, tgid: u32, interpreter: Interpreter) {
        let _full = self.python_processes.insert(tgid, Python(interpreter), 0);
        let _full = self.mark(tgid, process::PYTHON);
    }

    /// What the processes have called of CUDA that have called it.
    pub fn cuda(&self) -> Vec<(u32, Process)> {
        let processes = self.cuda.keys().flatten().filter_map(|tgid| Some((tgid, self.cuda_of(tgid)?)));
        processes.collect()
    }

    fn cuda_of(&self, tgid: u32) -> Option<Process> {
        for _ in 0..CUDA_READS {
            let Cuda(process) = self.cuda.get(&tgid, 0).ok()?;
            if !process.marks.iter().any(|mark| mark.time_ns == UNFINISHED) {
                return Some(process);
            }
        }
        // Its thread was stopped in the middle of a mark: the others are good.
        let Cuda(mut process) = self.cuda.get(&tgid, 0).ok()?;
        process.marks.iter_mut().filter(|mark| mark.time_ns == UNFINISHED).for_each(|mark| *mark = Mark::default());
        Some(process)
    }

    /// Forgets what a process that is gone has called.
    pub fn forget_cuda(&mut self, tgid: u32) {
        let _none_is_usual = self.cuda.remove(&tgid);
    }

    /// Stops watching a process.
    pub fn skip(&mut self, tgid: u32) -> Result<(), MapsError> {
        self.mark(tgid, process::SKIPPED)?;
        self.set_skipped(process::skipped_place(tgid), tgid)
    }

    /// Puts the number of a process that is not watched, or 0, where the programs look first.
    fn set_skipped(&mut self, place: u32, tgid: u32) -> Result<(), MapsError> {
        self.skipped.set(place, tgid, 0).map_err(|source| MapsError::Refused { name: "SKIPPED", source })
    }

    /// Watches a process again; nothing happens if it is watched.
    pub fn unskip(&mut self, tgid: u32) {
        let place = process::skipped_place(tgid);
        if self.skipped.get(&place, 0).is_ok_and(|other| other == tgid) {
            let _cannot_fail = self.set_skipped(place, 0);
        }
        let known = self.known_of(tgid);
        let _none_is_usual = match known & !process::SKIPPED {
            // Nothing to change is usual, too.
            rest if rest == known => Ok(()),
            0 => self.processes.remove(&tgid),
            rest => self.processes.insert(tgid, rest, 0),
        };
    }

    /// What is known of a process, of [`process`].
    fn known_of(&self, tgid: u32) -> u8 {
        self.processes.get(&tgid, 0).unwrap_or_default()
    }

    /// Notes one thing more. The programs write there only when a process begins to run another program, or ends.
    fn mark(&mut self, tgid: u32, mark: u8) -> Result<(), MapsError> {
        let known = self.known_of(tgid) | mark;
        self.processes.insert(tgid, known, 0).map_err(|source| MapsError::Refused { name: "PROCESSES", source })
    }

    /// What was lost, in the order of [`Loss::ALL`].
    pub fn losses(&self) -> Result<[u64; Loss::ALL.len()], MapsError> {
        let mut losses = [0; Loss::ALL.len()];
        for (cause, sum) in Loss::ALL.into_iter().zip(&mut losses) {
            *sum = self::sum(&self.losses, "LOSSES", cause as u32)?;
        }
        Ok(losses)
    }

    /// Records written or lost.
    pub fn records_numbered(&self) -> Result<u64, MapsError> {
        sum(&self.counters, "COUNTERS", counter::RECORDS)
    }

    /// Exchanges begun, told or lost.
    pub fn begun(&self) -> Result<u64, MapsError> {
        sum(&self.counters, "COUNTERS", counter::BEGUN)
    }
}

/// Sum of a cell over all CPUs.
fn sum(map: &PerCpuArray<MapData, u64>, name: &'static str, index: u32) -> Result<u64, MapsError> {
    let values = map.get(&index, 0).map_err(|source| MapsError::Refused { name, source })?;
    Ok(values.iter().sum())
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, MapsError> {
    let map = ebpf.take_map(name).ok_or(MapsError::Missing { name })?;
    T::try_from(map).map_err(|source| MapsError::Refused { name, source })
}
