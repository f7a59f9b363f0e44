//! Records that are missing, late, or make no sense.

use std::time::Duration;

use coati_common::event::{Exit, Header, Kind};
use rstest::rstest;

use super::super::testing::{MS, Run, Wire};
use super::{CHUNKED, GET, OK5, client, long_head, server};
use crate::{
    capture::Record,
    decode::{DecodeConfig, LongRunning, Role},
};

/// The records of `calls` without those at `lost`.
fn without(lost: &[usize], calls: impl FnOnce(&mut Wire)) -> Vec<Record> {
    let records = server(calls).into_iter().enumerate();
    records.filter(|(at, _)| !lost.contains(at)).map(|(_, record)| record).collect()
}

/// The records of `calls` in another order.
fn reordered(order: &[usize], calls: impl FnOnce(&mut Wire)) -> Vec<Record> {
    let records = server(calls);
    assert_eq!(records.len(), order.len());
    order.iter().map(|at| records[*at].clone()).collect()
}

#[test]
fn an_answer_that_was_not_seen_does_not_move_the_later_ones() {
    let ask = |path: &str| format!("GET /{path} HTTP/1.1\r\n\r\n").into_bytes();
    let run = Run::of(&client(|w| {
        w.request(GET).unseen(OK5.len() as u64).request(&ask("b")).response(OK5);
        w.request(&ask("c")).response(OK5).request(&ask("d")).response(OK5).close();
    }));
    assert_eq!(
        run.lines(),
        [
            "GET /a 200 11..13..13 0→5 in 1",
            "GET /b - 12..-..12 0→? in 0 incomplete=response",
            "GET /c 200 14..15..15 0→5 in 1",
            "GET /d 200 16..17..17 0→5 in 1",
        ]
    );
}

/// What the agent sees first is a line like a request in a body that a server sends; with a length, more of a body is due.
#[rstest]
fn a_body_that_looks_like_a_request_hides_no_later_one(
    #[values("GET /not", "POST /not HTTP/1.1\r\nContent-Length: 9000\r\n\r\n", "PUT ")] misread: &str,
) {
    let run = Run::of(&client(|w| {
        w.request(misread.as_bytes()).request(b"more of it").response(GET).response(OK5);
        w.request(b"GET /b HTTP/1.1\r\n\r\n").response(OK5).close();
    }));
    assert_eq!(run.lines(), ["GET /a 200 13..14..14 0→5 in 1", "GET /b 200 15..16..16 0→5 in 1"]);
    assert!(run.exchanges.iter().all(|it| it.origin.role == Role::Server));
    let counters = run.decoder.counters();
    assert_eq!((counters.exchanges, counters.ended, counters.request_malformed), (3, 2, 1));
}

/// Each request may have a connection of its own.
#[test]
fn of_a_connection_that_is_over_no_more_than_its_number_is_kept() {
    let records = server(|w| {
        w.request(GET).response(OK5).close();
    });
    let mut run = Run::new(DecodeConfig::default());
    for late in 0..2 {
        run.feed(&records);
        assert_eq!((run.exchanges.len(), run.decoder.connections()), (1, 0));
        let counters = run.decoder.counters();
        assert_eq!((counters.begin_late, counters.data_late, counters.begin_missing), (late, 2 * late, 0));
        run.tick(1_500 * MS);
    }
}

/// Where the hooks do not see the end of a Unix socket, that of its process ends what was open; what is told by then counts.
#[rstest]
#[case::on_a_unix_socket(Wire::server(1).on_unix(7, b"/run/a.sock"), &["GET /a - 11..-..11 0→? in 0 incomplete=response"])]
#[case::elsewhere(Wire::server(1), &[])]
fn what_was_open_ends_with_its_process(#[case] mut wire: Wire, #[case] exchanges: &[&str]) {
    wire.request(GET);
    let header = Header { kind: Kind::Exit as u32, time_ns: wire.time_ns, ..Header::default() };
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&wire.records);
    run.feed(&[Record::Exit(Exit { header, tgid: wire.tgid, reserved: 0 })]);
    run.tick(1_500 * MS);
    assert!(run.exchanges.is_empty(), "an End may be on its way");
    run.tick(3_000 * MS);
    assert_eq!(run.lines(), exchanges);
    assert_eq!(run.decoder.connections(), usize::from(exchanges.is_empty()));
}

fn two(wire: &mut Wire) {
    wire.request(GET).response(OK5).request(b"GET /b HTTP/1.1\r\n\r\n").response(OK5).close();
}

fn in_parts(wire: &mut Wire) {
    wire.request(GET).response(&OK5[..38]).response(b"he").response(b"llo");
}

#[rstest]
#[case::begin(without(&[0], two), &["GET /b 200 13..14..14 0→5 in 1"], &["begin_missing", "data_late"])]
#[case::second_begin(without(&[2], two), &["GET /a 200 11..12..12 0→5 in 1"], &["begin_missing"])]
#[case::begin_of_three(
    without(&[2, 3], |w| { two(&mut *w.request(GET).response(OK5)) }),
    &["GET /a 200 11..12..12 0→5 in 1", "GET /b 200 15..16..16 0→5 in 1"],
    &["begin_missing"]
)]
#[case::response(
    without(&[1], two),
    &["GET /a - 11..12..12 0→? in 1 incomplete=response", "GET /b 200 13..14..14 0→5 in 1"],
    &["response_missing"]
)]
#[case::last_response(
    without(&[3], two),
    &["GET /a 200 11..12..12 0→5 in 1", "GET /b - 13..14..14 0→? in 1 incomplete=response"],
    &["response_missing"]
)]
#[case::middle_of_the_response(without(&[2], in_parts), &["GET /a 200 11..12..14 0→5 in 3"], &[])]
#[case::rest_of_the_response(
    without(&[2, 3], |w| { in_parts(w); w.request(GET).response(OK5); }),
    &["GET /a 200 11..12..14 0→5 in 3", "GET /a 200 15..16..16 0→5 in 1"],
    &[]
)]
#[case::end_of_a_chunked_response(
    without(&[3], |w| { w.request(GET).response(CHUNKED).response(b"5\r\nhello\r\n").response(b"0\r\n\r\n").close(); }),
    &["GET /a 200 11..12..14 0→15 in 3"],
    &[]
)]
#[case::rest_of_the_request_head(
    without(&[1], |w| { w.request(b"GET /a HTTP/1.1\r\nHo").request(b"st: shop\r\n\r\n").response(OK5); }),
    &["GET /a 200 11..13..13 ?→5 in 1 incomplete=head"],
    &[]
)]
#[case::end(without(&[4], two), &["GET /a 200 11..12..12 0→5 in 1", "GET /b 200 13..14..14 0→5 in 1"], &[])]
fn lost(#[case] records: Vec<Record>, #[case] exchanges: &[&str], #[case] causes: &[&str]) {
    let run = Run::of(&records);
    assert_eq!((run.lines(), run.causes()), (exchanges.iter().map(ToString::to_string).collect(), causes.to_vec()));
    assert_eq!(run.decoder.open_exchanges(), 0);
}

#[rstest]
#[case::response_before_its_begin(
    reordered(&[1, 0, 2, 3, 4], two),
    &["GET /a 200 11..12..12 0→5 in 1", "GET /b 200 13..14..14 0→5 in 1"],
    &[]
)]
#[case::everything_backwards(
    reordered(&[2, 1, 0], |w| { w.request(GET).response(OK5).close(); }),
    &["GET /a 200 11..12..12 0→5 in 1"],
    &[]
)]
#[case::begin_behind_a_later_one(
    reordered(&[2, 0, 1, 3, 4], two),
    &["GET /b 200 13..14..14 0→5 in 1"],
    &["begin_late", "data_late"]
)]
#[case::parts_of_a_response(reordered(&[0, 1, 3, 2], in_parts), &["GET /a 200 11..12..14 0→5 in 3"], &[])]
#[case::start_of_a_response(
    reordered(&[0, 2, 1, 3], |w| {
        w.request(GET).response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").response(b"he").response(b"llo");
    }),
    &["GET /a 200 11..12..14 0→5 in 3"],
    &[]
)]
fn disordered(#[case] records: Vec<Record>, #[case] exchanges: &[&str], #[case] causes: &[&str]) {
    let run = Run::of(&records);
    assert_eq!((run.lines(), run.causes()), (exchanges.iter().map(ToString::to_string).collect(), causes.to_vec()));
    assert_eq!(run.decoder.open_exchanges(), 0);
}

#[rstest]
#[case::garbage_in_the_request(
    server(|w| { w.request(b"GET \x00\x01\x02\r\n\r\n").response(b"whatever").close(); }), &[], &["request_malformed"]
)]
#[case::another_protocol(server(|w| { w.request(b"GET key\r\n").response(b"$5\r\nhello\r\n").close(); }), &[], &["request_malformed"])]
#[case::garbage_behind_the_request(
    server(|w| { w.request(&[GET, b"\x16\x03\x01"].concat()).response(OK5); }),
    &["GET /a 200 11..12..12 0→5 in 1"],
    &[]
)]
#[case::garbage_in_the_response(
    server(|w| { w.request(GET).response(b"SSH-2.0-OpenSSH_9.2\r\n").request(GET).response(OK5); }),
    &["GET /a - 11..12..12 0→? in 1 incomplete=response", "GET /a 200 13..14..14 0→5 in 1"],
    &["response_malformed"]
)]
#[case::more_than_the_response(
    server(|w| { w.request(GET).response(&[OK5, b"more"].concat()).response(b"and more"); }),
    &["GET /a 200 11..12..12 0→5 in 1"],
    &["response_excess"]
)]
#[case::second_request_is_not_captured(
    server(|w| {
        let upload = [b"POST /a HTTP/1.1\r\nContent-Length: 2000\r\n\r\n", &[b'x'; 2000][..], GET].concat();
        w.request(&upload).response(OK5).response(OK5);
    }),
    &["POST /a 200 11..12..12 2000→5 in 1"],
    &["pipelined_unseen", "response_excess"]
)]
#[case::pipelined_responses_cannot_be_told_apart(
    server(|w| {
        w.request(&[GET, GET].concat()).response(&[&long_head("200 OK\r\nContent-Length: 2", 2000), &b"hi"[..], OK5].concat());
        w.request(b"GET /b HTTP/1.1\r\n\r\n").response(OK5);
    }),
    &["GET /a 200 11..12..12 0→2 in 1", "GET /b 200 13..14..14 0→5 in 1"],
    &["pipelined"]
)]
fn nonsense(#[case] records: Vec<Record>, #[case] exchanges: &[&str], #[case] causes: &[&str]) {
    let run = Run::of(&records);
    assert_eq!((run.lines(), run.causes()), (exchanges.iter().map(ToString::to_string).collect(), causes.to_vec()));
    assert_eq!(run.decoder.open_exchanges(), 0);
}

#[test]
fn a_request_of_which_nothing_was_read() {
    let mut records = server(|w| {
        w.request(GET).response(OK5);
    });
    if let Record::Begin(begin, payload) = &mut records[0] {
        begin.last = [0; 8];
        payload.clear();
    }
    let run = Run::of(&records);
    assert_eq!((run.lines(), run.causes()), (vec![], vec!["request_unreadable"]));
}

/// An exchange whose response has more chunks than get records.
fn streaming(head: &[u8]) -> (Run, Wire) {
    let mut wire = Wire::server(7);
    wire.request(GET).response(head);
    for _ in 0..99 {
        wire.response(&[b"a\r\n", &[b'x'; 10][..], b"\r\n"].concat());
    }
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&wire.records);
    (run, wire)
}

fn poll(run: &mut Run, wire: &Wire, silence_ns: u64) -> usize {
    let now_ns = wire.state.last_ns + silence_ns;
    let polled: Vec<LongRunning> = run.decoder.long_running().collect();
    for long in &polled {
        run.with(|decoder, emit| decoder.progress(long.connection, Some(&wire.state), now_ns, emit));
    }
    polled.len()
}

#[test]
fn a_long_response_ends_by_its_length() {
    let (mut run, mut wire) = streaming(b"HTTP/1.1 200 OK\r\nContent-Length: 1500\r\n\r\n");
    let long: Vec<_> = run.decoder.long_running().collect();
    // 63 of the 99 calls behind the head gave a record.
    let left = Some(1500 - 63 * 15);
    assert_eq!(long, [LongRunning { connection: 7, socket: 7 << 8, exchange: 1, left }]);
    poll(&mut run, &wire, 20 * MS);
    assert_eq!(run.decoder.long_running().next().unwrap().left, Some(15));
    wire.response(&[b'x'; 15]);
    poll(&mut run, &wire, 19 * MS);
    assert_eq!(run.lines(), Vec::<String>::new(), "the kernel may be writing the totals");
    poll(&mut run, &wire, 20 * MS);
    assert_eq!(run.lines(), ["GET /a 200 11..12..112 0→1500 in 101"]);
    assert_eq!(run.decoder.long_running().count(), 0);
}

#[test]
fn a_long_chunked_response_ends_by_its_tail() {
    let (mut run, mut wire) = streaming(CHUNKED);
    poll(&mut run, &wire, 20 * MS);
    assert_eq!(run.lines(), Vec::<String>::new());
    wire.response(b"0\r\n").response(b"\r\n");
    poll(&mut run, &wire, 20 * MS);
    assert_eq!(run.lines(), ["GET /a 200 11..12..113 0→1490 in 102"]);
}

#[test]
fn a_long_response_ends_by_the_next_request() {
    let (mut run, mut wire) = streaming(CHUNKED);
    let told = wire.records.len();
    wire.response(b"0\r\n\r\n").request(GET).response(OK5);
    run.feed(&wire.records[told..]);
    assert_eq!(run.lines(), ["GET /a 200 11..12..112 0→1490 in 101", "GET /a 200 113..114..114 0→5 in 1"]);
    assert_eq!(run.causes(), Vec::<&str>::new());
}

#[test]
fn totals_of_the_next_exchange_are_not_those_of_this_one() {
    let (mut run, mut wire) = streaming(CHUNKED);
    wire.response(b"0\r\n\r\n").request(GET);
    poll(&mut run, &wire, 20 * MS);
    assert_eq!(run.lines(), Vec::<String>::new());
    wire.state.connection = 8;
    poll(&mut run, &wire, 20 * MS);
    poll(&mut run, &wire, 20 * MS);
    assert_eq!(run.causes(), ["end_missing"], "the socket's address belongs to another connection now");
}

#[test]
fn a_silent_exchange_is_asked_about() {
    let mut wire = Wire::server(7);
    wire.request(GET).response(&OK5[..40]).response(&OK5[40..]);
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&wire.records[..2]);
    run.tick(wire.time_ns + 9_000 * MS);
    assert_eq!(run.decoder.long_running().count(), 0);
    run.tick(wire.time_ns + 11_000 * MS);
    assert_eq!(poll(&mut run, &wire, 11_000 * MS), 1);
    assert_eq!(run.lines(), ["GET /a 200 11..12..13 0→5 in 2"], "the record of its last bytes was lost");
}

#[test]
fn a_connection_that_the_kernel_does_not_know_any_more_is_over() {
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&server(|w| {
        w.request(GET).response(&OK5[..40]);
    }));
    run.with(|decoder, emit| decoder.progress(7, None, 0, emit));
    assert_eq!(run.lines(), Vec::<String>::new(), "its end may be on the way");
    run.with(|decoder, emit| decoder.progress(7, None, 0, emit));
    assert_eq!(run.lines(), ["GET /a 200 11..12..12 0→2 in 1 incomplete=end"]);
    assert_eq!(run.causes(), ["end_missing"]);
}

#[test]
fn a_response_whose_head_is_cut_ends_by_silence() {
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&server(|w| {
        w.request(GET).response(&long_head("200 OK\r\nContent-Length: 5", 2000)).response(b"hello");
    }));
    run.tick(1_012 * MS);
    assert_eq!(run.lines(), Vec::<String>::new());
    run.tick(2_500 * MS);
    assert_eq!(run.lines(), ["GET /a 200 11..12..13 0→5 in 2"]);
}

#[rstest]
#[case::cut_head(&long_head("200 OK", 2000), "GET /a 200 11..12..13 0→? in 2 incomplete=end")]
#[case::no_head(b"hello", "GET /a - 11..12..13 0→? in 2 incomplete=response")]
fn a_response_of_unknown_length_is_given_up_after_a_silence(#[case] response: &[u8], #[case] expected: &str) {
    let mut run = Run::new(DecodeConfig::default());
    let mut wire = Wire::server(7);
    wire.request(GET).response(response).response(b"hello");
    run.feed(&wire.records);
    run.tick(3_012 * MS);
    assert_eq!(run.lines(), Vec::<String>::new());
    run.tick(4_500 * MS);
    assert_eq!(run.lines(), [expected]);
    assert_eq!(run.decoder.open_exchanges(), 0);
}

/// The final response begins where nothing is seen: that there was one is all that is known, and it is not the interim
/// one.
#[rstest]
#[case::then_silence(false, &["GET /a - 11..12..12 0→? in 1 incomplete=response"])]
#[case::then_the_next_request(
    true,
    &["GET /a - 11..12..12 0→? in 1 incomplete=response", "GET /a 200 13..14..14 0→5 in 1"]
)]
fn a_final_response_behind_an_interim_one_that_is_cut(#[case] goes_on: bool, #[case] expected: &[&str]) {
    let run = Run::of(&server(|w| {
        w.request(GET).response(&[&long_head("103 Early Hints", 2000), OK5].concat());
        if goes_on {
            w.request(GET).response(OK5);
        }
    }));
    assert_eq!(run.lines(), expected);
    assert_eq!(run.causes(), ["response_missing"]);
}

#[test]
fn a_response_of_unknown_length_that_moves_is_not_silent() {
    let (mut run, mut wire) = streaming(&long_head("200 OK", 2000));
    for _ in 0..5 {
        wire.wait(2_000 * MS).response(b"more");
        poll(&mut run, &wire, 0);
        run.tick(wire.time_ns + MS);
    }
    assert_eq!(run.lines(), Vec::<String>::new());
    run.tick(wire.time_ns + 4_000 * MS);
    assert_eq!(run.exchanges.len(), 1);
}

#[test]
fn what_is_open_at_the_end_is_told_as_far_as_it_is_known() {
    let mut run = Run::new(DecodeConfig::default());
    run.feed(&Wire::merge(&[
        Wire::server(1).request(GET),
        Wire::server(2).request(GET).response(&OK5[..40]),
        Wire::server(3).request(GET).close(),
    ]));
    run.with(|decoder, emit| decoder.finish(emit));
    let mut lines = run.lines();
    lines.sort();
    assert_eq!(
        lines,
        [
            "GET /a - 11..-..11 0→? in 0 incomplete=response",
            "GET /a - 11..-..12 0→? in 0 failure=connection_closed",
            "GET /a 200 11..12..12 0→2 in 1 incomplete=end",
        ]
    );
}

#[test]
fn a_full_table_gives_up_the_quietest() {
    let config = DecodeConfig { max_connections: 32, ..DecodeConfig::default() };
    let mut run = Run::new(config);
    for connection in 1..=40 {
        let mut wire = Wire::server(connection);
        wire.wait(connection * MS).request(GET);
        run.feed(&wire.records);
        assert!(run.decoder.connections() <= 32);
    }
    let counters = run.counters();
    assert_eq!((counters.exchanges, counters.evicted), (40, 9));
    assert_eq!(run.told.iter().filter(|told| *told == "dropped 1.0").count(), 9);
    assert_eq!(run.decoder.open_exchanges(), 31);
    // The oldest are gone, the newest answer.
    run.feed(&{
        let mut wire = Wire::server(40);
        wire.wait(40 * MS).request(GET).response(OK5).records.split_off(1)
    });
    assert_eq!(run.lines().len(), 1);
}

#[test]
fn records_do_not_wait_for_ever() {
    let config = DecodeConfig { hold: Duration::from_millis(100), ..DecodeConfig::default() };
    let mut run = Run::new(config);
    let records = server(|w| {
        w.request(GET).response(&OK5[..40]).response(&OK5[40..]).request(GET).response(OK5);
    });
    run.feed(&records[1..3]);
    run.tick(records[2].header().time_ns + 98 * MS);
    assert_eq!(run.causes(), Vec::<&str>::new());
    run.tick(records[2].header().time_ns + 100 * MS);
    assert_eq!(run.counters().begin_missing, 1, "two records, but one exchange");
    run.feed(&records[3..]);
    assert_eq!(run.lines(), ["GET /a 200 14..15..15 0→5 in 1"]);
}
