//! What cannot be told is counted.

use std::io::Write;

use coati_agent::capture::Source;
use coati_common::loss::Loss;

use crate::watch::{Watch, answer, connect, read_until};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn exchanges(count: usize) -> u16 {
    connect(
        move |stream| answer(stream, &vec![RESPONSE; count]),
        |mut stream| {
            for _ in 0..count {
                stream.write_all(REQUEST).unwrap();
                read_until(&mut stream, b"ok");
            }
        },
    )
}

/// Nobody reads, so the smallest ring fills: every exchange is told or counted as lost.
#[test]
fn a_full_ring_is_counted() {
    let Some(mut watch) = Watch::start_with("a full ring buffer", |options| options.ring_bytes = 4096) else { return };
    let port = exchanges(100);
    watch.now(port);
    let health = watch.capture().health().unwrap();
    let lost = |cause: Loss| health.losses[cause as usize];
    let told = watch.records().iter().filter(|record| matches!(record, coati_agent::capture::Record::Begin(..))).count()
        as u64;
    assert!(lost(Loss::RingFullBegin) > 100, "{health:?}");
    assert!(lost(Loss::RingFullData) > 100, "{health:?}");
    assert_eq!(told + lost(Loss::RingFullBegin), health.begun, "{health:?}");
    assert!(health.begun >= 200, "{health:?}");
    assert_eq!((health.malformed, health.unaccounted), (0, 0), "{health:?}");

    // With room again, all is told again.
    let port = exchanges(1);
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    assert_eq!((client.begins.len(), server.begins.len()), (1, 1));
}

/// Thousands of exchanges, read as they come: nothing is lost, nothing is told twice.
#[test]
fn nothing_is_lost_at_speed() {
    let Some(mut watch) = Watch::start("thousands of exchanges a second") else { return };
    let count = 5_000;
    let thread = std::thread::spawn(move || exchanges(count));
    while !thread.is_finished() {
        watch.now(0);
    }
    let port = thread.join().unwrap();
    let sides = watch.wait(port, |sides| sides.ended(1));
    let (client, server) = sides.only();
    for seen in [client, server] {
        assert_eq!(seen.begins.len(), count);
        assert_eq!(seen.data.len(), count);
        assert!(seen.begins.iter().zip(1..).all(|((begin, _), number)| begin.exchange == number));
    }
    assert!(client.begins.iter().zip(&server.begins).all(|((sent, _), (received, _))| {
        (sent.client_position, sent.server_position) == (received.client_position, received.server_position)
    }));
    let health = watch.capture().health().unwrap();
    assert_eq!(health.losses, [0; Loss::ALL.len()]);
    assert_eq!((health.malformed, health.unaccounted), (0, 0));
}
