//! Calls that a program makes while it is asked: of which request they are a part.

use super::*;

#[test]
fn a_call_belongs_to_the_only_open_request() {
    let mut server = wire(Wire::server(2), SHOP, 0);
    server.request(GET).wait(10 * MS).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 2);
    client.request(GET).response(OK);
    let run = Run::new(&[&server, &client]);
    assert_root(run.span(2));
    assert_child(run.span(1), run.span(2));
    assert_eq!(run.span(1).is_parent_remote, Some(false));
}

#[test]
fn a_call_below_two_open_requests_is_a_root() {
    let (mut one, mut two) = (wire(Wire::server(2), SHOP, 0), wire(Wire::server(3), SHOP, 0));
    two.client_position = 9;
    one.request(GET).wait(10 * MS).response(OK);
    two.request(GET).wait(10 * MS).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 2);
    client.client_position = 77;
    client.request(GET).response(OK);
    let run = Run::new(&[&one, &two, &client]);
    assert_root(run.span(1));
    assert_eq!(run.stitcher.counters().ambiguous, 1);
    assert!(run.is_empty());
}

/// The program tells, also when the answer has begun. If that request is over, the call is for no other one.
#[test]
fn a_call_is_below_the_request_that_the_program_says_it_is_for() {
    let (mut one, mut two) = (wire(Wire::server(2), SHOP, 0), wire(Wire::server(3), SHOP, 0));
    two.client_position = 9;
    one.request(GET).wait(30 * MS).response(OK);
    two.request(GET).response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    two.wait(20 * MS).response(b"0\r\n\r\n").wait(30 * MS).request(GET).wait(5 * MS).response(OK);
    let call = |connection, at, number| {
        let mut client = wire(Wire::client(connection), SHOP, at);
        client.client_position = 77 + connection as u32;
        client.served = Served { connection: 3, exchange: number, place: 0 };
        client.request(GET).response(OK);
        client
    };
    let run = Run::new(&[&one, &two, &call(1, 10, 1), &call(4, 26, 1)]);
    assert_child(run.span(1), run.span(3));
    // One request alone is open now, and it is not that one.
    assert_root(run.span(4));
    assert_eq!(run.stitcher.counters().by_program, 1);
    assert!(run.is_empty());
}

/// Of two requests that came together the kernel does not know which one it is.
#[test]
fn a_call_for_one_of_several_pipelined_requests_is_a_root() {
    let mut server = wire(Wire::server(3), SHOP, 0);
    server.request(&[GET, GET].concat()).wait(30 * MS).response(OK).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 10);
    client.client_position = 77;
    client.served = Served { connection: 3, exchange: 1, place: 0 };
    client.request(GET).response(OK);
    let run = Run::new(&[&server, &client]);
    assert_root(run.span(1));
    assert_eq!(run.stitcher.counters().by_program, 0);
}

/// A thread that has read one request and is still with it makes the calls for it; one that is with two may make them for either.
#[rstest]
#[case::each_has_its_own([Some(7), Some(8)], Some(8), Some(3))]
#[case::both_are_its_own([Some(8), Some(8)], Some(8), None)]
#[case::it_has_read_none([Some(7), Some(8)], Some(9), None)]
#[case::calls_are_made_by_all([Some(7), Some(8)], None, None)]
#[case::requests_are_read_by_one([None, None], Some(SHOP + 1), None)]
#[case::one_was_read_before_that_was_known([None, Some(SHOP + 1)], Some(SHOP + 1), None)]
fn a_call_is_below_the_request_that_its_thread_has_read(
    #[case] readers: [Option<u32>; 2],
    #[case] caller: Option<u32>,
    #[case] expected: Option<u64>,
) {
    let [mut one, mut two] = [2, 3].map(|connection| wire(Wire::server(connection), SHOP, 0));
    two.client_position = 9;
    [one.thread, two.thread] = readers;
    one.request(GET).wait(10 * MS).response(OK);
    two.request(GET).wait(10 * MS).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 2);
    (client.client_position, client.thread) = (77, caller);
    client.request(GET).response(OK);
    let mut run = Run::new(&[&one, &two, &client]);
    match expected {
        Some(server) => assert_child(run.span(1), run.span(server)),
        None => assert_root(run.span(1)),
    }
    assert_eq!(run.stitcher.counters().by_thread, u64::from(expected.is_some()));
    // Those of which it is not known are to be looked into.
    assert_eq!(run.stitcher.take_crowded(), vec![SHOP; usize::from(expected.is_none())]);
    assert!(run.is_empty());
}

/// A stream may stay open for hours: what its thread does meanwhile is not for it.
#[test]
fn a_call_is_not_below_a_request_that_its_thread_answers_already() {
    let [mut one, mut two] = [2, 3].map(|connection| wire(Wire::server(connection), SHOP, 0));
    two.client_position = 9;
    [one.thread, two.thread] = [Some(7), Some(8)];
    one.request(GET).wait(30 * MS).response(OK);
    two.request(GET).response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    two.wait(20 * MS).response(b"0\r\n\r\n");
    let mut client = wire(Wire::client(1), SHOP, 10);
    (client.client_position, client.thread) = (77, Some(8));
    client.request(GET).response(OK);
    assert_root(Run::new(&[&one, &two, &client]).span(1));
}

/// Of a request that was read in a context it is known what is done for it: a call in another one is not, although no other request
/// is open. Where one of both is not known, the only one is believed.
#[rstest]
#[case::known([true, true], false)]
#[case::not_where_the_request_was_read([false, true], true)]
#[case::not_where_the_call_is_made([true, false], true)]
fn a_call_in_another_context_is_below_no_request(#[case] in_context: [bool; 2], #[case] is_linked: bool) {
    let mut server = wire(Wire::server(2), SHOP, 0);
    let mut client = wire(Wire::client(1), SHOP, 2);
    client.client_position = 77;
    [server.in_context, client.in_context] = in_context;
    server.request(GET).wait(10 * MS).response(OK);
    client.request(GET).response(OK);
    let run = Run::new(&[&server, &client]);
    if is_linked {
        assert_child(run.span(1), run.span(2));
    } else {
        assert_root(run.span(1));
    }
    assert_eq!(run.stitcher.counters().in_process, u64::from(is_linked));
}

#[test]
fn a_request_whose_head_is_still_coming_counts_as_open() {
    let (mut one, mut two) = (wire(Wire::server(2), SHOP, 0), wire(Wire::server(3), SHOP, 0));
    two.client_position = 9;
    one.request(GET).wait(10 * MS).response(OK);
    two.request(b"GET / HT").wait(10 * MS).request(b"TP/1.1\r\n\r\n").response(OK);
    let mut client = wire(Wire::client(1), SHOP, 2);
    client.client_position = 77;
    client.request(GET).response(OK);
    let run = Run::new(&[&one, &two, &client]);
    assert_root(run.span(1));
    assert!(run.is_empty());
}

#[test]
fn a_call_of_another_process_is_a_root() {
    let mut server = wire(Wire::server(2), SHOP, 0);
    server.request(GET).wait(10 * MS).response(OK);
    let mut client = wire(Wire::client(1), FRONT, 2);
    client.client_position = 77;
    client.request(GET).response(OK);
    let run = Run::new(&[&server, &client]);
    assert_root(run.span(1));
}

#[test]
fn a_call_from_before_or_after_the_request_is_a_root() {
    let mut server = wire(Wire::server(2), SHOP, 5);
    server.request(GET).response(OK);
    let mut before = wire(Wire::client(1), SHOP, 0);
    before.client_position = 77;
    before.request(GET).wait(10 * MS).response(OK);
    let mut after = wire(Wire::client(3), SHOP, 20);
    after.client_position = 78;
    after.request(GET).response(OK);
    let run = Run::new(&[&server, &before, &after]);
    assert_root(run.span(1));
    assert_root(run.span(3));
}

/// Streams stay open for hours: what a process asks meanwhile is not theirs.
#[test]
fn a_call_behind_the_start_of_the_response_is_a_root() {
    let mut server = wire(Wire::server(2), SHOP, 0);
    server.request(GET).wait(10 * MS).response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    server.wait(90 * MS).response(b"0\r\n\r\n");
    let mut before = wire(Wire::client(1), SHOP, 2);
    before.client_position = 77;
    before.request(GET).wait(20 * MS).response(OK);
    let mut after = wire(Wire::client(3), SHOP, 50);
    after.client_position = 78;
    after.request(GET).response(OK);
    let run = Run::new(&[&server, &before, &after]);
    assert_child(run.span(1), run.span(2));
    assert_root(run.span(3));
    assert!(run.is_empty());
    assert_eq!(run.stitcher.counters().ambiguous, 0);
}

/// A WebSocket stays open as long, and no call is made on behalf of it: it does not make others ambiguous.
#[test]
fn a_call_beside_a_websocket_belongs_to_the_other_request() {
    let mut socket = wire(Wire::server(2), SHOP, 0);
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    socket.request(GET).response(switch).wait(200 * MS).response(b"\x81\x01x").close();
    let mut server = wire(Wire::server(3), SHOP, 20);
    server.client_position = 77;
    server.request(GET).wait(50 * MS).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 30);
    client.client_position = 78;
    client.request(GET).response(OK);
    let run = Run::new(&[&socket, &server, &client]);
    assert_child(run.span(1), run.span(3));
    assert_root(run.span(2));
    assert!(run.is_empty());
}

/// Its record may come behind that of the response: the call's own time counts.
#[test]
fn a_call_from_before_the_response_may_be_told_of_late() {
    let mut server = wire(Wire::server(2), SHOP, 0);
    server.request(GET).wait(10 * MS).response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n").wait(90 * MS);
    let mut client = wire(Wire::client(1), SHOP, 2);
    client.client_position = 77;
    client.request(GET).wait(20 * MS).response(OK);
    let mut records = Wire::merge(&[&server, &client]);
    records.swap(1, 2);
    let run = Run::of(StitchConfig::default(), records);
    assert_child(run.span(1), run.span(2));
}

/// What an interim response announces is still being made.
#[test]
fn a_call_behind_an_interim_response_belongs_to_the_request() {
    let mut server = wire(Wire::server(2), SHOP, 0);
    server.request(GET).response(b"HTTP/1.1 103 Early Hints\r\n\r\n").wait(20 * MS).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 5);
    client.client_position = 77;
    client.request(GET).response(OK);
    let run = Run::new(&[&server, &client]);
    assert_child(run.span(1), run.span(2));
}
