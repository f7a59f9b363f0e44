//! HTTP on Unix stream sockets, by each set of hooks; and what moves on such sockets that is none.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::thread;

use coati_agent::capture::Record;
use coati_agent::kernel::features::HookSet;
use coati_common::event::{Begin, begin_flags, direction, end_reason, role};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::watch::{Seen, Watch};

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A request that no other test makes, of which each connection has its own.
fn request(name: &str) -> Vec<u8> {
    format!("GET /{name}-{} HTTP/1.1\r\nHost: x\r\n\r\n", std::process::id()).into_bytes()
}

/// What was told of connections whose first request is `request`, and the names of their sockets.
fn told(records: &[Record], request: &[u8]) -> BTreeMap<u8, Vec<(Seen, Vec<u8>)>> {
    let mut names = BTreeMap::new();
    let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
    for record in records {
        match record {
            Record::Unix(_, connection, name) => drop(names.insert(*connection, name.clone())),
            Record::Begin(begin, payload) if payload == request || seen.contains_key(&begin.connection) => {
                seen.entry(begin.connection).or_default().begins.push((**begin, payload.clone()));
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
            _ => {}
        }
    }
    let mut sides: BTreeMap<u8, Vec<_>> = BTreeMap::new();
    for (connection, seen) in seen {
        let role = seen.begins[0].0.role;
        sides.entry(role).or_default().push((seen, names.remove(&connection).unwrap_or_default()));
    }
    sides
}

/// Waits until both ends of the only connection with `request` are over.
fn both(watch: &mut Watch, request: &[u8]) -> [(Seen, Vec<u8>); 2] {
    watch.wait_until(|records| {
        let mut sides = told(records, request);
        let is_over = |side: &Vec<(Seen, Vec<u8>)>| side.len() == 1 && !side[0].0.ends.is_empty();
        let (client, server) = (sides.remove(&role::CLIENT)?, sides.remove(&role::SERVER)?);
        (is_over(&client) && is_over(&server)).then(|| [client, server].map(|mut side| side.pop().unwrap()))
    })
}

fn read_until(stream: &mut UnixStream, end: &[u8]) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while !bytes.ends_with(end) {
        let len = stream.read(&mut buffer).unwrap();
        assert!(len > 0, "the other end closed");
        bytes.extend_from_slice(&buffer[..len]);
    }
}

/// `count` times the same request on one connection.
fn exchange(listener: UnixListener, address: &SocketAddr, request: &[u8], count: usize) {
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        for _ in 0..count {
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(RESPONSE).unwrap();
        }
    });
    let mut stream = UnixStream::connect_addr(address).unwrap();
    for _ in 0..count {
        stream.write_all(request).unwrap();
        read_until(&mut stream, b"ok");
    }
    drop(stream);
    server.join().unwrap();
}

#[test]
fn both_ends_are_told_alike() {
    let Some(mut watch) = Watch::start("HTTP on Unix sockets") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let name = format!("coati-{}", std::process::id());
    let addresses = [
        (SocketAddr::from_pathname(&path).unwrap(), "path", path.to_string_lossy().into_owned()),
        (SocketAddr::from_abstract_name(&name).unwrap(), "abstract", format!("\0{name}")),
    ];
    for (address, word, name) in addresses {
        let request = request(word);
        exchange(UnixListener::bind_addr(&address).unwrap(), &address, &request, 2);
        let sides = both(&mut watch, &request);
        for (seen, found) in &sides {
            assert_eq!(String::from_utf8_lossy(found).trim_end_matches('\0'), name);
            assert_eq!(seen.begins.len(), 2, "{seen:?}");
            for (begin, _) in &seen.begins {
                let Begin { local_address, remote_address, local_port, remote_port, flags, tgid, .. } = begin;
                assert_eq!((local_address, remote_address, *local_port, *remote_port), (&[0; 16], &[0; 16], 0, 0));
                assert_eq!((*flags, *tgid), (begin_flags::UNIX | begin_flags::POSITIONS, std::process::id()));
                assert_ne!(begin.netns, 0);
            }
            assert_eq!(seen.begins[0].0.connection, seen.begins[1].0.connection);
            assert_eq!(seen.begins[1].0.previous.response_bytes, RESPONSE.len() as u64);
            assert_eq!(seen.ends.len(), 1);
            assert_eq!((seen.ends[0].exchange, seen.ends[0].reason), (2, end_reason::CLOSED));
            assert_eq!(seen.ends[0].totals.request_bytes, request.len() as u64);
            let response: Vec<_> = seen.towards(direction::RESPONSE).iter().flat_map(|it| it.1.clone()).collect();
            assert_eq!(response, RESPONSE.repeat(2));
        }
        let clients = sides.map(|(seen, _)| seen.begins.iter().map(|it| it.0.client_position).collect::<Vec<_>>());
        assert_eq!(clients[0], clients[1], "both ends name the client's socket");
        assert_ne!(clients[0][0], 0);
    }
}

/// Sent before the server has accepted the connection, and through a pair that has no name.
#[test]
fn connections_without_a_name_and_not_yet_accepted_are_told() {
    let Some(mut watch) = Watch::start("pairs of Unix sockets") else { return };
    let early = request("early");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("early.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&early).unwrap();
    let mut server = listener.accept().unwrap().0;
    read_until(&mut server, b"\r\n\r\n");
    server.write_all(RESPONSE).unwrap();
    read_until(&mut client, b"ok");
    drop((client, server));
    let [client, server] = both(&mut watch, &early);
    assert_eq!(client.0.begins[0].0.client_position, server.0.begins[0].0.client_position);
    assert_eq!(client.1, server.1);
    assert!(client.1.starts_with(path.as_os_str().as_encoded_bytes()));

    let pair = request("pair");
    let (mut client, mut server) = UnixStream::pair().unwrap();
    client.write_all(&pair).unwrap();
    read_until(&mut server, b"\r\n\r\n");
    server.write_all(RESPONSE).unwrap();
    read_until(&mut client, b"ok");
    drop((client, server));
    let [client, server] = both(&mut watch, &pair);
    assert_eq!(client.0.begins[0].0.client_position, server.0.begins[0].0.client_position);
    assert_eq!((client.1, server.1), (Vec::new(), Vec::new()));
}

/// A descriptor that is closed while another refers to the same socket ends nothing, nor does a new socket at the same place in
/// memory continue what was there before.
#[test]
fn copies_of_descriptors_and_reused_sockets_mix_nothing_up() {
    let Some(mut watch) = Watch::start("descriptors of Unix sockets that are copied") else { return };
    let copied = request("copied");
    let (mut client, mut server) = UnixStream::pair().unwrap();
    client.write_all(&copied).unwrap();
    read_until(&mut server, b"\r\n\r\n");
    drop(client.try_clone().unwrap());
    let mut other = server.try_clone().unwrap();
    drop(server);
    other.write_all(RESPONSE).unwrap();
    read_until(&mut client, b"ok");
    let begun = told(watch.records(), &copied);
    assert!(begun.values().flatten().all(|(seen, _)| seen.ends.is_empty()), "{begun:?}");
    drop((client, other));
    let [client, server] = both(&mut watch, &copied);
    for (seen, _) in [client, server] {
        assert_eq!(seen.ends[0].totals.response_bytes, RESPONSE.len() as u64);
    }

    // Closed in a way that the hooks on system calls do not see, so only the next one at that place tells.
    let rounds = 10;
    let again = request("again");
    for _ in 0..rounds {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        client.write_all(&again).unwrap();
        read_until(&mut server, b"\r\n\r\n");
        server.write_all(RESPONSE).unwrap();
        read_until(&mut client, b"ok");
        for end in [client, server] {
            let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let mut end = OwnedFd::from(end);
            rustix::io::dup2(&null, &mut end).unwrap();
        }
    }
    let sides = watch.wait_until(|records| {
        let sides = told(records, &again);
        (sides.len() == 2 && sides.values().all(|side| side.len() >= rounds)).then_some(sides)
    });
    for (seen, _) in sides.values().flatten() {
        assert_eq!(seen.begins.len(), 1, "each pair is a connection of its own");
        if watch.hooks() != HookSet::Syscall {
            assert_eq!(seen.ends.len(), 1);
        }
    }
}

/// Whatever else moves on Unix sockets gives no record, though it may look like a request where messages keep their bounds.
#[test]
fn other_protocols_and_other_sockets_are_left_alone() {
    let Some(mut watch) = Watch::start("other things on Unix sockets") else { return };
    let silent = request("silent");
    let (mut one, mut other) = UnixStream::pair().unwrap();
    one.write_all(b"\0AUTH EXTERNAL 30\r\n").unwrap();
    read_until(&mut other, b"\r\n");
    let (one, other) = UnixDatagram::pair().unwrap();
    one.send(&silent).unwrap();
    assert_eq!(other.recv(&mut [0; 200]).unwrap(), silent.len());
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None).unwrap();
    rustix::io::write(&one, &silent).unwrap();
    assert_eq!(rustix::io::read(&other, &mut [0; 200]).unwrap(), silent.len());
    // What comes after it was told, so all before it would have been.
    let last = request("last");
    let (mut client, mut server) = UnixStream::pair().unwrap();
    client.write_all(&last).unwrap();
    read_until(&mut server, b"\r\n\r\n");
    drop((client, server));
    both(&mut watch, &last);
    assert!(told(watch.records(), &silent).is_empty());
    let is_begun = |record: &Record| matches!(record, Record::Begin(_, payload) if payload.starts_with(b"\0AUTH"));
    assert!(!watch.records().iter().any(is_begun));
}
