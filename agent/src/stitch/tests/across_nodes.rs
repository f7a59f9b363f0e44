//! Requests whose client is on another node.

use super::*;

/// A server whose client is on another node, or nowhere.
fn from_afar(connection: u64, tgid: u32, ms: u64) -> Wire {
    let near = wire(Wire::server(connection), tgid, ms);
    Wire { remote: Wire::server(connection).remote, ..near }
}

/// Fails unless the span is below `caller`, in a trace that is not known.
fn assert_provisional(ids: &Ids, caller: [u8; 8]) {
    assert_eq!((ids.trace_id, ids.parent_span_id), (provisional_trace_id(caller), Some(caller)));
    assert_eq!((&*ids.trace_state, ids.flags, ids.is_parent_remote), ("coati=p", SAMPLED, Some(true)));
}

/// What an agent elsewhere gives to the client of the exchange at the positions where a [`Wire`] begins.
fn caller() -> [u8; 8] {
    caller_id(Key::Tcp { client_position: 1_000, server_position: 5_000 }).unwrap()
}

#[test]
fn a_request_from_another_node_is_below_the_client_there() {
    let mut client = Wire::client(1);
    client.request(GET).wait(10 * MS).response(OK);
    let there = Run::new(&[&client]);
    let mut server = from_afar(2, SHOP, 0);
    server.request(GET).response(OK);
    let here = Run::new(&[&server]);
    assert_root(there.span(1));
    assert_provisional(here.span(2), there.span(1).span_id);
    assert_eq!((here.stitcher.counters().provisional, here.stitcher.counters().roots), (1, 0));
    assert!(here.is_empty());
}

#[test]
fn all_below_a_provisional_span_is_in_its_trace() {
    // From afar → shop → stock, which is on this node.
    let (mut shop, mut call) = (from_afar(2, SHOP, 0), wire(Wire::client(3), SHOP, 2));
    shop.request(GET).wait(50 * MS).response(OK);
    let mut stock = wire(Wire::server(4), 400, 3);
    (call.client_position, stock.client_position) = (77, 77);
    call.request(GET).wait(20 * MS).response(OK);
    stock.request(GET).wait(10 * MS).response(OK);
    let run = Run::new(&[&shop, &call, &stock]);
    assert_provisional(run.span(2), caller());
    for (below, above) in [(3, 2), (4, 3)] {
        assert_child(run.span(below), run.span(above));
        assert_eq!(run.span(below).trace_state, "coati=p");
    }
    assert!(run.is_empty());
}

#[test]
fn no_trace_is_provisional_where_the_backend_unites_none() {
    let mut server = from_afar(2, SHOP, 0);
    server.request(GET).response(OK);
    let config = StitchConfig { across_nodes: false, ..StitchConfig::default() };
    assert_root(Run::of(config, server.records).span(2));
}

#[test]
fn the_own_address_is_on_this_node() {
    let mut server = from_afar(2, SHOP, 0);
    server.local.0 = server.remote.0;
    server.request(GET).response(OK);
    assert_root(Run::new(&[&server]).span(2));
}

#[test]
fn a_header_from_afar_wins() {
    let mut server = from_afar(2, SHOP, 0);
    server.request(TRACED).response(OK);
    let run = Run::new(&[&server]);
    assert_eq!(run.span(2).parent_span_id, Some(0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()));
    assert_eq!(run.span(2).trace_state, "a=1,b=2");
}

#[test]
fn a_second_server_of_a_client_here_is_a_root() {
    let (client, server) = ends(GET);
    let mut second = from_afar(3, 400, 2);
    second.request(GET).response(OK);
    let run = Run::new(&[&client, &server, &second]);
    assert_child(run.span(2), run.span(1));
    assert_root(run.span(3));
}

#[test]
fn without_positions_a_server_is_a_root() {
    let mut server = from_afar(2, SHOP, 0);
    server.positions_known = false;
    server.request(GET).response(OK);
    assert_root(Run::new(&[&server]).span(2));
}

/// The peer of a process in a container looks like one of another node.
#[test]
fn a_client_told_of_late_takes_its_server_out_of_the_provisional_trace() {
    let client = ends(GET).0;
    let mut server = from_afar(2, SHOP, 1);
    server.request(GET).response(OK);
    let mut records = Wire::merge(&[&client, &server]);
    records.swap(0, 1);
    let run = Run::of(StitchConfig::default(), records);
    assert_root(run.span(1));
    assert_child(run.span(2), run.span(1));
    assert_eq!(run.span(2).trace_state, "");
    let counters = run.stitcher.counters();
    assert_eq!((counters.provisional, counters.by_position, counters.roots), (0, 1, 1));
    assert!(run.is_empty());
}

/// Spans of the provisional trace may be on their way already: the backend finds the client.
#[test]
fn a_server_with_children_stays_in_the_provisional_trace() {
    let client = ends(GET).0;
    let (mut server, mut below) = (from_afar(2, SHOP, 1), wire(Wire::client(4), SHOP, 2));
    server.request(GET).wait(7 * MS).response(OK);
    below.client_position = 77;
    below.request(GET).response(OK);
    let mut records = Wire::merge(&[&client, &server, &below]);
    let late = records.remove(0);
    records.insert(2, late);
    let run = Run::of(StitchConfig::default(), records);
    assert_root(run.span(1));
    assert_provisional(run.span(2), run.span(1).span_id);
    assert_child(run.span(4), run.span(2));
    assert_eq!(caller_of(run.span(1).trace_id), None);
    assert!(run.is_empty());
}
