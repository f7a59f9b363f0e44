mod across_nodes;
mod after_answers;
mod calls;
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
