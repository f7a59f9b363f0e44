//! Requests, responses and what belongs to them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use coati_agent::capture::Source;
use coati_agent::kernel::features::HookSet;
use coati_common::event::{Totals, begin_flags, data_flags, direction, end_reason, phase, role};
use coati_common::limits::{CHUNK_RECORDS, HEAD_BYTES};

use crate::watch::{Watch, answer, connect, connect_at, read_until};

const REQUEST: &[u8] = b"GET /a?b=c HTTP/1.1\r\nHost: example\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn both_ends_of_a_keep_alive_connection_tell_the_same() {
    let Some(mut watch) = Watch::start("keep-alive exchanges") else { return };
    let port = connect(
        |stream| answer(stream, &[RESPONSE; 3]),
        |mut stream| {
            for _ in 0..3 {
                stream.write_all(REQUEST).unwrap();
                read_until(&mut stream, b"hello");
            }
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for (seen, expected_role) in [(client, role::CLIENT), (server, role::SERVER)] {
        assert_eq!(seen.begins.len(), 3);
        assert_eq!(seen.data.len(), 3);
        assert_eq!(seen.ends.len(), 1);
        for (index, (begin, payload)) in seen.begins.iter().enumerate() {
            assert_eq!(begin.exchange as usize, index + 1);
            assert_eq!(begin.role, expected_role);
            assert_eq!(begin.tgid, std::process::id());
            assert_eq!(begin.len, REQUEST.len() as u64);
            assert_eq!(payload, REQUEST);
            assert_eq!(&begin.last, b"mple\r\n\r\n");
            assert_eq!(begin.flags, begin_flags::POSITIONS);
            assert_ne!(begin.netns, 0);
            assert_eq!(begin.local_address, Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
            let previous =
                (begin.previous.request_bytes, begin.previous.response_bytes, begin.previous.response_chunks);
            let expected = if index == 0 { (0, 0, 0) } else { (REQUEST.len() as u64, RESPONSE.len() as u64, 1) };
            assert_eq!(previous, expected);
        }
        for (begin, (data, payload)) in seen.begins.iter().zip(&seen.data) {
            assert_eq!(data.exchange, begin.0.exchange);
            assert_eq!((data.direction, data.flags), (direction::RESPONSE, data_flags::FIRST));
            assert_eq!(payload, RESPONSE);
            assert_eq!(data.last[..], b"\r\n\r\nhello"[1..]);
            assert!(data.header.time_ns > begin.0.header.time_ns);
            assert_eq!(data.totals.response_first_ns, data.header.time_ns);
            // Later than the first one only if the thread lost its CPU for long in the call.
            assert!((begin.0.header.time_ns..data.header.time_ns).contains(&data.totals.request_last_ns));
        }
        assert_eq!(seen.ends[0].exchange, 3);
        assert_eq!(seen.ends[0].reason, end_reason::CLOSED);
        assert_eq!(seen.ends[0].totals, seen.data[2].0.totals);
    }
    // The same request at both ends: the same positions, and the client sends before the server receives.
    for ((sent, _), (received, _)) in client.begins.iter().zip(&server.begins) {
        assert_eq!(sent.client_position, received.client_position);
        assert_eq!(sent.server_position, received.server_position);
        assert!(sent.header.time_ns < received.header.time_ns);
    }
    let positions: Vec<_> = client.begins.iter().map(|(begin, _)| begin.client_position).collect();
    assert_eq!(positions[1].wrapping_sub(positions[0]) as usize, REQUEST.len());
}

#[test]
fn ipv6_addresses_are_told() {
    let Some(mut watch) = Watch::start("IPv6") else { return };
    let port = connect_at(
        (Ipv6Addr::LOCALHOST, 0).into(),
        |stream| answer(stream, &[RESPONSE]),
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"hello");
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        let begin = seen.begins[0].0;
        assert_eq!(begin.local_address, Ipv6Addr::LOCALHOST.octets());
        assert_eq!(begin.remote_address, Ipv6Addr::LOCALHOST.octets());
    }
    assert_eq!(client.begins[0].0.remote_port, port);
    assert_eq!(client.begins[0].0.local_port, server.begins[0].0.remote_port);
}

/// The server already waits in a read when the programs are attached, and the connection has had an exchange before.
#[test]
fn a_connection_from_before_is_seen() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || answer(listener.accept().unwrap().0, &[RESPONSE; 2]));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(REQUEST).unwrap();
    read_until(&mut stream, b"hello");
    let watch = Watch::start_with("connections opened before the agent started", |_| {});
    stream.write_all(REQUEST).unwrap();
    read_until(&mut stream, b"hello");
    drop(stream);
    server.join().unwrap();
    let Some(mut watch) = watch else { return };
    if watch.hooks() != HookSet::Syscall {
        // Of functions the kernel tells only those returns whose entries it has told: the server waited in one.
        let sides = watch.wait(address.port(), |sides| sides.client.iter().any(|seen| !seen.ends.is_empty()));
        assert_eq!((sides.client.len(), sides.server.len()), (1, 0), "{sides:#?}");
        assert_eq!(sides.client[0].begins[0].1, REQUEST);
        return;
    }
    let sides = watch.wait(address.port(), |sides| sides.ended(1));
    let (client, server) = sides.only();
    for (seen, role) in [(client, role::CLIENT), (server, role::SERVER)] {
        assert_eq!(seen.begins.len(), 1);
        assert_eq!((seen.begins[0].0.exchange, seen.begins[0].0.role), (1, role));
        assert_eq!(seen.begins[0].1, REQUEST);
        assert_eq!(seen.chunks(1), [RESPONSE.len() as u64]);
    }
    assert_eq!(client.begins[0].0.server_position, server.begins[0].0.server_position);
}

/// Go's server reads one byte of the next request while it finishes with the one before.
#[test]
fn a_method_cut_by_a_short_read_begins_an_exchange() {
    let Some(mut watch) = Watch::start("requests whose method is read in pieces") else { return };
    let port = connect(
        |mut stream| {
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(RESPONSE).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(RESPONSE).unwrap();
        },
        |mut stream| {
            for _ in 0..2 {
                stream.write_all(REQUEST).unwrap();
                read_until(&mut stream, b"hello");
            }
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    assert_eq!((client.begins.len(), server.begins.len()), (2, 2));
    assert_eq!(server.begins[1].1, b"G");
    let rest = server.towards(direction::REQUEST);
    assert_eq!(rest.len(), 1);
    assert_eq!((rest[0].0.exchange, rest[0].1.as_slice()), (2, &REQUEST[1..]));
    assert_eq!(server.begins[1].0.client_position, client.begins[1].0.client_position);
    assert_eq!(server.ends[0].totals.request_bytes, REQUEST.len() as u64);
}

/// A record each for the first chunks; then the kernel's totals are all there is.
#[test]
fn long_responses_are_counted_to_the_end() {
    let Some(mut watch) = Watch::start("responses of many chunks") else { return };
    let chunks = CHUNK_RECORDS as usize + 36;
    let (checked, check) = mpsc::channel::<()>();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        read_until(&mut stream, b"\r\n\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        for chunk in 1..chunks {
            // Nothing is sent that the client does not wait for, so every write is one read.
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(format!("chunk {chunk:04}").as_bytes()).unwrap();
        }
        check.recv().unwrap();
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(REQUEST).unwrap();
    read_until(&mut stream, b"\r\n\r\n");
    for _ in 1..chunks {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
    }

    let told = CHUNK_RECORDS as usize;
    let sides = watch.wait(address.port(), |sides| {
        sides.client.iter().chain(&sides.server).filter(|seen| seen.chunks(1).len() == told).count() == 2
    });
    let (client, server_side) = sides.only();
    let bytes = 19 + 10 * (chunks as u64 - 1);
    for seen in [client, server_side] {
        let payload: usize = seen.towards(direction::RESPONSE).iter().map(|(_, payload)| payload.len()).sum();
        assert_eq!(payload, 19 + 10 * (told - 1));
        let begin = seen.begins[0].0;
        let kept = watch.capture().connection(begin.socket, begin.connection).unwrap().unwrap();
        assert_eq!(kept.phase, phase::RESPONSE);
        assert_eq!(kept.totals.response_chunks as usize, chunks);
        assert_eq!(kept.totals.response_bytes, bytes);
        assert_eq!(&kept.response_tail, b"unk 0099");
        assert!(kept.totals.longest_gap_ns > 0);
        assert_eq!(watch.capture().connection(begin.socket, begin.connection + 1).unwrap(), None);
    }
    checked.send(()).unwrap();
    server.join().unwrap();
    drop(stream);
    let sides = watch.wait(address.port(), |sides| sides.ended(1));
    assert_eq!(sides.server[0].ends[0].totals.response_bytes, bytes);
    assert_eq!(sides.server[0].chunks(1).len(), told);
}

/// No more than a head's worth of either message is copied.
#[test]
fn payload_ends_with_the_budget() {
    let Some(mut watch) = Watch::start("long requests and responses") else { return };
    let port = connect(
        |mut stream| {
            read_until(&mut stream, b"end");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            for _ in 0..3 {
                stream.write_all(&[b'r'; 700]).unwrap();
            }
        },
        |mut stream| {
            stream.write_all(b"POST / HTTP/1.1\r\n\r\n").unwrap();
            for _ in 0..3 {
                stream.write_all(&[b'q'; 700]).unwrap();
            }
            stream.write_all(b"end").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    // The client's calls are known one by one: head, 700 bytes, what is left of the budget, and then nothing.
    let requests: Vec<_> = client.towards(direction::REQUEST).iter().map(|(_, payload)| payload.len()).collect();
    assert_eq!(requests, [700, HEAD_BYTES - 19 - 700]);
    let responses: Vec<_> = server.towards(direction::RESPONSE).iter().map(|(_, payload)| payload.len()).collect();
    assert_eq!(responses, [19, 700, HEAD_BYTES - 19 - 700, 0]);
    assert_eq!(server.chunks(1), [19, 700, 700, 700]);
    for seen in [client, server] {
        let totals = seen.ends[0].totals;
        assert_eq!((totals.request_bytes, totals.response_bytes), (19 + 2100 + 3, 19 + 2100));
    }
}

/// A connection that is never idle while programs are attached: of what is told of it, nothing is half.
#[test]
fn what_is_followed_is_seen_by_all_programs() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, mut buffer) = (listener.accept().unwrap().0, [0; 4096]);
        while stream.read(&mut buffer).unwrap() > 0 {
            stream.write_all(RESPONSE).unwrap();
        }
    });
    let (stop, stopped) = mpsc::channel::<()>();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        while stopped.recv_timeout(Duration::from_millis(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"hello");
        }
    });
    let watch = Watch::start_with("connections in use while programs are attached", |_| {});
    thread::sleep(Duration::from_millis(50));
    drop(stop);
    client.join().unwrap();
    server.join().unwrap();
    let Some(mut watch) = watch else { return };
    let sides = watch.wait(address.port(), |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert!(seen.begins.len() > 1);
        for (begin, _) in &seen.begins[1..] {
            let moved = (begin.previous.request_bytes, begin.previous.response_bytes);
            assert_eq!(moved, (REQUEST.len() as u64, RESPONSE.len() as u64));
        }
    }
}

/// What is seen first of a connection that is older than the agent is in the body of an answer, and begins like a request.
#[test]
fn a_body_that_looks_like_a_request_hides_no_later_one() {
    let Some(mut watch) = Watch::start("connections that are joined in a body like a request") else { return };
    let port = connect(
        |mut stream| {
            stream.write_all(b"GET this, says the body\n").unwrap();
            answer(stream, &[RESPONSE; 2]);
        },
        |mut stream| {
            read_until(&mut stream, b"\n");
            for _ in 0..2 {
                stream.write_all(REQUEST).unwrap();
                read_until(&mut stream, b"hello");
            }
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for (seen, role) in [(client, role::CLIENT), (server, role::SERVER)] {
        let begins: Vec<_> = seen.begins.iter().map(|(it, payload)| (it.role, it.exchange, &payload[..])).collect();
        assert_eq!(begins, [(role, 2, REQUEST), (role, 3, REQUEST)]);
        let answers = seen.towards(direction::RESPONSE);
        let answers: Vec<_> = answers.iter().map(|(it, payload)| (it.exchange, it.flags, &payload[..])).collect();
        assert_eq!(answers, [(2, data_flags::FIRST, RESPONSE), (3, data_flags::FIRST, RESPONSE)]);
    }
}

#[test]
fn interim_responses_are_told_but_not_counted() {
    let Some(mut watch) = Watch::start("1xx responses") else { return };
    let port = connect(
        |mut stream| {
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            read_until(&mut stream, b"body");
            stream.write_all(RESPONSE).unwrap();
        },
        |mut stream| {
            stream.write_all(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n").unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(b"body").unwrap();
            read_until(&mut stream, b"hello");
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        let flags: Vec<_> = seen.towards(direction::RESPONSE).iter().map(|(data, _)| data.flags).collect();
        assert_eq!(flags, [data_flags::INTERIM, data_flags::FIRST]);
        assert_eq!(seen.towards(direction::REQUEST)[0].1, b"body");
        let Totals { response_bytes, response_chunks, .. } = seen.ends[0].totals;
        assert_eq!((response_bytes, response_chunks), (RESPONSE.len() as u64, 1));
    }
}

#[test]
fn of_an_upgraded_connection_the_start_of_each_call_is_told() {
    let Some(mut watch) = Watch::start("101 Switching Protocols") else { return };
    let switch = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    let port = connect(
        move |mut stream| {
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(switch).unwrap();
            read_until(&mut stream, b"GET / in a frame");
            stream.write_all(b"a frame").unwrap();
        },
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"\r\n\r\n");
            stream.write_all(b"GET / in a frame").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!(seen.begins.len(), 1);
        let told: Vec<_> = seen
            .data
            .iter()
            .filter(|(data, _)| data.len > 0)
            .map(|(data, payload)| (data.flags, &payload[..]))
            .collect();
        assert_eq!(told, [(data_flags::FIRST, &switch[..]), (0, b"GET / in a frame"), (0, b"a frame")]);
        let totals = seen.ends[0].totals;
        assert_eq!(totals.request_bytes, REQUEST.len() as u64 + 16);
        assert_eq!(totals.response_bytes, switch.len() as u64 + 7);
    }
}

#[test]
fn other_protocols_give_nothing() {
    let Some(mut watch) = Watch::start("connections that do not speak HTTP") else { return };
    let port = connect(
        |mut stream| {
            read_until(&mut stream, b"end");
            stream.write_all(b"\x00\xff").unwrap();
        },
        |mut stream| {
            stream.write_all(b"\x16\x03\x01\x02\x00").unwrap();
            stream.write_all(b"the end").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        },
    );
    // Records come in order: when this one is there, those of the connection would be too.
    let marker = connect(
        |stream| answer(stream, &[RESPONSE]),
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            read_until(&mut stream, b"hello");
        },
    );
    watch.wait(marker, |sides| sides.ended(1));
    let sides = watch.now(port);
    assert_eq!((sides.client.len(), sides.server.len()), (0, 0));
}
