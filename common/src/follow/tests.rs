extern crate std;

use super::*;
use crate::sniff::SNIFF_BYTES;
use std::vec::Vec;

fn sniff(bytes: &[u8]) -> Sniff {
    let mut padded = [0_u8; SNIFF_BYTES];
    let len = bytes.len().min(SNIFF_BYTES);
    padded[..len].copy_from_slice(&bytes[..len]);
    let (first, second) = padded.split_at(8);
    Sniff::new([first, second].map(|half| u64::from_ne_bytes(half.try_into().unwrap())), len as u32)
}

/// What one call does: the three steps, one after the other.
fn step(connection: &mut Connection, direction: u8, bytes: &[u8], time_ns: u64) -> Meaning {
    let meaning = connection.meaning(direction, &sniff(bytes));
    connection.enter(meaning, time_ns);
    connection.count(meaning, bytes.len() as u64, time_ns, time_ns);
    meaning
}

const REQUEST: u8 = direction::REQUEST;
const RESPONSE: u8 = direction::RESPONSE;

/// The calls of a connection, and what each of them means.
fn meanings(calls: &[(u8, &[u8])]) -> (Vec<Meaning>, Connection) {
    let mut connection = Connection::idle(1, role::SERVER);
    let found = calls.iter().zip(1..).map(|(&(direction, bytes), time)| step(&mut connection, direction, bytes, time));
    (found.collect(), connection)
}

#[test]
fn exchanges_follow_each_other() {
    use Meaning::{Begin, First, Request, Response};
    let (found, connection) = meanings(&[
        (REQUEST, b"POST / HTTP/1.1\r\n"),
        (REQUEST, b"GET is in the body"),
        (RESPONSE, b"HTTP/1.1 200 OK\r\n"),
        (RESPONSE, b"body"),
        (REQUEST, b"G"),
        (REQUEST, b"ET / HTTP/1.1\r\n"),
        (RESPONSE, b"HTTP/1.1 404"),
    ]);
    assert_eq!(found, [Begin, Request, First, Response, Begin, Request, First]);
    assert_eq!(connection.exchange, 2);
    assert_eq!((connection.totals.request_bytes, connection.totals.response_bytes), (16, 12));
}

/// The agent begins while a server sends a body that has lines like a request: this end seems to be the client.
#[test]
fn a_request_where_an_answer_is_due_turns_the_roles_once() {
    use Meaning::{Begin, First, Request, Turned};
    let (found, connection) = meanings(&[
        (REQUEST, b"GET is in the body"),
        (REQUEST, b"which goes on"),
        (RESPONSE, b"GET / HTTP/1.1\r\n"),
        (RESPONSE, b"HTTP/1.1 200 OK\r\n"),
        (REQUEST, b"POST / HTTP/1.1\r\n"),
        // What answers so is not HTTP.
        (RESPONSE, b"GET / HTTP/1.1\r\n"),
    ]);
    assert_eq!(found, [Begin, Request, Turned, First, Begin, First]);
    assert_eq!((connection.role, connection.exchange), (role::CLIENT, 3));
    assert_eq!((connection.totals.request_bytes, connection.totals.response_bytes), (17, 16));
}

#[test]
fn only_what_is_no_answer_turns_the_roles() {
    for (bytes, expected) in [
        (&b"H"[..], Meaning::First),
        (b"HT", Meaning::First),
        (b"HTTP/1.1 200 OK\r\n", Meaning::First),
        (b"nonsense", Meaning::First),
        (b"HE", Meaning::Turned),
        (b"P", Meaning::Turned),
        (b"PROPFIND / HTTP/1.1\r\n", Meaning::Turned),
    ] {
        let (found, _) = meanings(&[(REQUEST, b"GET / HTTP/1.1\r\n"), (RESPONSE, bytes)]);
        assert_eq!(found, [Meaning::Begin, expected], "{bytes:?}");
    }
}

/// The server answers before the request is whole: what follows is its rest.
#[test]
fn a_late_body_begins_nothing() {
    let (found, connection) = meanings(&[
        (REQUEST, b"PUT / HTTP/1.1\r\n"),
        (RESPONSE, b"HTTP/1.1 413 Too Large"),
        (REQUEST, b"rest of the body"),
    ]);
    assert_eq!(found[2], Meaning::Request);
    assert_eq!((connection.exchange, connection.totals.request_bytes), (1, 32));
}

/// An interim answer may have had the final one behind it, so a request may follow; a body may too.
#[test]
fn after_an_interim_response_a_method_begins_and_a_body_does_not() {
    use Meaning::{Begin, First, Interim, Request};
    let (found, connection) = meanings(&[
        (REQUEST, b"PUT / HTTP/1.1\r\n"),
        (RESPONSE, b"HTTP/1.1 100 Continue\r\n\r\n"),
        (REQUEST, b"P"),
        (REQUEST, b"body"),
        (RESPONSE, b"HTTP/1.1 103 Early Hints"),
        (REQUEST, b"GET / HTTP/1.1\r\n"),
        (RESPONSE, b"HTTP/1.1 200 OK"),
    ]);
    assert_eq!(found, [Begin, Interim, Request, Request, Interim, Begin, First]);
    assert_eq!(connection.totals.response_chunks, 1);
}

#[test]
fn an_upgrade_ends_the_exchanges() {
    use Meaning::{Begin, Request, Response, Upgrade};
    let (found, mut connection) = meanings(&[
        (REQUEST, b"GET / HTTP/1.1\r\n"),
        (RESPONSE, b"HTTP/1.1 101 Switching"),
        (REQUEST, b"GET / HTTP/1.1\r\n"),
        (RESPONSE, b"HTTP/1.1 200 OK"),
    ]);
    assert_eq!(found, [Begin, Upgrade, Request, Response]);
    assert_eq!((connection.totals.request_bytes, connection.totals.response_bytes), (32, 37));
    // Whatever it is, the start of each call is told, however many there are.
    connection.copied(Request, 2000);
    connection.totals.response_chunks = CHUNK_RECORDS + 1;
    assert!(connection.tells(Request) && connection.tells(Response) && connection.tells_eof());
    assert_eq!((connection.room(Request), connection.room(Response)), (HEAD_BYTES, HEAD_BYTES));
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn http2_begins_with_its_preface_also_behind_http1() {
    use Meaning::{Begin, First, Preface, Request, Response, Upgrade};
    for (calls, expected) in [
        (
            &[(REQUEST, PREFACE), (RESPONSE, b"\0\0\0\x04"), (REQUEST, b"GET / HTTP/1.1\r\n")][..],
            &[Preface, Response, Request][..],
        ),
        (
            &[(REQUEST, b"GET / HTTP/1.1\r\n"), (RESPONSE, b"HTTP/1.1 101 Switching"), (REQUEST, PREFACE)],
            &[Begin, Upgrade, Preface],
        ),
        (
            &[(REQUEST, b"GET / HTTP/1.1\r\n"), (RESPONSE, b"HTTP/1.1 200 OK"), (REQUEST, PREFACE)],
            &[Begin, First, Preface],
        ),
        // Not where a request waits for its answer: that is a body.
        (&[(REQUEST, b"POST / HTTP/1.1\r\n"), (REQUEST, PREFACE)], &[Begin, Request]),
    ] {
        let (found, connection) = meanings(calls);
        assert_eq!(found, expected);
        if found.contains(&Preface) {
            assert_eq!(connection.phase, phase::HTTP2);
            assert_eq!(connection.frames, [Frames::PREFACE, Frames::UNKNOWN]);
        }
    }
    assert_eq!(Meaning::first(&sniff(PREFACE)), Some(Preface));
}

#[test]
fn http2_is_joined_at_a_request() {
    let request = b"\0\0\x20\x01\x05\0\0\0\x01\x82\x86\x84\x41\x8c\xf1\xe3";
    assert_eq!(Meaning::first(&sniff(request)), Some(Meaning::Joined));
    assert_eq!(Meaning::first(&sniff(b"\0\0\x04\x08\0\0\0\0\0\0\0\x10\0\0\0\0")), None);
    let mut connection = Connection::idle(1, role::CLIENT);
    connection.enter(Meaning::Joined, 5);
    assert_eq!((connection.exchange, connection.phase, connection.last_ns), (1, phase::HTTP2, 5));
    assert_eq!(connection.frames, [Frames::HEADER, Frames::UNKNOWN]);
}

#[test]
fn a_mark_says_where_a_direction_stands() {
    for frames in [Frames::UNKNOWN, Frames::HEADER, Frames::PREFACE, Frames { left: 0x12_3456, ..Frames::HEADER }] {
        assert_eq!(Frames::of_mark(frames.mark()), frames);
    }
    let within = Frames { have: 5, header: [1; 8], ..Frames::HEADER };
    assert_eq!(Frames::of_mark(within.mark()), Frames { have: 5, ..Frames::HEADER });
}

#[test]
fn an_ended_connection_is_only_counted() {
    let mut connection = Connection::idle(1, role::SERVER);
    assert!(!connection.finish(), "nothing has begun");
    connection = Connection::idle(1, role::SERVER);
    step(&mut connection, REQUEST, b"GET / HTTP/1.1\r\n", 1);
    assert!(connection.finish());
    assert!(!connection.finish(), "once");
    assert_eq!(step(&mut connection, RESPONSE, b"HTTP/1.1 200 OK", 2), Meaning::Response);
    assert!(!connection.tells(Meaning::Response));
    assert_eq!(connection.totals.response_bytes, 15);
}

#[test]
fn a_request_that_was_answered_had_been_sent() {
    for (first_ns, last_ns, expected) in [(10, 90, 10), (10, 40, 40), (60, 90, 90)] {
        let mut connection = Connection::idle(1, role::CLIENT);
        connection.enter(Meaning::Begin, first_ns);
        connection.count(Meaning::First, 1, 50, 50);
        connection.count(Meaning::Begin, 1, first_ns, last_ns);
        assert_eq!(connection.totals.request_last_ns, expected, "sent from {first_ns} to {last_ns}");
    }
}

#[test]
fn the_longest_gap_is_kept() {
    let mut connection = Connection::idle(1, role::CLIENT);
    step(&mut connection, REQUEST, b"GET / HTTP/1.1\r\n", 5);
    for time in [100, 110, 150, 155] {
        step(&mut connection, RESPONSE, b"x", time);
    }
    let totals = connection.totals;
    assert_eq!((totals.request_last_ns, totals.response_first_ns, totals.response_last_ns), (5, 100, 155));
    assert_eq!((totals.longest_gap_ns, totals.response_chunks), (40, 4));
}

/// The tail is the end of everything that moved, however it was cut.
#[test]
fn the_tail_is_the_end_of_all_chunks() {
    let whole = b"0123456789abcdef";
    for cut in 1..whole.len() {
        for second in cut..=whole.len() {
            let mut connection = Connection::idle(1, role::SERVER);
            for part in [&whole[..cut], &whole[cut..second], &whole[second..]] {
                let mut last = [0; 8];
                let known = part.len().min(8);
                last[8 - known..].copy_from_slice(&part[part.len() - known..]);
                connection.keep_tail(Meaning::Response, part.len() as u64, last);
            }
            assert_eq!(&connection.response_tail, b"89abcdef", "cut at {cut} and {second}");
        }
    }
}

#[test]
fn payload_has_a_budget() {
    let mut connection = Connection::idle(1, role::CLIENT);
    assert_eq!(connection.room(Meaning::Begin), HEAD_BYTES);
    connection.enter(Meaning::Begin, 1);
    connection.copied(Meaning::Begin, 1000);
    assert_eq!((connection.room(Meaning::Request), connection.tells(Meaning::Request)), (24, true));
    connection.copied(Meaning::Request, 24);
    assert_eq!((connection.room(Meaning::Request), connection.tells(Meaning::Request)), (0, false));
    connection.copied(Meaning::Interim, 500);
    assert_eq!(connection.room(Meaning::First), HEAD_BYTES);
    connection.totals.response_chunks = CHUNK_RECORDS;
    assert!(connection.tells(Meaning::Response));
    connection.totals.response_chunks += 1;
    assert!(!connection.tells(Meaning::Response));
}
