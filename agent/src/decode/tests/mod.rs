//! What exchanges become, from records like the kernel's.

mod heads;
mod loss;
mod properties;
mod streams;

use coati_common::event::Totals;
use rstest::rstest;

use super::testing::{MS, Run, Wire};
use crate::capture::Record;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
const OK5: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn server(calls: impl FnOnce(&mut Wire)) -> Vec<Record> {
    let mut wire = Wire::server(7);
    calls(&mut wire);
    wire.records
}

fn client(calls: impl FnOnce(&mut Wire)) -> Vec<Record> {
    let mut wire = Wire::client(7);
    calls(&mut wire);
    wire.records
}

/// A complete response of which `tail` is all that the capture limit leaves for the body's end.
fn long_head(status_and_headers: &str, filler: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status_and_headers}\r\nX-Filler: {}\r\n\r\n", "x".repeat(filler)).into_bytes()
}

#[rstest]
#[case::one(server(|w| { w.request(GET).response(OK5); }), &["GET /a 200 11..12..12 0→5 in 1"])]
#[case::keep_alive(
    server(|w| { w.request(GET).response(OK5).request(GET).response(OK5); }),
    &["GET /a 200 11..12..12 0→5 in 1", "GET /a 200 13..14..14 0→5 in 1"]
)]
#[case::webdav_between_others(
    server(|w| {
        w.request(GET).response(OK5).request(b"PROPFIND /a HTTP/1.1\r\n\r\n").response(OK5).request(GET).response(OK5);
    }),
    &["GET /a 200 11..12..12 0→5 in 1", "PROPFIND /a 200 13..14..14 0→5 in 1", "GET /a 200 15..16..16 0→5 in 1"]
)]
#[case::request_in_pieces(
    server(|w| { w.request(b"GET /a HT").request(b"TP/1.1\r\nHost: shop\r\n").request(b"\r\n").response(OK5); }),
    &["GET /a 200 11..14..14 0→5 in 1"]
)]
#[case::response_in_pieces(
    server(|w| { w.request(GET); for byte in OK5 { w.response(&[*byte]); } }),
    &["GET /a 200 11..12..54 0→5 in 43"]
)]
#[case::head_then_body(
    server(|w| { w.request(b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n").request(b"abc").response(OK5); }),
    &["POST /a 200 11..13..13 3→5 in 1"]
)]
#[case::writev(
    client(|w| { w.request(b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").response(OK5); }),
    &["POST /a 200 11..12..12 3→5 in 1"]
)]
#[case::large_upload(
    server(|w| {
        w.request(b"POST /a HTTP/1.1\r\nContent-Length: 6000\r\n\r\n").request(&[b'x'; 3000]).request(&[b'x'; 3000]);
        w.response(OK5);
    }),
    &["POST /a 200 11..14..14 6000→5 in 1"]
)]
#[case::chunked_upload(
    server(|w| {
        w.request(b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").request(b"0\r\n\r\n").response(OK5);
    }),
    &["POST /a 200 11..13..13 13→5 in 1"]
)]
#[case::sendfile(
    server(|w| { w.request(GET).response(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n").sendfile(4000).sendfile(5000); }),
    &["GET /a 200 11..12..14 0→9000 in 3"]
)]
#[case::head(
    server(|w| { w.request(b"HEAD /a HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"); }),
    &["HEAD /a 200 11..12..12 0→0 in 1"]
)]
#[case::no_content(
    server(|w| { w.request(GET).response(b"HTTP/1.1 204 No Content\r\n\r\n"); }),
    &["GET /a 204 11..12..12 0→0 in 1"]
)]
#[case::not_modified(
    server(|w| { w.request(GET).response(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"); }),
    &["GET /a 304 11..12..12 0→0 in 1"]
)]
#[case::continue_then_body(
    server(|w| {
        w.request(b"PUT /a HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
        w.response(b"HTTP/1.1 100 Continue\r\n\r\n").request(b"abc").response(OK5);
    }),
    &["PUT /a 200 11..14..14 3→5 in 1"]
)]
#[case::early_hints(
    client(|w| {
        w.request(GET).response(b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n");
        w.response(b"HTTP/1.1 103 Early Hints\r\n\r\n").response(OK5);
    }),
    &["GET /a 200 11..14..14 0→5 in 1"]
)]
#[case::early_hints_over_the_limit(
    server(|w| { w.request(GET).response(&long_head("103 Early Hints", 2000)).wait(40 * MS).response(OK5); }),
    &["GET /a 200 11..53..53 0→5 in 1"]
)]
#[case::early_hints_over_the_limit_twice(
    client(|w| {
        w.request(GET).response(&long_head("103 Early Hints", 2000)).response(&long_head("103 Early Hints", 3000));
        w.response(&OK5[..20]).response(&OK5[20..]);
        w.request(GET).response(OK5);
    }),
    &["GET /a 200 11..14..15 0→5 in 2", "GET /a 200 16..17..17 0→5 in 1"]
)]
#[case::final_behind_interim(
    client(|w| { w.request(GET).response(&[b"HTTP/1.1 100 Continue\r\n\r\n", OK5].concat()); }),
    &["GET /a 200 11..12..12 0→5 in 1"]
)]
#[case::final_behind_interim_in_pieces(
    client(|w| {
        w.request(GET).response(&[b"HTTP/1.1 100 Continue\r\n\r\n", &OK5[..20]].concat());
        w.response(&OK5[20..40]).response(&OK5[40..]);
    }),
    &["GET /a 200 11..12..14 0→5 in 3"]
)]
#[case::chunked(
    server(|w| { w.request(GET).response(CHUNKED).response(b"5\r\nhello\r\n").response(b"0\r\n\r\n"); }),
    &["GET /a 200 11..12..14 0→15 in 3"]
)]
#[case::chunked_at_once(
    server(|w| { w.request(GET).response(&[CHUNKED, b"5;ext=1\r\nhello\r\n0\r\n\r\n"].concat()); }),
    &["GET /a 200 11..12..12 0→21 in 1"]
)]
#[case::chunked_with_a_line_that_looks_like_the_end(
    server(|w| { w.request(GET).response(&[CHUNKED, b"5\r\n\r\n0\r\n\r\n"].concat()).response(b"0\r\n\r\n"); }),
    &["GET /a 200 11..12..13 0→15 in 2"]
)]
#[case::chunked_with_trailers(
    server(|w| { w.request(GET).response(&[CHUNKED, b"5\r\nhello\r\n"].concat()).response(b"0\r\nA: b\r\n").response(b"\r\n"); }),
    &["GET /a 200 11..12..14 0→21 in 3"]
)]
#[case::chunked_large_at_once(
    server(|w| { w.request(GET).response(&[CHUNKED, b"1000\r\n", &[b'x'; 0x1000], b"\r\n0\r\n\r\n"].concat()); }),
    &["GET /a 200 11..12..12 0→4109 in 1"]
)]
#[case::chunked_large_in_many_chunks(
    server(|w| {
        let chunk = [b"1000\r\n", &[b'x'; 0x1000][..], b"\r\n"].concat();
        w.request(GET).response(CHUNKED).response(&chunk).response(&chunk).response(&chunk).response(b"0\r\n\r\n");
    }),
    &["GET /a 200 11..12..16 0→12317 in 5"]
)]
#[case::length_over_many_calls(
    server(|w| {
        w.request(GET).response(b"HTTP/1.1 200 OK\r\nContent-Length: 6000\r\n\r\n");
        (0..6).for_each(|_| { w.response(&[b'x'; 1000]); });
    }),
    &["GET /a 200 11..12..18 0→6000 in 7"]
)]
#[case::until_close(
    server(|w| { w.request(GET).response(b"HTTP/1.0 200 OK\r\n\r\nhello").response(b" world").wait(40 * MS).close(); }),
    &["GET /a 200 11..12..13 0→11 in 2"]
)]
#[case::until_end_of_file(
    client(|w| { w.request(GET).response(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello").eof().wait(40 * MS).close(); }),
    &["GET /a 200 11..12..12 0→5 in 1"]
)]
#[case::end_of_file_behind_more_calls_than_records(
    client(|w| {
        w.request(GET).response(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        (0..100).for_each(|_| { w.response(&[b'x'; 10]); });
        w.eof().close();
    }),
    &["GET /a 200 11..12..112 0→1000 in 101"]
)]
#[case::client_shuts_its_side(
    server(|w| { w.request(GET).eof().response(OK5).close(); }),
    &["GET /a 200 11..13..13 0→5 in 1"]
)]
#[case::no_answer(
    server(|w| { w.request(GET).wait(40 * MS).close(); }),
    &["GET /a - 11..-..52 0→? in 0 failure=connection_closed"]
)]
#[case::no_answer_at_the_client(
    client(|w| { w.request(GET).wait(40 * MS).eof().close(); }),
    &["GET /a - 11..-..52 0→? in 0 failure=connection_closed"]
)]
#[case::reset(
    client(|w| { w.request(GET).reset(); }),
    &["GET /a - 11..-..12 0→? in 0 failure=connection_reset"]
)]
#[case::only_an_interim_answer(
    client(|w| { w.request(GET).response(b"HTTP/1.1 100 Continue\r\n\r\n").close(); }),
    &["GET /a - 11..-..13 0→? in 0 failure=connection_closed"]
)]
#[case::client_gone_in_the_middle(
    server(|w| { w.request(GET).response(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello").close(); }),
    &["GET /a 200 11..12..12 0→5 in 1 failure=connection_closed"]
)]
#[case::gone_in_a_chunk(
    server(|w| { w.request(GET).response(&[CHUNKED, b"5\r\nhel"].concat()).reset(); }),
    &["GET /a 200 11..12..12 0→6 in 1 failure=connection_reset"]
)]
#[case::gone_in_the_response_head(
    server(|w| { w.request(GET).response(b"HTTP/1.1 200 OK\r\nContent-Le").close(); }),
    &["GET /a 200 11..12..12 0→? in 1 failure=connection_closed"]
)]
#[case::upgrade(
    server(|w| {
        w.request(b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
        w.response(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello").response(b"\x81\x05hello").close();
    }),
    // It is over with the connection.
    &["GET /ws 101 11..12..14 0→0 in 1"]
)]
#[case::connect(
    server(|w| {
        w.request(b"CONNECT db:443 HTTP/1.1\r\nHost: db:443\r\n\r\n").response(b"HTTP/1.1 200 OK\r\n\r\n");
        w.request(b"\x16\x03\x01").response(b"\x16\x03\x03").close();
    }),
    &["CONNECT db:443 200 11..12..12 0→0 in 1"]
)]
#[case::connect_refused(
    server(|w| { w.request(b"CONNECT db:443 HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"); }),
    &["CONNECT db:443 403 11..12..12 0→2 in 1"]
)]
#[case::answered_before_the_upload_ends(
    server(|w| {
        w.request(b"POST /a HTTP/1.1\r\nContent-Length: 9000\r\n\r\nabc").response(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
        w.request(&[b'x'; 500]).close();
    }),
    &["POST /a 413 11..12..12 3→0 in 1"]
)]
#[case::refused_before_the_head_ends(
    server(|w| { w.request(b"GET /a HTTP/1.1\r\nHost: sh").response(b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n"); }),
    &["GET /a 408 11..12..12 ?→0 in 1 incomplete=head"]
)]
#[case::request_head_over_the_limit(
    server(|w| {
        let filler = format!("X-Filler: {}\r\n\r\n", "x".repeat(2000));
        w.request(&[b"GET /a HTTP/1.1\r\nHost: shop\r\n", filler.as_bytes()].concat()).response(OK5);
    }),
    &["GET /a 200 11..12..12 ?→5 in 1 incomplete=head"]
)]
#[case::a_mebibyte_of_headers(
    server(|w| {
        w.request(b"GET /a HTTP/1.1\r\nHost: shop\r\n");
        (0..1024).for_each(|_| { w.request(format!("X-Filler: {}\r\n", "x".repeat(1012)).as_bytes()); });
        w.request(b"\r\n").response(OK5);
    }),
    &["GET /a 200 11..1037..1037 ?→5 in 1 incomplete=head"]
)]
#[case::response_head_over_the_limit_without_a_body(
    server(|w| { w.request(GET).response(&long_head("204 No Content", 2000)).close(); }),
    &["GET /a 204 11..12..12 0→0 in 1"]
)]
#[case::response_head_over_the_limit_chunked(
    server(|w| {
        w.request(GET).response(&long_head("200 OK\r\nTransfer-Encoding: chunked", 2000)).response(b"5\r\nhello\r\n0\r\n\r\n");
    }),
    &["GET /a 200 11..12..13 0→? in 2"]
)]
#[case::response_head_over_the_limit_then_the_next_request(
    server(|w| {
        w.request(GET).response(&long_head("200 OK\r\nContent-Length: 5", 2000)).response(b"hello").request(GET).response(OK5);
    }),
    &["GET /a 200 11..12..13 0→5 in 2", "GET /a 200 14..15..15 0→5 in 1"]
)]
#[case::two_requests_in_one_read(
    server(|w| { w.request(&[GET, b"GET /b HTTP/1.1\r\n\r\n"].concat()).response(OK5).response(OK5); }),
    &["GET /a 200 11..12..12 0→5 in 1", "GET /b 200 11..13..13 0→5 in 1"]
)]
#[case::two_requests_and_two_responses_in_one_call(
    server(|w| {
        w.request(&[b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\r\n", GET].concat()).response(&[OK5, OK5].concat());
    }),
    &["POST /a 200 11..12..12 3→5 in 1", "GET /a 200 11..12..12 0→5 in 1"]
)]
#[case::second_request_while_the_first_waits(
    server(|w| { w.request(GET).request(b"GET /b HTTP/1.1\r\n\r\n").response(OK5).response(OK5); }),
    &["GET /a 200 11..13..13 0→5 in 1", "GET /b 200 12..14..14 0→5 in 1"]
)]
#[case::second_request_while_the_first_is_answered(
    server(|w| {
        w.request(GET).response(&OK5[..40]).request(b"GET /b HTTP/1.1\r\n\r\n").response(&OK5[40..]).response(OK5);
    }),
    &["GET /a 200 11..12..14 0→5 in 2", "GET /b 200 13..15..15 0→5 in 1"]
)]
#[case::upload_with_a_line_like_a_request(
    server(|w| {
        w.request(b"PUT /a HTTP/1.1\r\nContent-Length: 25\r\nExpect: 100-continue\r\n\r\n");
        w.response(b"HTTP/1.1 100 Continue\r\n\r\n").request(b"GET /b HTTP/1.1\r\n").request(b"POST /c ").response(OK5);
    }),
    &["PUT /a 200 11..15..15 25→5 in 1"]
)]
#[case::next_request_is_read_byte_by_byte(
    server(|w| { w.request(GET).response(OK5).request(b"G").request(&GET[1..]).response(OK5); }),
    &["GET /a 200 11..12..12 0→5 in 1", "GET /a 200 13..15..15 0→5 in 1"]
)]
#[case::a_send_that_waits_ends_when_it_returns(
    server(|w| { w.request(GET).response_blocked(OK5, 30 * MS); }),
    &["GET /a 200 11..12..42 0→5 in 1"]
)]
#[case::a_send_interrupted_by_the_close_is_told_after_it(
    server(|w| {
        w.request(GET).response_blocked(&OK5[..40], 2 * MS);
        let sent = w.records.pop().unwrap();
        w.state.totals = Totals::ZERO;
        w.reset().records.push(sent);
    }),
    &["GET /a 200 11..12..14 0→2 in 1 failure=connection_reset"]
)]
#[case::body_moved_by_calls_that_are_not_seen(
    server(|w| {
        w.request(GET).response(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n").unseen(5000);
        w.request(b"GET /b HTTP/1.1\r\n\r\n").response(OK5);
    }),
    &["GET /a 200 11..12..12 0→0 in 1 incomplete=end", "GET /b 200 13..14..14 0→5 in 1"]
)]
fn exchange(#[case] records: Vec<Record>, #[case] expected: &[&str]) {
    let run = Run::of(&records);
    assert_eq!(run.lines(), expected);
    // Bytes of uploads that look like requests are no loss.
    assert!(run.causes().iter().all(|cause| *cause == "begin_in_body"), "{:?}", run.causes());
    assert_eq!(run.decoder.open_exchanges(), 0);
}

#[test]
fn path_over_the_limit() {
    let target = format!("GET /{} HTTP/1.1\r\nHost: shop\r\n\r\n", "a".repeat(1100));
    let run = Run::of(&server(|w| {
        w.request(target.as_bytes()).response(OK5);
    }));
    // What the kernel copies, less the method and the slash.
    let path = "a".repeat(1024 - 5);
    assert_eq!(run.lines(), [format!("GET /{path} 200 11..12..12 ?→5 in 1 incomplete=head")]);
    assert_eq!(run.exchanges[0].request.version, None);
}
