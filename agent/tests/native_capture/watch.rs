//! Captures the test's own traffic: client and server are threads of this process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coati_agent::capture::{Capture, Record, Source};
use coati_agent::ebpf::{LoadError, Options, Programs};
use coati_agent::kernel::features::HookSet;
use coati_common::event::{Begin, Data, End, data_flags, direction, role};

/// How long a record may take; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Names the hooks under test.
pub(crate) const HOOKS: &str = "COATI_TEST_HOOKS";

/// One capture at a time: each sees all traffic of the machine. It is kept for the next test of this process, as loading
/// the programs takes longer than most tests; very much longer in a guest.
static CAPTURE: Mutex<Option<Capture>> = Mutex::new(None);

/// A running capture.
pub(crate) struct Watch {
    turn: MutexGuard<'static, Option<Capture>>,
    records: Vec<Record>,
    /// Another test cannot use it.
    is_changed: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.is_changed || thread::panicking() {
            *self.turn = None;
        }
    }
}

/// What was told of one end of one connection.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) begins: Vec<(Begin, Vec<u8>)>,
    pub(crate) data: Vec<(Data, Vec<u8>)>,
    pub(crate) ends: Vec<End>,
}

/// What was told of the connections of one server, in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct Sides {
    pub(crate) client: Vec<Seen>,
    pub(crate) server: Vec<Seen>,
}

impl Watch {
    /// Starts capturing, this process included. `None`, and a line that says so, where that is impossible.
    ///
    /// Without the programs for TLS libraries, as a process that runs only one test would load them for nothing; in a
    /// guest one process runs all of them.
    pub(crate) fn start(covers: &str) -> Option<Self> {
        Self::start_usual(covers, hooks().is_some())
    }

    /// The same with the programs for libraries. `None`, and a line, also where the kernel lets no probes into them.
    pub(crate) fn start_with_tls(covers: &str) -> Option<Self> {
        let watch = Self::start_usual(covers, true)?;
        let attached = &watch.capture().programs().attached;
        assert!(attached.has_go() || !attached.has_tls() || !cfg!(target_arch = "x86_64"), "{:?}", attached.off);
        assert!(attached.has_loops() || !attached.has_tls(), "{:?}", attached.off);
        if !attached.has_tls() {
            // In a guest it must be possible.
            assert!(hooks().is_none(), "{:?}", attached.off);
            println!("SKIPPED: this kernel lets no probes into libraries ({:?}); not covered: {covers}", attached.off);
            return None;
        }
        Some(watch)
    }

    fn start_usual(covers: &str, tls: bool) -> Option<Self> {
        let mut turn = CAPTURE.lock().unwrap_or_else(PoisonError::into_inner);
        match turn.as_mut() {
            Some(capture) if capture.programs().attached.has_tls() || !tls => {
                capture.drain_all(&mut Vec::new()).unwrap();
            }
            _ => {
                *turn = None;
                *turn = Some(capture(covers, |options| (options.tls, options.cuda) = (tls, tls))?);
            }
        }
        Some(Self { turn, records: Vec::new(), is_changed: false })
    }

    /// The same with other options, and without the programs for libraries unless they are among them.
    pub(crate) fn start_with(covers: &str, change: impl FnOnce(&mut Options)) -> Option<Self> {
        let mut turn = CAPTURE.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = None;
        *turn = Some(capture(covers, |options| {
            options.tls = false;
            options.cuda = false;
            change(options);
        })?);
        Some(Self { turn, records: Vec::new(), is_changed: true })
    }

    /// The capture, for what a test asks of it.
    pub(crate) fn capture(&self) -> &Capture {
        self.turn.as_ref().unwrap()
    }

    /// The capture, for what a test takes back when it ends.
    pub(crate) fn source(&mut self) -> &mut Capture {
        self.turn.as_mut().unwrap()
    }

    /// The capture, for what a test changes in it.
    pub(crate) fn change(&mut self) -> &mut Capture {
        self.is_changed = true;
        self.turn.as_mut().unwrap()
    }

    /// How bytes are seen.
    pub(crate) fn hooks(&self) -> HookSet {
        self.capture().programs().attached.hooks
    }

    fn drain(&mut self) {
        self.turn.as_mut().unwrap().drain(Duration::from_millis(5), &mut self.records).unwrap();
    }

    /// Waits until what is told of the server at `port` is as `done` wants it.
    pub(crate) fn wait(&mut self, port: u16, done: impl Fn(&Sides) -> bool) -> Sides {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.drain();
            let sides = sides(&self.records, port);
            if done(&sides) {
                return sides;
            }
            let health = self.capture().health();
            assert!(Instant::now() < deadline, "what was told until the end: {sides:#?}; {health:?}");
        }
    }

    /// Everything that was told until now of the server at `port`, when nothing is under way.
    pub(crate) fn now(&mut self, port: u16) -> Sides {
        self.turn.as_mut().unwrap().drain_all(&mut self.records).unwrap();
        sides(&self.records, port)
    }

    /// Waits for a record, whatever it is about.
    pub(crate) fn wait_for<T>(&mut self, find: impl Fn(&Record) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.drain();
            if let Some(found) = self.records.iter().find_map(&find) {
                return found;
            }
            assert!(Instant::now() < deadline, "no such record among {}", self.records.len());
        }
    }

    /// Waits until the records so far are as `find` wants them.
    pub(crate) fn wait_until<T>(&mut self, find: impl Fn(&[Record]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.drain();
            if let Some(found) = find(&self.records) {
                return found;
            }
            assert!(Instant::now() < deadline, "not so after {} records", self.records.len());
        }
    }

    /// Every record so far.
    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }
}

/// The hooks under test: those that the guest's command line names, else the best that there are.
pub(crate) fn hooks() -> Option<HookSet> {
    let name = std::env::var(HOOKS).ok()?;
    let sets = [HookSet::Fentry, HookSet::Kprobe, HookSet::Syscall];
    Some(sets.into_iter().find(|set| set.name() == name).unwrap_or_else(|| panic!("{HOOKS} is {name}")))
}

fn capture(covers: &str, change: impl FnOnce(&mut Options)) -> Option<Capture> {
    let mut options = Options { own_tgid: None, hooks: hooks(), ..Options::default() };
    change(&mut options);
    match Programs::load(&options) {
        Ok(programs) => Some(Capture::new(programs)),
        // In a guest it must be possible.
        Err(error) if options.hooks.is_none() && is_impossible_here(&error) => {
            println!("SKIPPED: the kernel programs cannot run here ({error}); not covered: {covers}");
            None
        }
        Err(error) => panic!("the kernel programs do not load: {error:?}"),
    }
}

/// What a container, another user or another kernel lacks, not what a fault of ours would cause.
fn is_impossible_here(error: &LoadError) -> bool {
    match error {
        LoadError::NoObject | LoadError::Features(_) | LoadError::Plan(_) | LoadError::ReadBtf { .. } => true,
        LoadError::Load { .. } => !rustix::process::geteuid().is_root(),
        _ => false,
    }
}

fn sides(records: &[Record], port: u16) -> Sides {
    let mut order = Vec::new();
    let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
    for record in records {
        match record {
            Record::Begin(begin, payload) => {
                let (server_port, client_port) = match begin.role {
                    role::SERVER => (begin.local_port, begin.remote_port),
                    _ => (begin.remote_port, begin.local_port),
                };
                if server_port == port && client_port != port {
                    if !order.contains(&begin.connection) {
                        order.push(begin.connection);
                    }
                    seen.entry(begin.connection).or_default().begins.push((**begin, payload.clone()));
                }
            }
            Record::Data(data, payload) => {
                if let Some(seen) = seen.get_mut(&data.connection) {
                    seen.data.push((*data, payload.clone()));
                }
            }
            Record::End(end) => {
                if let Some(seen) = seen.get_mut(&end.connection) {
                    seen.ends.push(*end);
                }
            }
            Record::Tail(..) | Record::Exec(..) | Record::Exit(_) | Record::Tls(_) | Record::Unix(..) => {}
        }
    }
    let mut sides = Sides::default();
    for connection in order {
        let seen = seen.remove(&connection).unwrap();
        if seen.begins[0].0.role == role::SERVER { sides.server.push(seen) } else { sides.client.push(seen) }
    }
    sides
}

impl Sides {
    /// Both ends of `count` connections are over.
    pub(crate) fn ended(&self, count: usize) -> bool {
        let over = |side: &[Seen]| side.iter().filter(|seen| !seen.ends.is_empty()).count() == count;
        over(&self.client) && over(&self.server)
    }

    /// The only connection.
    pub(crate) fn only(&self) -> (&Seen, &Seen) {
        assert_eq!((self.client.len(), self.server.len()), (1, 1), "{self:#?}");
        (&self.client[0], &self.server[0])
    }
}

impl Seen {
    /// Data records in one direction, without ends of stream.
    pub(crate) fn towards(&self, direction: u8) -> Vec<&(Data, Vec<u8>)> {
        let wanted = |data: &Data| data.direction == direction && data.flags & data_flags::EOF == 0;
        self.data.iter().filter(|(data, _)| wanted(data)).collect()
    }

    /// Bytes of each system call that moved the response, of exchange `exchange`.
    pub(crate) fn chunks(&self, exchange: u32) -> Vec<u64> {
        let of_response = self.towards(direction::RESPONSE).into_iter();
        of_response.filter(|(data, _)| data.exchange == exchange).map(|(data, _)| data.len).collect()
    }
}

/// Runs `server` on a connection that `client` opens, and waits for both; the server's port.
pub(crate) fn connect(server: impl FnOnce(TcpStream) + Send + 'static, client: impl FnOnce(TcpStream)) -> u16 {
    connect_at((Ipv4Addr::LOCALHOST, 0).into(), server, client)
}

pub(crate) fn connect_at(
    address: SocketAddr,
    server: impl FnOnce(TcpStream) + Send + 'static,
    client: impl FnOnce(TcpStream),
) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || server(listener.accept().unwrap().0));
    client(TcpStream::connect(address).unwrap());
    thread.join().unwrap();
    address.port()
}

/// Reads until the bytes end with `end`.
pub(crate) fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !bytes.ends_with(end) {
        let len = stream.read(&mut buffer).unwrap();
        assert!(len > 0, "the other end closed after {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..len]);
    }
    bytes
}

/// Answers requests without a body, as many as there are responses.
pub(crate) fn answer(mut stream: TcpStream, responses: &[&[u8]]) {
    for response in responses {
        read_until(&mut stream, b"\r\n\r\n");
        stream.write_all(response).unwrap();
    }
}
