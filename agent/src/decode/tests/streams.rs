//! Long responses while they run, and connections that are switched to WebSocket.

use rstest::rstest;

use super::super::{
    Progress, WebSocket, WebSocketSide,
    testing::{MS, Run, Wire},
};
use crate::decode::DecodeConfig;

const SECOND: u64 = 1_000 * MS;
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
