//! What is told of requests that come again on a connection: nothing may tell that it was not found out anew.

use coati_tests::kubernetes::service;

use super::*;
use crate::kubernetes::testing::set_service;

const ANSWERS: [&[u8]; 6] = [
    OK5,
    OK5,
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK5,
];

/// A request for each answer, with heads that are as long, and the same or not.
fn records(mut wire: Wire, are_same: bool) -> Vec<Record> {
    for (number, answer) in ANSWERS.into_iter().enumerate() {
        let number = if are_same { 0 } else { number };
        let request = format!("GET /users/42?page=1 HTTP/1.1\r\nHost: shop.local:80\r\nX-Number: {number}\r\n\r\n");
        wire.request(request.as_bytes()).response(answer);
    }
    wire.records
}

#[rstest]
#[case::server(Wire::server(1))]
#[case::client(Wire::client(1))]
#[case::server_on_unix(Wire::server(1).on_unix(7, b"/run/shop.sock"))]
#[case::client_on_unix(Wire::client(1).on_unix(7, b"/run/shop.sock"))]
fn the_same_is_told_as_if_it_were_another(#[case] wire: Wire) {
    let exclude = vec![crate::discover::Pattern::glob("url.*").unwrap()];
    let filtered = AttributeConfig { exclude, ..AttributeConfig::default() };
    for attributes in [AttributeConfig::default(), filtered] {
        let config = SpanConfig { attributes, ..SpanConfig::default() };
        let [same, others] = [true, false].map(|are_same| spans_with(config.clone(), &records(wire.clone(), are_same)));
        assert_eq!(same.len(), ANSWERS.len());
        assert_eq!(same, others);
    }
}

/// A request whose first answers were that there is no such path.
#[test]
fn a_path_may_get_its_route_later() {
    let mut wire = Wire::server(1);
    for answer in [ANSWERS[2], ANSWERS[2], OK5, ANSWERS[2]] {
        wire.request(b"GET /users HTTP/1.1\r\n\r\n").response(answer);
    }
    let spans = spans_with(SpanConfig::default(), &wire.records);
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["GET", "GET", "GET /users", "GET /users"]);
}

#[test]
fn what_has_changed_meanwhile_is_told() {
    let kubernetes = cluster(&[], &[]);
    let clock = Clock::new(0, EPOCH_NS);
    let mut builder = SpanBuilder::new(SpanConfig::default(), clock).naming_peers(Some(kubernetes.clone()));
    let mut decoder = Decoder::new(DecodeConfig::default());
    let (process, mut other) = (process(), (*process()).clone());
    other.service_name = "cart".into();
    let other = Arc::new(other);
    let mut told = Vec::new();
    let mut number = 0;
    for record in records(Wire::client(1), true) {
        decoder.record(record, &mut |event| {
            let Event::Ended(exchange) = event else { return };
            number += 1;
            if number == 3 {
                set_service(&kubernetes, &service("store", "db", "10.0.0.2"));
            }
            let process = if number < 5 { &process } else { &other };
            let span = builder.describe(exchange, ids(), process, clock);
            told.push((span.is_again, text(&span.finished().span, "service.peer.name").map(str::to_owned)));
        });
    }
    let named = Some("db".to_owned());
    assert_eq!(
        told,
        [
            (false, None),
            (true, None),
            (false, named.clone()),
            (false, named.clone()),
            (false, named.clone()),
            (true, named)
        ]
    );
}
