//! What streams become, from records like the kernel's.

use proptest::prelude::*;
use rstest::rstest;

use crate::{
    capture::Record,
    decode::{
        DecodeConfig, Exchange, Incomplete, Key,
        testing::{MS, Run, Wire, line},
    },
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: (u8, u8, u32, &[u8]) = (4, 0, 0, &[0, 3, 0, 0, 0, 100]);

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const BOTH: u8 = END_STREAM | END_HEADERS;

fn frame((kind, flags, stream, payload): (u8, u8, u32, &[u8])) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

fn frames(frames: &[(u8, u8, u32, &[u8])]) -> Vec<u8> {
    frames.iter().flat_map(|it| frame(*it)).collect()
}

/// A header block of literal fields that leave the table as it is.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |(name, value): &(&str, &str)| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    fields.iter().flat_map(literal).collect()
}

/// The same, of fields that join the table.
fn added(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |(name, value): &(&str, &str)| {
        [&[0x40, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    fields.iter().flat_map(literal).collect()
}

fn get(path: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "shop:80")])
}

fn call(path: &str) -> Vec<u8> {
    block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "shop"),
        ("content-type", "application/grpc+proto"),
    ])
}

/// `:status: 200`
const OK: &[u8] = &[0x88];

fn preface(wire: &mut Wire) {
    wire.request(&[PREFACE, &frame(SETTINGS)].concat()).response(&frame(SETTINGS));
}

fn both(calls: impl Fn(&mut Wire)) -> [Run; 2] {
    [Wire::server(7), Wire::client(7)].map(|mut wire| {
        calls(&mut wire);
        Run::of(&wire.records)
    })
}

/// Each case: what moves, and the exchanges.
#[rstest]
#[case::one(
    |w: &mut Wire| {
        preface(w);
        w.request(&frame((1, BOTH, 1, &get("/a"))));
        w.response(&frames(&[(1, END_HEADERS, 1, OK), (0, END_STREAM, 1, b"hello")]));
    },
    &["GET /a 200 13..14..14 0→5 in 2"]
)]
#[case::all_in_one_call(
    |w: &mut Wire| {
        w.request(&[PREFACE, &frames(&[SETTINGS, (1, BOTH, 1, &get("/a"))])].concat());
        w.response(&frames(&[SETTINGS, (1, BOTH, 1, &[0x89])]));
    },
    &["GET /a 204 11..12..12 0→0 in 1"]
)]
#[case::multiplexed_and_out_of_order(
    |w: &mut Wire| {
        preface(w);
        w.request(&frames(&[(1, END_HEADERS, 1, &get("/a")), (1, BOTH, 3, &get("/b"))]));
        w.response(&frames(&[(1, END_HEADERS, 1, OK), (0, 0, 1, b"abc"), (1, END_HEADERS, 3, &[0x8d])]));
        w.request(&frame((0, END_STREAM, 1, b"body")));
        w.response(&frames(&[(0, END_STREAM, 3, b""), (0, 0, 1, b"d")]));
        w.response(&frame((0, END_STREAM, 1, b"ef")));
    },
    &["GET /b 404 13..14..16 0→0 in 2", "GET /a 200 13..14..17 4→6 in 4"]
)]
#[case::continuation_padding_and_priority(
    |w: &mut Wire| {
        preface(w);
        let request = get("/a");
        let (first, rest) = request.split_at(9);
        let first = [&[3, 0, 0, 0, 0, 15], first, &[0; 3]].concat();
        let (middle, rest) = rest.split_at(4);
        w.request(&frames(&[(1, 0x28 | END_STREAM, 1, &first), (9, 0, 1, middle), (9, END_HEADERS, 1, rest)]));
        w.response(&frames(&[(1, END_HEADERS, 1, OK), (0, 0x09, 1, b"\x02hello\0\0")]));
    },
    &["GET /a 200 13..14..14 0→8 in 2"]
)]
#[case::interim_responses_do_not_count(
    |w: &mut Wire| {
        preface(w);
        w.request(&frame((1, END_HEADERS, 1, &get("/a"))));
        w.response(&frame((1, END_HEADERS, 1, &block(&[(":status", "100")]))));
        w.request(&frame((0, END_STREAM, 1, b"body")));
        w.response(&frames(&[(1, END_HEADERS, 1, OK), (0, END_STREAM, 1, b"x")]));
    },
    &["GET /a 200 13..16..16 4→1 in 2"]
)]
#[case::a_long_body_is_only_counted(
    |w: &mut Wire| {
        preface(w);
        w.request(&frame((1, BOTH, 1, &get("/a"))));
        let bytes = frames(&[(1, END_HEADERS, 1, OK), (0, 0, 1, &[7; 5000]), (0, END_STREAM, 1, &[7; 300])]);
        bytes.chunks(1000).for_each(|chunk| { w.response(chunk); });
    },
    &["GET /a 200 13..14..19 0→5300 in 3"]
)]
#[case::reset(
    |w: &mut Wire| {
        preface(w);
        w.request(&frames(&[(1, BOTH, 1, &get("/a")), (1, BOTH, 3, &get("/b"))]));
        w.response(&frames(&[(1, END_HEADERS, 1, OK), (3, 0, 3, &[0, 0, 0, 2])]));
        w.request(&frame((3, 0, 1, &[0, 0, 0, 8])));
    },
    &["GET /b - 13..-..14 0→? in 0 failure=stream_reset", "GET /a 200 13..14..15 0→0 in 1 failure=stream_reset"]
)]
#[case::the_server_goes_away(
    |w: &mut Wire| {
        preface(w);
        w.request(&frames(&[(1, BOTH, 1, &get("/a")), (1, BOTH, 3, &get("/b"))]));
        w.response(&frame((7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])));
        w.response(&frame((1, BOTH, 1, OK)));
    },
    &["GET /b - 13..-..14 0→? in 0 failure=stream_refused", "GET /a 200 13..15..15 0→0 in 1"]
)]
#[case::closed_before_the_end(
    |w: &mut Wire| {
        preface(w);
        w.request(&frames(&[(1, BOTH, 1, &get("/a")), (1, BOTH, 3, &get("/b"))]));
        w.response(&frames(&[(1, END_HEADERS, 3, OK), (0, 0, 3, b"x")]));
        w.close();
    },
    &["GET /a - 13..-..15 0→? in 0 failure=connection_closed", "GET /b 200 13..14..15 0→1 in 2 failure=connection_closed"]
)]
#[case::behind_http1_on_the_same_connection(
    |w: &mut Wire| {
        w.request(b"GET /old HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        preface(w);
        w.request(&frame((1, BOTH, 1, &get("/a")))).response(&frame((1, BOTH, 1, OK)));
    },
    &["GET /old 200 11..12..12 0→0 in 1", "GET /a 200 15..16..16 0→0 in 1"]
)]
fn streams_become_exchanges(#[case] calls: fn(&mut Wire), #[case] expected: &[&str]) {
    for run in both(calls) {
        assert_eq!(run.lines(), expected);
        assert_eq!(run.causes(), Vec::<&str>::new());
        assert_eq!(run.decoder.open_exchanges(), 0);
    }
}

/// The request that asked for the switch is the first stream.
#[test]
fn h2c_by_upgrade() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".as_slice();
    let answer = frames(&[SETTINGS, (1, END_HEADERS, 1, OK), (0, END_STREAM, 1, b"hello")]);
    let request = b"GET /first HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n";
    for cut in [0, 1, 9, 20, answer.len()] {
        for run in both(|w| {
            let (with_head, later) = answer.split_at(cut);
            w.request(request).response(&[switch, with_head].concat());
            if !later.is_empty() {
                w.response(later);
            }
            w.request(&[PREFACE, &frames(&[SETTINGS, (1, BOTH, 3, &get("/second"))])].concat());
            w.response(&frame((1, BOTH, 3, &[0x89])));
        }) {
            let found: Vec<String> = run
                .exchanges
                .iter()
                .map(|it| {
                    let status = it.response.as_ref().unwrap().status;
                    format!("{} {status} {:?}", it.request.path().unwrap(), it.response_body_bytes)
                })
                .collect();
            assert_eq!(found, ["/first 200 Some(5)", "/second 204 Some(0)"], "cut at {cut}");
            assert_eq!(run.causes(), Vec::<&str>::new());
        }
    }
}

#[test]
fn trailers_tell_the_status_of_a_call() {
    for (trailers, expected) in [("0", Some(0)), ("14", Some(14)), ("x", None)] {
        for run in both(|w| {
            preface(w);
            w.request(&frames(&[(1, END_HEADERS, 1, &call("/shop.Cart/Add")), (0, END_STREAM, 1, b"\0\0\0\0\x01x")]));
            w.response(&frames(&[(1, END_HEADERS, 1, OK), (0, 0, 1, b"\0\0\0\0\x01y")]));
            w.response(&frame((1, BOTH, 1, &block(&[("grpc-status", trailers), ("grpc-message", "")]))));
        }) {
            let exchange = &run.exchanges[0];
            assert_eq!(exchange.grpc.unwrap().status, expected);
            assert_eq!((exchange.request_body_bytes, exchange.response_body_bytes), (Some(6), Some(6)));
            assert_eq!(exchange.request.path(), Some("/shop.Cart/Add"));
        }
    }
}

fn position(key: Key) -> u32 {
    match key {
        Key::Tcp { client_position, .. } => client_position,
        Key::Unix { .. } => panic!("not on TCP"),
    }
}

/// Both ends count the same bytes, so they name the same stream in the same way; whatever moved before.
#[test]
fn both_ends_give_a_stream_the_same_key() {
    let [server, client] = both(|w| {
        preface(w);
        for stream in [1, 3, 5] {
            w.request(&frame((1, BOTH, stream, &get("/a")))).response(&frame((1, BOTH, stream, OK)));
        }
    });
    let keys = |run: &Run| run.exchanges.iter().map(|it| it.origin.key.unwrap()).collect::<Vec<_>>();
    assert_eq!(keys(&server), keys(&client));
    let positions: Vec<u32> = keys(&server).iter().map(|key| position(*key)).collect();
    let size = frame((1, BOTH, 1, &get("/a"))).len() as u32;
    // The preface and SETTINGS of six bytes come first.
    assert_eq!(positions, [1_039, 1_039 + size, 1_039 + 2 * size]);
}

#[test]
fn a_connection_is_joined_at_a_request() {
    // GET, /, http, and an authority that was sent before; a method that must be known.
    let request = [0x82, 0x84, 0x86, 0xbe, 0x0f, 0x01, 0x01, b'x'];
    for run in both(|w| {
        w.request(&frame((1, BOTH, 7, &request))).response(&frame((1, END_HEADERS, 7, &[0x88, 0xbf])));
        w.response(&frame((0, END_STREAM, 7, b"hello")));
        // Fields that are added from now on are known.
        w.request(&frame((
            1,
            BOTH,
            9,
            &[&[0x82, 0x86][..], &added(&[(":authority", "new"), (":path", "/b")])].concat(),
        )));
        w.response(&frame((1, BOTH, 9, OK)));
        w.request(&frame((1, BOTH, 11, &[0x82, 0x86, 0xbe, 0xbf]))).response(&frame((1, BOTH, 11, OK)));
    }) {
        assert_eq!(
            run.lines(),
            [
                "GET / 200 11..12..13 0→5 in 2 incomplete=head",
                "GET /b 200 14..15..15 0→0 in 1",
                "GET /b 200 16..17..17 0→0 in 1",
            ]
        );
        assert_eq!(run.exchanges[2].request.host(), Some("new"));
        assert_eq!(run.causes(), Vec::<&str>::new());
    }
}

#[test]
fn what_only_looks_like_http2_is_refused() {
    let mut wire = Wire::server(7);
    // Plausible, but `:method` never comes.
    wire.request(&frame((1, BOTH, 1, &[0x86, 0x84, 0x41, 0x01, b'x', 0x86, 0x86])));
    wire.request(&frame((1, BOTH, 3, &get("/a"))));
    let run = Run::of(&wire.records);
    assert_eq!(run.lines(), Vec::<String>::new());
    assert_eq!(run.causes(), ["http2_refused"]);
}

/// The records of a connection with four requests, each on a stream of its own.
fn four(wire: &mut Wire) {
    preface(wire);
    for stream in [1, 3, 5, 7] {
        let request = if stream == 1 { added(&[(":path", "/a"), (":authority", "shop")]) } else { vec![0xbf, 0xbe] };
        wire.request(&frame((1, BOTH, stream, &[&[0x82, 0x86][..], &request].concat())));
        wire.response(&frames(&[(1, END_HEADERS, stream, OK), (0, END_STREAM, stream, &[7; 100])]));
    }
}

/// What depends on the missing record is unknown and counted; nothing is wrong.
#[rstest]
#[case::a_request(4, &["GET /a 200 13..14..14 0→100 in 2", "GET /a 200 17..18..18 0→100 in 1 incomplete=head"], &["begin_missing", "http2_gap", "http2_missed_bytes"])]
#[case::a_response(3, &["GET /a 200 15..16..16 0→? in 2", "GET /a 200 17..18..18 0→100 in 2", "GET /a 200 19..20..20 0→100 in 2", "GET /a - 13..-..13 0→? in 0 incomplete=response"], &["response_missing", "http2_gap", "http2_missed_bytes"])]
fn a_lost_record(#[case] lost: usize, #[case] expected: &[&str], #[case] causes: &[&str]) {
    let mut wire = Wire::server(7);
    four(&mut wire);
    wire.records.remove(lost);
    let run = Run::of(&wire.records);
    let (mut found, mut expected) = (run.lines(), expected.to_vec());
    if lost == 4 {
        // Its path and host refer to the table of before.
        assert_eq!(found.len(), 3);
        assert!(found[1..].iter().all(|line| line.contains("incomplete=head") && !line.contains("/a")), "{found:?}");
        (found, expected) = (found[..1].to_vec(), expected[..1].to_vec());
    }
    assert_eq!(found, expected);
    assert_eq!(run.causes(), causes);
    assert_eq!(run.decoder.open_exchanges(), 0);
}

#[test]
fn a_call_that_is_told_in_part_is_a_gap() {
    let mut wire = Wire::client(7);
    preface(&mut wire);
    wire.frames_room = 80;
    let requests: Vec<u8> = [1, 3, 5].iter().flat_map(|id| frame((1, BOTH, *id, &get("/a")))).collect();
    wire.request(&requests);
    wire.frames_room = usize::MAX;
    for stream in [1, 3, 5] {
        wire.response(&frame((1, BOTH, stream, OK)));
    }
    let run = Run::of(&wire.records);
    assert_eq!(run.lines().len(), 1);
    assert_eq!(run.causes(), ["begin_missing", "http2_gap", "http2_missed_bytes"]);
    assert_eq!(run.counters().begin_missing, 2);
}

/// Without the first record nobody knows whose connection it is.
#[test]
fn a_connection_without_its_first_record_is_counted() {
    let mut wire = Wire::server(7);
    four(&mut wire);
    wire.records.remove(0);
    let (last, before) = wire.records.split_last().unwrap();
    let mut run = Run::of(before);
    run.feed(std::slice::from_ref(last));
    assert_eq!(run.lines(), Vec::<String>::new());
    assert_eq!(run.causes(), ["begin_missing", "http2_missed_bytes"]);
}

#[test]
fn more_streams_than_are_followed_are_counted() {
    let mut wire = Wire::server(7);
    preface(&mut wire);
    for index in 0..super::STREAM_LIMIT as u32 + 3 {
        wire.request(&frame((1, BOTH, 1 + 2 * index, &get("/a"))));
    }
    let run = Run::of(&wire.records);
    assert_eq!((run.counters().evicted, run.decoder.open_exchanges()), (3, super::STREAM_LIMIT));
}

#[test]
fn unknown_ends_are_given_up_and_a_stream_that_speaks_is_not() {
    let mut wire = Wire::server(7);
    preface(&mut wire);
    wire.request(&frames(&[(1, BOTH, 1, &get("/gone")), (1, BOTH, 3, &get("/alive"))]));
    wire.response(&frames(&[(1, END_HEADERS, 1, OK), (1, END_HEADERS, 3, OK)]));
    wire.response(&frame((0, END_STREAM, 1, b"lost")));
    wire.records.pop();
    wire.response(&frame((0, 0, 3, b"x")));
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&wire.records);
    run.tick(wire.time_ns + 10_000 * MS);
    assert_eq!(run.lines(), ["GET /gone 200 13..14..14 0→? in 1 incomplete=end"]);
    assert_eq!(run.exchanges[0].incomplete, Some(Incomplete::End));
    assert_eq!(run.decoder.open_exchanges(), 1);
}

/// One stream is answered and goes on, another one waits for its answer.
#[test]
fn streams_that_are_open_are_shown() {
    let mut wire = Wire::server(7);
    preface(&mut wire);
    wire.request(&frame((1, BOTH, 1, &get("/events")))).request(&frame((1, BOTH, 3, &get("/poll"))));
    wire.response(&frames(&[(1, END_HEADERS, 1, OK), (0, 0, 1, b"hello")]));
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&std::mem::take(&mut wire.records));
    (1..=12).for_each(|second| run.tick(wire.time_ns + second * 1000 * MS));
    let lines = |exchanges: &[Exchange]| exchanges.iter().map(line).collect::<Vec<_>>();
    assert_eq!(lines(&run.running), ["GET /events 200 13..15..15 0→5 in 2", "GET /poll - 14..-..10015 0→? in 0"]);
    wire.wait(13_000 * MS).response(&frames(&[(0, END_STREAM, 1, b" world"), (1, BOTH, 3, OK)]));
    run.feed(&wire.records);
    assert_eq!(
        lines(&run.exchanges),
        ["GET /events 200 13..15..13016 0→11 in 3", "GET /poll 200 14..13016..13016 0→0 in 1"]
    );
}

fn calls() -> impl Strategy<Value = Vec<(bool, usize)>> {
    prop::collection::vec((any::<bool>(), 1_usize..60), 1..40)
}

proptest! {
    /// However the bytes are cut into calls and whatever records are lost: the books balance, and what is told is true.
    #[test]
    fn the_books_balance(sizes in calls(), lost in prop::collection::btree_set(1_usize..40, 0..5)) {
        let streams = [1_u32, 3, 5, 7];
        let mut requests = frame(SETTINGS);
        let mut responses = frame(SETTINGS);
        for stream in streams {
            let path = format!("/{stream}");
            requests.extend(frame((1, BOTH, stream, &[&[0x82, 0x86][..], &added(&[(":path", &path), (":authority", "a")])].concat())));
            responses.extend(frames(&[(1, END_HEADERS, stream, OK), (0, END_STREAM, stream, &vec![7; stream as usize * 20])]));
        }
        let mut wire = Wire::server(7);
        wire.request(PREFACE);
        let (mut requests, mut responses) = (requests.as_slice(), responses.as_slice());
        // A response never comes before its request: so requests go first.
        for (_, size) in sizes.iter().cycle() {
            if requests.is_empty() { break }
            let (now, later) = requests.split_at(requests.len().min(*size));
            wire.request(now);
            requests = later;
        }
        for (_, size) in sizes.iter().cycle() {
            if responses.is_empty() { break }
            // The kernel recognises the first frame only where it begins a call.
            let (now, later) = responses.split_at(responses.len().min(*size + 16));
            wire.response(now);
            responses = later;
        }
        wire.close();
        let mut index = 0;
        let whole = wire.records.len();
        wire.records.retain(|_| { index += 1; !lost.contains(&(index - 1)) });
        let mut run = Run::of(&wire.records);
        run.with(|decoder, emit| decoder.finish(emit));
        let counters = run.counters();
        prop_assert_eq!(counters.exchanges, counters.ended + counters.dropped());
        for exchange in &run.exchanges {
            let stream = exchange.origin.id.place;
            if let Some(path) = exchange.request.path() {
                prop_assert_eq!(path, format!("/{stream}"));
            }
            if exchange.incomplete.is_none() && exchange.failure.is_none() {
                let bytes = exchange.response_body_bytes;
                prop_assert!(bytes.is_none_or(|bytes| bytes == u64::from(stream) * 20), "{:?}", bytes);
            }
        }
        if wire.records.len() == whole {
            prop_assert_eq!(run.exchanges.len(), streams.len());
            prop_assert_eq!(run.causes(), Vec::<&str>::new());
        }
    }

    /// Any bytes behind a preface, in both directions.
    #[test]
    fn any_bytes_are_taken(calls in prop::collection::vec((any::<bool>(), any::<Vec<u8>>()), 0..20)) {
        let mut wire = Wire::server(7);
        preface(&mut wire);
        for (is_request, bytes) in calls.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            if *is_request { wire.request(bytes) } else { wire.response(bytes) };
        }
        wire.close();
        let run = Run::of(&wire.records);
        prop_assert_eq!(run.decoder.open_exchanges(), 0);
        let _: &[Record] = &wire.records;
    }
}
