//! Heads that come again on a connection are not read again, and nothing may tell.

use proptest::{collection::vec, prelude::*};
use rstest::rstest;

use super::*;
use crate::decode::{Head, RequestHead, ResponseHead};

const OK: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// What is read of requests that come one after the other on a connection.
fn read(requests: &[Vec<u8>]) -> Vec<String> {
    let mut wire = Wire::server(1);
    for request in requests {
        wire.request(request).response(OK);
    }
    let run = Run::of(&wire.records);
    run.exchanges.iter().map(|exchange| format!("{:?}", exchange.request)).collect()
}

/// What is read of each alone.
fn read_alone(requests: &[Vec<u8>]) -> Vec<String> {
    requests.iter().map(|request| format!("{:?}", RequestHead::parse(request).unwrap().unwrap())).collect()
}

const FIRST: &str = "POST /a?b=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nhi";

#[rstest]
#[case::the_same(FIRST)]
#[case::another_body("POST /a?b=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nho")]
#[case::another_method("PUT /a?b=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nhi")]
#[case::another_path("POST /c?b=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nhi")]
#[case::another_query("POST /a?b=2 HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nhi")]
#[case::another_version("POST /a?b=1 HTTP/1.0\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nhi")]
#[case::another_host("POST /a?b=1 HTTP/1.1\r\nHost: cart\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nhi")]
#[case::another_agent("POST /a?b=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: y\r\nContent-Length: 2\r\n\r\nhi")]
#[case::another_length("POST /a?b=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 3\r\n\r\nhi!")]
#[case::one_header_more(
    "POST /a?b=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\nTracestate: a=1\r\n\r\nhi"
)]
#[case::one_header_less("POST /a?b=1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\nhi")]
#[case::to_a_model("POST /api/chat HTTP/1.1\r\nHost: shop\r\nUser-Agent: x\r\nContent-Length: 2\r\n\r\nhi")]
fn each_request_has_its_own_head(#[case] second: &str) {
    let requests = [FIRST, second, FIRST, second].map(|text| text.as_bytes().to_vec());
    assert_eq!(read(&requests), read_alone(&requests));
}

/// A byte that is no UTF-8 is shown as another one, which may be sent as well.
#[test]
fn what_is_shown_alike_is_not_the_same() {
    let requests = [b"\xff", b"_", b"\xff", b"\xfe"]
        .map(|byte| [b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0".as_slice(), byte, b"\r\n\r\n"].concat());
    assert_eq!(read(&requests), read_alone(&requests));
}

/// A head that comes in pieces, or is only partly captured, has no other's end.
#[test]
fn a_head_in_pieces_is_its_own() {
    let whole = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
    for at in 5..whole.len() {
        let mut wire = Wire::server(1);
        wire.request(whole).response(OK);
        wire.request(&whole[..at]).request(&whole[at..]).response(OK);
        wire.request(&whole[..whole.len() - 2]).request(b"X: 1\r\n\r\n").response(OK);
        let run = Run::of(&wire.records);
        let [first, second, third] = &run.exchanges[..] else { panic!("{at}: {:?}", run.told) };
        assert_eq!(format!("{:?}", first.request), format!("{:?}", second.request), "{at}");
        assert_ne!(format!("{:?}", first.request), format!("{:?}", third.request), "{at}");
    }
}

proptest! {
    /// Whatever comes one after the other.
    #[test]
    fn heads_do_not_depend_on_those_before(
        requests in vec(("GET|POST", "[ab]{0,2}", "[ab]{0,2}", 0..3_usize), 1..8),
    ) {
        let text = |(method, path, host, len): &(String, String, String, usize)| {
            let body = "x".repeat(*len);
            format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len}\r\n\r\n{body}").into_bytes()
        };
        let requests: Vec<_> = requests.iter().map(text).collect();
        prop_assert_eq!(read(&requests), read_alone(&requests));
    }

    /// The same of answers, which may come in two pieces, and have an interim one before them.
    #[test]
    fn heads_of_answers_neither(
        answers in vec(("200|204|304|100", "[ab]{0,2}", 0..3_usize, any::<prop::sample::Index>()), 1..8),
    ) {
        let mut wire = Wire::server(1);
        let mut alone = Vec::new();
        for (status, name, len, at) in answers {
            wire.request(b"POST / HTTP/1.1\r\n\r\n");
            if status == "100" {
                wire.response(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            let status = if status == "100" { "200" } else { &status };
            let length = if status == "200" { format!("Content-Length: {len}\r\n") } else { String::new() };
            let head = format!("HTTP/1.1 {status} OK\r\nX: {name}\r\n{length}\r\n");
            let body = if status == "200" { "x".repeat(len) } else { String::new() };
            let whole = [head.as_str(), &body].concat().into_bytes();
            let (first, second) = whole.split_at(1 + at.index(whole.len()));
            wire.response(first);
            if !second.is_empty() {
                wire.response(second);
            }
            alone.push(format!("{:?}", ResponseHead::parse(head.as_bytes()).unwrap()));
        }
        let run = Run::of(&wire.records);
        let read: Vec<_> = run.exchanges.iter().map(|exchange| format!("{:?}", exchange.response)).collect();
        prop_assert_eq!(read, alone);
    }
}
