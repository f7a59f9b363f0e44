//! Processes that start, end, and are not to be watched.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use coati_agent::capture::{Record, Source};
use coati_common::event::end_reason;

use crate::watch::{Watch, answer, connect, read_until};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn exchange() -> u16 {
    connect(
        |stream| answer(stream, &[RESPONSE]),
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"ok");
        },
    )
}

#[test]
fn programs_are_told_when_they_start_and_end() {
    let Some(mut watch) = Watch::start("exec and exit") else { return };
    let mut child = Command::new("/bin/true").spawn().unwrap();
    let id = child.id();
    assert!(child.wait().unwrap().success());
    let path = watch.wait_for(|record| match record {
        Record::Exec(_, tgid, path) if *tgid == id => Some(path.clone()),
        _ => None,
    });
    assert_eq!(path, b"/bin/true");
    watch.wait_for(|record| matches!(record, Record::Exit(exit) if exit.tgid == id).then_some(()));
}

/// Threads end, their process does not.
#[test]
fn the_end_of_a_thread_is_not_told() {
    let Some(mut watch) = Watch::start("threads that end") else { return };
    std::thread::spawn(|| ()).join().unwrap();
    watch.wait(exchange(), |sides| sides.ended(1));
    let own = std::process::id();
    assert!(!watch.records().iter().any(|record| matches!(record, Record::Exit(exit) if exit.tgid == own)));
}

/// The kernel closes the connection of a process that is killed, and the exchange ends.
#[test]
fn a_client_that_dies_ends_its_exchange() {
    let Some(mut watch) = Watch::start("processes that die in the middle of a request") else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(r"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /slow HTTP/1.1\r\n' >&3; kill -9 $$");
    let mut child = Command::new("bash").args(["-c", &script]).spawn().unwrap();
    let mut request = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut request).unwrap();
    assert_eq!(request, b"GET /slow HTTP/1.1\r\n");
    child.wait().unwrap();
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    assert_eq!(client.begins[0].0.tgid, child.id());
    assert_eq!(server.begins[0].0.tgid, std::process::id());
    for seen in [client, server] {
        assert_eq!(seen.begins[0].1, b"GET /slow HTTP/1.1\r\n");
        assert_eq!((seen.ends[0].reason, seen.ends[0].totals.response_bytes), (end_reason::CLOSED, 0));
    }
    let id = child.id();
    watch.wait_for(|record| matches!(record, Record::Exit(exit) if exit.tgid == id).then_some(()));
}

#[test]
fn skipped_processes_are_not_watched() {
    let Some(mut watch) = Watch::start_with("processes that are not to be watched", |options| {
        options.skip = vec![std::process::id()];
    }) else {
        return;
    };
    let port = exchange();
    let begun = watch.capture().health().unwrap().begun;
    let sides = watch.now(port);
    assert_eq!((sides.client.len(), sides.server.len()), (0, 0), "{begun} exchanges begun");
}

#[test]
fn a_process_can_be_skipped_later() {
    let Some(mut watch) = Watch::start("processes that are skipped later") else { return };
    let port = exchange();
    watch.wait(port, |sides| sides.ended(1));
    watch.change().skip(std::process::id()).unwrap();
    let sides = {
        let port = exchange();
        watch.now(port)
    };
    assert_eq!((sides.client.len(), sides.server.len()), (0, 0));
}

/// By name, before they make their first system call: the agent must not trace what it exports.
#[test]
fn our_own_programs_are_never_watched() {
    let Some(mut watch) = Watch::start("our own programs") else { return };
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(r"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET / HTTP/1.1\r\n\r\n' >&3");
    for name in ["coati-agent", "coati-backend", "coati-other"] {
        let program = folder.path().join(name);
        std::fs::copy("/bin/bash", &program).unwrap();
        let mut child = Command::new(&program).args(["-c", &script]).spawn().unwrap();
        listener.accept().unwrap().0.read_to_end(&mut Vec::new()).unwrap();
        child.wait().unwrap();
    }
    // The server's end of the last one may be told of a little later.
    let sides = watch.wait(port, |sides| !sides.client.is_empty() && sides.server.len() == 3);
    assert_eq!(sides.client.len(), 1, "only the program with another name");
}
