//! How connections end.

use std::io::{Read, Write};
use std::net::Shutdown;

use coati_common::event::{data_flags, end_reason};

use crate::watch::{Watch, answer, connect, read_until};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nuntil the end";

/// A client learns from the end of the stream that a response is complete.
#[test]
fn the_end_of_the_stream_is_told_to_clients() {
    let Some(mut watch) = Watch::start("responses that end with the connection") else { return };
    let port = connect(
        |stream| answer(stream, &[RESPONSE]),
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            let mut response = Vec::new();
            stream.read_to_end(&mut response).unwrap();
            assert_eq!(response, RESPONSE);
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    let (eof, payload) = client.data.last().unwrap();
    assert_eq!((eof.flags, eof.len, payload.len()), (data_flags::EOF, 0, 0));
    assert_eq!(eof.totals.response_bytes, RESPONSE.len() as u64);
    assert!(server.data.iter().all(|(data, _)| data.flags & data_flags::EOF == 0));
    for seen in [client, server] {
        assert_eq!((seen.ends.len(), seen.ends[0].reason), (1, end_reason::CLOSED));
    }
}

/// A client that has nothing more to send still waits for its answer.
#[test]
fn half_a_close_is_no_end_for_a_client() {
    let Some(mut watch) = Watch::start("clients that close their half first") else { return };
    let port = connect(
        |mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).unwrap();
            stream.write_all(RESPONSE).unwrap();
        },
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!(seen.chunks(1), [RESPONSE.len() as u64]);
        assert_eq!(seen.ends[0].totals.response_bytes, RESPONSE.len() as u64);
        assert!(seen.ends[0].header.time_ns > seen.data[0].0.header.time_ns);
    }
}

/// A server that closes with unread bytes resets the connection.
#[test]
fn resets_are_told() {
    let Some(mut watch) = Watch::start("connections that are reset") else { return };
    let port = connect(
        |mut stream| stream.read_exact(&mut [0; 8]).unwrap(),
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!((seen.ends.len(), seen.ends[0].reason), (1, end_reason::RESET));
        assert_eq!(seen.ends[0].totals.response_bytes, 0);
    }
}

/// An answer that arrives before the reset is read after it.
#[test]
fn what_came_before_a_reset_is_told() {
    let Some(mut watch) = Watch::start("responses that are followed by a reset") else { return };
    let (closed, is_closed) = std::sync::mpsc::channel::<()>();
    let port = connect(
        move |mut stream| {
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(RESPONSE).unwrap();
            drop(stream);
            closed.send(()).unwrap();
        },
        |mut stream| {
            stream.write_all(REQUEST).unwrap();
            is_closed.recv().unwrap();
            assert_eq!(stream.read(&mut [0; 100]).unwrap(), RESPONSE.len());
        },
    );
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!((seen.ends.len(), seen.ends[0].reason), (1, end_reason::RESET));
        assert_eq!(seen.chunks(1), [RESPONSE.len() as u64]);
        assert_eq!(seen.ends[0].totals.response_bytes, RESPONSE.len() as u64);
    }
}

/// Nothing is kept of a connection that is over, and the next one at the same place is another.
#[test]
fn a_closed_connection_is_forgotten() {
    let Some(mut watch) = Watch::start("memory of connections") else { return };
    let mut identities = Vec::new();
    for _ in 0..20 {
        let port = connect(
            |stream| answer(stream, &[RESPONSE]),
            |mut stream| {
                stream.write_all(REQUEST).unwrap();
                read_until(&mut stream, b"end");
            },
        );
        let sides = watch.wait(port, |sides| sides.ended(1));
        let (client, server) = sides.only();
        for seen in [client, server] {
            let begin = seen.begins[0].0;
            assert_eq!(begin.exchange, 1);
            assert!(!identities.contains(&begin.connection));
            identities.push(begin.connection);
            let kept = coati_agent::capture::Source::connection(watch.capture(), begin.socket, begin.connection);
            assert_eq!(kept.unwrap(), None);
        }
    }
}
