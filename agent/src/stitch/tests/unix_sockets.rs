//! Requests on Unix sockets: nothing counts bytes there, so both ends know a request by its client's socket and its head.

use super::*;

const POST: &[u8] = b"POST /b HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n";
const SOCKET: u32 = 4_711;

fn client(number: u64) -> Wire {
    Wire { tgid: FRONT, ..Wire::client(number).on_unix(SOCKET, b"/run/shop.sock\0") }
}

fn server(number: u64) -> Wire {
    Wire { tgid: SHOP, time_ns: 11 * MS, ..Wire::server(number).on_unix(SOCKET, b"/run/shop.sock\0") }
}

#[test]
fn both_ends_are_one_trace_request_after_request() {
    let (mut client, mut server) = (client(1), server(2));
    for request in [GET, GET, POST, GET] {
        client.request(request).wait(10 * MS).response(OK);
        server.request(request).response(OK).wait(10 * MS);
    }
    let run = Run::new(&[&client, &server]);
    let of = |connection: u64| run.spans.iter().filter(move |(of, _)| *of == connection).map(|(_, ids)| ids);
    assert_eq!((of(1).count(), of(2).count()), (4, 4));
    for (caller, called) in of(1).zip(of(2)) {
        assert_root(caller);
        assert_child(called, caller);
    }
    // The heads are the same, the spans are not.
    let ids: std::collections::HashSet<_> = of(1).map(|ids| ids.span_id).collect();
    assert_eq!(ids.len(), 4);
    assert!(run.is_empty());
}

/// Told before its client, as its call returned before.
#[test]
fn a_server_that_is_told_of_first_finds_its_client() {
    let (mut client, mut server) = (client(1), server(2));
    server.time_ns = client.time_ns - MS / 2;
    client.request(GET).wait(10 * MS).response(OK);
    server.request(GET).wait(2 * MS).response(OK);
    let run = Run::new(&[&client, &server]);
    assert_child(run.span(2), run.span(1));
}

/// The record of the second request's server is lost, and that of the first one's client: the two are not one request.
#[test]
fn an_earlier_request_with_the_same_head_is_another_one() {
    let (mut client, mut server) = (client(1), server(2));
    server.request(GET);
    client.wait(5 * MS).request(GET).response(OK);
    server.wait(10 * MS).response(OK);
    let run = Run::new(&[&client, &server]);
    assert_root(run.span(1));
    assert_root(run.span(2));
}

/// Who reads the first of two that are alike, and both sent before it reads, may read the second one's.
#[test]
fn requests_that_are_alike_and_pipelined_stay_unlinked() {
    let (mut client, mut server) = (client(1), server(2));
    client.request(&[GET, GET].concat()).wait(10 * MS).response(&[OK, OK].concat());
    server.request(&[GET, GET].concat()).response(&[OK, OK].concat());
    let run = Run::new(&[&client, &server]);
    assert_eq!(run.spans.len(), 4);
    run.spans.iter().for_each(|(_, ids)| assert_root(ids));
    assert!(run.is_empty());
}

#[test]
fn pipelined_requests_with_different_heads_are_told_apart() {
    let (mut client, mut server) = (client(1), server(2));
    client.request(&[GET, POST].concat()).wait(10 * MS).response(&[OK, OK].concat());
    server.request(&[GET, POST].concat()).response(&[OK, OK].concat());
    let run = Run::new(&[&client, &server]);
    let of = |connection: u64| run.spans.iter().filter(move |(of, _)| *of == connection).map(|(_, ids)| ids);
    of(1).zip(of(2)).for_each(|(caller, called)| assert_child(called, caller));
}

/// Its client is on this node in any case, so no trace of another node is waited for.
#[test]
fn a_server_without_its_client_is_a_root() {
    let mut server = server(2);
    server.request(GET).response(OK);
    let run = Run::new(&[&server]);
    assert_root(run.span(2));
    assert_eq!(run.stitcher.counters().provisional, 0);
}
