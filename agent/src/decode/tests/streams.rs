//! Long responses while they run, and connections that are switched to WebSocket.

use rstest::rstest;

use super::super::{
    Decoder, Exchange, Incomplete, Progress, WebSocket, WebSocketSide,
    testing::{MS, Run, Wire},
};
use crate::decode::DecodeConfig;

const SECOND: u64 = 1_000 * MS;
const GET_EVENTS: &[u8] = b"GET /events HTTP/1.1\r\n\r\n";
const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const UPGRADE: &[u8] = b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

/// A stream of an event a second, with the agent's looks at the time in between.
#[test]
fn a_long_response_is_noted_every_ten_seconds() {
    let mut wire = Wire::server(7);
    wire.request(b"GET /events HTTP/1.1\r\n\r\n").response(STREAM);
    let mut run = Run::new(DecodeConfig::default());
    for _ in 0..35 {
        wire.wait(SECOND - MS).response(b"data: 1\n\n");
        run.feed(&std::mem::take(&mut wire.records));
        run.tick(wire.time_ns);
    }
    assert_eq!(run.decoder.long_streams(), 1, "while it runs");
    wire.close();
    run.feed(&wire.records);
    run.tick(wire.time_ns + 5 * SECOND);
    assert_eq!(run.decoder.long_streams(), 0);
    let begin = 12 * MS;
    let expected = [10, 20, 30].map(|seconds| Progress {
        time_ns: begin + seconds * SECOND,
        request_bytes: 24,
        response_bytes: STREAM.len() as u64 + 9 * seconds,
        chunks: seconds as u32 + 1,
    });
    assert_eq!(run.exchanges[0].progress, expected);
}

/// Beyond the first chunks the kernel only counts: what it says is noted, however busy the stream is.
#[test]
fn what_the_kernel_counts_is_noted() {
    let mut wire = Wire::client(7);
    wire.request(b"GET /tokens HTTP/1.1\r\n\r\n").response(STREAM);
    let mut run = Run::new(DecodeConfig::default());
    for _ in 0..200 {
        wire.wait(100 * MS).response(b"token\n");
        run.feed(&std::mem::take(&mut wire.records));
        let (state, now_ns) = (wire.state, wire.time_ns);
        run.with(|decoder, emit| decoder.progress(7, Some(&state), now_ns, emit));
        run.tick(now_ns);
    }
    wire.close();
    run.feed(&wire.records);
    run.tick(wire.time_ns + 5 * SECOND);
    let [first, ..] = run.exchanges[0].progress.as_slice() else { panic!("nothing was noted") };
    assert!(first.chunks > 90 && first.response_bytes > 90 * 6, "{first:?}");
}

#[test]
fn a_short_response_has_no_notes() {
    let mut wire = Wire::server(7);
    wire.request(b"GET / HTTP/1.1\r\n\r\n").wait(60 * SECOND).response(STREAM).close();
    let run = Run::of(&wire.records);
    assert!(run.exchanges[0].progress.is_empty());
}

/// What moves behind the switch, and what is told of it.
#[rstest]
#[case::closed_by_both(
    |w: &mut Wire| {
        w.request(b"\x81\x85\x01\x02\x03\x04abcde").response(b"\x81\x05hello").response(b"\x82\x01x");
        w.request(b"\x88\x82\x01\x02\x03\x04\x02\xea").response(b"\x88\x02\x03\xe8");
    },
    (Some(1), 19), (Some(2), 14), Some(1000)
)]
#[case::gone_without_a_word(
    |w: &mut Wire| { w.response(b"\x81\x05hello").close(); },
    (Some(0), 0), (Some(1), 7), None
)]
#[case::more_frames_than_are_told(
    |w: &mut Wire| {
        let long = [&b"\x82\x7e\x07\xd0"[..], &[7; 2000], b"\x81\x01x"].concat();
        w.response(&long).response(b"\x81\x01y").close();
    },
    (Some(0), 0), (None, 2010), None
)]
fn a_websocket_is_one_exchange(
    #[case] calls: fn(&mut Wire),
    #[case] sent: (Option<u64>, u64),
    #[case] received: (Option<u64>, u64),
    #[case] close_code: Option<u16>,
) {
    for mut wire in [Wire::server(7), Wire::client(7)] {
        wire.request(UPGRADE).response(SWITCH).wait(3 * SECOND);
        calls(&mut wire);
        let run = Run::of(&wire.records);
        assert_eq!(run.exchanges.len(), 1, "{:?}", run.told);
        let side = |(messages, bytes)| WebSocketSide { messages, bytes };
        let expected = WebSocket { requests: side(sent), responses: side(received), close_code };
        assert_eq!(run.exchanges[0].websocket, Some(expected));
        assert_eq!(run.exchanges[0].response.as_ref().unwrap().status, 101);
        assert!(run.exchanges[0].end_ns > 3 * SECOND, "it is over with the connection");
        assert_eq!(run.told, ["began 1.0", "upgraded 1.0", "ended 1.0"]);
        assert_eq!(run.decoder.open_exchanges(), 0);
    }
}

/// A frame in the call of the head.
#[test]
fn a_websocket_may_speak_at_once() {
    let mut wire = Wire::server(7);
    wire.request(UPGRADE).response(&[SWITCH, b"\x81\x01x"].concat()).response(b"\x81\x01y").close();
    let websocket = Run::of(&wire.records).exchanges[0].websocket.unwrap();
    assert_eq!(websocket.responses, WebSocketSide { messages: Some(2), bytes: 6 });
}

#[test]
fn another_protocol_ends_the_exchange_with_the_switch() {
    let mut wire = Wire::server(7);
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\n\r\n";
    wire.request(b"POST /exec HTTP/1.1\r\n\r\n").response(switch).response(b"raw").request(b"bytes").close();
    let run = Run::of(&wire.records);
    assert_eq!((run.exchanges.len(), run.exchanges[0].websocket), (1, None));
    assert_eq!(run.causes(), Vec::<&str>::new());
}

/// Looks at the time once a second for `seconds`, while every second `each` moves something.
fn run_for(wire: &mut Wire, config: DecodeConfig, seconds: u64, each: impl Fn(&mut Wire)) -> Run {
    let mut run = Run::new(config);
    for _ in 0..seconds {
        let next_ns = wire.time_ns + SECOND;
        each(wire);
        wire.time_ns = next_ns;
        run.feed(&std::mem::take(&mut wire.records));
        let (connection, state, now_ns) = (wire.state.connection, wire.state, wire.time_ns);
        run.with(|decoder, emit| decoder.progress(connection, Some(&state), now_ns, emit));
        run.tick(now_ns);
    }
    run
}

/// When it was shown and with which end, both in seconds since its begin, and bytes of its response.
fn shown(run: &Run) -> Vec<(u64, u64)> {
    let seconds = |exchange: &Exchange| (exchange.end_ns - exchange.origin.begin_ns + 20 * MS) / SECOND;
    run.running.iter().map(|exchange| (seconds(exchange), exchange.response_body_bytes.unwrap_or_default())).collect()
}

/// Each case: what has moved at first and what moves every second; then the ends it is shown with, in seconds since the
/// begin, and the bytes of its answer by then.
#[rstest]
#[case::stream(
    |w: &mut Wire| { w.request(GET_EVENTS).response(STREAM); },
    |w: &mut Wire| { w.response(b"data: 1\n\n"); },
    &[(9, 90), (29, 270), (69, 630)]
)]
#[case::silent(
    |w: &mut Wire| { w.request(GET_EVENTS).response(STREAM).response(b"data: 1\n\n"); },
    |_: &mut Wire| {},
    &[(0, 9), (0, 9), (0, 9)]
)]
#[case::not_answered(|w: &mut Wire| { w.request(GET_EVENTS); }, |_: &mut Wire| {}, &[(10, 0), (30, 0), (70, 0)])]
#[case::websocket(
    |w: &mut Wire| { w.request(UPGRADE).response(SWITCH).response(b"\x81\x05hello"); },
    |_: &mut Wire| {},
    &[(10, 0), (30, 0), (70, 0)]
)]
fn what_is_open_is_shown_as_if_it_ended_now(
    #[case] first: fn(&mut Wire),
    #[case] each: fn(&mut Wire),
    #[case] expected: &[(u64, u64)],
) {
    for mut wire in [Wire::server(7), Wire::client(7)] {
        first(&mut wire);
        let mut run = run_for(&mut wire, DecodeConfig::default(), 80, each);
        assert_eq!(shown(&run), expected);
        assert!(run.exchanges.is_empty());
        wire.close();
        run.feed(&wire.records);
        run.tick(wire.time_ns + 5 * SECOND);
        let [last] = &run.exchanges[..] else { panic!("{:?}", run.told) };
        for shown in &run.running {
            assert_eq!(shown.origin, last.origin);
            assert_eq!((shown.incomplete, shown.failure), (None, None));
            assert!(shown.end_ns <= last.end_ns);
        }
        let messages = |exchange: &Exchange| exchange.websocket.map(|it| it.responses);
        assert_eq!(messages(&run.running[0]), messages(last));
    }
}

#[test]
fn what_the_kernel_only_counts_is_shown() {
    let mut wire = Wire::client(7);
    wire.request(GET_EVENTS).response(STREAM);
    let run = run_for(&mut wire, DecodeConfig::default(), 12, |wire| {
        for _ in 0..30 {
            wire.response(b"token\n");
        }
    });
    let [shown] = &run.running[..] else { panic!("{:?}", run.running) };
    let chunks = 10 * 30 + 1;
    assert_eq!((shown.response_chunks, shown.response_body_bytes), (chunks, Some(6 * u64::from(chunks - 1))));
    assert!(shown.end_ns - shown.origin.begin_ns > 9 * SECOND);
}

#[test]
fn nothing_is_shown_where_it_is_turned_off() {
    let mut wire = Wire::server(7);
    wire.request(GET_EVENTS).response(STREAM);
    let config = DecodeConfig { show_after: None, ..DecodeConfig::default() };
    assert!(run_for(&mut wire, config, 40, |_| {}).running.is_empty());
}

/// It was still open when it was last shown, so it did not end before, even if nothing is known of how it went on.
#[test]
fn an_exchange_does_not_end_before_it_was_last_shown() {
    let mut wire = Wire::server(7);
    wire.request(GET_EVENTS);
    let mut run = run_for(&mut wire, DecodeConfig::default(), 15, |_| {});
    run.with(Decoder::finish);
    assert_eq!(run.exchanges[0].end_ns, run.running[0].end_ns);
    assert_eq!(run.exchanges[0].incomplete, Some(Incomplete::Response));
}
