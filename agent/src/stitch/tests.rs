mod across_nodes;
mod after_answers;
mod unix_sockets;

use coati_common::event::Served;
use rstest::rstest;

use super::*;
use crate::{
    capture::Record,
    decode::{
        DecodeConfig, Decoder, Event,
        testing::{MS, Wire},
    },
};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
const TRACED: &[u8] =
    b"GET /a HTTP/1.1\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\ntracestate: a=1,b=2\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const FRONT: u32 = 100;
const SHOP: u32 = 300;

/// The ids of the exchanges in the order of their ends, with connection.
struct Run {
    stitcher: Stitcher,
    spans: Vec<(u64, Ids)>,
}

impl Run {
    fn of(config: StitchConfig, records: Vec<Record>) -> Self {
        let mut stitcher = Stitcher::new(config, RandomIds::new([1, 2, 3, 4]));
        let mut spans = Vec::new();
        let mut decoder = Decoder::new(DecodeConfig::default());
        let mut emit = |event: Event<'_>| match event {
            Event::Opened(origin) => stitcher.opened(origin),
            Event::Began(origin, head) => stitcher.began(origin, head),
            Event::Answered(origin, first_ns) => stitcher.answered(origin, first_ns),
            Event::Ended(exchange) => spans.push((exchange.origin.id.connection, stitcher.ended(exchange))),
            Event::Upgraded(origin) => stitcher.upgraded(origin),
            Event::Running(exchange) => drop(stitcher.running(exchange.origin.id)),
            Event::Dropped(origin) => stitcher.dropped(origin),
        };
        for record in records {
            decoder.tick(record.header().time_ns, &mut emit);
            decoder.record(record, &mut emit);
        }
        decoder.finish(&mut emit);
        Self { stitcher, spans }
    }

    fn new(wires: &[&Wire]) -> Self {
        Self::of(StitchConfig::default(), Wire::merge(wires))
    }

    fn span(&self, connection: u64) -> &Ids {
        &self.spans.iter().find(|(found, _)| *found == connection).expect("no span").1
    }

    fn is_empty(&self) -> bool {
        let Stitcher { open, servers, untracked_servers, clients, unanswered, unpaired, .. } = &self.stitcher;
        open.is_empty()
            && servers.values().all(Vec::is_empty)
            && *untracked_servers == 0
            && clients.is_empty()
            && unanswered.is_empty()
            && unpaired.is_empty()
    }
}

fn assert_child(child: &Ids, parent: &Ids) {
    assert_eq!((child.trace_id, child.parent_span_id), (parent.trace_id, Some(parent.span_id)));
}

fn assert_root(ids: &Ids) {
    assert_eq!((ids.parent_span_id, ids.flags, &*ids.trace_state), (None, SAMPLED, ""));
}

/// A peer that is on this node.
const LOOPBACK: [u8; 16] = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();

/// The wire of `tgid`, later by `ms`, between processes of this node.
fn wire(mut wire: Wire, tgid: u32, ms: u64) -> Wire {
    (wire.tgid, wire.local.0, wire.remote.0) = (tgid, LOOPBACK, LOOPBACK);
    wire.time_ns += ms * MS;
    wire
}

/// Client of connection 1 and server of connection 2 are the two ends of one TCP connection.
fn ends(request: &[u8]) -> (Wire, Wire) {
    let mut client = wire(Wire::client(1), FRONT, 0);
    let mut server = wire(Wire::server(2), SHOP, 1);
    client.request(request).wait(10 * MS).response(OK);
    server.request(request).response(OK);
    (client, server)
}

#[test]
fn both_ends_of_a_connection_are_one_trace() {
    let (client, server) = ends(GET);
    let run = Run::new(&[&client, &server]);
    assert_root(run.span(1));
    assert_child(run.span(2), run.span(1));
    let key = Key::Tcp { client_position: 1_000, server_position: 5_000 };
    assert_eq!(run.span(1).span_id, caller_id(key).unwrap());
    assert!(run.is_empty());
    assert_eq!(run.stitcher.counters().by_position, 1);
}

#[test]
fn addresses_play_no_part() {
    let (client, mut server) = ends(GET);
    server.remote = ([9; 16], 9);
    let run = Run::new(&[&client, &server]);
    assert_child(run.span(2), run.span(1));
}

#[test]
fn every_exchange_of_a_connection_is_paired() {
    let (mut client, mut server) = (wire(Wire::client(1), FRONT, 0), wire(Wire::server(2), SHOP, 1));
    for _ in 0..3 {
        client.request(GET).wait(10 * MS).response(OK);
        server.request(GET).wait(2 * MS).response(OK).wait(8 * MS);
    }
    let run = Run::new(&[&client, &server]);
    let of = |connection| run.spans.iter().filter(move |(found, _)| *found == connection).map(|(_, ids)| ids);
    assert_eq!((of(1).count(), of(2).count()), (3, 3));
    of(1).zip(of(2)).for_each(|(client, server)| assert_child(server, client));
}

#[test]
fn unknown_positions_pair_nothing() {
    let (mut client, mut server) = (Wire::client(1), wire(Wire::server(2), SHOP, 1));
    (client.positions_known, server.positions_known) = (false, false);
    client.request(GET).wait(10 * MS).response(OK);
    server.request(GET).response(OK);
    let run = Run::new(&[&client, &server]);
    assert_root(run.span(1));
    assert_root(run.span(2));
    assert!(run.is_empty());
}

#[test]
fn a_client_is_claimed_once() {
    let (mut client, server) = ends(GET);
    let mut other = wire(Wire::server(3), SHOP, 2);
    other.request(GET).response(OK);
    client.wait(MS);
    let run = Run::new(&[&client, &server, &other]);
    assert_child(run.span(2), run.span(1));
    assert_root(run.span(3));
}

#[test]
fn a_server_much_later_is_another_exchange() {
    let mut client = Wire::client(1);
    client.request(GET);
    let mut server = wire(Wire::server(2), SHOP, 60_002);
    server.request(GET).response(OK);
    client.wait(70_000 * MS).response(OK);
    let run = Run::new(&[&client, &server]);
    assert_root(run.span(2));
}

#[test]
fn a_server_before_its_client_is_another_exchange() {
    let mut server = wire(Wire::server(2), SHOP, 0);
    server.request(GET).response(OK);
    let mut client = wire(Wire::client(1), FRONT, 100);
    client.request(GET).response(OK);
    let run = Run::new(&[&client, &server]);
    assert_root(run.span(1));
    assert_root(run.span(2));
}

#[test]
fn a_client_that_gave_up_is_still_the_parent() {
    let mut client = Wire::client(1);
    client.request(GET).close();
    let mut server = wire(Wire::server(2), SHOP, 5_000);
    server.request(GET).response(OK);
    let mut run = Run::new(&[&client, &server]);
    assert_child(run.span(2), run.span(1));
    assert!(!run.is_empty());
    run.stitcher.tick(80_000 * MS);
    assert!(run.is_empty());
}

#[test]
fn the_client_may_be_told_of_late() {
    let (client, server) = ends(GET);
    let mut records = Wire::merge(&[&client, &server]);
    records.swap(0, 1);
    let run = Run::of(StitchConfig::default(), records);
    assert_root(run.span(1));
    assert_child(run.span(2), run.span(1));
    assert!(run.is_empty());
    assert_eq!(run.stitcher.counters().roots, 1);
}

#[test]
fn a_client_told_of_late_brings_its_own_trace() {
    let mut front = wire(Wire::server(3), FRONT, 0);
    (front.time_ns, front.client_position) = (5 * MS, 10);
    front.request(GET).wait(100 * MS).response(OK);
    let (client, server) = ends(GET);
    let mut records = Wire::merge(&[&front, &client, &server]);
    records.swap(1, 2);
    let run = Run::of(StitchConfig::default(), records);
    assert_root(run.span(3));
    assert_child(run.span(1), run.span(3));
    assert_child(run.span(2), run.span(1));
}

#[test]
fn a_server_with_children_stays_in_its_trace() {
    let mut front = wire(Wire::server(3), FRONT, 0);
    (front.time_ns, front.client_position) = (5 * MS, 10);
    front.request(GET).wait(100 * MS).response(OK);
    let (client, mut server) = (wire(Wire::client(1), FRONT, 0), wire(Wire::server(2), SHOP, 1));
    let mut client = client;
    client.request(GET).wait(50 * MS).response(OK);
    server.request(GET).wait(20 * MS).response(OK);
    let mut below = wire(Wire::client(4), SHOP, 5);
    below.client_position = 77;
    below.request(GET).response(OK);
    let mut records = Wire::merge(&[&front, &client, &server, &below]);
    // The client's record comes behind that of the call that the server made.
    let late = records.remove(1);
    records.insert(3, late);
    let run = Run::of(StitchConfig::default(), records);
    assert_child(run.span(1), run.span(3));
    assert_root(run.span(2));
    assert_child(run.span(4), run.span(2));
}

#[test]
fn a_header_wins_at_both_ends() {
    let (client, server) = ends(TRACED);
    let run = Run::new(&[&client, &server]);
    let (client, server) = (run.span(1), run.span(2));
    assert_eq!(client.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
    assert_eq!(client.parent_span_id, Some(0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()));
    assert_eq!((client.flags, &*client.trace_state), (0, "a=1,b=2"));
    // The client's span sits between the one that the header names and the server's.
    assert_child(server, client);
    assert_eq!((server.flags, &*server.trace_state), (0, "a=1,b=2"));
    assert_eq!(run.stitcher.counters().by_header, 2);
}

#[test]
fn a_header_without_a_client_here_names_the_parent() {
    let mut server = Wire::server(2);
    server.request(TRACED).response(OK);
    let run = Run::new(&[&server]);
    assert_eq!(run.span(2).parent_span_id, Some(0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()));
    assert_eq!(run.span(2).is_parent_remote, Some(true));
}

#[test]
fn an_invalid_header_is_none() {
    let mut server = wire(Wire::server(2), SHOP, 0);
    server.request(b"GET / HTTP/1.1\r\ntraceparent: 00-0-0-0\r\ntracestate: a=1\r\n\r\n").response(OK);
    let run = Run::new(&[&server]);
    assert_root(run.span(2));
}

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

#[test]
fn a_chain_of_services_is_one_trace() {
    // Outside → front → shop → stock, told in the order of the calls.
    let mut front = wire(Wire::server(1), FRONT, 0);
    front.client_position = 10;
    front.request(GET).wait(50 * MS).response(OK);
    let (mut front_call, mut shop) = (wire(Wire::client(2), FRONT, 2), wire(Wire::server(3), SHOP, 3));
    front_call.request(GET).wait(40 * MS).response(OK);
    shop.request(GET).wait(30 * MS).response(OK);
    let mut shop_call = wire(Wire::client(4), SHOP, 5);
    let mut stock = wire(Wire::server(5), 400, 6);
    (shop_call.client_position, stock.client_position) = (20, 20);
    shop_call.request(GET).wait(20 * MS).response(OK);
    stock.request(GET).wait(10 * MS).response(OK);
    let run = Run::new(&[&front, &front_call, &shop, &shop_call, &stock]);
    assert_root(run.span(1));
    (2..=5).for_each(|connection| assert_child(run.span(connection), run.span(connection - 1)));
    assert!(run.is_empty());
}

#[test]
fn beyond_the_limit_only_headers_count() {
    let config = StitchConfig { max_open: 1, ..StitchConfig::default() };
    let (mut one, mut two) = (wire(Wire::server(2), SHOP, 0), wire(Wire::server(3), SHOP, 0));
    two.client_position = 9;
    one.request(GET).wait(10 * MS).response(OK);
    two.request(TRACED).wait(10 * MS).response(OK);
    let mut client = wire(Wire::client(1), SHOP, 2);
    client.client_position = 77;
    client.request(GET).response(OK);
    let run = Run::of(config, Wire::merge(&[&one, &two, &client]));
    // One of the two open requests is not in the table: it is not known which one the call belongs to.
    assert_root(run.span(1));
    assert_eq!(run.span(3).parent_span_id, Some(0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()));
    assert!(run.is_empty());
    assert_eq!(run.stitcher.counters().untracked, 2);
}
