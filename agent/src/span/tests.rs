mod again;
mod http2;

use coati_common::event::begin_flags;
use coati_tests::kubernetes::{pod, service};
use insta::assert_snapshot;
use opentelemetry_proto::tonic::{
    resource::v1::Resource,
    trace::v1::{ScopeSpans, span::SpanKind, status::StatusCode},
};
use prost::Message as _;
use rstest::rstest;

use super::*;
use crate::{
    capture::Record,
    decode::{
        DecodeConfig, Decoder, Event, Progress,
        testing::{MS, Wire},
    },
    discover::Exports,
    export::queue::{self, Next},
    kubernetes::testing::cluster,
    metrics::{Request, tests::read},
    telemetry::Telemetry,
};

/// The wall clock when the kernel's shows 0: the start of 2026.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;

const OK5: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn ids() -> Ids {
    Ids {
        trace_id: [0xab; 16],
        span_id: [0xcd; 8],
        parent_span_id: Some([0xef; 8]),
        trace_state: "a=1".into(),
        flags: 1,
        is_parent_remote: Some(true),
        is_continued: false,
    }
}

fn process() -> Arc<Process> {
    Arc::new(Process {
        tgid: 100,
        service_name: "shop".into(),
        resource: Resource::default(),
        sampler: None,
        exports: Exports::default(),
    })
}

fn spans_with(config: SpanConfig, records: &[Record]) -> Vec<Span> {
    build(config, None, records)
}

fn build(config: SpanConfig, kubernetes: Option<Kubernetes>, records: &[Record]) -> Vec<Span> {
    let process = process();
    let keeps_headers = config.headers.wants_any();
    let clock = Clock::new(0, EPOCH_NS);
    let mut builder = SpanBuilder::new(config, clock).naming_peers(kubernetes);
    let mut decoder = Decoder::new(DecodeConfig { keeps_headers, ..DecodeConfig::default() });
    let mut spans = Vec::new();
    let mut emit = |event: Event<'_>| {
        if let Event::Ended(exchange) = event {
            spans.push(made(&mut builder, exchange, &process));
        }
    };
    for record in records {
        decoder.record(record.clone(), &mut emit);
    }
    decoder.finish(&mut emit);
    spans
}

/// The span of an exchange, of which metrics are told the same, and which is sent as it is.
fn made(builder: &mut SpanBuilder, exchange: &Exchange, process: &Arc<Process>) -> Span {
    let clock = builder.clock();
    let told = builder.describe(exchange, ids(), process, clock);
    let span = told.finished().span;
    assert_eq!(Request::of(&told), read(&span, &span.attributes));
    let (mut queue, mut spans) = queue::bounded(1, 1, 1, Telemetry::default());
    queue.push_request(&told, builder.filter());
    let Next::Spans(sent) = spans.next_if(|_| true) else { panic!("{told:?}") };
    let [sent] = ScopeSpans::decode(&sent.fields[..]).unwrap().spans.try_into().unwrap();
    assert_eq!(sent, builder.select(told.finished()).span);
    span
}

fn span(wire: &Wire) -> Span {
    let [span] = spans_with(SpanConfig::default(), &wire.records).try_into().unwrap();
    span
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn text<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    match attribute(span, key)? {
        Value::StringValue(text) => Some(text),
        other => panic!("{key} is {other:?}"),
    }
}

/// Everything that a span says, in lines.
fn describe(span: &Span) -> String {
    let mut lines = vec![
        format!("{} {:?} flags {:#x} trace state {}", span.name, span.kind(), span.flags, span.trace_state),
        format!("{} ms..{} ms", (span.start_time_unix_nano - EPOCH_NS) / MS, (span.end_time_unix_nano - EPOCH_NS) / MS),
    ];
    if let Some(status) = &span.status {
        lines.push(format!("{:?} {}", status.code(), status.message));
    }
    for KeyValue { key, value, .. } in &span.attributes {
        lines.push(match value.as_ref().unwrap().value.as_ref().unwrap() {
            Value::StringValue(text) => format!("{key} = {text:?}"),
            Value::IntValue(number) => format!("{key} = {number}"),
            Value::DoubleValue(number) => format!("{key} = {number:?}"),
            other => panic!("{key} is {other:?}"),
        });
    }
    lines.join("\n")
}

/// The client is 10.0.0.1, the server 10.0.0.2; it is asked for by a name, its address, another one, or nothing.
#[rstest]
#[case::client_by_name(Wire::client(1), "Host: shop.local\r\n", "shop.local", Some(("db", "store")))]
#[case::client_by_address(Wire::client(1), "Host: 10.0.0.2:80\r\n", "db", Some(("db", "store")))]
#[case::client_by_another_address(Wire::client(1), "Host: 10.9.9.9\r\n", "10.9.9.9", Some(("db", "store")))]
#[case::client_by_nothing(Wire::client(1), "", "db", Some(("db", "store")))]
#[case::server_by_name(Wire::server(1), "Host: shop.local\r\n", "shop.local", Some(("cart", "shop")))]
#[case::server_by_address(Wire::server(1), "Host: 10.0.0.2\r\n", "db", Some(("cart", "shop")))]
fn peers_are_named_by_kubernetes(
    #[case] mut wire: Wire,
    #[case] host: &str,
    #[case] server_address: &str,
    #[case] peer: Option<(&str, &str)>,
) {
    wire.request(format!("GET / HTTP/1.1\r\n{host}\r\n").as_bytes()).response(OK5);
    let id = "ab".repeat(32);
    let known = cluster(&[pod("shop", "cart", "node-1", &id, "10.0.0.1")], &[service("store", "db", "10.0.0.2")]);
    let unknown = cluster(&[], &[]);
    for kubernetes in [Some(known.clone()), Some(unknown), None] {
        let is_known = kubernetes.as_ref().is_some_and(|it| it.generation() > 0);
        let [span] = build(SpanConfig::default(), kubernetes, &wire.records).try_into().unwrap();
        let named = text(&span, "service.peer.name").zip(text(&span, "service.peer.namespace"));
        assert_eq!(named, peer.filter(|_| is_known));
        if is_known {
            assert_eq!(text(&span, "server.address"), Some(server_address));
        } else {
            assert!(!text(&span, "server.address").unwrap().starts_with("db"));
        }
        // Addresses stay what they are.
        let address = text(&span, "client.address").or_else(|| text(&span, "network.peer.address")).unwrap();
        assert!(address.starts_with("10.0.0."), "{address}");
    }
}

/// Attributes of HTTP spans that Beyla has: dashboards and queries ask for these.
#[rstest]
#[case::server(
    Wire::server(1),
    &[
        "client.address", "http.request.body.size", "http.request.method", "http.response.body.size",
        "http.response.status_code", "http.route", "server.address", "server.port", "service.peer.name", "url.path",
        "url.query", "url.scheme",
    ]
)]
#[case::client(
    Wire::client(1),
    &[
        "http.request.body.size", "http.request.method", "http.response.body.size", "http.response.status_code",
        "server.address", "server.port", "service.peer.name", "url.full",
    ]
)]
fn attributes_are_beylas(#[case] mut wire: Wire, #[case] beylas: &[&str]) {
    wire.request(b"GET /users/42?page=1 HTTP/1.1\r\nHost: shop.local\r\n\r\n").response(OK5);
    let peers = [service("shop", "caller", "10.0.0.1"), service("store", "db", "10.0.0.2")];
    let [span] = build(SpanConfig::default(), Some(cluster(&[], &peers)), &wire.records).try_into().unwrap();
    let mut missing = beylas.to_vec();
    missing.retain(|key| attribute(&span, key).is_none());
    assert_eq!(missing, [""; 0], "{}", describe(&span));
}

/// The host that was asked for says nothing of where the server is, and there are no ports.
#[rstest]
#[case::path(b"/run/shop.sock\0", Some("/run/shop.sock"))]
#[case::path_without_end(b"/run/shop.sock", Some("/run/shop.sock"))]
#[case::abstract_name(b"\0shop", Some("@shop"))]
#[case::no_name(b"", None)]
fn unix_sockets_have_a_path(#[case] path: &[u8], #[case] shown: Option<&str>) {
    for (is_client, wire) in [(true, Wire::client(1)), (false, Wire::server(1))] {
        let mut wire = wire.on_unix(7, path);
        let span = span(wire.request(b"GET / HTTP/1.1\r\nHost: localhost:80\r\n\r\n").response(OK5));
        assert_eq!(text(&span, "network.transport"), Some("unix"));
        assert_eq!(text(&span, "server.address"), shown.or(Some("localhost")));
        assert_eq!(text(&span, "network.peer.address"), shown.filter(|_| is_client));
        assert_eq!(text(&span, "url.full"), Some("http://localhost:80/").filter(|_| is_client));
        let keys = ["server.port", "client.port", "client.address", "network.peer.port"];
        assert!(span.attributes.iter().all(|pair| !keys.contains(&pair.key.as_str())), "{span:?}");
    }
}

#[test]
fn ids_are_those_that_were_given() {
    let span = span(Wire::server(1).request(b"GET / HTTP/1.1\r\n\r\n").response(OK5));
    assert_eq!((span.trace_id, span.span_id, span.parent_span_id), (vec![0xab; 16], vec![0xcd; 8], vec![0xef; 8]));
}

/// The same request as the plaintext of a TLS session, whose socket is known or not.
fn under_tls(mut wire: Wire, is_placed: bool) -> Span {
    wire.request(b"GET /a HTTP/1.1\r\nHost: shop.local\r\n\r\n").response(OK5);
    for record in &mut wire.records {
        if let Record::Begin(begin, _) = record {
            begin.flags |= begin_flags::TLS;
            if !is_placed {
                (begin.local_address, begin.remote_address) = ([0; 16], [0; 16]);
                (begin.local_port, begin.remote_port) = (0, 0);
            }
        }
    }
    span(&wire)
}

#[rstest]
#[case::placed(true)]
#[case::without_a_socket(false)]
fn tls(#[case] is_placed: bool) {
    let server = under_tls(Wire::server(1), is_placed);
    assert_eq!(text(&server, "url.scheme"), Some("https"));
    assert_eq!(text(&server, "client.address"), is_placed.then_some("10.0.0.1"));
    assert_eq!(attribute(&server, "client.port").is_some(), is_placed);
    assert_eq!(text(&server, "server.address"), Some("shop.local"));
    assert_eq!(attribute(&server, "server.port").is_some(), is_placed);

    let client = under_tls(Wire::client(1), is_placed);
    assert_eq!(text(&client, "url.full"), Some("https://shop.local/a"));
    assert_eq!(attribute(&client, "network.peer.address").is_some(), is_placed);
    assert_eq!(attribute(&client, "network.peer.port").is_some(), is_placed);
}

#[test]
fn server() {
    let span = span(
        Wire::server(1)
            .request(b"POST /users/42?token=secret&verbose HTTP/1.1\r\nHost: shop.local:80\r\nUser-Agent: curl/8.5\r\nContent-Length: 3\r\n\r\nabc")
            .response(b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\n")
            .response(b"hello"),
    );
    assert_snapshot!(describe(&span), @r#"
    POST /users/{id} Server flags 0x301 trace state a=1
    11 ms..13 ms
    http.request.method = "POST"
    url.path = "/users/42"
    url.query = "token=REDACTED&verbose"
    url.scheme = "http"
    http.route = "/users/{id}"
    client.address = "10.0.0.1"
    client.port = 40000
    server.address = "shop.local"
    server.port = 80
    network.protocol.version = "1.1"
    user_agent.original = "curl/8.5"
    http.request.body.size = 3
    http.response.status_code = 201
    http.response.body.size = 5
    coati.http.time_to_first_byte = 0.001
    coati.http.response.duration = 0.001
    coati.http.response.chunks = 2
    "#);
}

#[test]
fn client() {
    let span = span(
        Wire::client(1)
            .request(b"GET /users/42?token=secret HTTP/1.1\r\nHost: user:pw@shop.local\r\n\r\n")
            .response(OK5),
    );
    assert_snapshot!(describe(&span), @r#"
    GET /users/{id} Client flags 0x301 trace state a=1
    11 ms..12 ms
    http.request.method = "GET"
    url.full = "http://shop.local/users/42?token=REDACTED"
    network.peer.address = "10.0.0.2"
    network.peer.port = 8080
    server.address = "shop.local"
    server.port = 8080
    network.protocol.version = "1.1"
    http.request.body.size = 0
    http.response.status_code = 200
    http.response.body.size = 5
    coati.http.time_to_first_byte = 0.001
    coati.http.response.duration = 0.0
    coati.http.response.chunks = 1
    "#);
}

#[test]
fn server_without_host() {
    let span = span(Wire::server(1).request(b"GET / HTTP/1.0\r\n\r\n").response(b"HTTP/1.0 200 OK\r\n\r\nhi").close());
    assert_snapshot!(describe(&span), @r#"
    GET / Server flags 0x301 trace state a=1
    11 ms..12 ms
    http.request.method = "GET"
    url.path = "/"
    url.scheme = "http"
    http.route = "/"
    client.address = "10.0.0.1"
    client.port = 40000
    server.address = "10.0.0.2"
    server.port = 8080
    network.protocol.version = "1.0"
    http.request.body.size = 0
    http.response.status_code = 200
    http.response.body.size = 2
    coati.http.time_to_first_byte = 0.001
    coati.http.response.duration = 0.0
    coati.http.response.chunks = 1
    "#);
}

#[test]
fn client_without_host() {
    let span = span(Wire::client(1).request(b"GET / HTTP/1.0\r\n\r\n").response(OK5));
    assert_eq!(text(&span, key::URL_FULL), Some("http://10.0.0.2:8080/"));
    assert_eq!(text(&span, key::SERVER_ADDRESS), Some("10.0.0.2"));
}

#[test]
fn ipv6() {
    let mut wire = Wire::client(1);
    wire.remote = (std::net::Ipv6Addr::LOCALHOST.octets(), 8080);
    let span = span(wire.request(b"GET / HTTP/1.0\r\n\r\n").response(OK5));
    assert_eq!(text(&span, key::URL_FULL), Some("http://[::1]:8080/"));
    assert_eq!(text(&span, key::NETWORK_PEER_ADDRESS), Some("::1"));
}

#[test]
fn no_answer() {
    let span = span(Wire::client(1).request(b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").wait(20 * MS).eof());
    assert_snapshot!(describe(&span), @r#"
    GET /a Client flags 0x301 trace state a=1
    11 ms..32 ms
    Error connection closed before the response was complete
    http.request.method = "GET"
    url.full = "http://shop/a"
    network.peer.address = "10.0.0.2"
    network.peer.port = 8080
    server.address = "shop"
    server.port = 8080
    network.protocol.version = "1.1"
    http.request.body.size = 0
    error.type = "connection_closed"
    "#);
}

#[test]
fn answer_without_its_head() {
    let mut wire = Wire::server(1);
    wire.request(b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").response(OK5).close();
    wire.records.remove(1);
    assert_snapshot!(describe(&span(&wire)), @r#"
    GET /a Server flags 0x301 trace state a=1
    11 ms..12 ms
    http.request.method = "GET"
    url.path = "/a"
    url.scheme = "http"
    http.route = "/a"
    client.address = "10.0.0.1"
    client.port = 40000
    server.address = "shop"
    server.port = 8080
    network.protocol.version = "1.1"
    http.request.body.size = 0
    coati.http.time_to_first_byte = 0.001
    coati.http.response.duration = 0.0
    coati.http.response.chunks = 1
    coati.incomplete = "response"
    "#);
}

#[test]
fn proxy() {
    let span = span(
        Wire::client(1)
            .request(b"CONNECT db:5432 HTTP/1.1\r\nHost: other\r\n\r\n")
            .response(b"HTTP/1.1 200 Connected\r\n\r\n"),
    );
    assert_eq!(span.name, "CONNECT");
    assert_eq!((text(&span, key::SERVER_ADDRESS), text(&span, key::URL_FULL)), (Some("db"), None));
    assert_eq!(attribute(&span, key::SERVER_PORT), Some(&Value::IntValue(5432)));
}

#[test]
fn absolute_target() {
    let span =
        span(Wire::client(1).request(b"GET HTTP://user:pw@shop/a?b=c HTTP/1.1\r\nHost: proxy\r\n\r\n").response(OK5));
    assert_eq!(text(&span, key::URL_FULL), Some("http://shop/a?b=REDACTED"));
}

#[test]
fn queries_are_shown_if_wanted() {
    let config = SpanConfig { redact_query: false, ..SpanConfig::default() };
    let wire = Wire::server(1).request(b"GET /a?token=secret HTTP/1.1\r\n\r\n").response(OK5).clone();
    let spans = spans_with(config, &wire.records);
    assert_eq!(text(&spans[0], key::URL_QUERY), Some("token=secret"));
}

/// The kernel follows the well-known methods only; heads are read whatever the method is.
#[test]
fn unknown_method() {
    let mut wire = Wire::server(1);
    wire.request(b"GET /a HTTP/1.1\r\n\r\n").response(OK5);
    if let Record::Begin(_, payload) = &mut wire.records[0] {
        payload[..3].copy_from_slice(b"FOO");
    }
    let span = span(&wire);
    assert_eq!(span.name, "HTTP /a");
    assert_eq!(text(&span, key::HTTP_REQUEST_METHOD), Some("_OTHER"));
    assert_eq!(text(&span, key::HTTP_REQUEST_METHOD_ORIGINAL), Some("FOO"));
}

#[test]
fn unknown_paths_have_no_route() {
    let mut wire = Wire::server(1);
    wire.request(b"GET /wp-admin HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
    let span = span(&wire);
    assert_eq!((span.name.as_str(), text(&span, key::HTTP_ROUTE)), ("GET", None));
}

#[rstest]
#[case::fine(200, None, None)]
#[case::redirect(302, None, None)]
#[case::refused(404, None, Some("404"))]
#[case::failed(500, Some("500"), Some("500"))]
#[case::beyond(599, Some("599"), Some("599"))]
fn status(#[case] code: u16, #[case] at_server: Option<&str>, #[case] at_client: Option<&str>) {
    let response = format!("HTTP/1.1 {code} What\r\nContent-Length: 0\r\n\r\n");
    for (mut wire, expected) in [(Wire::server(1), at_server), (Wire::client(1), at_client)] {
        let span = span(wire.request(b"GET /a HTTP/1.1\r\n\r\n").response(response.as_bytes()));
        assert_eq!(text(&span, key::ERROR_TYPE), expected);
        assert_eq!(span.status.map(|status| status.code()), expected.map(|_| StatusCode::Error));
    }
}

#[rstest]
#[case::own_process(Some(false), 0x101)]
#[case::other_process(Some(true), 0x301)]
#[case::unknown(None, 0x1)]
fn remote_flag(#[case] is_parent_remote: Option<bool>, #[case] expected: u32) {
    assert_eq!(request::flags(&Ids { is_parent_remote, ..ids() }), expected);
}

#[test]
fn clocks_may_be_set_again() {
    let mut builder = SpanBuilder::new(SpanConfig::default(), Clock::new(0, 0));
    builder.set_clock(Clock::new(0, EPOCH_NS));
    assert_eq!(builder.clock.unix_ns(1), EPOCH_NS + 1);
}

#[test]
fn a_configuration_can_change_and_routes_stay() {
    let config = |max_words| SpanConfig {
        routes: RouteConfig { max_words, ..RouteConfig::default() },
        redact_query: false,
        ..SpanConfig::default()
    };
    let mut builder = SpanBuilder::new(config(1), Clock::new(0, EPOCH_NS));
    let route = |builder: &mut SpanBuilder, path| builder.routes.of("shop", Role::Server, path, true).unwrap();
    assert_eq!(route(&mut builder, "/a"), "/a");
    builder.set_config(SpanConfig { redact_query: true, ..config(1) });
    assert_eq!(route(&mut builder, "/b"), "/{id}", "the word is still known");
    builder.set_config(config(2));
    assert_eq!(route(&mut builder, "/b"), "/b", "other rules begin anew");
}
