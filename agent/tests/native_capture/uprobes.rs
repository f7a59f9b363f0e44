//! Probes in functions of this very program that behave like those of a TLS library: what needs no real one, and runs in
//! the guests too.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use coati_agent::capture::{Record, Source};
use coati_agent::ebpf::{Attachment, ProbePoint, TlsCall};
use coati_common::event::{Begin, begin_flags, direction, end_reason, role};
use coati_common::loss::Loss;

use crate::watch::{Seen, Watch};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
/// Bytes that a record has besides its header and its content.
const OVERHEAD: usize = 17;

/// Where a session's records go and come from.
enum Below {
    /// A socket, like OpenSSL's usual one.
    Socket(TcpStream),
    /// Memory, which the program moves to and from a socket.
    Memory { incoming: Vec<u8>, outgoing: Vec<u8> },
    /// Another session, and what it gave that was not asked for yet.
    Session(Box<Session>, Vec<u8>),
}

/// A session. Its "encryption" makes bytes unlike HTTP.
struct Session {
    below: RefCell<Below>,
}

fn sealed(content: &[u8]) -> Vec<u8> {
    let len = (content.len() + OVERHEAD) as u16;
    let [high, low] = len.to_be_bytes();
    let mut record = vec![0x17, 3, 3, high, low];
    record.extend(content.iter().map(|byte| byte ^ 0x55));
    record.extend([0xaa; OVERHEAD]);
    record
}

fn opened(body: &[u8]) -> Vec<u8> {
    body[..body.len() - OVERHEAD].iter().map(|byte| byte ^ 0x55).collect()
}

impl Session {
    fn new(below: Below) -> Self {
        Self { below: RefCell::new(below) }
    }

    fn send(&self, record: &[u8]) {
        match &mut *self.below.borrow_mut() {
            Below::Socket(stream) => stream.write_all(record).unwrap(),
            Below::Memory { outgoing, .. } => outgoing.extend_from_slice(record),
            Below::Session(session, _) => assert_eq!(write(session, record), record.len() as i32),
        }
    }

    /// Takes `len` bytes from below; `None` if there are not as many.
    fn receive(&self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        match &mut *self.below.borrow_mut() {
            Below::Socket(stream) => stream.read_exact(&mut bytes).ok()?,
            Below::Memory { incoming, .. } => {
                (incoming.len() >= len).then_some(())?;
                bytes = incoming.drain(..len).collect();
            }
            Below::Session(session, rest) => {
                while rest.len() < len {
                    let mut record = [0; 1000];
                    let read = usize::try_from(read(session, &mut record)).unwrap();
                    (read > 0).then_some(())?;
                    rest.extend_from_slice(&record[..read]);
                }
                bytes = rest.drain(..len).collect();
            }
        }
        Some(bytes)
    }
}

/// As `SSL_write`.
extern "C" fn made_up_write(session: &Session, buffer: *const u8, len: i32) -> i32 {
    // SAFETY: the caller's buffer has this length.
    session.send(&sealed(unsafe { std::slice::from_raw_parts(buffer, len as usize) }));
    len
}

/// As `SSL_read`, with room for any record.
extern "C" fn made_up_read(session: &Session, buffer: *mut u8, len: i32) -> i32 {
    let Some(header) = session.receive(5) else { return 0 };
    let content = opened(&session.receive(usize::from(u16::from_be_bytes([header[3], header[4]]))).unwrap());
    assert!(content.len() <= len as usize);
    // SAFETY: the caller's buffer has room for it.
    unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), buffer, content.len()) };
    content.len() as i32
}

/// As `SSL_read_ex`.
extern "C" fn made_up_read_ex(session: &Session, buffer: *mut u8, len: usize, read: &mut usize) -> i32 {
    let result = black_box(made_up_read as extern "C" fn(_, _, _) -> _)(session, buffer, len as i32);
    *read = usize::try_from(result).unwrap();
    i32::from(result > 0)
}

/// As `SSL_free`.
extern "C" fn made_up_free(session: &Session) {
    black_box(session);
}

// By pointers that the compiler does not see through, so that each is a call of the function.
fn write(session: &Session, bytes: &[u8]) -> i32 {
    black_box(made_up_write as extern "C" fn(_, _, _) -> _)(session, bytes.as_ptr(), bytes.len() as i32)
}

fn read(session: &Session, bytes: &mut [u8]) -> i32 {
    black_box(made_up_read as extern "C" fn(_, _, _) -> _)(session, bytes.as_mut_ptr(), bytes.len() as i32)
}

fn read_ex(session: &Session, bytes: &mut [u8]) -> Option<usize> {
    let mut len = 0;
    let function = black_box(made_up_read_ex as extern "C" fn(_, _, _, _) -> _);
    (function(session, bytes.as_mut_ptr(), bytes.len(), &mut len) == 1).then_some(len)
}

fn free(session: &Session) {
    black_box(made_up_free as extern "C" fn(_))(session);
}

/// Where in this program's file the instruction at `address` lies.
pub(crate) fn file_offset(address: usize) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let offset = usize::from_str_radix(words.nth(1)?, 16).ok()?;
        (start..end).contains(&address).then(|| (address - start + offset) as u64)
    });
    found.unwrap()
}

/// Probes that are out before the next test puts in its own.
pub(crate) struct Probes(pub(crate) Option<Attachment>);

impl Probes {
    /// In the functions of this program.
    pub(crate) fn put(watch: &mut Watch) -> Self {
        Self(Some(attach(watch)))
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(wait);
    }
}

fn wait(attachment: Attachment) {
    let detaching = attachment.detach();
    while !detaching.is_over() {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A capture with probes in the functions.
fn probed(covers: &str) -> Option<(Watch, Probes)> {
    let mut watch = Watch::start_with_tls(covers)?;
    let probes = Probes::put(&mut watch);
    Some((watch, probes))
}

fn attach(watch: &mut Watch) -> Attachment {
    let functions = [
        (TlsCall::Write, made_up_write as *const () as usize),
        (TlsCall::Read, made_up_read as *const () as usize),
        (TlsCall::ReadEx, made_up_read_ex as *const () as usize),
        (TlsCall::Free, made_up_free as *const () as usize),
    ];
    let points = functions.map(|(call, address)| ProbePoint { call: call.into(), offset: file_offset(address) });
    let program = std::env::current_exe().unwrap();
    watch.source().attach_probes(&program, &points).unwrap()
}

fn pair() -> (TcpStream, TcpStream, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    (client, listener.accept().unwrap().0, address.port())
}

/// The requests under TLS that this process's records tell of.
fn tls_begins(records: &[Record]) -> Vec<Begin> {
    let own = std::process::id();
    let begins = records.iter().filter_map(|record| match record {
        Record::Begin(begin, _) if begin.tgid == own && begin.flags & begin_flags::TLS != 0 => Some(**begin),
        _ => None,
    });
    begins.collect()
}

fn positions(begin: &Begin) -> (u32, u32) {
    (begin.client_position, begin.server_position)
}

fn assert_whole(seen: &Seen, exchanges: usize) {
    assert_eq!(seen.begins.len(), exchanges);
    for (begin, payload) in &seen.begins {
        assert_eq!((payload.as_slice(), begin.flags), (REQUEST, begin_flags::TLS | begin_flags::POSITIONS));
    }
    let response: Vec<u8> = seen.towards(direction::RESPONSE).iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(response, RESPONSE.repeat(exchanges));
    assert_eq!(seen.ends.len(), 1);
    assert_eq!(seen.ends[0].reason, end_reason::CLOSED);
    assert_eq!(seen.ends[0].totals.request_bytes, REQUEST.len() as u64);
    assert_eq!(seen.ends[0].totals.response_bytes, RESPONSE.len() as u64);
}

/// Both ends of a session on a socket tell the same, with the positions of the records, and end with the socket.
#[test]
fn sessions_on_sockets_are_told() {
    let Some((mut watch, _probes)) = probed("TLS sessions on sockets") else { return };
    let (client, server, port) = pair();
    let losses = watch.capture().health().unwrap().losses;
    let server = thread::spawn(move || {
        let session = Session::new(Below::Socket(server));
        for _ in 0..2 {
            let mut buffer = [0; 1000];
            let len = read_ex(&session, &mut buffer).unwrap();
            assert_eq!(&buffer[..len], REQUEST);
            assert_eq!(write(&session, RESPONSE), RESPONSE.len() as i32);
        }
    });
    let session = Session::new(Below::Socket(client));
    for _ in 0..2 {
        assert_eq!(write(&session, REQUEST), REQUEST.len() as i32);
        let mut buffer = [0; 1000];
        let len = read(&session, &mut buffer) as usize;
        assert_eq!(&buffer[..len], RESPONSE);
    }
    server.join().unwrap();
    drop(session);
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_whole(seen, 2);
    }
    for ((sent, _), (received, _)) in client.begins.iter().zip(&server.begins) {
        assert_eq!(positions(sent), positions(received));
        assert!(sent.header.time_ns < received.header.time_ns);
        assert_eq!((sent.remote_port, received.local_port), (port, port));
    }
    let record = (REQUEST.len() + OVERHEAD + 5) as u32;
    let sent: Vec<_> = client.begins.iter().map(|(begin, _)| begin.client_position).collect();
    assert_eq!(sent[1].wrapping_sub(sent[0]), record);
    assert_eq!(watch.capture().health().unwrap().losses, losses);
    assert_eq!(losses[Loss::ReturnMissed as usize], 0);
    assert_innermost(&mut watch);
}

/// Of TLS within TLS only the inner plaintext is told: the outer one is records.
pub(crate) fn assert_innermost(watch: &mut Watch) {
    let (client, server, port) = pair();
    let tunnel = |stream| Session::new(Below::Session(Box::new(Session::new(Below::Socket(stream))), Vec::new()));
    let server = thread::spawn(move || {
        let session = tunnel(server);
        let mut buffer = [0; 1000];
        assert_eq!(read(&session, &mut buffer), REQUEST.len() as i32);
        write(&session, RESPONSE);
        assert_eq!(read(&session, &mut buffer), 0);
    });
    let session = tunnel(client);
    write(&session, REQUEST);
    let mut buffer = [0; 1000];
    assert_eq!(read(&session, &mut buffer), RESPONSE.len() as i32);
    drop(session);
    server.join().unwrap();
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!(seen.begins.len(), 1);
        assert_eq!(seen.begins[0].1, REQUEST);
        let response: Vec<u8> = seen.towards(direction::RESPONSE).iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        assert_eq!(response, RESPONSE);
    }
}

/// The program gives a session in memory what it has received: the socket is known when calls agree on it, and until then
/// no address is told. Two such sessions on one thread are not mixed up.
#[test]
fn sessions_in_memory_are_told() {
    let Some((mut watch, _probes)) = probed("TLS sessions in memory") else { return };
    let (mut first, mut first_server, first_port) = pair();
    let (mut second, mut second_server, second_port) = pair();
    let (ask, asked) = mpsc::channel::<usize>();
    let server = thread::spawn(move || {
        let mut streams = [&mut first_server, &mut second_server];
        let sessions = [0, 1].map(|_| Session::new(Below::Memory { incoming: Vec::new(), outgoing: Vec::new() }));
        for index in asked {
            let (stream, session) = (&mut streams[index], &sessions[index]);
            let mut record = [0; 1000];
            let len = stream.read(&mut record).unwrap();
            if let Below::Memory { incoming, .. } = &mut *session.below.borrow_mut() {
                incoming.extend_from_slice(&record[..len]);
            }
            let mut buffer = [0; 1000];
            assert_eq!(read(session, &mut buffer), REQUEST.len() as i32);
            write(session, RESPONSE);
            if let Below::Memory { outgoing, .. } = &mut *session.below.borrow_mut() {
                stream.write_all(&std::mem::take(outgoing)).unwrap();
            }
        }
        sessions.iter().for_each(free);
    });
    for _ in 0..4 {
        for (index, client) in [&mut first, &mut second].into_iter().enumerate() {
            client.write_all(&sealed(REQUEST)).unwrap();
            ask.send(index).unwrap();
            client.read_exact(&mut vec![0; RESPONSE.len() + OVERHEAD + 5]).unwrap();
        }
    }
    drop(ask);
    server.join().unwrap();
    let begins = watch.wait_until(|records| {
        let begins = tls_begins(records);
        (begins.len() >= 8).then_some(begins)
    });
    let mut connections: Vec<_> = begins.iter().map(|begin| begin.connection).collect();
    connections.dedup_by_key(|it| *it);
    assert_eq!(begins.len(), 8);
    let of = |connection| begins.iter().filter(move |begin| begin.connection == connection);
    // One call alone proves nothing; and what the thread has received before its first call ever is not known.
    for (connection, port, unknown) in [(connections[0], first_port, 2), (connections[1], second_port, 1)] {
        let ports: Vec<_> = of(connection).map(|begin| begin.local_port).collect();
        assert_eq!(ports, [vec![0; unknown], vec![port; 4 - unknown]].concat());
        assert!(of(connection).all(|begin| begin.role == role::SERVER));
        let placed: Vec<_> = of(connection).map(|begin| begin.flags & begin_flags::POSITIONS != 0).collect();
        assert_eq!(placed, [vec![false; unknown], vec![true; 4 - unknown]].concat());
        // A record apart.
        let records_at: Vec<_> = of(connection).skip(unknown).map(|begin| begin.client_position).collect();
        let record = (REQUEST.len() + OVERHEAD + 5) as u32;
        assert!(records_at.windows(2).all(|two| two[1].wrapping_sub(two[0]) == record), "{records_at:?}");
    }
    // They are over with the library's object, as the sockets are still open.
    let over = watch.wait_until(|records| {
        let is_over = |record: &&Record| matches!(record, Record::End(end) if connections.contains(&end.connection));
        let count = records.iter().filter(is_over).count();
        (count >= 2).then_some(count)
    });
    assert_eq!(over, 2);
    drop((first, second));
    assert_ambiguous(&mut watch);
}

/// A thread that receives on several sockets before it calls the library: nothing is concluded from that.
fn assert_ambiguous(watch: &mut Watch) {
    let before = tls_begins(watch.records()).len();
    let (mut first, mut first_server, _) = pair();
    let (mut second, mut second_server, _) = pair();
    let sessions = [0, 1].map(|_| Session::new(Below::Memory { incoming: Vec::new(), outgoing: Vec::new() }));
    for _ in 0..4 {
        first.write_all(&sealed(REQUEST)).unwrap();
        second.write_all(&sealed(REQUEST)).unwrap();
        for (stream, session) in [&mut first_server, &mut second_server].into_iter().zip(&sessions) {
            let mut record = [0; 1000];
            let len = stream.read(&mut record).unwrap();
            if let Below::Memory { incoming, .. } = &mut *session.below.borrow_mut() {
                incoming.extend_from_slice(&record[..len]);
            }
        }
        for session in &sessions {
            let mut buffer = [0; 1000];
            assert_eq!(read(session, &mut buffer), REQUEST.len() as i32);
            write(session, RESPONSE);
        }
    }
    sessions.iter().for_each(free);
    let begins = watch.wait_until(|records| {
        let begins = tls_begins(records);
        (begins.len() >= before + 8).then(|| begins[before..].to_vec())
    });
    assert!(begins.iter().all(|begin| (begin.local_port, begin.flags) == (0, begin_flags::TLS)), "{begins:#?}");
}

/// Loading, attaching and taking out again leaves no program, no map and no probe behind.
#[test]
fn nothing_is_left_behind() {
    let load = || Watch::start_with("what is left behind", |options| options.tls = true);
    let Some(watch) = load() else { return };
    if !watch.capture().programs().attached.has_tls() {
        println!("SKIPPED: this kernel lets no probes into programs; not covered: that none is left behind");
        return;
    }
    drop(watch);
    // Programs, maps and probes of this process.
    let held = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = files.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        targets.filter(|target| ["bpf", "perf_event"].iter().any(|it| target.to_string_lossy().contains(it))).count()
    };
    assert_eq!(held(), 0);
    let mut watch = load().unwrap();
    let loaded = held();
    for _ in 0..3 {
        let attachment = attach(&mut watch);
        assert!(held() > loaded, "probes are files of their own");
        wait(attachment);
        assert_eq!(held(), loaded);
    }
    drop(watch);
    assert_eq!(held(), 0);
}
